"""The crops that an erasure selects: by their labels, cameras and times, and all copies of a named crop."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index.archive.reader import ArchiveReader
from index.filters import Filters
from index.parquet import Ranges
from index.runs.run import Run
from index.runs.tombstones import md5_of
from index.schema import UNKNOWN, UNKNOWN_TIME
from index.times import require_plausible_times
from infra.errors import BadSetting, ClvrError
from infra.store import ObjectBody, TimeRange, open_store

Ids = NDArray[np.int64]
_NO_IDS: Ids = np.empty(0, np.int64)
_IDENTITY = ("vehicle_id", "crop_id", "camera_id")
_COLUMNS = ["crop_id", "uri", "etag", "size", "camera_id", "captured_at", "vehicle_id"]
_MD5_ETAG = r"\A[0-9a-f]{32}\z"
_MEMBER_ETAG = r"\Amd5:([0-9a-f]{32})@.*\z"  # of a member of a tar file
_UNKNOWN_SIZE = UNKNOWN["size"]


@dataclass(frozen=True, slots=True)
class EraseSelection:
    """Criteria of the crops to erase; a crop must match all of them.

    Times are in ms since the epoch, UTC, from inclusive, to exclusive. `vehicles` are labels, so they match
    labelled crops only.
    """

    vehicles: tuple[int, ...] = ()
    crop_ids: tuple[int, ...] = ()
    cameras: tuple[str, ...] = ()
    captured_from: int | None = None
    captured_to: int | None = None

    @property
    def has_time_window(self) -> bool:
        """Whether the capture time is a criterion."""
        return self.captured_from is not None or self.captured_to is not None

    @property
    def names_crops(self) -> bool:
        """Whether vehicles or crops are meant, hence their copies too, and not a place or a time."""
        return bool(self.vehicles or self.crop_ids)

    def require_criteria(self) -> None:
        """Raise BadSetting if there are no criteria, or if the time window is empty."""
        if not (self.vehicles or self.crop_ids or self.cameras or self.has_time_window):
            raise BadSetting(
                "nothing selects the crops to erase",
                remedy="Give --vehicle, --crop, --camera, --from or --until.",
            )
        start, end = self.captured_from, self.captured_to
        if start is not None and end is not None and start >= end:
            raise BadSetting("the time window is empty", remedy="--from must be before --until.")

    def expression(self) -> str:
        """Return the criteria as a Milvus filter; '' if they name vehicles, which Milvus does not store."""
        if self.vehicles:
            return ""
        return Filters(
            cameras=self.cameras,
            captured_from=self.captured_from,
            captured_to=self.captured_to,
            crop_ids=self.crop_ids,
        ).expression()

    def document(self) -> dict[str, Any]:
        """Return the criteria for the receipt; crops are counted, because their numbers would name them."""
        given = {name: value for name, value in asdict(self).items() if value not in ((), None)}
        if self.crop_ids:
            given["crop_ids"] = len(self.crop_ids)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


@dataclass(slots=True)
class SelectedCrops:
    """The crops to erase: their ids, ascending, and the MD5 of their bytes where it is known.

    copies: how many have other names than the selected ones and the same bytes. unknown_time: how many crops
    match except for their unknown time; they are not selected. parts: see `parts_of`; by folder and id
    of the run.
    """

    crop_ids: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    md5s: dict[int, bytes] = field(default_factory=dict)
    copies: int = 0
    unknown_time: int = 0
    parts: dict[tuple[str, str], set[int]] = field(default_factory=dict)

    def add_part(self, run: Run, part: int) -> None:
        """Note that a part of a run has some of them."""
        self.parts.setdefault((run.store.uri, run.run_id), set()).add(part)

    def parts_of(self, run: Run) -> set[int]:
        """Return the parts of a run whose manifest has any of them."""
        return self.parts.get((run.store.uri, run.run_id), set())

    def add(self, crop_ids: Ids) -> None:
        """Select further crops, of which only the ids are known."""
        self.crop_ids = np.union1d(self.crop_ids, crop_ids)

    def contents(self) -> list[bytes | None]:
        """Return the MD5 of each crop (n), None where it is not known."""
        return [self.md5s.get(crop_id) for crop_id in self.crop_ids.tolist()]


def select_crops(
    runs: Sequence[Run], selection: EraseSelection, times: TimeRange | None = None
) -> SelectedCrops:
    """Select the crops of all manifests that match.

    If the selection names vehicles or crops, their bytes are identified, by an ETag that is an MD5 or by
    reading the crop, and every crop of the same bytes is selected too; the bytes of crops that are gone from
    the archive stay unknown. times: the plausible capture times; if a row that a time window could match has
    another one, the selection is refused. Parts of a manifest whose ranges of ids, cameras and times cannot
    match are not read; of the others the columns of the criteria are, and all where they match. Copies are
    looked for in all manifests, by length and ETag. Raises BadInput,
    CorruptObject, StoreError.
    """
    selected, tables = SelectedCrops(), []
    ids, undated = [_NO_IDS], [_NO_IDS]
    for run, part, crops in _parts(
        runs,
        _COLUMNS,
        lambda ranges: _may_match(ranges, selection, times),
        _identity_columns(selection),
        lambda rows: _matches_identity(rows, selection),
    ):
        if selection.has_time_window:
            if times is not None:
                require_plausible_times(crops, times, "an erasure by time")
            is_undated = pc.equal(crops["captured_at"], UNKNOWN_TIME)
            undated.append(np.asarray(crops.filter(is_undated)["crop_id"]))
            crops = crops.filter(_matches_time(crops, selection))
        if crops.num_rows:
            selected.add_part(run, part)
            ids.append(np.asarray(crops["crop_id"]))
        if selection.names_crops:
            tables.append((run, crops))
    selected.add(np.concatenate(ids))
    selected.unknown_time = int(np.unique(np.concatenate(undated)).size)
    if selection.names_crops and selected.crop_ids.size:
        read: dict[int, bytes] = {}
        for run, crops in tables:
            selected.md5s |= _md5s_of(run, crops, read)
        _select_copies(runs, selected, tables, read)
    return selected


def _parts(
    runs: Sequence[Run],
    columns: Sequence[str],
    is_wanted: Callable[[Ranges], bool] = lambda ranges: True,
    first: Sequence[str] = (),
    matches_first: Callable[[pa.Table], Any] = lambda rows: None,
) -> Iterator[tuple[Run, int, pa.Table]]:
    """Yield columns of the parts of all manifests whose ranges are wanted, with their numbers.

    first: columns that are read before the others, which are read only where some rows match; without them
    all rows come.
    """
    for run in runs:
        part = -1
        for number in range(len(run.folder.manifest_keys())):
            with run.folder.open_manifest(number) as file:
                for group in range(file.num_row_groups):
                    part += 1
                    if not is_wanted(file.ranges(group)):
                        continue
                    mask = matches_first(file.read_row_group(group, first)) if first else None
                    if mask is None:
                        yield run, part, file.read_row_group(group, columns)
                    elif pc.any(mask, min_count=0).as_py():
                        yield run, part, file.read_row_group(group, columns).filter(mask)


def _identity_columns(selection: EraseSelection) -> list[str]:
    """Return the columns that `_matches_identity` looks at."""
    pairs = zip(_IDENTITY, (selection.vehicles, selection.crop_ids, selection.cameras), strict=True)
    return [name for name, values in pairs if values]


def _may_match(ranges: Ranges, selection: EraseSelection, times: TimeRange | None) -> bool:
    """Return whether rows with these ranges can match, or have a time that must be counted or refused."""
    for name, values in (("crop_id", selection.crop_ids), ("camera_id", selection.cameras)):
        if values and name in ranges:
            low, high = ranges[name]
            if not any(low <= value <= high for value in values):
                return False
    if not selection.has_time_window or "captured_at" not in ranges:
        return True
    low, high = ranges["captured_at"]
    ends = pa.array([low, high], pa.int64())
    if low <= UNKNOWN_TIME or (times is not None and not pc.all(times.mask(ends)).as_py()):
        return True
    start, end = selection.captured_from, selection.captured_to
    return not ((start is not None and high < start) or (end is not None and low >= end))


def _select_copies(
    runs: Sequence[Run],
    selected: SelectedCrops,
    tables: Sequence[tuple[Run, pa.Table]],
    read: dict[int, bytes],
) -> None:
    """Select every crop whose bytes are those of a selected one. read: see `_md5s_of`."""
    wanted = set(selected.md5s.values())
    sizes = {size for _, crops in tables for size in crops["size"].to_pylist()}
    any_size = _UNKNOWN_SIZE in sizes
    wanted_sizes = pa.array(sorted({_UNKNOWN_SIZE, *sizes}), pa.int64())
    if not wanted:
        return
    known = selected.crop_ids
    # Bytes of another length are not read, if both lengths are known.
    first = [] if any_size else ["size"]
    for run, part, crops in _parts(
        runs,
        ["crop_id", "uri", "etag"],
        first=first,
        matches_first=lambda rows: pc.is_in(rows["size"], value_set=wanted_sizes),
    ):
        likely = crops.filter(pa.array(~np.isin(np.asarray(crops["crop_id"]), known)))
        same = {crop_id: md5 for crop_id, md5 in _md5s_of(run, likely, read).items() if md5 in wanted}
        if same:
            selected.md5s |= same
            selected.add(np.fromiter(same, np.int64, len(same)))
            selected.add_part(run, part)
    selected.copies = len(selected.crop_ids) - len(known)


def _md5s_of(run: Run, crops: pa.Table, read: dict[int, bytes]) -> dict[int, bytes]:
    """Return the MD5 of crops by crop_id: from their ETags, or read from the archive.

    read: those that were read before, for a crop that several runs have; what is read is added.
    """
    etags = pc.replace_substring_regex(crops["etag"], _MEMBER_ETAG, r"\1")
    crops = crops.set_column(crops.schema.get_field_index("etag"), "etag", etags)
    is_md5 = pc.match_substring_regex(crops["etag"], _MD5_ETAG)
    stated, others = crops.filter(is_md5), crops.filter(pc.invert(is_md5))
    md5s = {
        crop_id: bytes.fromhex(etag)
        for crop_id, etag in zip(stated["crop_id"].to_pylist(), stated["etag"].to_pylist(), strict=True)
    }
    ids = others["crop_id"].to_pylist()
    unread = others.filter(pc.invert(pc.is_in(others["crop_id"], value_set=pa.array(list(read), pa.int64()))))
    if unread.num_rows:
        read |= _read_md5s(run, unread)
    return md5s | {crop_id: read[crop_id] for crop_id in ids if crop_id in read}


def _read_md5s(run: Run, crops: pa.Table) -> dict[int, bytes]:
    """Return the MD5 of the crops that the archive of a run still has."""
    reader = ArchiveReader(open_store(run.info.archive, None if run.store.local else run.store.settings))
    try:
        reader.store.ensure()  # an archive that is gone or locked is asked once, and not for each crop
    except ClvrError:
        return {}
    ids, uris = crops["crop_id"].to_pylist(), crops["uri"].to_pylist()
    held = [(crop_id, uri) for crop_id, uri in zip(ids, uris, strict=True) if reader.holds(uri)]
    bodies = reader.fetch_many([uri for _, uri in held])
    return {held[at][0]: md5_of(body.data) for at, body in bodies if isinstance(body, ObjectBody)}


def matches(crops: pa.Table, selection: EraseSelection) -> Any:
    """Return a mask (n,) of the crops (n) that match; they need the columns that the selection names."""
    mask = _matches_identity(crops, selection)
    return pc.and_(mask, _matches_time(crops, selection)) if selection.has_time_window else mask


def _matches_identity(crops: pa.Table, selection: EraseSelection) -> Any:
    mask: Any = pa.repeat(True, crops.num_rows)
    for name, values, data_type in zip(
        _IDENTITY,
        (selection.vehicles, selection.crop_ids, selection.cameras),
        (pa.int64(), pa.int64(), pa.string()),
        strict=True,
    ):
        if values:
            mask = pc.and_(mask, pc.is_in(crops[name], value_set=pa.array(values, data_type)))
    return mask


def _matches_time(crops: pa.Table, selection: EraseSelection) -> Any:
    times = crops["captured_at"]
    mask = pc.not_equal(times, UNKNOWN_TIME)
    if selection.captured_from is not None:
        mask = pc.and_(mask, pc.greater_equal(times, selection.captured_from))
    if selection.captured_to is not None:
        mask = pc.and_(mask, pc.less(times, selection.captured_to))
    return mask
