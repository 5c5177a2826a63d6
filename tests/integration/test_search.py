"""`clvr search` and `clvr calibrate` on a real index: what is asked, what is answered, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infra.store import open_store
from jobs.cli.app import app

pytestmark = pytest.mark.integration


class Clvr:
    def __init__(self, searchable: Any) -> None:
        self.archive = searchable
        self.environment = searchable.environment()

    def __call__(self, *arguments: object) -> str:
        result = CliRunner().invoke(app, [str(each) for each in arguments], env=self.environment)
        assert result.exit_code == 0, result.output
        return result.stdout

    def refused(self, *arguments: object) -> tuple[int, str]:
        result = CliRunner().invoke(app, [str(each) for each in arguments], env=self.environment)
        assert result.exit_code not in (0, 1), result.output
        return result.exit_code, result.output

    def json(self, *arguments: object) -> dict[str, Any]:
        return json.loads(self(*arguments, "--json"))


@pytest.fixture
def clvr(searchable: Any) -> Clvr:
    return Clvr(searchable)


def test_an_archived_probe_finds_its_vehicle_at_other_cameras_once_a_pass(clvr: Clvr) -> None:
    uri = clvr.archive.crops[0]
    found = clvr.json("search", uri, "--top", 2)
    passes = {(each["camera_id"], each["track_id"]) for each in found["answers"]}
    assert passes == {("001", "t0-1"), ("002", "t0-2")}
    assert [each["crops_of_pass"] for each in found["answers"]] != [1, 1]
    assert found["sightings"][0]["camera_id"] == "000"


def test_the_same_crop_by_its_id_gives_the_same(clvr: Clvr) -> None:
    by_id = clvr.json("search", f"crop:{clvr.archive.crop_id(0, 0)}")
    assert by_id["answers"] == clvr.json("search", clvr.archive.crops[0])["answers"]


def test_with_the_own_camera_and_every_crop_the_neighbour_frame_is_there(clvr: Clvr) -> None:
    found = clvr.json("search", clvr.archive.crops[0], "--same-camera", "--every-crop", "--top", 60)
    ids = [each["crop_id"] for each in found["answers"]]
    # The probe's own pass stays away, and so does the probe.
    assert clvr.archive.crop_id(0, 0) not in ids
    assert clvr.archive.crop_id(0, 1) not in ids
    assert len(ids) == 58


def test_filters_and_times_hold(clvr: Clvr) -> None:
    found = clvr.json("search", clvr.archive.pictures[0], "--camera", "001", "--from", "2026-01-05T08:00:00")
    assert found["answers"]
    assert {each["camera_id"] for each in found["answers"]} == {"001"}
    assert min(each["captured_at"] for each in found["answers"]) >= 1_767_600_000_000


def test_several_pictures_and_re_ranking_are_one_probe(clvr: Clvr) -> None:
    found = clvr.json("search", *clvr.archive.pictures[:2], "--rerank", "--top", 5)
    assert len(found["answers"]) == 5
    assert [each["rank"] for each in found["answers"]] == [1, 2, 3, 4, 5]


def test_journeys_are_marked_and_dropped(clvr: Clvr, tmp_path: Path) -> None:
    cameras = tmp_path / "cameras.csv"
    cameras.write_text("camera_id,lat,lon\n000,52.5,13.4\n001,52.5,13.5\n002,48.1,11.5\n003,52.6,13.4\n")
    probe = clvr.archive.crops[0]
    marked = clvr("search", probe, "--cameras", cameras, "--top", 60)
    assert "IMPOSSIBLE: " in marked
    kept = clvr.json("search", probe, "--cameras", cameras, "--drop-impossible", "--top", 60)
    assert all(each["journey"] is None or each["journey"]["possible"] for each in kept["answers"])
    assert len(kept["answers"]) > 0


def test_a_page_shows_the_crops(clvr: Clvr, tmp_path: Path) -> None:
    clvr("search", clvr.archive.pictures[0], "--top", 4, "--html", tmp_path / "strip.html")
    page = (tmp_path / "strip.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 5
    assert "Rank 4" in page


def test_after_calibration_not_in_the_archive_is_an_answer(clvr: Clvr, tmp_path: Path) -> None:
    text = clvr("calibrate", "latest", "--false-alarm-rate", "0.1")
    assert "for a false-alarm rate of 10.0%" in text
    found = clvr.json("search", clvr.archive.crops[0], "--top", 3)
    assert found["threshold"] > 0
    assert all(0 < each["likelihood"] < 1 for each in found["answers"])
    from PIL import Image

    Image.new("RGB", (200, 200), (255, 0, 255)).save(tmp_path / "strange.png")
    assert clvr.json("search", tmp_path / "strange.png")["verdict"] == "not found"
    assert "not in the archive" in clvr("search", tmp_path / "strange.png")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["crop:12"], 3, "crop 12 is not in"),
        (["crop:x"], 3, "names no crop"),
        (["nosuch.jpg"], 4, "no object"),
        (["PICTURE", "--camera", "999"], 3, "cameras there are: 000, 001, 002, 003"),
        (["PICTURE", "--from", "soon"], 3, "not an ISO 8601 time"),
        (["PICTURE", "--from", "2026-02-02", "--to", "2026-01-01"], 3, "nothing lies between"),
        (["PICTURE", "--model", "Tank"], 3, "it knows: Hatch, Van"),
        (["PICTURE", "--drop-impossible"], 3, "--cameras"),
        (["PICTURE", "--seen", "000"], 3, "says no time"),
        (["PICTURE", "--max-distance", "-1"], 3, "lets nothing through"),
        (["PICTURE", "--alias", "other"], 3, "points to nothing"),
        (["README"], 3, "not-a-picture"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_nonsense_is_refused_with_what_to_do(
    clvr: Clvr, tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    readme = tmp_path / "README"
    readme.write_text("no picture at all " * 50)
    places = {"PICTURE": str(clvr.archive.pictures[0]), "README": str(readme)}
    given = [places.get(each, each) for each in arguments]
    exit_code, output = clvr.refused("search", *given)
    assert exit_code == code, output
    assert said in output


def test_a_window_without_crops_is_no_error(clvr: Clvr) -> None:
    assert "nothing in the archive passes" in clvr("search", clvr.archive.pictures[0], "--from", "2031-01-01")


def test_another_models_probe_is_refused_with_both_fingerprints(clvr: Clvr, tmp_path: Path) -> None:
    from clvr_model.checkpoint import Card, save_checkpoint
    from clvr_model.network import Clvr as Network

    other = save_checkpoint(str(tmp_path / "other"), Network(2, seed=2).eval(), Card(label_ids=(0, 1)))
    code, output = clvr.refused("search", clvr.archive.pictures[0], "--checkpoint", tmp_path / "other")
    assert code == 6
    assert other.fingerprint in output


def test_a_name_that_would_break_out_of_the_filter_stays_a_name(clvr: Clvr) -> None:
    code, output = clvr.refused("search", clvr.archive.pictures[0], "--camera", '" or crop_id > 0 or "')
    assert code == 3
    assert "no crop of" in output


def test_a_probe_may_lie_in_object_storage(
    clvr: Clvr, bucket: str, seaweedfs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = clvr.archive.pictures[0]
    open_store(bucket, seaweedfs.settings).put("probes/one.jpg", picture)
    for name, value in seaweedfs.environment.items():
        monkeypatch.setenv(name, value)
    found = clvr.json("search", f"{bucket}/probes/one.jpg", "--top", 3)
    assert found["answers"] == clvr.json("search", picture, "--top", 3)["answers"]
    code, output = clvr.refused("search", f"{bucket}/probes/two.jpg")
    assert (code, "two.jpg" in output) == (4, True)
