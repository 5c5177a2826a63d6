"""Cumulative matching characteristic (CMC) and mean average precision, exact, in memory bounded by the block.

The rank of a true match is one more than the number of gallery entries that stand before it, so ranks are
counted, never sorted: a gallery block is scored against all probes, compared with each probe's true-match
distances, and forgotten. Entries too close to call in float32 are decided in float64.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from index.distances import Frame, Kernel, Placed, choose_kernel, error_bound, exact_squared, outward
from infra.errors import BadInput, BadLabels, UnmatchedProbe

_PROBES_AT_ONCE = 512  # with 2048 gallery rows, 4 MiB of scores: they stay in cache while they are compared
_SORT_FROM = 24  # true matches of a probe, from which one sort of a row is cheaper than a comparison for each


@dataclass(frozen=True, slots=True)
class Labelled:
    """Features with the vehicles they show. `features` may be a memory map: only blocks of it are copied."""

    features: NDArray[np.float32]  # (n, d)
    vehicle_ids: NDArray[np.int64]  # (n,)
    camera_ids: NDArray[np.str_] | None = None  # (n,)
    crop_ids: NDArray[np.int64] | None = None  # (n,); a gallery entry with the probe's own id is left out

    def __post_init__(self) -> None:
        if self.features.ndim != 2:
            raise BadInput(
                f"features must be rows of one length, not an array of shape {self.features.shape}"
            )
        for name in ("vehicle_ids", "camera_ids", "crop_ids"):
            column = getattr(self, name)
            if column is not None and len(column) != len(self.features):
                raise BadLabels(f"{len(column)} {name} for {len(self.features)} features")

    def take(self, rows: NDArray[np.int64]) -> "Labelled":
        """The given rows, in the given order."""
        return Labelled(
            self.features[rows],
            self.vehicle_ids[rows],
            None if self.camera_ids is None else self.camera_ids[rows],
            None if self.crop_ids is None else self.crop_ids[rows],
        )


@dataclass(frozen=True, slots=True)
class Cmc:
    """`curve[k - 1]` is the share of probes whose first true match stands at rank k or better."""

    curve: NDArray[np.float64]  # (max_rank,)
    probes: int  # that were ranked
    map: float  # mean average precision, over every true match of every probe
    minp: float  # mean inverse negative penalty: true matches / rank of the last one
    chance: NDArray[np.float64]  # (max_rank,) the curve that a random order of the same gallery would have
    ranks: NDArray[np.int64]  # (all probes,) rank of the first true match; 0 for a probe that was skipped
    skipped: int = 0  # probes without a true match


def cmc(
    probes: Labelled,
    gallery: Labelled,
    *,
    max_rank: int = 50,
    block: int = 2048,
    same_camera_is_junk: bool = False,
    skip_unmatched: bool = False,
    device: str = "cpu",
) -> Cmc:
    """Rank the gallery for each probe by ascending L2 distance and count true matches.

    probes, gallery: float32 features (n, d) with int64 vehicle ids (n,). Distances are those of float64;
    equal ones rank by gallery order. `same_camera_is_junk` leaves out, for each probe, its vehicle's pictures
    from its own camera (the rule of VeRi and Market-1501). Memory: the features, one block of scores, and
    16 bytes for each pair of a probe and a picture of its vehicle.
    Raises UnmatchedProbe if a probe's vehicle is not in the gallery, unless `skip_unmatched`; BadInput for
    features that are not finite or not of one dimension; BadLabels if the junk rule lacks camera ids.
    Source: the paper, section 4, "Evaluation Protocol"; mINP: Ye et al., arXiv 2001.04193, section 4.2.
    """
    _check(probes, gallery, max_rank, block, same_camera_is_junk)
    pairs = _pairs_of_one_vehicle(probes, gallery, same_camera_is_junk)
    matches = np.bincount(pairs.probe[pairs.counts], minlength=len(probes.features))
    unmatched = np.flatnonzero(matches == 0)
    if len(unmatched) and (not skip_unmatched or len(unmatched) == len(matches)):
        raise UnmatchedProbe(
            f"{len(unmatched)} of {len(matches)} probes have no true match in the gallery, "
            f"the first of vehicle {probes.vehicle_ids[unmatched[0]]}",
            remedy="leave these vehicles out (the named protocols do), or give a gallery that has them",
        )

    closer = _others_before(probes, gallery, pairs, matches, block, device)
    # `closer` runs over true matches, nearest first within each probe; the n-th has n - 1 of them before it.
    first = np.concatenate([[0], np.cumsum(matches)])
    nth = np.arange(len(closer)) - np.repeat(first[:-1], matches) + 1
    ranks = np.zeros(len(matches), dtype=np.int64)
    matched = matches > 0
    ranks[matched] = closer[first[:-1][matched]] + 1
    probe_of_match = np.repeat(np.arange(len(matches)), matches)
    precision = np.bincount(probe_of_match, nth / (closer + nth), minlength=len(matches))
    last_rank = closer[first[1:][matched] - 1] + matches[matched]
    shares = np.bincount(np.minimum(ranks[matched], max_rank + 1), minlength=max_rank + 2)[1:-1]
    sizes = len(gallery.features) - np.bincount(pairs.probe[~pairs.counts], minlength=len(matches))
    return Cmc(
        curve=np.cumsum(shares) / matched.sum(),
        probes=int(matched.sum()),
        map=float((precision[matched] / matches[matched]).mean()),
        minp=float((matches[matched] / last_rank).mean()),
        chance=chance_curve(matches[matched], sizes[matched], max_rank),
        ranks=ranks,
        skipped=len(unmatched),
    )


def chance_curve(matches: NDArray[np.int64], sizes: NDArray[np.int64], max_rank: int) -> NDArray[np.float64]:
    """The CMC of a random order: `matches` true ones among `sizes` gallery entries for each probe."""
    cases, weight = np.unique(np.stack([matches, sizes]), axis=1, return_counts=True)
    drawn = np.arange(max_rank)
    left = np.maximum(cases[1][:, None] - drawn, 1)
    wrong = np.clip(cases[1][:, None] - cases[0][:, None] - drawn, 0, None)
    missed = np.cumprod(wrong / left, axis=1)
    return np.asarray(1.0 - np.average(missed, axis=0, weights=weight), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Every pair of a probe and a gallery entry of its vehicle, by probe, then by gallery order."""

    probe: NDArray[np.int64]
    gallery: NDArray[np.int64]
    counts: NDArray[np.bool_]  # False for junk and for the probe's own picture


