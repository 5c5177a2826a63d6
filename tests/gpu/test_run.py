"""The checks of `make gpu`, without one: they compare the CPU with itself, and a wrong result is an error."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from gpu import run as script
from gpu.run import Finding


def test_every_check_passes_on_a_cpu(tmp_path: Path) -> None:
    written = tmp_path / "gpu.json"
    options = ["--device", "cpu", "--scale", "tiny", "--json", str(written)]
    done = subprocess.run(
        [sys.executable, script.__file__, *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    findings = [Finding(**each) for each in json.loads(written.read_text())]
    assert {each.path for each in findings} == {
        *("machine", "embedding", "training", "exact scan", "CMC", "feed")
    }
    assert sum(each.passed is True for each in findings) >= 5
    assert all(each.value > 0 for each in findings if each.unit == "images/s")


def test_a_wrong_result_ends_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [Finding("CMC", "ranks", "compared", "", False), Finding("CMC", "CPU", 1.0, "s")]
    monkeypatch.setattr(script, "run", lambda device, scale: found)
    monkeypatch.setattr(sys, "argv", ["run.py", "--device", "cpu", "--json", str(tmp_path / "gpu.json")])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 1
    assert "1 of 1 checks are wrong" in capsys.readouterr().out
