"""`clvr search` and `clvr calibrate` on a real index: probes, matches and errors."""

import hashlib
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from json_documents import read_document
from pyarrow import csv
from typer.testing import CliRunner

from infra.settings import Settings
from infra.store import open_store
from jobs.cases.audit import AuditTrail
from jobs.cases.casebook import open_casebook
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

    def fails(self, *arguments: object) -> tuple[int, str]:
        result = CliRunner().invoke(app, [str(each) for each in arguments], env=self.environment)
        assert result.exit_code not in (0, 1), result.output
        return result.exit_code, result.output

    def json(self, *arguments: object) -> dict[str, Any]:
        return read_document(arguments, self(*arguments, "--json"))


@pytest.fixture
def clvr(searchable: Any) -> Clvr:
    return Clvr(searchable)


def test_an_archived_probe_matches_its_vehicle_at_other_cameras_once_per_track(clvr: Clvr) -> None:
    uri = clvr.archive.crops[0]
    result = clvr.json("search", uri, "--top", 2)
    tracks = {(match["camera_id"], match["track_id"]) for match in result["answers"]}
    assert tracks == {("001", "t0-1"), ("002", "t0-2")}
    assert [match["crops_of_pass"] for match in result["answers"]] != [1, 1]
    assert result["sightings"][0]["camera_id"] == "000"


def test_a_crop_id_and_its_uri_give_the_same_matches(clvr: Clvr) -> None:
    by_id = clvr.json("search", f"crop:{clvr.archive.crop_id(0, 0)}")
    assert by_id["answers"] == clvr.json("search", clvr.archive.crops[0])["answers"]


def test_a_track_is_one_probe_of_all_its_crops(clvr: Clvr, tmp_path: Path) -> None:
    crops = [f"crop:{clvr.archive.crop_id(0, sighting)}" for sighting in (0, 1)]
    html = tmp_path / "page.html"
    by_track = clvr.json("search", "track:000/t0-0", "--html", html)
    assert by_track["answers"] == clvr.json("search", *crops)["answers"]
    assert {sighting["crop_id"] for sighting in by_track["sightings"]} == {
        clvr.archive.crop_id(0, sighting) for sighting in (0, 1)
    }
    assert html.read_text().count("data:image/jpeg") == 2 + len(by_track["answers"])
    # Its own track is no match, also where its camera may be.
    anywhere = clvr.json("search", "track:000/t0-0", "--same-camera", "--top", 60)["answers"]
    assert ("000", "t0-0") not in {(match["camera_id"], match["track_id"]) for match in anywhere}
    code, message = clvr.fails("search", "track:001/t0-0")
    assert code == 3 and "has no track" in message
    code, message = clvr.fails("search", "track:t0-0")
    assert code == 3 and "is not a track" in message


def test_same_camera_without_grouping_matches_every_crop_of_other_tracks(clvr: Clvr) -> None:
    result = clvr.json("search", clvr.archive.crops[0], "--same-camera", "--no-group-by-track", "--top", 60)
    ids = [match["crop_id"] for match in result["answers"]]
    # The probe and its own track are never matches.
    assert clvr.archive.crop_id(0, 0) not in ids
    assert clvr.archive.crop_id(0, 1) not in ids
    assert len(ids) == 58


def test_matches_pass_the_camera_filter_and_the_time_window(clvr: Clvr) -> None:
    result = clvr.json("search", clvr.archive.pictures[0], "--camera", "001", "--from", "2026-01-05T08:00:00")
    assert result["answers"]
    assert {match["camera_id"] for match in result["answers"]} == {"001"}
    assert min(match["captured_at"] for match in result["answers"]) >= 1_767_600_000_000


def test_several_images_are_one_probe_which_can_be_re_ranked(clvr: Clvr) -> None:
    result = clvr.json("search", *clvr.archive.pictures[:2], "--rerank", "--top", 5)
    assert len(result["answers"]) == 5
    assert [match["rank"] for match in result["answers"]] == [1, 2, 3, 4, 5]


