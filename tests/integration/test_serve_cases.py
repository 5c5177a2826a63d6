"""The API of the desk: audit, users and roles, cases, images, health, and its OpenAPI document."""

import io
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from serving import Served, form

from infra.errors import BadSetting, CaseDatabaseError
from infra.settings import Settings
from jobs.cases.audit import Purpose
from jobs.cases.database import CaseDatabase
from jobs.cases.signing import verify_export
from jobs.search.searcher import Searcher
from jobs.serve.access import AccessPolicy, Limits
from jobs.serve.app import make_api
from jobs.serve.links import MapTiles, VideoLink
from jobs.serve.rate_limit import RateLimit
from jobs.serve.request import ServeRequest, make_policy
from jobs.serve.schemas import WebRules
from jobs.serve.service import SearchService
from jobs.serve.users import Identity, User

pytestmark = pytest.mark.integration

OPENAPI = Path(__file__).with_name("openapi.json")
ADA = {"X_User": "ada", "X_Groups": "analysts, staff"}
EVE = {"X_User": "eve", "X_Groups": "staff"}
ROOT = {"X_User": "root@example"}


@pytest.fixture(scope="module")
def policy_settings(searchable: Any, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    changes = {
        "cases": str(tmp_path_factory.mktemp("cases") / "cases.db"),
        "case_required": True,
        "user_header": "X-User",
        "groups_header": "X-Groups",
        "searchers": "staff",
        "judges": "analysts",
        "administrators": "root@example",
        "video_url": "https://vms.example/{camera_id}?t={iso}",
    }
    return Settings(**{**searchable.settings.model_dump(), **changes})


@pytest.fixture(scope="module")
def desk(searcher: Searcher, policy_settings: Settings) -> Iterator[Served]:
    """The page for users of a proxy on this machine."""
    proxied = Searcher(policy_settings, threads=0, predecessor=searcher)
    server = Served(proxied, make_policy(ServeRequest(), policy_settings), Limits(1 << 20), access_log=True)
    yield server
    server.stop()


def search(served: Served, status: int = 200, image: bytes | None = None, **fields: Any) -> Any:
    headers = fields.pop("headers", {})
    code, _, body = served.ask("/api/search", **form(image, fields.pop("rules", None), **fields), **headers)
    assert code == status, body
    return json.loads(body)


# ---- users, roles, audit ------------------------------------------------------------------------------


def test_the_proxy_names_the_users_and_their_roles(desk: Served, searchable: Any) -> None:
    crop = searchable.crop_id(0, 0)
    assert desk.ask("/api/about")[0] == 401
    assert desk.ask("/")[0] == 200
    assert desk.json("/api/about", **ADA)[1]["user"] == {"name": "ada", "roles": ["judge", "search"]}
    assert desk.json("/api/cases", **ADA)[0] == 200
    assert desk.json("/api/cases", **EVE)[0] == 403
    assert desk.json("/api/audit", **ADA)[0] == 403
    assert desk.json("/api/audit", **ROOT)[0] == 200
    assert desk.ask(f"/api/crops/{crop}.jpg", **ROOT)[0] == 403
    assert desk.ask(f"/api/crops/{crop}.jpg", **EVE)[0] == 200


def test_users_of_another_address_than_the_proxys_are_refused(
    searcher: Searcher, policy_settings: Any
) -> None:
    identity = Identity.of(policy_settings.model_copy(update={"proxies": "10.0.0.0/24"}))
    assert isinstance(identity.user_of({"x-user": "ada"}, "127.0.0.1"), str)
    assert isinstance(identity.user_of({"x-user": "ada"}, "10.0.0.7"), User)
    assert isinstance(identity.user_of({"x-user": "ada"}, "::ffff:10.0.0.7"), User)
    assert isinstance(identity.user_of({"x-user": " "}, "10.0.0.7"), str)
    far = Served(searcher, AccessPolicy(None, identity=identity), Limits(1 << 20))
    try:
        assert far.ask("/api/about", X_User="ada", X_Forwarded_For="10.0.0.7")[0] == 403
        assert far.ask("/healthz")[0] == 200
    finally:
        far.stop()


def test_settings_that_do_not_fit_are_refused(
    policy_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for changes in ({"proxies": "nowhere"}, {"user_header": "X User:"}):
        with pytest.raises(BadSetting):
            Identity.of(policy_settings.model_copy(update=changes))
    with pytest.raises(BadSetting, match="replicas"):
        make_policy(ServeRequest(replicas=2), policy_settings)
    monkeypatch.setenv("CLVR_SERVE_TOKEN", "a-token-that-is-long-enough")
    with pytest.raises(BadSetting, match="two ways"):
        make_policy(ServeRequest(), policy_settings)
    for template in (
        "javascript:alert(1)//{camera_id}",
        "https://x/{password}",
        "https://x/{camera_id.__class__}",
    ):
        with pytest.raises(BadSetting):
            VideoLink(template)
    for template in ("https://x", "https://x/{z}/{x}/{q}.png", "https://x; script-src */{z}/{x}/{y}.png"):
        with pytest.raises(BadSetting):
            MapTiles(template)
    assert MapTiles("https://tiles.example:8443/{z}/{x}/{y}.png").origin == "https://tiles.example:8443"
    assert MapTiles(None).origin == ""
    assert (
        VideoLink("https://x/{camera_id}?t={iso}").of("a/b&c", "", 0)
        == "https://x/a%2Fb%26c?t=1970-01-01T00:00:00Z"
    )


def test_every_search_is_recorded_with_who_why_what_and_what_was_shown(desk: Served, searchable: Any) -> None:
    crop = f"crop:{searchable.crop_id(0, 0)}"
    refused = search(desk, 400, probe=crop, headers=EVE)
    assert "case number" in refused["error"]
    done = search(desk, probe=crop, case_number="26-1", reason="hit and run", rules={"top": 4}, headers=EVE)
    search(desk, 400, probe=crop, case_number="26-2", rules={"cameras": ["nowhere"]}, headers=EVE)
    records = desk.json("/api/audit?user=eve", **ROOT)[1]["searches"]
    failed, kept = records[0], records[1]
    assert len(records) == 2
    assert (kept["by"], kept["case_number"], kept["reason"], kept["state"]) == (
        "eve",
        "26-1",
        "hit and run",
        "done",
    )
    assert (kept["probes"], kept["parameters"], kept["answers"]) == ([crop], {"top": 4}, 4)
    assert (kept["id"], kept["generation"], kept["fingerprint"]) == (
        done["search_id"],
        done["generation"],
        done["fingerprint"],
    )
    assert (failed["state"], failed["case_number"]) == ("failed", "26-2")
    assert "nowhere" in failed["error"]
    shown = desk.json(f"/api/audit/{done['search_id']}", **ROOT)[1]["shown"]
    assert [(one["rank"], one["crop"]) for one in shown] == [(a["rank"], a["crop"]) for a in done["answers"]]


def test_a_search_that_cannot_be_recorded_is_not_done(
    searcher: Searcher, tmp_path: Path, searchable: Any
) -> None:
    path = tmp_path / "cases.db"
    service = SearchService(searcher, None, database=CaseDatabase(str(path)))
    purpose = Purpose(user="ada")
    assert service.search([], [searchable.crop_id(0, 0)], WebRules(), purpose=purpose).answers
    with sqlite3.connect(path) as raw:
        raw.execute("DROP TABLE shown")
    with pytest.raises(CaseDatabaseError):
        service.search([], [searchable.crop_id(0, 0)], WebRules(), purpose=purpose)
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT state, count(*) FROM searches GROUP BY state").fetchall() == [
            ("begun", 1),
            ("done", 1),
        ]


def test_a_user_who_searches_too_often_waits() -> None:
    now = [0.0]
    limit = RateLimit(3, clock=lambda: now[0])
    assert [limit.wait("ada") for _ in range(3)] == [0, 0, 0]
    assert limit.wait("ada") == pytest.approx(20)
    assert limit.wait("bob") == 0
    now[0] = 20.1
    assert limit.wait("ada") == 0


# ---- images -------------------------------------------------------------------------------------------


def test_an_upload_is_shown_encoded_again_and_a_box_of_it_is_searched(
    served: Served, searchable: Any
) -> None:
    image = searchable.pictures[0].read_bytes() + b"<script>alert(1)</script>"
    exif = Image.Exif()
    exif[0x010E] = "a secret"
    buffer = io.BytesIO()
    Image.open(io.BytesIO(image)).save(buffer, "JPEG", exif=exif)
    for data in (image, buffer.getvalue()):
        sent = json.loads(served.ask("/api/uploads", **form(data))[2])
        assert (sent["width"], sent["height"], sent["size"]) == (160, 120, len(data))
        status, headers, shown = served.ask(f"/api/uploads/{sent['sha256']}.jpg")
        assert (status, headers["content-type"], headers["cache-control"]) == (200, "image/jpeg", "no-store")
        assert b"script" not in shown
        assert b"secret" not in shown
    cut = served.ask(f"/api/uploads/{sent['sha256']}.jpg?box=0.25,0.5,0.5,0.25")[2]
    assert Image.open(io.BytesIO(cut)).size == (80, 30)
    whole, part = (search(served, probe=spec) for spec in (sent["spec"], f"{sent['spec']}@0.2,0.4,0.5,0.5"))
    assert whole["answers"][0]["distance"] != part["answers"][0]["distance"]
    assert part["probes"][0]["image"].endswith("box=0.2,0.4,0.5,0.5")


@pytest.mark.parametrize("data", [b"", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"GIF89a" + bytes(99)])
def test_what_is_no_image_is_not_kept(served: Served, data: bytes) -> None:
    assert served.ask("/api/uploads", **form(data))[0] == 400


@pytest.mark.parametrize(
    "spec",
    [
        "upload:" + 64 * "0",
        "upload:../../etc/passwd",
        "upload:" + 64 * "0" + "@1,2,3",
        "upload:" + 64 * "0" + "@nan,0,1,1",
        "upload:" + 64 * "0" + "@0,0,2,2",
        "/etc/passwd",
        "http://127.0.0.1/",
    ],
)
def test_a_probe_that_is_not_there_is_refused(served: Served, spec: str) -> None:
    search(served, 400, probe=spec)
    assert served.ask(f"/api/uploads/{spec.removeprefix('upload:').replace('/', '%2F')}.jpg")[0] in (400, 404)


def test_an_original_has_its_own_size_and_a_link_to_the_video(desk: Served, searchable: Any) -> None:
    crop = searchable.crop_id(1, 0)
    status, headers, jpeg = desk.ask(f"/api/crops/{crop}/original.jpg", **ADA)
    assert (status, headers["content-type"]) == (200, "image/jpeg")
    assert Image.open(io.BytesIO(jpeg)).size == (160, 120)
    facts = desk.json(f"/api/crops/{crop}", **ADA)[1]
    assert facts["video"] == "https://vms.example/001?t=2026-01-05T08:01:00Z"
    assert len(facts["track"]) == 2
    for wrong in ("1", "9" * 30, "x"):
        assert desk.ask(f"/api/crops/{wrong}/original.jpg", **ADA)[0] == 400


# ---- cases --------------------------------------------------------------------------------------------


def test_a_case_from_its_probe_to_its_verified_export(
    served: Served, searchable: Any, tmp_path: Path
) -> None:
    case = served.json("/api/cases", {"number": "26-9", "title": "A case"})[1]["id"]
    assert served.json("/api/cases", {"number": "26-9"})[0] == 400
    found = search(
        served, probe=f"crop:{searchable.crop_id(3, 0)}", case_number="26-9", rules={"same_camera": True}
    )
    crops = [answer["crop"] for answer in found["answers"]]
    for crop, verdict in zip(crops, ("confirmed", "confirmed", "rejected"), strict=False):
        sent = {"crop": crop, "verdict": verdict, "search_id": found["search_id"]}
        status, entry = served.json(f"/api/cases/{case}/judgements", sent)
        assert (status, entry["rank"]) == (200, crops.index(crop) + 1)
    assert served.json(f"/api/cases/{case}/judgements", {"crop": "crop:1", "verdict": "confirmed"})[0] == 400
    again = search(served, feedback_case=case)  # it is recorded under the case all the same
    assert again["feedback"] == {"confirmed": 2, "rejected": 1}
    assert not {answer["crop"] for answer in again["answers"]} & set(crops[:3])
    journey = served.json(f"/api/cases/{case}/journey")[1]
    assert len(journey["legs"]) == len(journey["stops"]) - 1
    assert journey["stops"][0]["position"]
    # Without a distance it takes the calibrated one, which the tests of `clvr calibrate` may have made.
    expected = 400 if served.json("/api/about")[1]["threshold"] is None else 200
    assert served.json(f"/api/cases/{case}/companions", {"window_seconds": 60})[0] == expected
    wanted = {"window_seconds": 3600, "max_distance": 100}
    companions = served.json(f"/api/cases/{case}/companions", wanted)[1]
    assert companions["companions"][0]["stops"] == [0, 1]
    own = {crop for stop in journey["stops"] for crop in stop["crops"]}
    assert not own & {one["spec"] for each in companions["companions"] for one in each["crops"]}
    assert served.json(f"/api/cases/{case}/watch", {"on": True}, "PUT")[1]["case"]["watched"]
    assert served.json(f"/api/cases/{case}/notes", {"text": "x" * 30_000})[0] == 400
    status, headers, data = served.ask(f"/api/cases/{case}/export.zip", b"", "POST")
    assert (status, headers["content-disposition"]) == (200, 'attachment; filename="case-26-9.zip"')
    (tmp_path / "case.zip").write_bytes(data)
    assert verify_export(tmp_path / "case.zip").case_number == "26-9"
    document = served.json(f"/api/cases/{case}")[1]
    actions = [entry["action"] for entry in document["searches"]]
    assert actions == ["search", "search", "companions", "companions", "export"]


# ---- a service ----------------------------------------------------------------------------------------


def test_health_metrics_and_the_access_log(desk: Served, searchable: Any, capsys: Any) -> None:
    assert desk.json("/healthz") == (200, {"status": "ok", "checks": {}})
    assert desk.json("/readyz") == (200, {"status": "ok", "checks": {"index": "ok", "cases": "ok"}})
    search(desk, probe=f"crop:{searchable.crop_id(0, 0)}", case_number="26-3", headers=ADA)
    text = desk.ask("/metrics")[2].decode()
    assert 'clvr_page_requests_total{method="POST",route="/api/search",status="200"}' in text
    assert "clvr_page_search_seconds_bucket" in text
    assert f'clvr_page_generation{{name="{desk.json("/api/about", **ADA)[1]["generation"]}"}} 1.0' in text
    logged = capsys.readouterr().err
    assert "ada POST '/api/search' 200" in logged
    assert "26-3" not in logged


def test_without_a_token_metrics_are_as_closed_as_the_rest(locked: Served) -> None:
    assert locked.ask("/metrics")[0] == 401
    assert locked.ask("/healthz")[0] == locked.ask("/readyz")[0] == 200


def openapi(searcher: Searcher, folder: Path) -> Any:
    service = SearchService(searcher, None, database=CaseDatabase(str(folder / "cases.db")))
    return make_api(service).openapi()


def test_the_openapi_document_is_the_published_one(searcher: Searcher, tmp_path: Path) -> None:
    found = openapi(searcher, tmp_path)
    if not OPENAPI.exists():
        OPENAPI.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    assert found == json.loads(OPENAPI.read_text()), f"if that is meant: delete {OPENAPI.name}, and run this"
