"""Labels: user tables of vehicle, model, camera, time or track, read and joined to a manifest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from index.schema import COLUMN_KINDS, LABEL_COLUMNS, MANIFEST_SCHEMA
from infra.errors import BadLabels, ObjectMissing
from infra.store import TimeRange, read_user_table
from infra.store.cells import Kind

_MAX_EXAMPLES = 10
_LABEL_KINDS = {name: COLUMN_KINDS[name] for name in ("uri", "key", *LABEL_COLUMNS, "split")}
# Not joined to a manifest.
_EVALUATION_KINDS: dict[str, Kind] = {
    "color": COLUMN_KINDS["color"],
    "body_type": COLUMN_KINDS["body_type"],
    "test_list": "text",
}

TEST_LISTS = ("small", "medium", "large")
"""Values of the column test_list, by size: an image of one list is in the larger ones too."""

MIN_FIT = 0.01
"""Labels are refused as those of another archive if they name fewer of its crops, and of them fewer exist."""


@dataclass(frozen=True, slots=True)
class LabelReport:
    """Number of crops with and without a label, and of labels without a crop, with up to ten `examples`."""

    labelled: int
    unlabelled: int
    unmatched: int
    examples: tuple[str, ...]


def read_label_table(uri: str, *, split: str | None = None, times: TimeRange | None = None) -> pa.Table:
    """Read labels from a CSV or Parquet file; with `split`, only the rows of that split or test list.

    times: the plausible values of captured_at; None: those of the environment. Returns the columns that are
    found of uri, key (string), LABEL_COLUMNS (their types, times in ms), split, color,
    body_type and test_list; null is unknown.
    Raises BadLabels if the file is missing, has another format or an unusable value (with its data row), or
    has no rows of the split.
    """
    try:
        table = read_user_table(
            uri,
            {**_LABEL_KINDS, **_EVALUATION_KINDS},
            required=[("uri", "key")],
            times=times or TimeRange.from_env(),
            error=BadLabels,
        )
    except ObjectMissing as missing:
        raise BadLabels(f"no label file at {uri}", remedy="check the path") from missing
    for name in ("uri", "key"):
        if name in table.column_names and table[name].null_count:
            row = pc.index(table[name].is_null(), True).as_py() + 1
            raise BadLabels(f"{uri}, data row {row}: empty {name}", remedy="Remove the row.")
    if split is None:
        return table
    rows = _rows_of(table, "split", (split,))
    if not rows.num_rows and split in TEST_LISTS:
        rows = _rows_of(table, "test_list", TEST_LISTS[: TEST_LISTS.index(split) + 1])
    if not rows.num_rows:
        raise BadLabels(f"{uri} has no row whose column split is {split!r}", remedy="leave out --split")
    return rows


def lists_of(table: pa.Table) -> list[str]:
    """Return which of TEST_LISTS a label table has, smallest first."""
    if "test_list" not in table.column_names:
        return []
    named = set(pc.unique(table["test_list"]).to_pylist())
    return [name for name in TEST_LISTS if name in named]


def _rows_of(table: pa.Table, column: str, values: Sequence[str]) -> pa.Table:
    if column not in table.column_names:
        return table.slice(0, 0)
    return table.filter(pc.is_in(table[column], value_set=pa.array(values, pa.string())))


def with_labels(
    manifest: pa.Table, labels: pa.Table, *, archive: str | None = None
) -> tuple[pa.Table, LabelReport]:
    """Join labels to a manifest by `uri`, or by `key` below the archive's URI; the order of rows stays.

    Labels may have the columns vehicle_id, model_id, camera_id, captured_at (ms, UTC) and track_id; a known
    value replaces that of the manifest. Null, the empty text and an id or a time of -1 are unknown. Raises
    BadLabels for missing columns, values of another type, and two different labels of one crop.
    """
    uris = label_uris(labels, archive)
    columns = {"uri": uris}
    for name in LABEL_COLUMNS:
        if name in labels.schema.names:
            columns[name] = _cast(labels[name], name)
    if len(columns) == 1:
        raise BadLabels(f"the labels have none of the columns {', '.join(LABEL_COLUMNS)}")
    distinct = pa.table(columns).group_by(list(columns)).aggregate([])
    counts = pc.value_counts(distinct["uri"])
    conflicts = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if len(conflicts):
        examples = ", ".join(conflicts[:3].to_pylist())
        raise BadLabels(f"{len(conflicts):,} crops have two labels that differ: {examples}")

    positions = pc.index_in(manifest["uri"], value_set=distinct["uri"].combine_chunks())
    for name in list(columns)[1:]:
        joined = pc.coalesce(distinct[name].combine_chunks().take(positions), manifest[name])
        manifest = manifest.set_column(
            manifest.schema.get_field_index(name), MANIFEST_SCHEMA.field(name), joined
        )
    has_crop = pc.is_in(distinct["uri"], value_set=manifest["uri"].combine_chunks())
    without_crop = distinct["uri"].filter(pc.invert(has_crop))
    report = LabelReport(
        labelled=manifest.num_rows - positions.null_count,
        unlabelled=positions.null_count,
        unmatched=len(without_crop),
        examples=tuple(sorted(without_crop.to_pylist())[:_MAX_EXAMPLES]),
    )
    return manifest, report


def require_fit(report: LabelReport, manifest: pa.Table, source: str) -> None:
    """Raise BadLabels, with an example of each, if labels from `source` and the crops hardly match.

    That is if less than MIN_FIT of the labels name a crop, and less than MIN_FIT of the crops have a label.
    """
    labels = report.labelled + report.unmatched
    is_other = report.labelled < MIN_FIT * labels and report.labelled < MIN_FIT * manifest.num_rows
    if labels and manifest.num_rows and (is_other or not report.labelled):
        raise BadLabels(
            f"{source} labels {report.labelled:,} of {manifest.num_rows:,} crops: it names "
            f"{report.examples[0]}, the archive has {manifest['uri'][0]}",
            remedy="Make the column 'uri' or 'key' the crops' own; keys are relative to the archive.",
        )


def label_texts(labels: pa.Table, name: str, uris: Sequence[str], archive: str) -> list[str] | None:
    """Return what a text column of labels says of some crops, '' where nothing; None without the column."""
    if name not in labels.schema.names:
        return None
    known = zip(label_uris(labels, archive).to_pylist(), labels[name].to_pylist(), strict=True)
    texts = {uri: text for uri, text in known if text}
    return [texts.get(uri, "") for uri in uris]


def label_uris(labels: pa.Table, archive: str | None) -> Any:
    """Return the URIs (n) of the crops of labels (n). Raises BadLabels where one names none."""
    if "uri" in labels.schema.names:
        uris = _cast(labels["uri"], "uri")
    elif "key" in labels.schema.names and archive is not None:
        keys = _cast(labels["key"], "key")
        uris = pc.binary_join_element_wise(archive.rstrip("/"), keys, "/")
    else:
        raise BadLabels(
            "the labels have neither a column 'uri' nor a column 'key' below a known archive",
            remedy="Add the column 'uri', or name the archive's root.",
        )
    if uris.null_count:
        row = pc.index(uris.is_null(), True).as_py() + 1
        raise BadLabels(f"data row {row} of the labels names no crop", remedy="Remove the row.")
    return uris


def _cast(column: Any, name: str) -> Any:
    data_type = pa.string() if name == "key" else MANIFEST_SCHEMA.field(name).type
    try:
        column = column.cast(data_type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as failure:
        raise BadLabels(f"column {name} of the labels is not {data_type}: {failure}") from failure
    unknown = "" if data_type == pa.string() else -1
    return pc.if_else(pc.equal(column, unknown), pa.scalar(None, data_type), column)