def _check(probes: Labelled, gallery: Labelled, max_rank: int, block: int, junk: bool) -> None:
    if not len(probes.features) or not len(gallery.features):
        raise BadInput(
            f"{len(probes.features)} probes and {len(gallery.features)} gallery entries: nothing to rank"
        )
    if probes.features.shape[1] != gallery.features.shape[1]:
        raise BadInput(
            f"probes have {probes.features.shape[1]} dimensions, the gallery has {gallery.features.shape[1]}"
        )
    if max_rank < 1 or not 1 <= block <= 1 << 20:
        raise BadInput(f"max_rank {max_rank} must be at least 1, block {block} between 1 and 1,048,576")
    if junk and (probes.camera_ids is None or gallery.camera_ids is None):
        raise BadLabels("leaving out the same camera needs camera ids for probes and gallery")


def _pairs_of_one_vehicle(probes: Labelled, gallery: Labelled, same_camera_is_junk: bool) -> _Pairs:
    by_vehicle = np.argsort(gallery.vehicle_ids, kind="stable")
    vehicles = gallery.vehicle_ids[by_vehicle]
    start = np.searchsorted(vehicles, probes.vehicle_ids, "left")
    many = np.searchsorted(vehicles, probes.vehicle_ids, "right") - start
    probe = np.repeat(np.arange(len(many)), many)
    within = np.arange(len(probe)) - np.repeat(np.cumsum(many) - many, many)
    entry = by_vehicle[np.repeat(start, many) + within]
    counts = np.ones(len(probe), dtype=np.bool_)
    if probes.crop_ids is not None and gallery.crop_ids is not None:
        counts &= probes.crop_ids[probe] != gallery.crop_ids[entry]
    if same_camera_is_junk and probes.camera_ids is not None and gallery.camera_ids is not None:
        counts &= probes.camera_ids[probe] != gallery.camera_ids[entry]
    return _Pairs(probe, entry, counts)


@dataclass(slots=True)
class _ProbeBlock:
    """Up to `_PROBES_AT_ONCE` probes of about equally many true matches, and what was counted for them."""

    rows: NDArray[np.int64]  # (p,) probe rows
    squares: NDArray[np.float64]  # (p,) squared norms in the frame
    loaded: object  # what the kernel made of the features
    active: list[int]  # the first active[r] rows have a true match number r
    limit: NDArray[
        np.float64
    ]  # (p, t) exact squared distance of each true match; infinite where there is none
    entry: NDArray[np.int64]  # (p, t) its gallery row
    same: NDArray[np.int64]  # (2, m) row here and gallery row of the vehicle's own entries, by gallery row
    closer: NDArray[np.int64]  # (p, t) others that stand before it


def _others_before(
    probes: Labelled,
    gallery: Labelled,
    pairs: _Pairs,
    matches: NDArray[np.int64],
    block: int,
    device: str,
) -> NDArray[np.int64]:
    """For each true match, nearest first within each probe: how many other vehicles' entries precede it."""
    frame = Frame.around(probes.features, gallery.features)
    kernel = choose_kernel(device, work=float(probes.features.size) * len(gallery.features))
    blocks = list(_probe_blocks(probes, gallery, pairs, matches, frame, kernel))
    # Scores and comparisons get room once: fresh arrays would cost their page faults each time.
    rooms = torch.empty(2, _PROBES_AT_ONCE * block, device=kernel.device)
    for start in range(0, len(gallery.features), block):
        placed = frame.place(gallery.features[start : start + block])
        loaded = kernel.gallery(placed)
        for some in blocks:
            shape = len(some.rows), len(placed.squares)
            out, hit = (room[: shape[0] * shape[1]].view(shape) for room in rooms)
            scores = kernel.scores(some.loaded, loaded, out)
            low, high = np.searchsorted(some.same[1], [start, start + len(placed.squares)])
            own_row, own_entry = torch.from_numpy(some.same[:, low:high])
            scores[own_row.to(scores.device), (own_entry - start).to(scores.device)] = torch.inf
            _count(some, scores, hit, placed, start, frame, probes, gallery)
    closer = np.empty(int(matches.sum()), dtype=np.int64)
    first = np.cumsum(matches) - matches
    for some in blocks:
        here = matches[some.rows]
        nth = np.arange(some.closer.shape[1])
        has = nth < here[:, None]
        closer[(first[some.rows][:, None] + nth)[has]] = some.closer[has]
    return closer


