"""The paper's published figures, and which of an evaluation's figures can be compared with them."""

from collections.abc import Sequence
from dataclasses import dataclass

PUBLISHED_MODEL_ACCURACY = 0.948  # the paper, section 4: 228 models, 18,119 validation images
DATASET = "VehicleID"
LISTS = {"test_800": "small", "test_1600": "medium", "test_2400": "large"}
IMAGES = {"test_800": 6_493, "test_1600": 13_377, "test_2400": 19_777}  # the paper, section 4
# The paper, Table 1; rank-1 and rank-5 in percent, by the columns of `LISTS`.
TABLE_1 = (
    ("CCL", ((43.6, 64.2), (37.0, 57.1), (32.9, 53.3))),
    ("Mixed Diff + CCL", ((49.0, 73.5), (42.8, 66.8), (38.2, 61.6))),
    ("CLVR", ((62.0, 76.0), (56.1, 71.8), (50.6, 68.0))),
)
DIRECTIONS = ("vehicleid-paper", "vehicleid-common")


@dataclass(frozen=True, slots=True)
class Published:
    """Table 1 beside the figures of one list: its columns that belong there, and what may be compared."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[float, float], ...]], ...]  # method, (rank-1, rank-5) of each column
    note: str
    is_comparable: bool


def published_beside(
    dataset: str, list_name: str, protocols: Sequence[str], *, images: int, not_ranked: int = 0
) -> Published:
    """Return Table 1 for a list of a dataset ('' if unknown) that was ranked under some protocols.

    images: of the list, ranked or not. not_ranked: those of them that are missing from the ranking.
    """
    column = LISTS.get(list_name) if dataset == DATASET else None
    if column is None:
        other = f"{DATASET}, but none of the paper's lists" if dataset == DATASET else "not " + DATASET
        note = f"The images of this evaluation are {other}, so the figures are not comparable with these."
        return Published(tuple(LISTS.values()), TABLE_1, note, False)
    place = list(LISTS.values()).index(column)
    rows = tuple((method, (figures[place],)) for method, figures in TABLE_1)
    directions = [name for name in DIRECTIONS if name in protocols]
    if images != IMAGES[list_name]:
        note = (
            f"The list has {images:,} images, and the paper's list of that name {IMAGES[list_name]:,}, so "
            "the figures are not comparable with these."
        )
        return Published((column,), rows, note, False)
    if not_ranked:
        note = (
            f"{not_ranked:,} images of this list are not ranked here, so the figures are not comparable with "
            f"these, which are of the whole list."
        )
        return Published((column,), rows, note, False)
    if not directions:
        note = (
            f"The list is the same. Table 1 has one image of each vehicle on one side, as "
            f"{' and '.join(DIRECTIONS)} have; no protocol here does, so the figures are not comparable."
        )
        return Published((column,), rows, note, False)
    note = (
        f"The list is the same, and so is the rule: compare with {' and '.join(directions)}. The paper's "
        "text makes one image of each vehicle the probe, as vehicleid-paper does. CCL and Mixed Diff are "
        "figures of a setting that public code takes with one image of each vehicle in the gallery, as "
        "vehicleid-common does. Which direction the row of CLVR has is not known."
    )
    return Published((column,), rows, note, True)


def published_table(parts: Sequence[Published]) -> Published:
    """Join what `published_beside` returned for each list of an evaluation.

    The columns are those of the lists that are comparable, in the order of the lists; if none is, all columns
    of Table 1.
    """
    same = [part for part in parts if part.is_comparable]
    if not same:
        return Published(tuple(LISTS.values()), TABLE_1, parts[0].note, False)
    rows = tuple(
        (method, tuple(part.rows[number][1][0] for part in same))
        for number, (method, _) in enumerate(TABLE_1)
    )
    notes = [same[0].note, *dict.fromkeys(part.note for part in parts if not part.is_comparable)]
    return Published(tuple(part.columns[0] for part in same), rows, " ".join(notes), True)