def test_impossible_travel_is_marked_or_excluded(clvr: Clvr, tmp_path: Path) -> None:
    cameras = tmp_path / "cameras.csv"
    cameras.write_text("camera_id,lat,lon\n000,52.5,13.4\n001,52.5,13.5\n002,48.1,11.5\n003,52.6,13.4\n")
    probe = clvr.archive.crops[0]
    marked = clvr("search", probe, "--camera-positions", cameras, "--top", 60)
    assert "IMPOSSIBLE: " in marked
    possible = clvr.json("search", probe, "--camera-positions", cameras, "--drop-impossible", "--top", 60)
    assert all(match["journey"] is None or match["journey"]["possible"] for match in possible["answers"])
    assert len(possible["answers"]) > 0


def test_a_search_is_recorded_with_who_why_what_and_what_was_shown(clvr: Clvr, tmp_path: Path) -> None:
    clvr.environment["CLVR_CASES"] = str(tmp_path / "cases.db")
    image = clvr.archive.pictures[0]
    shown = clvr.json("search", image, "--case-number", "26-117", "--camera", "001", "--top", 3)["answers"]
    clvr.fails("search", "crop:1")
    done, failed = (record for record in clvr.json("audit") if record["action"] == "search")
    assert (done["case"], done["state"], done["answers"]) == ("26-117", "done", len(shown))
    assert done["probes"] == [str(image)]
    assert done["parameters"]["cameras"] == ["001"]
    assert done["parameters"]["sha256"] == {str(image): hashlib.sha256(Path(image).read_bytes()).hexdigest()}
    assert (failed["state"], failed["answers"]) == ("failed", 0)
    assert failed["error"].startswith("crop 1 is not in")
    settings = Settings(runs=clvr.archive.settings.runs, cases=clvr.environment["CLVR_CASES"])
    trail = AuditTrail(open_casebook(settings))
    assert [entry.crop for entry in trail.shown(done["id"])] == [match["crop"] for match in shown]