def _probe_blocks(
    probes: Labelled,
    gallery: Labelled,
    pairs: _Pairs,
    matches: NDArray[np.int64],
    frame: Frame,
    kernel: Kernel,
) -> Iterator[_ProbeBlock]:
    squared = exact_squared(probes.features, gallery.features, pairs.probe, pairs.gallery)
    # Probes with equally many matches side by side: a comparison then runs over a prefix of the rows.
    order = np.argsort(-matches, kind="stable")
    order = order[: np.count_nonzero(matches)]
    first = np.searchsorted(pairs.probe, np.arange(len(matches) + 1))
    for start in range(0, len(order), _PROBES_AT_ONCE):
        rows = order[start : start + _PROBES_AT_ONCE]
        most = int(matches[rows[0]])
        limit = np.full((len(rows), most), np.inf)
        entry = np.full((len(rows), most), -1, dtype=np.int64)
        same = []
        for here, row in enumerate(rows):
            own = slice(first[row], first[row + 1])
            same.append(np.stack([np.full(first[row + 1] - first[row], here), pairs.gallery[own]]))
            true = np.flatnonzero(pairs.counts[own]) + first[row]
            true = true[np.lexsort((pairs.gallery[true], squared[true]))]
            limit[here, : len(true)], entry[here, : len(true)] = squared[true], pairs.gallery[true]
        together = np.concatenate(same, axis=1)
        placed = frame.place(probes.features[rows])
        yield _ProbeBlock(
            rows=rows,
            squares=placed.squares,
            loaded=kernel.probes(placed),
            active=[int(np.count_nonzero(matches[rows] > nth)) for nth in range(most)],
            limit=limit,
            entry=entry,
            same=together[:, np.argsort(together[1], kind="stable")],
            closer=np.zeros((len(rows), most), dtype=np.int64),
        )


def _count(
    some: _ProbeBlock,
    scores: torch.Tensor,
    hit: torch.Tensor,
    placed: Placed,
    start: int,
    frame: Frame,
    probes: Labelled,
    gallery: Labelled,
) -> None:
    """Add to `some.closer` the entries of this gallery block that stand before each true match."""
    scaled = (some.limit * float(frame.scale) ** 2 - some.squares[:, None]) / 2
    error = error_bound(some.squares, placed)[:, None]
    low, high = (bound.to(scores.device) for bound in outward(scaled - error, scaled + error))
    below, within = _tally(scores, hit, low, high, some.active)
    some.closer += np.where(np.isfinite(some.limit), below, 0)
    for nth in np.flatnonzero((below != within).any(axis=0)):
        rows = np.flatnonzero(below[:, nth] != within[:, nth])
        at = torch.from_numpy(rows).to(scores.device)
        near = scores[at]
        unsure = ((near >= low[at, nth, None]) & (near <= high[at, nth, None])).cpu().numpy()
        here, entry = np.nonzero(unsure)
        here, entry = rows[here], entry + start
        squared = exact_squared(probes.features, gallery.features, some.rows[here], entry)
        limit = some.limit[here, nth]
        before = (squared < limit) | ((squared == limit) & (entry < some.entry[here, nth]))
        some.closer[:, nth] += np.bincount(here[before], minlength=len(some.rows))


def _tally(
    scores: torch.Tensor, hit: torch.Tensor, low: torch.Tensor, high: torch.Tensor, active: list[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many scores of each row lie under `low`, and at or under `high`: two arrays (p, t).

    `hit` (p, n) is room for the comparisons.
    """
    below, within = (np.zeros(tuple(low.shape), dtype=np.int64) for _ in range(2))
    if len(active) >= _SORT_FROM:
        ordered = torch.from_numpy(np.sort(scores.cpu().numpy(), axis=1))
        below[:] = torch.searchsorted(ordered, low.cpu(), side="left").numpy()
        within[:] = torch.searchsorted(ordered, high.cpu(), side="right").numpy()
        for nth, rows in enumerate(active):
            below[rows:, nth] = within[rows:, nth] = 0
        return below, within
    # Comparing into floats and summing those is three to eight times faster than through booleans.
    for nth, rows in enumerate(active):
        at = slice(0, rows), slice(nth, nth + 1)
        below[:rows, nth] = torch.lt(scores[:rows], low[at], out=hit[:rows]).sum(1).cpu().numpy()
        within[:rows, nth] = torch.le(scores[:rows], high[at], out=hit[:rows]).sum(1).cpu().numpy()
    return below, within
