"""A command whose packages are not installed says which role brings them."""

import subprocess
import sys

import pytest

from jobs.cli.packages import missing_package


@pytest.mark.parametrize(
    ("module", "command", "role"),
    [
        ("pymilvus", "search", "search"),
        ("ray.data", "embed", "embed"),
        ("torch", "evaluate", "evaluate"),
        ("numba", "promote", "all"),
        ("torch", None, "all"),
    ],
)
def test_the_remedy_names_the_role_of_the_command(module: str, command: str | None, role: str) -> None:
    error = missing_package(ModuleNotFoundError(f"No module named {module!r}", name=module), command)
    assert error is not None
    assert module.partition(".")[0] in error.message
    assert f"clvr-archive[{role}]" in error.remedy


@pytest.mark.parametrize("module", ["pyarrow", "no_such_module", None])
def test_a_module_of_no_role_is_an_unexpected_error(module: str | None) -> None:
    assert missing_package(ModuleNotFoundError("no module", name=module), "search") is None


def test_a_searcher_without_ray_is_told_in_one_line() -> None:
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "sys.argv = ['clvr', 'generate', 'here', '--labels', 'there']\n"
        "from jobs.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "error: this command needs the package ray, which is not installed" in done.stderr
    assert "pip install 'clvr-archive[all]'" in done.stderr
    assert "Traceback" not in done.stderr