def test_a_search_without_a_record_is_refused_only_if_a_case_number_is_required(
    clvr: Clvr, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cases.db").mkdir()
    clvr.environment["CLVR_CASES"] = str(tmp_path / "cases.db")
    crop, page = clvr.archive.crops[0], tmp_path / "page.html"
    assert clvr.json("search", crop)["answers"]
    assert "the audit has no record of this search" in caplog.text
    clvr.environment["CLVR_CASE_REQUIRED"] = "true"
    code, message = clvr.fails("search", crop, "--html", page)
    assert code == 3 and "needs a case number" in message and "--case-number" in message
    code, message = clvr.fails("search", crop, "--case-number", "26-117", "--html", page)
    assert code == 4 and "database of cases" in message
    assert not page.exists()


def test_the_page_shows_the_crops(clvr: Clvr, tmp_path: Path) -> None:
    clvr("search", clvr.archive.pictures[0], "--top", 4, "--html", tmp_path / "strip.html")
    page = (tmp_path / "strip.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 5
    assert "Rank 4" in page


def test_the_matches_are_written_as_csv_and_as_parquet(clvr: Clvr, tmp_path: Path) -> None:
    probe, files = clvr.archive.pictures[0], [tmp_path / "matches.csv", tmp_path / "matches.parquet"]
    answers = clvr.json("search", probe, "--top", 4, "--table", files[0])["answers"]
    clvr("search", probe, "--top", 4, "--table", files[1])
    text, stored = csv.read_csv(files[0]), pq.read_table(files[1])
    for table in (text, stored):
        assert table["crop_id"].to_pylist() == [match["crop_id"] for match in answers]
        assert table["vehicle_model"].to_pylist() == [match["vehicle_model"] for match in answers]
    assert stored["captured_at"].to_pylist() == [match["captured_at"] for match in answers]
    assert text["captured_at"].cast("timestamp[ms]").cast("int64").equals(stored["captured_at"])
    code, message = clvr.fails("search", probe, "--table", tmp_path / "matches.xlsx")
    assert code == 3 and ".csv or .parquet" in message


def test_a_calibrated_model_reports_a_vehicle_that_is_not_in_the_archive(clvr: Clvr, tmp_path: Path) -> None:
    text = clvr("calibrate", "latest", "--false-alarm-rate", "0.1")
    assert "for a false-alarm rate of 10.0%" in text
    result = clvr.json("search", clvr.archive.crops[0], "--top", 3)
    assert result["threshold"] > 0
    assert all(0 < match["likelihood"] < 1 for match in result["answers"])
    from PIL import Image

    Image.new("RGB", (200, 200), (255, 0, 255)).save(tmp_path / "strange.png")
    assert clvr.json("search", tmp_path / "strange.png")["verdict"] == "not found"
    assert "not in the archive" in clvr("search", tmp_path / "strange.png")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["crop:12"], 3, "crop 12 is not in"),
        (["crop:x"], 3, "is not a crop"),
        (["nosuch.jpg"], 3, "nosuch.jpg does not exist"),
        (["IMAGE", "--camera", "999"], 3, "known cameras: 000, 001, 002, 003"),
        (["IMAGE", "--from", "soon"], 3, "not an ISO 8601 time"),
        (["IMAGE", "--from", "2026-02-02", "--until", "2026-01-01"], 3, "time window is empty"),
        (["IMAGE", "--vehicle-model", "Tank"], 3, "vehicle models: Hatch, Van"),
        (["IMAGE", "--vehicle-model", "999"], 3, "knows no vehicle model 999"),
        (["IMAGE", "--drop-impossible"], 3, "--camera-positions"),
        (["IMAGE", "--sighting", "000"], 3, "has no time"),
        (["IMAGE", "--max-distance", "-1"], 3, "is not positive"),
        (["IMAGE", "--alias", "other"], 3, "points to nothing"),
        (["README"], 3, "not-a-picture"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invalid_input_fails_with_a_remedy(
    clvr: Clvr, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    readme = tmp_path / "README"
    readme.write_text("no picture at all " * 50)
    places = {"IMAGE": str(clvr.archive.pictures[0]), "README": str(readme)}
    given = [places.get(each, each) for each in arguments]
    exit_code, output = clvr.fails("search", *given)
    assert exit_code == code, output
    assert message in output


def test_a_time_window_without_crops_is_not_an_error(clvr: Clvr) -> None:
    assert "nothing in the archive passes" in clvr("search", clvr.archive.pictures[0], "--from", "2031-01-01")


def test_a_checkpoint_of_another_model_fails_with_its_fingerprint(clvr: Clvr, tmp_path: Path) -> None:
    from clvr_model.checkpoint import Card, save_checkpoint
    from clvr_model.network import Clvr as Network

    other = save_checkpoint(str(tmp_path / "other"), Network(2, seed=2).eval(), Card(label_ids=(0, 1)))
    code, output = clvr.fails("search", clvr.archive.pictures[0], "--checkpoint", tmp_path / "other")
    assert code == 6
    assert other.fingerprint in output


def test_a_camera_name_cannot_change_the_filter_expression(clvr: Clvr) -> None:
    code, output = clvr.fails("search", clvr.archive.pictures[0], "--camera", '" or crop_id > 0 or "')
    assert code == 3
    assert "no crop of" in output


def test_a_probe_may_be_in_object_storage(
    clvr: Clvr, bucket: str, seaweedfs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = clvr.archive.pictures[0]
    open_store(bucket, seaweedfs.settings).put("probes/one.jpg", image)
    for name, value in seaweedfs.environment.items():
        monkeypatch.setenv(name, value)
    result = clvr.json("search", f"{bucket}/probes/one.jpg", "--top", 3)
    assert result["answers"] == clvr.json("search", image, "--top", 3)["answers"]
    code, output = clvr.fails("search", f"{bucket}/probes/two.jpg")
    assert (code, "two.jpg" in output) == (4, True)
