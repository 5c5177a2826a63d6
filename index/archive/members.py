"""Keys of crops in containers: that of the file, '#', and the member's name. Imports nothing heavy."""

import re

TAR_SUFFIX = ".tar"
PARQUET_SUFFIX = ".parquet"
CONTAINER_SUFFIXES = (TAR_SUFFIX, PARQUET_SUFFIX)
"""The kinds of files that may hold crops; `index.archive.containers` has a reader for each."""

INDEX_SUFFIX = ".index.json"


def member_pattern() -> re.Pattern[str]:
    """Return the regular expression of a key of a member: the groups are that of the file, and the name."""
    suffixes = "|".join(map(re.escape, CONTAINER_SUFFIXES))
    return re.compile(rf"(.+?(?:{suffixes}))#(.+)", re.DOTALL | re.IGNORECASE)


_MEMBER = member_pattern()


def container_suffix(key: str) -> str:
    """Return the one of CONTAINER_SUFFIXES that an object's name ends in, or ''."""
    name = key.lower()
    return next((suffix for suffix in CONTAINER_SUFFIXES if name.endswith(suffix)), "")


def is_tar(key: str) -> bool:
    """Whether an object is a tar file, by its name."""
    return key.lower().endswith(TAR_SUFFIX)


def is_tar_index(key: str) -> bool:
    """Whether an object is the index of a tar file, by its name."""
    return key.lower().endswith(TAR_SUFFIX + INDEX_SUFFIX)


def split_member(key: str) -> tuple[str, str] | None:
    """Split the key or URI of a member into that of its file and its name; None for another object's."""
    parts = _MEMBER.fullmatch(key)
    return (parts[1], parts[2]) if parts else None


def member_key(file: str, name: str) -> str:
    """Return the key of a member."""
    return f"{file}#{name}"
