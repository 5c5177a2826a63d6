"""What `to_json` returns, in types: objects that have the fields of dataclasses."""

from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema
from typing_extensions import TypedDict


class FieldsOf:
    """`Annotated[dict[str, Any], FieldsOf(A)]`: an object as `asdict` makes it of the dataclass A.

    With several dataclasses or TypedDicts it has the fields of all of them.
    """

    def __init__(self, *kinds: type) -> None:
        self._kinds = kinds

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return the schema by which pydantic describes the value."""
        if len(self._kinds) == 1:
            return handler.generate_schema(self._kinds[0])
        together: dict[str, Any] = {}
        for kind in self._kinds:
            hints = get_type_hints(kind, include_extras=True)
            names = [field.name for field in fields(kind)] if is_dataclass(kind) else list(hints)
            together |= {name: hints[name] for name in names}
        merged = TypedDict(self._kinds[-1].__name__, together)  # type: ignore[misc]  # made of other types
        merged.__doc__ = self._kinds[-1].__doc__
        return handler.generate_schema(merged)
