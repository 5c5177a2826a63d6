"""Stored profiles: one sealed Parquet file a run and model, written once, because a run does not change.

    drift/<fingerprint>/<run_id>.parquet

A purge leaves a profile as it is: it holds sums over ten crops or more, and names none.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from index.drift.profile import Features, Profile
from index.parquet import open_parquet, write_table
from infra.errors import CorruptObject, ObjectMissing
from infra.store import Store

VERSION = "1"
_SCHEMA = pa.schema(
    [
        pa.field("camera_id", pa.string(), nullable=False),
        pa.field("week", pa.int32(), nullable=False),
        pa.field("crops", pa.int64(), nullable=False),
        pa.field("measured", pa.int64(), nullable=False),
        pa.field("mean", pa.list_(pa.float64()), nullable=False),
        pa.field("scatter", pa.float64(), nullable=False),
        pa.field("length", pa.float64(), nullable=False),
        pa.field("length_sq", pa.float64(), nullable=False),
        pa.field("model_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("model_crops", pa.list_(pa.int64()), nullable=False),
    ]
)


def write_profile(store: Store, fingerprint: str, run_id: str, profile: Profile) -> None:
    """Store the profile of a run; equal profiles give equal bytes."""
    rows = []
    for key in sorted(profile.crops):
        sums = profile.features.get(key)
        rows.append(
            {
                "camera_id": key[0],
                "week": key[1],
                "crops": profile.crops[key],
                "measured": sums.crops if sums else 0,
                "mean": sums.mean.tolist() if sums else [],
                "scatter": sums.scatter if sums else 0.0,
                "length": sums.length if sums else 0.0,
                "length_sq": sums.length_sq if sums else 0.0,
                "model_ids": sorted(sums.models) if sums else [],
                "model_crops": [sums.models[model] for model in sorted(sums.models)] if sums else [],
            }
        )
    table = pa.Table.from_pylist(rows, schema=_SCHEMA)
    write_table(store, _key(fingerprint, run_id), table, metadata=_metadata(fingerprint, run_id))


def read_profile(store: Store, fingerprint: str, run_id: str) -> Profile | None:
    """Return the stored profile of a run, None without one. Raises CorruptObject."""
    key = _key(fingerprint, run_id)
    crops, features = {}, {}
    try:
        with open_parquet(store, key) as file:
            stated = {name.decode(): value.decode() for name, value in (file.schema.metadata or {}).items()}
            if not _metadata(fingerprint, run_id).items() <= stated.items():
                raise CorruptObject(
                    f"{store.uri_of(key)} is not the profile of its run",
                    remedy="Delete it and repeat the command, which makes it again.",
                )
            for batch in file.batches(256):
                for row in batch.to_pylist():
                    place = (row["camera_id"], row["week"])
                    crops[place] = row["crops"]
                    if row["measured"]:
                        features[place] = _features(row)
    except ObjectMissing:
        return None
    return Profile(crops, features)


def _features(row: dict[str, Any]) -> Features:
    return Features(
        row["measured"],
        np.array(row["mean"]),
        row["scatter"],
        row["length"],
        row["length_sq"],
        dict(zip(row["model_ids"], row["model_crops"], strict=True)),
    )


def _metadata(fingerprint: str, run_id: str) -> dict[str, str]:
    return {"drift_profile": VERSION, "fingerprint": fingerprint, "run_id": run_id}


def _key(fingerprint: str, run_id: str) -> str:
    return f"drift/{fingerprint}/{run_id}.parquet"
