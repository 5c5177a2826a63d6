"""Cases: what users put in is there again, also after kill -9, and what was erased is not."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from index.runs.tombstones import TombstoneWatch, md5_of, read_tombstones
from infra.errors import BadInput, BadSetting, CaseDatabaseError
from infra.settings import Settings
from infra.store import Store
from jobs.cases.audit import AuditTrail, Outcome, Purpose
from jobs.cases.casebook import Casebook, CropFacts
from jobs.cases.database import REVISION, CaseDatabase, database_url
from jobs.cases.documents import WatchHitEntry
from jobs.cases.erasure import find_in_cases, purge_cases
from jobs.cases.tables import Base

ROOT = Path(__file__).parents[3]
CROPS = (811_000_000_000_000_001, 811_000_000_000_000_002, 811_000_000_000_000_003)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cases.db"


@pytest.fixture
def book(path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> Casebook:
    monkeypatch.setattr("index.runs.tombstones._MAX_AGE_SECONDS", 0.0)
    return Casebook(CaseDatabase(str(path)), TombstoneWatch([store]))


def facts(crop_id: int, **changes: object) -> CropFacts:
    fields = {
        "crop_id": crop_id,
        "uri": f"s3://archive/{crop_id}.jpg",
        "camera_id": "001",
        "track_id": "t",
        "captured_at": 1_767_600_000_000,
        "generation": "g",
        "fingerprint": "f",
    }
    return CropFacts(**fields | changes)  # type: ignore[arg-type]


def watch_hit(case_id: int, crop_id: int) -> WatchHitEntry:
    return WatchHitEntry(
        crop=f"crop:{crop_id}",
        run_id="r2",
        at="2026-01-01T00:00:00.000+00:00",
        uri=f"s3://archive/{crop_id}.jpg",
        camera_id="001",
        track_id="",
        captured_at=5,
        distance=0.5,
        likelihood=None,
        judged=False,
        case_id=case_id,
        case_number="",
    )


def test_the_migrations_make_the_tables_of_this_release(path: Path) -> None:
    CaseDatabase(str(path)).close()
    with create_engine(f"sqlite:///{path}").connect() as connection:
        migrations = MigrationContext.configure(connection)
        assert compare_metadata(migrations, Base.metadata) == []
        assert migrations.get_current_revision() == REVISION
    assert path.stat().st_mode & 0o077 == 0


def test_a_case_holds_probes_judgements_notes_and_searches(book: Casebook) -> None:
    case = book.create("26-117", "Red hatchback", "ada")
    upload = book.add_upload(b"image", 40, 30, "ada")
    for spec in (f"crop:{CROPS[0]}", f"upload:{upload.sha256}@0.1,0.1,0.5,0.5", f"crop:{CROPS[0]}"):
        book.add_probe(case.id, spec, "ada")
    book.judge(case.id, "unsure", "", "ada", facts(CROPS[1], rank=4, distance=1.5))
    book.judge(case.id, "confirmed", "same\tdent\x00", "bob", facts(CROPS[1]))
    book.judge(case.id, "rejected", "", "ada", facts(CROPS[2]))
    book.add_note(case.id, "Zeuge: Škoda?\nzweite Zeile", "bob")
    trail = AuditTrail(book)
    search = trail.begin("search", Purpose(user="ada", case_number="26-117"), ["crop:1"], {"top": 5})
    trail.finish(search, Outcome(generation="g", fingerprint="f", transform="", shown=[(CROPS[1], 1.5, 0.9)]))

    found = book.read(case.id)
    assert (found.case.number, found.case.probes, found.case.confirmed, found.case.rejected) == (
        "26-117",
        2,
        1,
        1,
    )
    assert [(entry.crop, entry.by, entry.note) for entry in found.judged("confirmed")] == [
        (f"crop:{CROPS[1]}", "bob", "same\tdent")
    ]
    assert [entry.verdict for entry in book.history(case.id)] == ["unsure", "confirmed", "rejected"]
    assert found.notes[0].text == "Zeuge: Škoda?\nzweite Zeile"
    assert [(entry.state, entry.by, entry.answers) for entry in found.searches] == [("done", "ada", 1)]
    shown = trail.shown_entry(search, CROPS[1])
    assert shown is not None
    assert (shown.rank, shown.likelihood) == (1, 0.9)
    assert book.cases()[0] == found.case
    assert book.case_id("26-117") == case.id


@pytest.mark.parametrize(
    "wrong",
    [
        lambda book, case: book.create("26-117", "", "x"),
        lambda book, case: book.create("", "", "x"),
        lambda book, case: book.create("a\nb", "", "x"),
        lambda book, case: book.add_probe(case, "/etc/passwd", "x"),
        lambda book, case: book.add_probe(case, "upload:" + 64 * "0", "x"),
        lambda book, case: book.judge(case, "maybe", "", "x", facts(1)),
        lambda book, case: book.add_note(case, "  ", "x"),
        lambda book, case: book.add_note(case, "x" * 20_001, "x"),
        lambda book, case: book.watch(case, "x", on=True),
        lambda book, case: book.read(case + 1),
        lambda book, case: book.case_id("26-118"),
        lambda book, case: book.upload(64 * "0"),
        lambda book, case: Purpose(user="x", case_number="a\nb"),
    ],
)
def test_wrong_input_is_refused_and_changes_nothing(
    book: Casebook, wrong: Callable[[Casebook, int], object]
) -> None:
    case = book.create("26-117", "", "ada")
    before = book.read(case.id)
    with pytest.raises(BadInput):
        wrong(book, case.id)
    assert book.read(case.id) == before


def test_a_closed_case_takes_nothing_until_it_is_opened(book: Casebook) -> None:
    case = book.create("1", "", "ada")
    book.set_state(case.id, "closed")
    with pytest.raises(BadInput, match="closed"):
        book.judge(case.id, "confirmed", "", "ada", facts(1))
    book.set_state(case.id, "open")
    book.judge(case.id, "confirmed", "", "ada", facts(1))
    book.watch(case.id, "ada", on=True)
    assert [document.case.number for document in book.watched()] == ["1"]
    book.set_state(case.id, "closed")
    assert book.watched() == []


def test_a_new_crop_of_a_watched_vehicle_is_reported_once(book: Casebook) -> None:
    case = book.create("1", "", "ada")
    assert book.add_watch_hits([watch_hit(case.id, 7)]) == 1
    assert book.add_watch_hits([watch_hit(case.id, 7), watch_hit(case.id, 8)]) == 1
    assert book.read(case.id).case.watch_hits == 2
    book.judge(case.id, "rejected", "", "ada", facts(7))
    assert [(hit.crop, hit.judged) for hit in book.watch_hits()] == [("crop:8", False), ("crop:7", True)]
    assert book.cases()[0].watch_hits == 1


def test_an_erased_crop_is_in_no_case_and_a_purge_removes_its_bytes(
    book: Casebook, path: Path, store: Store, hide: Callable[..., str]
) -> None:
    case, trail = book.create("1", "", "ada"), AuditTrail(book)
    erased, kept = CROPS[0], CROPS[1]
    upload = book.add_upload(b"bytes of the erased crop", 4, 3, "ada")
    for spec in (f"crop:{erased}", f"crop:{kept}", f"upload:{upload.sha256}"):
        book.add_probe(case.id, spec, "ada")
    for crop in (erased, kept):
        book.judge(case.id, "confirmed", f"see crop:{erased}", "ada", facts(crop))
    book.add_note(case.id, f"crop:{erased} and crop:{kept}", "ada")
    book.add_watch_hits([watch_hit(case.id, erased)])
    search = trail.begin("search", Purpose(user="ada", case_number="1"), [f"crop:{erased}"], {})
    trail.finish(
        search,
        Outcome(generation="g", fingerprint="f", transform="", shown=[(erased, 1, None), (kept, 2, None)]),
    )
    hide(store, [erased], [md5_of(b"bytes of the erased crop")])

    hidden = book.read(case.id)
    assert [entry.crop for entry in hidden.judgements] == [f"crop:{kept}"]
    assert [entry.spec for entry in hidden.probes] == [f"crop:{kept}", f"upload:{upload.sha256}"]
    assert (hidden.case.probes, hidden.watch_hits) == (2, [])
    assert [entry.crop for entry in trail.shown(search)] == [f"crop:{kept}"]
    with pytest.raises(BadInput, match="not kept"):
        book.upload(upload.sha256)
    with pytest.raises(BadInput, match="erased"):
        book.add_upload(b"bytes of the erased crop", 4, 3, "ada")

    settings = Settings(runs=store.uri, cases=str(path))  # type: ignore[arg-type]
    tombstones = read_tombstones(store)
    (before,) = find_in_cases(settings, tombstones)
    (purged,) = purge_cases(settings, tombstones)
    assert before.found >= purged.removed > 5
    (after,) = find_in_cases(settings, tombstones)
    assert after.found == 0
    raw = b"".join(file.read_bytes() for file in path.parent.glob("cases.db*"))
    assert f"{erased}.jpg".encode() not in raw
    assert b"bytes of the erased crop" not in raw
    assert f"{kept}.jpg".encode() in raw
    left = book.read(case.id)
    assert left.notes[0].text == f"crop:(erased) and crop:{kept}"
    assert left.searches[0].answers == 2  # it did show two crops
    assert [entry.spec for entry in left.probes] == [f"crop:{kept}"]


def test_a_database_that_is_not_there_is_not_made_by_a_purge(store: Store, path: Path) -> None:
    settings = Settings(runs=store.uri, cases=str(path))  # type: ignore[arg-type]
    assert purge_cases(settings, read_tombstones(store)) == []
    assert not path.exists()


def test_uploads_that_no_case_holds_expire_by_age_and_size(book: Casebook, path: Path) -> None:
    case = book.create("1", "", "ada")
    held, old, *rest = [book.add_upload(bytes([n]) * 1000, 1, 1, "ada").sha256 for n in range(5)]
    book.add_probe(case.id, f"upload:{held}", "ada")
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE uploads SET used_at = '2020-01-01' WHERE sha256 IN (?, ?)", (held, old))
    assert book.expire_uploads(30, 2000) == 2  # the old one, and one above 2,000 bytes
    assert book.upload(held)[1] == bytes(1000)
    with pytest.raises(BadInput):
        book.upload(old)
    kept = [sha for sha in rest if _is_there(book, sha)]
    assert len(kept) == 2


def _is_there(book: Casebook, sha256: str) -> bool:
    try:
        book.upload(sha256)
    except BadInput:
        return False
    return True


WRITER = """
import sys
from index.runs.tombstones import TombstoneWatch
from jobs.cases.casebook import Casebook
from jobs.cases.database import CaseDatabase
book = Casebook(CaseDatabase(sys.argv[1]), TombstoneWatch([]))
cases = book.cases()
case = cases[0] if cases else book.create("1", "", "ada")
for number in range(int(sys.argv[2]), 10**9):
    book.add_note(case.id, f"note {number}", "ada")
    print(number, flush=True)
