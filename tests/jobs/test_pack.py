"""`clvr pack` as a user runs it: an archive into tar files, which `clvr plan` then reads."""

import json
import shlex
from pathlib import Path


def test_an_archive_is_packed_once_and_planned_from_it(clvr, archive: Path, tmp_path: Path) -> None:
    done = clvr("pack", str(archive / "archive"), "--to", "packed", "--json")
    assert done.returncode == 0, done.stderr
    packed = json.loads(done.stdout)
    assert (packed["crops"], packed["packed_before"]) == (48, 0)
    assert packed["tars"] == packed["indexes"] == len(list(tmp_path.glob("packed/dt=*/00000.tar")))
    pattern = "dt={date}/{*}.tar#cam={camera_id}/{captured_at}_{track_id}.jpg"
    done = clvr("plan", "packed", "--key-pattern", pattern, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["crops"] == 48
    assert "do not match" not in done.stderr
    done = clvr("pack", str(archive / "archive"), "--to", "packed")
    assert "0 crops in 0 tar files" in done.stdout and "48 were packed before" in done.stdout
    following = shlex.split(done.stdout.rpartition("next: ")[2])
    assert following[0] == "clvr" and clvr(*following[1:]).returncode == 0  # runs as it is printed
    done = clvr("pack", str(archive / "archive"), "--to", str(archive / "archive" / "packed"))
    assert done.returncode != 0 and "contain each other" in done.stderr
    done = clvr("pack", "packed")
    assert done.returncode == 2 and "--to FOLDER or --index" in done.stderr
