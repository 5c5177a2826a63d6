"""The sections of an archive: how a listing is cut, so that many listings run at the same time."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import partial

from index.archive.partitions import day_of
from infra.errors import BadInput, BadSetting
from infra.store import Store

MAX_LOOSE_OBJECTS = 1000
"""A folder with more objects beside its folders is listed as a whole: its own objects take that long."""

MAX_FOLDERS = 20_000
"""A folder with more folders is listed as a whole."""

_LEVELS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Section:
    """The objects below a folder ('' is the root). is_deep: also those in its folders.

    after, until: of a flat folder, only keys greater than the one and up to the other; '' is no bound.
    """

    folder: str
    is_deep: bool = True
    after: str = ""
    until: str = ""

    @property
    def is_range(self) -> bool:
        """Whether it is a range of the keys of a flat folder."""
        return bool(self.after or self.until)


class FolderNotFlat(BadInput):
    """A folder that was cut into ranges has folders, or is not listed in the order of its keys."""


def sections_of(
    store: Store, count: int, since: date | None = None, *, cut_flat: bool = False
) -> list[Section]:
    """Cut an archive into `count` sections or more, if two levels of its folders allow that.

    since: only the folders dt=… of this day and later. cut_flat: cut large folders of a bucket that seem to
    have no folders into ranges of keys, by some hundred requests each; if such a folder has some further on,
    its listing raises FolderNotFlat. Raises BadSetting if the archive has no folders dt=….
    """
    folders, depth = ([""], 2) if since is None else (days_since(store, since), 1)
    sections: list[Section] = []
    for _ in range(depth):
        if len(folders) >= count:
            break
        inner: list[str] = []
        with ThreadPoolExecutor(_LEVELS_AT_ONCE, thread_name_prefix="list-levels") as pool:
            levels = list(pool.map(partial(store.level, max_objects=MAX_LOOSE_OBJECTS), folders))
        for folder, level in zip(folders, levels, strict=True):
            if level.is_whole and 0 < len(level.folders) <= MAX_FOLDERS and _can_cut(store, level.folders):
                if level.objects:
                    sections.append(Section(folder, is_deep=False))
                inner += level.folders
            elif cut_flat and not level.is_whole and not level.folders:
                bounds = ["", *store.bounds(folder, count), ""]
                sections += [Section(folder, True, *pair) for pair in itertools.pairwise(bounds)]
            else:
                sections.append(Section(folder))
        folders = inner
    return sections + [Section(folder) for folder in folders]


def days_since(store: Store, since: date) -> list[str]:
    """Return the folders 'dt=yyyy-mm-dd' (or dt=yyyymmdd) of a day and later. Raises BadSetting if none."""
    days = {folder: day for folder in store.folders() if (day := day_of(folder)) is not None}
    if not days:
        raise BadSetting(
            f"{store.uri} has no folders dt=yyyy-mm-dd, so there are no days to look back over",
            remedy="Leave out --lookback-days to list and compare the whole archive.",
        )
    return sorted(folder for folder, day in days.items() if day >= since)


def _can_cut(store: Store, folders: list[str]) -> bool:
    # A local folder may be a link to one that contains it, which only a listing of both notices. Nobody
    # links folders named like dt=… and cam=….
    return not store.local or all("=" in folder.rpartition("/")[2] for folder in folders)
