"""Named evaluation protocols: who is the probe, who the gallery, how often that is drawn; all seeded.

    name              probes                          gallery                       repeats
    vehicleid-paper   one random picture a vehicle    all its other pictures        10
    vehicleid-common  all other pictures              one random picture a vehicle  10
    leave-one-out     every picture                   all other pictures            1 (nothing is random)

The first is what the paper's text describes, the second what nearly every public code does. They give very
different figures on the same features, so no figure goes without its protocol's name. A vehicle with a single
picture can be no true match of anything: it is left out, and counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from index.cmc import Labelled, Split, cmc_of_splits
from infra.errors import BadInput, BadLabels, BadSetting

RULES = {
    "vehicleid-paper": "one random picture of each vehicle is the probe, all other pictures are the gallery",
    "vehicleid-common": "one random picture of each vehicle is the gallery, all other pictures are probes",
    "leave-one-out": "each picture is the probe once, all other pictures are the gallery",
}
EXCLUSION = "vehicles with a single picture are left out: they can have no true match"
SPLIT_SCHEMA = pa.schema([("repeat", pa.int32()), ("role", pa.string()), ("crop_id", pa.int64())])


@dataclass(frozen=True, slots=True)
class ProtocolResult:
    """One protocol's figures: every repeat's curve, and mean and sample standard deviation over repeats."""

    name: str
    rule: str
    seed: int
    curves: NDArray[np.float64]  # (repeats, max_rank)
    maps: NDArray[np.float64]  # (repeats,)
    minps: NDArray[np.float64]  # (repeats,)
    chance: NDArray[np.float64]  # (max_rank,) mean over repeats
    ranks: list[NDArray[np.int64]]  # for each repeat, of each probe in the split's order
    splits: list[Split]
    vehicles: int  # that take part
    pictures: int  # that take part
    excluded_vehicles: int  # with a single picture; each is one excluded picture

    @property
    def repeats(self) -> int:
        """How often the protocol was drawn."""
        return len(self.curves)

    @property
    def mean(self) -> NDArray[np.float64]:
        """(max_rank,) mean curve."""
        return np.asarray(self.curves.mean(axis=0))

    @property
    def std(self) -> NDArray[np.float64]:
        """(max_rank,) sample standard deviation of the curve; 0 for a single repeat."""
        return _std(self.curves)

    @property
    def map(self) -> tuple[float, float]:
        """Mean average precision: mean and sample standard deviation over repeats."""
        return float(self.maps.mean()), float(_std(self.maps))

    @property
    def minp(self) -> tuple[float, float]:
        """Mean inverse negative penalty: mean and sample standard deviation over repeats."""
        return float(self.minps.mean()), float(_std(self.minps))

    @property
    def probes(self) -> int:
        """Probes in each repeat."""
        return len(self.splits[0].probes)

    @property
    def gallery(self) -> int:
        """Gallery entries in each repeat (for leave-one-out the probe itself is not counted)."""
        return len(self.splits[0].gallery) - (self.name == "leave-one-out")

    def summary(self) -> str:
        """What was done, in one line."""
        times = "once" if self.repeats == 1 else f"{self.repeats} times, seed {self.seed}"
        alone = self.excluded_vehicles
        left_out = f"{alone:,} left out ({EXCLUSION})" if alone else "no vehicle left out"
        return (
            f"{self.name}: {self.rule}; {self.probes:,} probes against {self.gallery:,} pictures of "
            f"{self.vehicles:,} vehicles, {times}; {left_out}"
        )


def vehicleid_paper(vehicle_ids: NDArray[np.int64], seed: int, repeat: int = 0) -> Split:
    """One random picture a vehicle is the probe. Source: the paper, section 4, "Evaluation Protocol"."""
    chosen = _one_a_vehicle(vehicle_ids, seed, repeat)
    return Split(np.flatnonzero(chosen), np.flatnonzero(~chosen & _has_partner(vehicle_ids)))


def vehicleid_common(vehicle_ids: NDArray[np.int64], seed: int, repeat: int = 0) -> Split:
    """One random picture a vehicle is the gallery: the reverse, as in most public code."""
    split = vehicleid_paper(vehicle_ids, seed, repeat)
    return Split(probes=split.gallery, gallery=split.probes)


def leave_one_out(vehicle_ids: NDArray[np.int64]) -> Split:
    """Every picture against all others."""
    rows = np.flatnonzero(_has_partner(vehicle_ids))
    return Split(rows, rows)


def draw(name: str, vehicle_ids: NDArray[np.int64], *, repeats: int = 10, seed: int = 0) -> list[Split]:
    """All repeats of a protocol. Raises BadSetting for an unknown name, BadLabels if no vehicle is usable."""
    if name not in RULES:
        raise BadSetting(f"unknown protocol '{name}'", remedy=f"use one of: {', '.join(RULES)}")
    if repeats < 1:
        raise BadSetting(f"repeats is {repeats}", remedy="give at least 1")
    if not _has_partner(vehicle_ids).any():
        raise BadLabels(
            f"none of {len(np.unique(vehicle_ids)):,} vehicles has two pictures",
            remedy="label at least two pictures of some vehicles",
        )
    if name == "leave-one-out":
        return [leave_one_out(vehicle_ids)]
    split = vehicleid_paper if name == "vehicleid-paper" else vehicleid_common
    return [split(vehicle_ids, seed, repeat) for repeat in range(repeats)]


def evaluate_protocol(
    name: str,
    features: NDArray[np.float32],
    vehicle_ids: NDArray[np.int64],
    *,
    repeats: int = 10,
    seed: int = 0,
    max_rank: int = 50,
    splits: Sequence[Split] | None = None,
    device: str = "cpu",
) -> ProtocolResult:
    """Draw a protocol (or take `splits` that were drawn before) and rank every repeat.

    features: float32 (n, d); vehicle_ids: int64 (n,). Raises what `draw` and `cmc` raise.
    """
    everything = Labelled(features, np.asarray(vehicle_ids, dtype=np.int64), None, np.arange(len(features)))
    chosen = list(splits) if splits is not None else draw(name, vehicle_ids, repeats=repeats, seed=seed)
    results = cmc_of_splits(everything, chosen, max_rank=max_rank, device=device)
    partnered = _has_partner(vehicle_ids)
    return ProtocolResult(
        name=name,
        rule=RULES[name],
        seed=seed,
        curves=np.stack([result.curve for result in results]),
        maps=np.array([result.map for result in results]),
        minps=np.array([result.minp for result in results]),
        chance=np.mean([result.chance for result in results], axis=0),
        ranks=[result.ranks for result in results],
        splits=chosen,
        vehicles=len(np.unique(vehicle_ids[partnered])),
        pictures=int(partnered.sum()),
        excluded_vehicles=int((~partnered).sum()),
    )


def write_splits(path: Path, splits: Sequence[Split], crop_ids: NDArray[np.int64]) -> None:
    """Write who was probe and gallery in each repeat, by crop_id, as Parquet: another toolbox can read it."""
    tables = [
        pa.table(
            {
                "repeat": pa.array(np.full(len(rows), repeat, dtype=np.int32)),
                "role": pa.array([role] * len(rows)),
                "crop_id": pa.array(crop_ids[rows]),
            },
            schema=SPLIT_SCHEMA,
        )
        for repeat, split in enumerate(splits)
        for role, rows in (("probe", split.probes), ("gallery", split.gallery))
    ]
    pq.write_table(pa.concat_tables(tables), path, compression="zstd")


def read_splits(path: Path, crop_ids: NDArray[np.int64]) -> list[Split]:
    """Read splits back as rows of `crop_ids`, in the order they were written.

    Raises BadInput for a file that is no split file, or that names crops which are not at hand.
    """
    try:
        table = pq.read_table(path, schema=SPLIT_SCHEMA)
    except (OSError, pa.ArrowException) as error:
        raise BadInput(f"{path} is not a split file: {error}") from error
    order = np.argsort(crop_ids, kind="stable")
    wanted = table["crop_id"].to_numpy()
    place = np.minimum(np.searchsorted(crop_ids, wanted, sorter=order), len(crop_ids) - 1)
    rows = order[place] if len(crop_ids) else place
    missing = np.flatnonzero(crop_ids[rows] != wanted) if len(crop_ids) else np.arange(len(wanted))
    if len(missing):
        raise BadInput(
            f"{path} names {len(missing)} crops that have no embedding here, the first {wanted[missing[0]]}",
            remedy="evaluate the run that the splits were written for",
        )
    repeat = table["repeat"].to_numpy()
    probe = np.asarray(table["role"].to_pylist()) == "probe"
    return [
        Split(rows[(repeat == number) & probe], rows[(repeat == number) & ~probe])
        for number in np.unique(repeat)
    ]


def _has_partner(vehicle_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    _, inverse, counts = np.unique(vehicle_ids, return_inverse=True, return_counts=True)
    return np.asarray(counts[inverse] > 1)


def _one_a_vehicle(vehicle_ids: NDArray[np.int64], seed: int, repeat: int) -> NDArray[np.bool_]:
    """Each repeat has a stream of its own, so that repeat 7 is the same whether ten are drawn or twenty."""
    key = np.random.default_rng([seed, repeat]).random(len(vehicle_ids))
    order = np.lexsort((key, vehicle_ids))
    _, first = np.unique(vehicle_ids[order], return_index=True)
    chosen = np.zeros(len(vehicle_ids), dtype=np.bool_)
    chosen[order[first]] = True
    return np.asarray(chosen & _has_partner(vehicle_ids))


def _std(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1:]))
