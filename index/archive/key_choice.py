"""Which keys of an archive are crops: not those of hidden files, and those that globs include."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from index.archive.members import split_member
from index.archive.skipped import EXCLUDED, HIDDEN
from infra.errors import BadSetting
from infra.store import is_hidden, may_hide


@dataclass(frozen=True, slots=True)
class KeyChoice:
    """Globs over keys, relative to the archive's root.

    include: take only keys that match one of them, hidden ones too. exclude: leave out keys that match one.
    A member of a container matches by its key or by that of the file. In a glob '*', '?' and '[abc]' match
    within a name, '**' over folders; one without a slash is of the name of the file or of any folder above
    it. Raises BadSetting for an unusable glob.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    _included: re.Pattern[str] | None = field(init=False, repr=False, compare=False)
    _excluded: re.Pattern[str] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_included", _union(self.include))
        object.__setattr__(self, "_excluded", _union(self.exclude))

    def takes_all(self, keys: Sequence[str]) -> bool:
        """Return whether it is known at a glance that all of these keys are taken, as usual."""
        if self._included is not None or self._excluded is not None:
            return False
        return not may_hide(keys) and "#" not in "".join(keys)

    def why_not(self, key: str) -> str:
        """Return why a key is not taken, as SkippedObjects counts it, or ''."""
        member = split_member(key)
        keys = (key, member[0]) if member else (key,)
        if self._included is not None and not any(map(self._included.fullmatch, keys)):
            return EXCLUDED
        if self._excluded is not None and any(map(self._excluded.fullmatch, keys)):
            return EXCLUDED
        return HIDDEN if self._included is None and any(map(is_hidden, member or keys)) else ""

    def why_not_inside(self, tar: str) -> str:
        """Return why no member of a container is taken, or ''; an included glob may be of its members."""
        if self._excluded is not None and self._excluded.fullmatch(tar):
            return EXCLUDED
        return HIDDEN if self._included is None and is_hidden(tar) else ""


def _union(globs: Sequence[str]) -> re.Pattern[str] | None:
    expressions = [_expression(glob) for glob in globs]
    try:
        return re.compile("|".join(expressions), re.DOTALL) if expressions else None
    except re.error as error:
        raise BadSetting(f"no pattern: {', '.join(globs)} ({error})", remedy="Correct the glob.") from error


def _expression(glob: str) -> str:
    """Return the regular expression of a glob over a whole key."""
    text = glob.strip().removeprefix("./").removeprefix("/")
    if not text:
        raise BadSetting(f"the pattern {glob!r} is empty", remedy="Give a glob such as '*/night/*.jpg'.")
    if text.endswith("/"):
        text += "**"
    body = "".join(map(_piece, re.split(r"(\*\*/|\*\*|\*|\?|\[!?\]?[^\]/]*\])", text)))
    return body if "/" in text else f"(?:.*/)?{body}(?:/.*)?"


VISIBLE_KEYS = KeyChoice()
"""All keys but those of hidden files."""


def _piece(piece: str) -> str:
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    if piece in known:
        return known[piece]
    if piece.startswith("[") and piece.endswith("]") and len(piece) > 2:
        negated = piece.startswith("[!") and len(piece) > 3
        letters = re.sub(r"([\\\[\]^])", r"\\\1", piece[2 if negated else 1 : -1])
        return f"[{'^/' if negated else ''}{letters}]"
    return re.escape(piece)
