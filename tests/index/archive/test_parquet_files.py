"""Crops in Parquet files: rows by name or number, read by row group, of hostile files too."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index.archive import containers, members
from index.archive.container_kind import Contents, Span
from index.archive.key_choice import KeyChoice
from index.archive.key_pattern import KeyPattern
from index.archive.listing import list_crops
from index.archive.manifest import normalize_manifest
from index.archive.reader import ArchiveReader, open_uri, read_uri
from infra.errors import BadInput, CorruptObject, ObjectChanged, ObjectMissing
from infra.store import ObjectBody, ObjectInfo, Store, open_store

IMAGES = [np.random.default_rng(number).bytes(300 + number) for number in range(250)]


def parquet(columns: dict[str, Any], row_group_rows: int = 100, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, row_group_size=row_group_rows, **options)
    return sink.getvalue()


def hugging_face(images: Sequence[bytes | None], paths: Sequence[str | None]) -> Any:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": data, "path": path} for data, path in zip(images, paths, strict=True)], kind)


@pytest.fixture(params=["local", "s3"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        (tmp_path / "archive").mkdir()
        return open_store(str(tmp_path / "archive"))
    server = request.getfixturevalue("seaweedfs")
    return open_store(request.getfixturevalue("bucket"), server.settings)


def rows_of(store: Store, **how: Any) -> dict[str, dict[str, Any]]:
    rows = normalize_manifest(list_crops(store, **how).crops.read()).to_pylist()
    return {row["uri"].removeprefix(store.uri_of("")): row for row in rows}


@pytest.mark.parametrize("struct", [False, True])
def test_rows_are_listed_beside_objects_and_read_by_row_group(archive: Store, struct: bool) -> None:
    names = [f"cam={number % 3}/{number:03}.jpg" for number in range(250)]
    if struct:
        columns = {"image": hugging_face(IMAGES, names)}
    else:
        columns = {"image": pa.array(IMAGES, pa.large_binary()), "name": names}
    archive.put("dt=2026-11-22/0.parquet", parquet(columns))
    archive.put("dt=2026-11-22/labels.parquet", parquet({"uri": ["a"], "vehicle_id": [1]}))
    archive.put("dt=2026-11-23/cam=1/9.jpg", b"plain")
    listing = list_crops(archive, pattern=KeyPattern("dt={date}/{*}.parquet#cam={camera_id}/{*}.jpg"))
    assert (listing.num_not_images, listing.unmatched) == (1, 1)
    assert listing.notes() == ["1 Parquet files"]
    manifest = normalize_manifest(listing.crops.read())
    assert manifest.num_rows == 251
    assert manifest["camera_id"].to_pylist()[:251:100] == ["0", "1", "2"]
    uris, etags = manifest["uri"].to_pylist(), manifest["etag"].to_pylist()
    keys = [f"dt=2026-11-22/0.parquet#{name}" for name in names]
    expected = {archive.uri_of(key): data for key, data in zip(keys, IMAGES, strict=True)}
    expected[archive.uri_of("dt=2026-11-23/cam=1/9.jpg")] = b"plain"
    reader = ArchiveReader(archive)
    for at in (0, 99, 200, 250):
        found = reader.fetch(uris[at], etags[at])
        assert (found.data, found.etag) == (expected[uris[at]], etags[at])
    assert reader.fetch(uris[7]).etag == etags[7]
    head = reader.head(uris[7])
    assert head is not None and head.etag == etags[7]
    bodies = {uris[at]: body.data for at, body in reader.fetch_many(uris) if isinstance(body, ObjectBody)}
    assert bodies == expected
    spans = reader.spans(uris, etags)
    assert len(spans) == 3  # the row groups
    for span in spans:
        read = [body.data for body in reader.fetch_span(span, uris) if isinstance(body, ObjectBody)]
        assert read == [expected[uris[position]] for position in span.positions]


def test_names_that_do_not_name_each_row_once_are_no_names(store: Store) -> None:
    store.put("a.parquet", parquet({"image": hugging_face(IMAGES[:3], ["x.jpg", "x.jpg", "y.jpg"])}))
    store.put("b.parquet", parquet({"image": hugging_face(IMAGES[:2], [None, None])}))
    store.put("c.parquet", parquet({"image": IMAGES[:2], "name": ["../up.jpg", "b.jpg"], "key": ["k", "l"]}))
    store.put("d.parquet", parquet({"image": IMAGES[:2], "name": [7, 8]}))
    store.put("e.parquet", parquet({"image": pa.array([], pa.binary())}))
    assert sorted(rows_of(store)) == [
        *(f"a.parquet#{row:09}" for row in range(3)),
        *(f"b.parquet#{row:09}" for row in range(2)),
        "c.parquet#k",
        "c.parquet#l",
        "d.parquet#7",
        "d.parquet#8",
    ]
    reader = ArchiveReader(store)
    assert reader.fetch(store.uri_of("a.parquet#000000002")).data == IMAGES[2]
    assert reader.fetch(store.uri_of("d.parquet#8")).data == IMAGES[1]
    for name in ("a.parquet#000000003", "a.parquet#2", "a.parquet#x.jpg", "d.parquet#9", "x.parquet#1"):
        with pytest.raises(ObjectMissing):
            reader.fetch(store.uri_of(name))
    uri = store.uri_of("b.parquet#000000001")
    assert (read_uri(uri), open_uri(uri)[1]) == (IMAGES[1], uri)


def test_columns_of_the_file_win_over_the_key(store: Store) -> None:
    columns = {
        "image": IMAGES[:4],
        "name": [f"cam=k/{number}.jpg" for number in range(4)],
        "camera_id": ["004", None, "", "9"],
        "captured_at": pa.array([1_767_225_600_000, None, 5, -1], pa.int64()),
        "track_id": [1, 2, 3, 4],
    }
    store.put("a.parquet", parquet(columns))
    rows = rows_of(store, pattern=KeyPattern("{*}.parquet#cam={camera_id}/{*}.jpg")).values()
    assert [row["camera_id"] for row in rows] == ["004", "k", "k", "9"]
    assert [row["captured_at"] for row in rows] == [1_767_225_600_000, -1, -1, -1]
    assert [row["track_id"] for row in rows] == ["1", "2", "3", "4"]
    assert next(iter(rows_of(store).values()))["camera_id"] == "004"
    store.put("b.parquet", parquet({"image": IMAGES[:1], "captured_at": ["noon"]}))
    with pytest.raises(BadInput, match="data row 1, column captured_at: 'noon'"):
        list_crops(store)
    assert len(rows_of(store, choice=KeyChoice(exclude=("b.parquet",)))) == 4


def test_a_file_that_is_written_again_has_changed_with_all_its_rows(archive: Store) -> None:
    archive.put("a.parquet", parquet({"image": IMAGES[:5], "name": list("abcde")}))
    archive.put("b.parquet", parquet({"image": IMAGES[:5]}))
    before = rows_of(archive)
    archive.put("a.parquet", parquet({"image": [*IMAGES[:4], b"new"], "name": list("abcdf")}))
    after = rows_of(archive)
    same = {key for key in before if key in after and before[key]["etag"] == after[key]["etag"]}
    assert same == {f"b.parquet#{row:09}" for row in range(5)}
    assert set(before) - set(after) == {"a.parquet#e"} and set(after) - set(before) == {"a.parquet#f"}
    reader, uri = ArchiveReader(archive), archive.uri_of("a.parquet#a")
    with pytest.raises(ObjectChanged):
        reader.fetch(uri, before["a.parquet#a"]["etag"])
    archive.delete("a.parquet")
    with pytest.raises(ObjectMissing):
        reader.fetch(uri)
    assert reader.head(uri) is None


def test_odd_cells_are_those_of_their_rows(store: Store) -> None:
    """Null and empty cells, one of 40 MB, and rows that a manifest invents."""
    images = [b"first", None, b"", b"x" * (40 << 20), b"last"]
    store.put("a.parquet", parquet({"image": pa.array(images, pa.binary())}))
    uris = [store.uri_of(key) for key in rows_of(store)]
    bodies = dict(ArchiveReader(store).fetch_many(uris))
    sizes = [len(bodies[at].data) for at in range(5)]  # type: ignore[union-attr]
    assert sizes == [5, 0, 0, (32 << 20) + 1, 4]  # too large for an image, and refused as such
    etag = rows_of(store)["a.parquet#000000000"]["etag"]
    for place in ("0.5", "1.0", "9999999.1"):
        with pytest.raises(CorruptObject, match="cannot be read as Parquet"):
            ArchiveReader(store).fetch(uris[0], etag.replace("@0.0", f"@{place}"))


def test_damaged_files_are_refused_by_name_and_harm_no_other(store: Store) -> None:
    columns = {"image": IMAGES, "name": [f"{row}.jpg" for row in range(250)]}
    whole = bytearray(parquet(columns, compression="none", use_dictionary=False))
    store.put("good.parquet", bytes(whole))
    for data in (b"", b"PAR1", b"no Parquet" * 100, bytes(whole[:-20]), b"PAR1\xff\xff\xff\x7fPAR1"):
        store.put("bad.parquet", data)
        with pytest.raises(CorruptObject, match=r"bad\.parquet cannot be read as Parquet"):
            list_crops(store)
    store.delete("bad.parquet")
    reader = ArchiveReader(store)
    listed = rows_of(store)
    middle = whole.index(IMAGES[150])
    whole[middle : middle + 10_000] = b"\xff" * 10_000
    store.put("good.parquet", bytes(whole))
    listed = rows_of(store)  # the footer is whole
    uris = [store.uri_of(key) for key in listed]
    bodies = dict(reader.fetch_many(uris))
    assert len(bodies) == 250
    assert any(isinstance(body, CorruptObject) for body in bodies.values())
    good = {uris[at]: body.data for at, body in bodies.items() if isinstance(body, ObjectBody)}
    assert all(good[store.uri_of(f"good.parquet#{row}.jpg")] == IMAGES[row] for row in range(100))
    assert all(good[store.uri_of(f"good.parquet#{row}.jpg")] == IMAGES[row] for row in range(200, 250))


def test_a_file_that_decodes_to_gigabytes_costs_its_crops_only(store: Store) -> None:
    """A dictionary of one large value, which each of the rows repeats."""
    big = pa.array(["x" * (30 << 20)], pa.string())
    names = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), big)
    store.put("names.parquet", parquet({"image": IMAGES[:1] * 5000, "name": names}, 5000))
    with pytest.raises(CorruptObject, match="cannot be read as Parquet"):
        list_crops(store)
    store.delete("names.parquet")
    images = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), big.cast(pa.binary()))
    for stored in (True, False):  # whether it is read as a dictionary
        store.put("images.parquet", parquet({"image": images}, 3000, store_schema=stored))
        uris = [store.uri_of(key) for key in rows_of(store)]
        assert len(uris) == 3000
        bodies = dict(ArchiveReader(store).fetch_many(uris[:10]))
        assert [len(body.data) for body in bodies.values()] == [30 << 20] * 10  # type: ignore[union-attr]


def test_a_footer_that_states_rows_without_end_is_refused(store: Store) -> None:
    store.put("a.parquet", parquet({"image": pa.nulls(2_000_000, pa.binary())}, 2_000_000))
    with pytest.raises(CorruptObject, match=r"2,000,000 rows"):
        list_crops(store)


def test_nested_columns_do_not_matter(store: Store) -> None:
    kind: Any = pa.int8()
    for _ in range(20):
        kind = pa.list_(kind)
    columns = {"image": IMAGES[:2], "name": pa.array([[["a"]], None]), "deep": pa.nulls(2, kind)}
    store.put("a.parquet", parquet(columns))
    store.put("b.parquet", parquet({"image": pa.array([[b"a"], [b"b"]])}))  # lists are no images
    assert sorted(rows_of(store)) == ["a.parquet#000000000", "a.parquet#000000001"]


class Lines:
    """A third kind for the test below: a text file, one crop a line."""

    noun = "line files"
    images_by_suffix = False

    def contents(self, store: Store, file: ObjectInfo) -> Contents:
        lines = store.get(file.key).splitlines()
        return Contents({str(number): LinePlace(file.etag, number) for number in range(len(lines))})

    def place_of(self, etag: str) -> Any:
        file_etag, separator, number = etag.rpartition("@")
        return LinePlace(file_etag, int(number)) if separator else None

    def spans(self, wanted: Sequence[tuple[int, str, Any]]) -> list[Span]:
        return [Span(file).add(position, place) for position, file, place in wanted]

    def read(self, store: Store, span: Span, names: Sequence[str]) -> Any:
        (place,) = span.places
        yield ObjectBody(store.get(span.file).splitlines()[place.number], place.etag)


class LinePlace:
    def __init__(self, file_etag: str, number: int) -> None:
        self.file_etag, self.number, self.size = file_etag, number, -1
        self.etag = f"{file_etag}@{number}"


def test_a_further_kind_is_one_module(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "CONTAINER_SUFFIXES", (*members.CONTAINER_SUFFIXES, ".lines"))
    monkeypatch.setattr(members, "_MEMBER", members.member_pattern())
    monkeypatch.setitem(containers.KINDS, ".lines", Lines())
    store.put("a.lines", b"one\ntwo")
    rows = rows_of(store)
    assert list(rows) == ["a.lines#0", "a.lines#1"]
    uris, etags = [row["uri"] for row in rows.values()], [row["etag"] for row in rows.values()]
    reader = ArchiveReader(store)
    assert reader.fetch(uris[1], etags[1]).data == b"two"
    assert {at: body.data for at, body in reader.fetch_many(uris)} == {0: b"one", 1: b"two"}  # type: ignore[union-attr]
