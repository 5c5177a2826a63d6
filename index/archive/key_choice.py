"""Which keys of an archive are crops: not those of hidden files, and those that globs include."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from index.archive.skipped import EXCLUDED, HIDDEN
from infra.errors import BadSetting
from infra.store import is_hidden


@dataclass(frozen=True, slots=True)
class KeyChoice:
    """Globs over keys, relative to the archive's root.

    include: take only keys that match one of them, hidden ones too. exclude: leave out keys that match one.
    In a glob '*' and '?' match within a name, '**' over folders; one without a slash is of the name of the
    file or of any folder above it. Raises BadSetting for an empty glob.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    _included: re.Pattern[str] | None = field(init=False, repr=False, compare=False)
    _excluded: re.Pattern[str] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_included", _union(self.include))
        object.__setattr__(self, "_excluded", _union(self.exclude))

    def why_not(self, key: str) -> str:
        """Return why a key is not taken, as SkippedObjects counts it, or ''."""
        if self._included is not None and not self._included.fullmatch(key):
            return EXCLUDED
        if self._excluded is not None and self._excluded.fullmatch(key):
            return EXCLUDED
        return HIDDEN if self._included is None and is_hidden(key) else ""


def _union(globs: Iterable[str]) -> re.Pattern[str] | None:
    expressions = [_expression(glob) for glob in globs]
    return re.compile("|".join(expressions), re.DOTALL) if expressions else None


def _expression(glob: str) -> str:
    """Return the regular expression of a glob over a whole key."""
    text = glob.strip().removeprefix("./").removeprefix("/")
    if not text:
        raise BadSetting(f"the pattern {glob!r} is empty", remedy="Give a glob such as '*/night/*.jpg'.")
    if text.endswith("/"):
        text += "**"
    pieces = re.split(r"(\*\*/|\*\*|\*|\?)", text)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    body = "".join(known.get(piece) or re.escape(piece) for piece in pieces)
    return body if "/" in text else f"(?:.*/)?{body}(?:/.*)?"


VISIBLE_KEYS = KeyChoice()
"""All keys but those of hidden files."""
