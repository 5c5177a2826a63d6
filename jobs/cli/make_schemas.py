"""Make the JSON Schemas of the commands' outputs from their types: python -m jobs.cli.make_schemas"""

import json
from dataclasses import is_dataclass
from importlib import import_module
from typing import Any, Union, get_type_hints

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from jobs.cli.schemas import OUTPUTS, SCHEMAS, id_of, label_of

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def make_schema(name: str) -> dict[str, Any]:
    """Make the JSON Schema of the output of a command; imports the packages of the command."""
    printed: Any = Union[tuple(map(type_at, OUTPUTS[name].types))]  # noqa: UP007  of a tuple
    made = TypeAdapter(printed).json_schema(mode="serialization", by_alias=False, schema_generator=_Generator)
    if made.get("type") != "array":
        made["properties"] = {"schema": {"const": label_of(name)}, **made.get("properties", {})}
        made["required"] = ["schema", *made.get("required", [])]
    return {"$schema": DIALECT, "$id": id_of(name), **made, "title": f"clvr {name} --json"}


def type_at(pointer: str) -> Any:
    """Return the type of the JSON that `module:Name` becomes: see `Output.types`."""
    module, _, name = pointer.removesuffix("[]").partition(":")
    kind = getattr(import_module(module), name)
    to_json = getattr(kind, "to_json", None)
    printed: Any = get_type_hints(to_json, include_extras=True)["return"] if to_json else None
    # What is a plain dict by its annotation, or the bytes of a document, is printed field by field.
    if is_dataclass(kind) and printed in (None, bytes, dict[str, Any]):
        printed = kind
    return list[printed] if pointer.endswith("[]") else printed


class _Generator(GenerateJsonSchema):
    """Every key is written, also one that has a default; and later releases may add keys."""

    def field_is_required(
        self,
        field: core_schema.ModelField | core_schema.DataclassField | core_schema.TypedDictField,
        total: bool,
    ) -> bool:
        return field["type"] == "dataclass-field" or super().field_is_required(field, total)

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        made = super().dataclass_schema(schema)
        made.pop("additionalProperties", None)
        return made


def main() -> None:
    """Write schemas.json."""
    schemas = {name: make_schema(name) for name in sorted(OUTPUTS)}
    SCHEMAS.write_text(json.dumps(schemas, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