"""


def test_what_was_acknowledged_is_there_after_kill_9(path: Path, store: Store) -> None:
    acknowledged: list[int] = []
    for _ in range(2):
        start = len(acknowledged) and acknowledged[-1] + 1
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(start)], stdout=subprocess.PIPE, env=environment
        ) as writer:
            assert writer.stdout is not None
            acknowledged += [int(next(writer.stdout)) for _ in range(20)]
            os.kill(writer.pid, signal.SIGKILL)
            acknowledged += [int(line) for line in writer.stdout]
    with sqlite3.connect(path) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    notes = Casebook(CaseDatabase(str(path)), TombstoneWatch([store])).read(1).notes
    written = {int(note.text.split()[1]) for note in notes}
    assert set(acknowledged) <= written
    assert len(written) - len(set(acknowledged)) <= 2  # one a kill may be on disk and not acknowledged


def test_several_processes_may_open_a_new_database_at_once(path: Path) -> None:
    code = "import sys; from jobs.cases.database import CaseDatabase; CaseDatabase(sys.argv[1]).ping()"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    processes = [subprocess.Popen([sys.executable, "-c", code, str(path)], env=environment) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]


def test_errors_name_the_database_and_no_password(tmp_path: Path) -> None:
    (tmp_path / "no.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(CaseDatabaseError, match=r"no\.db"):
        CaseDatabase(str(tmp_path / "no.db"))
    with pytest.raises(CaseDatabaseError):
        CaseDatabase("/proc/nowhere/cases.db")
    with pytest.raises((CaseDatabaseError, BadSetting)) as refused:
        CaseDatabase("postgresql://ada:secret@127.0.0.1:1/cases?connect_timeout=2")
    assert "secret" not in refused.value.message
    with pytest.raises(BadSetting, match="no driver"):
        CaseDatabase("nosuch://x")


def test_the_default_database_is_beside_local_runs() -> None:
    assert Settings(runs="/srv/clvr/runs").case_database() == "/srv/clvr/cases.db"
    assert Settings(runs="s3://b/runs").case_database() == "clvr-data/cases.db"
    assert database_url("postgres://h/x").drivername == "postgresql+psycopg"
    shown = json.dumps(str(Settings(cases="postgresql://a:secret@h/x").cases))  # type: ignore[arg-type]
    assert "secret" not in shown


@pytest.mark.skipif("CLVR_TEST_POSTGRES" not in os.environ, reason="CLVR_TEST_POSTGRES names no server")
def test_postgresql_holds_cases_too(store: Store) -> None:
    database = CaseDatabase(os.environ["CLVR_TEST_POSTGRES"])
    with database.write() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(table.delete())
    test_a_case_holds_probes_judgements_notes_and_searches(Casebook(database, TombstoneWatch([store])))
    database.shrink()
