"""Prepare a release: the version, its section of CHANGELOG.md, a tag, and a checked wheel and sdist.

    make release VERSION=0.2.0

The version is in pyproject.toml alone. Nothing is pushed or uploaded; the last lines say how. An interrupted
release leaves at most changed files, which `git checkout .` takes back.
"""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHANGELOG, PROJECT = ROOT / "CHANGELOG.md", ROOT / "pyproject.toml"
UNRELEASED = "## Unreleased"
_VERSION = re.compile(r'^version = "(.+)"$', re.MULTILINE)
# What a user of the wheel needs besides modules.
IN_WHEEL = ("clvr_model/recipes/paper.yaml", "infra/monitoring/alerts.yaml", "jobs/serve/static/", "LICENSE")


def main(version: str) -> None:
    """Build the release of the committed tree, commit and tag it. Ends with a message if it cannot."""
    require(bool(re.fullmatch(r"\d+\.\d+\.\d+", version)), f"{version!r} is not MAJOR.MINOR.PATCH")
    require(not git("status", "--porcelain"), "the working tree has changes; commit or stash them")
    require(not git("tag", "--list", f"v{version}"), f"the tag v{version} exists")
    project = PROJECT.read_text(encoding="utf-8")
    current = _VERSION.search(project)
    require(current is not None, "pyproject.toml has no version")
    CHANGELOG.write_text(released(CHANGELOG.read_text(encoding="utf-8"), version), encoding="utf-8")
    PROJECT.write_text(_VERSION.sub(f'version = "{version}"', project, count=1), encoding="utf-8")
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", str(dist), str(ROOT))
    files = sorted(str(path) for path in dist.iterdir())
    run(sys.executable, "-m", "twine", "check", "--strict", *files)
    check_contents(dist, version)
    git("add", "CHANGELOG.md", "pyproject.toml")
    git("commit", "--quiet", "-m", f"release: {version}")
    git("tag", "--annotate", f"v{version}", "-m", f"clvr-archive {version}")
    print(f"v{version} is committed and tagged; dist/ has {', '.join(Path(file).name for file in files)}")
    print(f"next: git push --follow-tags && {sys.executable} -m twine upload dist/*")


def released(changelog: str, version: str) -> str:
    """Return the changelog with the unreleased changes as the section of a version. Ends without changes."""
    before, mark, rest = changelog.partition(f"{UNRELEASED}\n")
    changes = rest.partition("\n## ")[0].strip()
    require(bool(mark and changes), f"CHANGELOG.md has nothing below {UNRELEASED!r}")
    return f"{before}{UNRELEASED}\n\n## {version} ({datetime.now(UTC):%Y-%m-%d})\n{rest}"


def check_contents(dist: Path, version: str) -> None:
    """End with a message if the wheel or the sdist lacks files, or has another version."""
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for needed in IN_WHEEL:
        require(any(needed in name for name in names), f"{wheel.name} has no {needed}")
    require(not any(name.startswith("tests/") for name in names), f"{wheel.name} has tests")
    with tarfile.open(sdist) as archive:
        has_readme = any(name.endswith("/README.md") for name in archive.getnames())
    require(has_readme, f"{sdist.name} has no README.md")
    for file in (wheel, sdist):
        require(f"-{version}" in file.name, f"{file.name} is not of {version}")


def require(holds: bool, problem: str) -> None:
    """End with a message unless something holds."""
    if not holds:
        raise SystemExit(f"release: {problem}")


def git(*arguments: str) -> str:
    """Return what git prints."""
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def run(*command: str) -> None:
    """Run a command, and end with its exit code if it fails."""
    if code := subprocess.run(command, check=False).returncode:
        raise SystemExit(code)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: make release VERSION=0.2.0")
    main(sys.argv[1])
