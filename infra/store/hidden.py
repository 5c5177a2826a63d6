"""Hidden files and folders: what systems and programs put beside the user's files."""

import re
from collections.abc import Iterable

HIDDEN_NAMES = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
"""Folders that systems make, in addition to names that begin with a dot, such as .thumbnails and ._1.jpg."""

_HIDDEN = re.compile(rf"(?:\A|/)(?:\.|(?:{'|'.join(map(re.escape, HIDDEN_NAMES))})(?:/|\Z))")


def may_hide(keys: Iterable[str]) -> bool:
    """Whether any of some keys may be hidden, in a hundredth of the time that `is_hidden` takes for each."""
    text = "/" + "/".join(keys)
    return any(start in text for start in ("/.", *(f"/{name}" for name in HIDDEN_NAMES)))


def is_hidden(key: str) -> bool:
    """Whether a key is of a hidden file: a name in it begins with a dot, or is one of HIDDEN_NAMES."""
    return _HIDDEN.search(key) is not None
