"""Settings: one order of precedence, an origin for each value, and no visible secret."""

from pathlib import Path

import pytest

from infra.errors import BadSetting
from infra.settings import load_settings, origins, unknown_variables


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("CLVR_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "night.yaml"
    file.write_text("alias: from-file\nruns: s3://from-file\nray: from-file\n")
    monkeypatch.setenv("CLVR_ALIAS", "from-environment")
    monkeypatch.setenv("CLVR_RUNS", "s3://from-environment")
    settings = load_settings({"runs": "s3://from-flag", "alias": None}, file=file)
    assert settings.runs == "s3://from-flag"
    assert settings.alias == "from-environment"
    assert settings.ray == "from-file"
    assert settings.milvus == load_settings().milvus


def test_every_value_has_its_origin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "clvr.yaml").write_text("alias: cars\n")
    monkeypatch.setenv("CLVR_RAY", "auto")
    by_name = {row.name: row.origin for row in origins({"runs": "here"})}
    assert by_name["alias"] == "clvr.yaml"
    assert by_name["ray"] == "CLVR_RAY"
    assert by_name["runs"] == "flag"
    assert by_name["milvus"] == "default"


def test_a_token_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLVR_MILVUS_TOKEN", "root:very-secret")
    assert "very-secret" not in repr(load_settings())
    assert "very-secret" not in repr(origins())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alisa: cars\n", "alisa"),
        ("alias: [1, 2]\n", "alias"),
        ("- alias\n", "name: value"),
        ("alias: [\n", "cannot be read"),
    ],
    ids=["unknown name", "wrong type", "a list", "no YAML"],
)
def test_a_bad_file_is_rejected_with_the_name_of_the_fault(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(BadSetting, match=message):
        load_settings(file=file)


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"missing\.yaml"):
        load_settings(file=tmp_path / "missing.yaml")


def test_a_variable_with_a_slip_is_named_with_the_setting_that_was_meant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("CLVR_RUN", "CLVR_MILVUS_TOKN", "CLVR_CONFG"):
        monkeypatch.setenv(name, "x")
    for name in ("CLVR_PORT", "CLVR_SERVICE_HOST", "CLVR_PORT_8080_TCP_ADDR"):  # a Kubernetes service `clvr`
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("CLVR_SERVE_TOKEN", "x")
    unknown = unknown_variables()
    assert {name: similar for name, similar in unknown.items() if similar} == {
        "CLVR_RUN": "CLVR_RUNS",
        "CLVR_MILVUS_TOKN": "CLVR_MILVUS_TOKEN",
        "CLVR_CONFG": "CLVR_CONFIG",
    }
    assert "CLVR_PORT" in unknown and "CLVR_SERVE_TOKEN" not in unknown
