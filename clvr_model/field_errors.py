"""One line for the first field that pydantic refuses: its path, its value and what it may be."""

import difflib
import re
from collections.abc import Collection

from pydantic import ValidationError

from infra.errors import BadSetting

_MAX_VALUE_LENGTH = 80


def to_bad_setting(error: ValidationError, path: str, known: Collection[str]) -> BadSetting:
    """Describe the first error. path: the field as the user wrote it. known: the names a field may have."""
    first = error.errors(include_url=False, include_context=False)[0]
    match first["type"]:
        case "missing":
            return BadSetting(f"{path} is missing")
        case "extra_forbidden" | "unexpected_keyword_argument" | "invalid_key":
            close = difflib.get_close_matches(path.rpartition(".")[2], known, n=1)
            guess = f"did you mean {close[0]}? " if close else ""
            return BadSetting(f"{path} is no field", remedy=f"{guess}the fields are {', '.join(known)}")
        case "model_type":
            return BadSetting(f"{path} is not a table of fields")
    return BadSetting(
        f"{path} is {first['input']!r:.{_MAX_VALUE_LENGTH}}",
        remedy=re.sub(r"^\w+ should", "it must", first["msg"]),
    )
