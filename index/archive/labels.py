"""Labels: what is known of some crops from elsewhere, joined to a manifest."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from index.schema import LABEL_COLUMNS, MANIFEST_SCHEMA
from infra.errors import BadLabels, ObjectMissing
from infra.store import read_user_table

_MAX_EXAMPLES = 10


@dataclass(frozen=True, slots=True)
class LabelReport:
    """How labels and crops met: crops with and without a label, labels without a crop, and ten of those."""

    labelled: int
    unlabelled: int
    unmatched: int
    examples: tuple[str, ...]


def with_labels(
    manifest: pa.Table, labels: pa.Table, *, archive: str | None = None
) -> tuple[pa.Table, LabelReport]:
    """Join labels to a manifest by `uri`, or by `key` below the archive's URI; the order of rows stays.

    Labels may carry vehicle_id, model_id, camera_id, captured_at (ms, UTC) and track_id; where a label says
    something it replaces what the manifest says. Raises BadLabels for missing columns, values of another
    type, and two labels of one crop that differ.
    """
    uris = _label_uris(labels, archive)
    columns = {"uri": uris}
    for name in LABEL_COLUMNS:
        if name in labels.schema.names:
            columns[name] = _converted(labels[name], name)
    if len(columns) == 1:
        raise BadLabels(f"the labels have none of the columns {', '.join(LABEL_COLUMNS)}")
    distinct = pa.table(columns).group_by(list(columns)).aggregate([])
    counts = pc.value_counts(distinct["uri"])
    torn = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if len(torn):
        shown = ", ".join(torn[:3].to_pylist())
        raise BadLabels(f"{len(torn):,} crops have two labels that differ: {shown}")

    places = pc.index_in(manifest["uri"], value_set=distinct["uri"].combine_chunks())
    for name in list(columns)[1:]:
        joined = pc.coalesce(distinct[name].combine_chunks().take(places), manifest[name])
        manifest = manifest.set_column(
            manifest.schema.get_field_index(name), MANIFEST_SCHEMA.field(name), joined
        )
    met = pc.is_in(distinct["uri"], value_set=manifest["uri"].combine_chunks())
    alone = distinct["uri"].filter(pc.invert(met))
    labelled = manifest.num_rows - places.null_count
    examples = tuple(sorted(alone.to_pylist())[:_MAX_EXAMPLES])
    return manifest, LabelReport(labelled, places.null_count, len(alone), examples)


def _label_uris(labels: pa.Table, archive: str | None) -> Any:
    if "uri" in labels.schema.names:
        uris = _converted(labels["uri"], "uri")
    elif "key" in labels.schema.names and archive is not None:
        keys = _converted(labels["key"], "key")
        uris = pc.binary_join_element_wise(archive.rstrip("/"), keys, "/")
    else:
        raise BadLabels(
            "the labels have neither a column 'uri' nor a column 'key' below a known archive",
            remedy="Add the column 'uri', or name the archive's root.",
        )
    if uris.null_count:
        row = pc.index(uris.is_null(), True).as_py()
        raise BadLabels(f"the labels name no crop in row {row}")
    return uris


def _converted(column: Any, name: str) -> Any:
    kind = pa.string() if name == "key" else MANIFEST_SCHEMA.field(name).type
    try:
        return column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as failure:
        raise BadLabels(f"the labels have other values than {kind} in column {name}: {failure}") from failure


def read_label_table(uri: str, *, split: str | None = None) -> pa.Table:
    """Read a `.csv` or `.parquet` of labels, or of its rows those whose column `split` says so.

    Raises BadLabels if it is missing, neither of the two, or has no such rows.
    """
    try:
        table = read_user_table(uri, error=BadLabels)
    except ObjectMissing as missing:
        raise BadLabels(f"no label file at {uri}", remedy="check the path") from missing
    if split is None:
        return table
    rows = (
        table.filter(pc.equal(table["split"], split)) if "split" in table.column_names else table.slice(0, 0)
    )
    if not rows.num_rows:
        raise BadLabels(f"{uri} has no row whose column split is {split!r}", remedy="leave out --split")
    return rows
