"""Quarantine: the crops of a run that have no embedding, each with stage, cause and detail."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from index.schemas import MAX_NAME_BYTES, MAX_URI_BYTES, QUARANTINE_SCHEMA, QUARANTINE_STAGES
from infra.errors import SchemaMismatch

_LIMITS = {"uri": MAX_URI_BYTES, "camera_id": MAX_NAME_BYTES, "track_id": MAX_NAME_BYTES}


@dataclass(frozen=True, slots=True)
class QuarantinedCrop:
    """One crop without an embedding.

    `stage` is one of QUARANTINE_STAGES, `cause` one short word ('truncated'), `detail` a sentence.
    """

    crop_id: int
    uri: str
    stage: str
    cause: str
    detail: str = ""


def quarantine_table(crops: Iterable[QuarantinedCrop] = ()) -> pa.Table:
    """Return crops as a table of QUARANTINE_SCHEMA."""
    rows = [astuple(crop) for crop in crops]
    columns = list(zip(*rows, strict=True)) or [()] * len(QUARANTINE_SCHEMA)
    return pa.table(
        [pa.array(column, kind.type) for column, kind in zip(columns, QUARANTINE_SCHEMA, strict=True)],
        schema=QUARANTINE_SCHEMA,
    )


def check_quarantine(table: pa.Table, where: str) -> None:
    """Raise SchemaMismatch for other columns, a null, or a stage that does not exist."""
    if not table.schema.equals(QUARANTINE_SCHEMA):
        raise SchemaMismatch(f"{where} has not the columns of a quarantine: {', '.join(table.schema.names)}")
    for name in table.schema.names:
        if table[name].null_count:
            raise SchemaMismatch(f"{where} has a null in column {name}")
    strange = set(pc.unique(table["stage"]).to_pylist()) - set(QUARANTINE_STAGES)
    if strange:
        raise SchemaMismatch(
            f"{where} names the stage '{min(strange)}', which is none of {QUARANTINE_STAGES}"
        )


def count_causes(table: pa.Table) -> Counter[str]:
    """Count quarantined crops by 'stage/cause'."""
    groups = table.group_by(["stage", "cause"]).aggregate([([], "count_all")]).to_pylist()
    return Counter({f"{group['stage']}/{group['cause']}": group["count_all"] for group in groups})


def unusable(manifest: pa.Table) -> tuple[Any, pa.Table]:
    """Find rows (n) that no shard can hold, because a string is too long for the index.

    Returns a bool Array (n,), true where usable, and the others as a quarantine table.
    """
    usable = pa.repeat(True, manifest.num_rows)
    found: list[pa.Table] = []
    for name, limit in _LIMITS.items():
        longer = pc.and_(usable, pc.greater(pc.binary_length(manifest[name]), limit))
        rows = manifest.filter(longer)
        if rows.num_rows:
            words = {
                "stage": "manifest",
                "cause": f"{name.removesuffix('_id')}-too-long",
                "detail": f"{name} is longer than {limit} bytes",
            }
            for word, text in words.items():
                rows = rows.append_column(word, pa.repeat(text, rows.num_rows))
            found.append(rows.select(QUARANTINE_SCHEMA.names))
            usable = pc.and_not(usable, longer)
    return usable, pa.concat_tables([quarantine_table(), *found]).combine_chunks()
