"""Keys of crops in tar files: that of the file, '#', and the member's name. Imports nothing heavy."""

import re

TAR_SUFFIX = ".tar"
INDEX_SUFFIX = ".index.json"

_MEMBER = re.compile(r"(.+?\.tar)#(.+)", re.DOTALL | re.IGNORECASE)


def is_tar(key: str) -> bool:
    """Whether an object is a tar file, by its name."""
    return key.lower().endswith(TAR_SUFFIX)


def is_tar_index(key: str) -> bool:
    """Whether an object is the index of a tar file, by its name."""
    return key.lower().endswith(TAR_SUFFIX + INDEX_SUFFIX)


def split_member(key: str) -> tuple[str, str] | None:
    """Split the key or URI of a member into that of its tar file and its name; None for another object's."""
    parts = _MEMBER.fullmatch(key)
    return (parts[1], parts[2]) if parts else None


def member_key(tar: str, name: str) -> str:
    """Return the key of a member."""
    return f"{tar}#{name}"
