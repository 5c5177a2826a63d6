"""A look at the files and runs that a command names, before anything heavy is imported.

A mistyped path is the most frequent mistake, and torch and Ray take seconds to import. Only local paths are
looked at; objects in a bucket are found, or not, by the command itself.
"""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from index.archive.members import split_member
from infra.errors import BadInput, BadSetting

if TYPE_CHECKING:
    from infra.settings import Settings

_LATEST = "latest"
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://?|crop:|track:|hf:|package:")
"""Starts an address that is not a path; `s3:/` is a slip of the keyboard."""


def require_paths(*paths: str | Path | None) -> None:
    """Raise BadInput for a local path that does not exist, and for `s3:/…`. None is skipped."""
    for path in paths:
        if path is None:
            continue
        text = str(path).removeprefix("file://")
        if text.startswith("s3:/") and not text.startswith("s3://"):
            raise BadInput(f"{text} has one slash after s3:", remedy=f"write s3://{text[4:].lstrip('/')}")
        if not _SCHEME.match(text) and not Path((split_member(text) or (text,))[0]).exists():
            raise BadInput(f"{text} does not exist", remedy=_path_remedy(Path(text)))


def require_table_name(name: str | None) -> None:
    """Raise BadSetting for a result table that is neither .csv nor .parquet, BadInput for a missing folder.

    None is skipped.
    """
    if name is None:
        return
    if not name.endswith((".csv", ".parquet")):
        raise BadSetting(f"--table {name} is of an unknown form", remedy="name it .csv or .parquet")
    require_paths(name.rpartition("/")[0] or ".")


def require_runs(run_ids: Iterable[str], settings: "Settings") -> None:
    """Raise BadInput for a run that a local folder of runs does not hold; for `latest`, without any run."""
    if _SCHEME.match(settings.runs.removeprefix("file://")):
        return
    root = Path(settings.runs.removeprefix("file://")).absolute()
    folder = root / "runs"
    for run_id in run_ids:
        if run_id == _LATEST:
            if not folder.exists():
                raise BadInput(f"there is no finished run in {root}", remedy="make one: clvr embed")
        elif not (folder / run_id / "run.json").exists():
            similar = difflib.get_close_matches(run_id, _names(folder), n=1)
            remedy = f"did you mean {similar[0]}? " if similar else ""
            raise BadInput(f"there is no run {run_id} in {root}", remedy=f"{remedy}`clvr runs` lists them")


def _path_remedy(path: Path) -> str:
    parent = path.parent
    while not parent.exists():  # the working directory exists
        path, parent = parent, parent.parent
    similar = difflib.get_close_matches(path.name, _names(parent), n=1)
    if similar:
        return f"did you mean {parent / similar[0]}?"
    return f"check the path: {parent.absolute()} has no {path.name}"


def _names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())[:10_000]
    except OSError:
        return []
