"""Records on disk: one JSON object each, made from a dataclass and checked when it is read."""

import getpass
import os
import socket
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, ClassVar, Self

from pydantic import ConfigDict, TypeAdapter, ValidationError, WithJsonSchema

from infra.errors import BadInput, CorruptObject, SchemaMismatch
from infra.store import Store
from infra.store.sealed import seal, unseal
from infra.store.settings import checked_key

_ISO_8601 = {"type": "string", "format": "date-time"}

UtcTime = Annotated[str, WithJsonSchema(_ISO_8601)]
"""A time as `utc_now` gives it, or to the second."""
OptionalUtcTime = Annotated[str, WithJsonSchema({"anyOf": [_ISO_8601, {"const": ""}]})]
"""A `UtcTime`, or "" where there is none."""

# A class is turned into a validator once.
_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


class JsonDocument:
    """A dataclass that is stored as one sealed JSON object. Keys are sorted: equal contents are equal bytes.

    A field whose name differs from its key on disk declares `Annotated[..., Field(alias="key")]`. A field of
    another release, a missing one, or a value of another type is an error that names the field.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    NOUN: ClassVar[str] = "document of this system"
    """What an error calls the record."""
    REMEDY: ClassVar[str] = ""
    """What to do about a record that cannot be read."""
    FORMAT: ClassVar[tuple[str, int] | None] = None
    """The key that holds the version of the format, and the version that this release reads."""

    def to_json(self) -> bytes:
        """Return the record as sealed JSON. Raises ValueError for a number that is not finite."""
        return seal(self.plain_values())

    def plain_values(self) -> dict[str, Any]:
        """Return the record as plain JSON values, without a digest."""
        values: dict[str, Any] = _adapter(type(self)).dump_python(self, mode="json", by_alias=True)
        return values

    def check(self, where: str) -> None:
        """Raise CorruptObject for a value that no record can have, such as a key outside its store.

        `where` is the URI of the record. Called for each record that is read; most have nothing to check.
        """

    @classmethod
    def read(cls, store: Store, key: str) -> Self:
        """Read the record at a key. Raises ObjectMissing, SchemaMismatch, CorruptObject."""
        return cls.from_json(store.get(key), store.uri_of(key))

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Self:
        """Read a record; `where` is its URI, for errors.

        Raises CorruptObject for bytes that were altered, SchemaMismatch that names the field.
        """
        values = unseal(data, where, remedy=cls.REMEDY)
        if cls.FORMAT and isinstance(values, dict):
            key, readable = cls.FORMAT
            if key in values and values[key] != readable:
                found = str(values[key])[:40]
                raise SchemaMismatch(
                    f"{where} is of version {found}, this release reads version {readable}",
                    remedy="Read it with the release that wrote it.",
                )
        try:
            document: Self = _adapter(cls).validate_python(values)
        except ValidationError as error:
            raise SchemaMismatch(f"{where} is no {cls.NOUN}: {_first(error)}", remedy=cls.REMEDY) from error
        except ValueError as error:
            raise SchemaMismatch(f"{where} is no {cls.NOUN}: {error}", remedy=cls.REMEDY) from error
        document.check(where)
        return document


def require_keys_inside(keys: Iterable[str], where: str) -> None:
    """Raise CorruptObject for a key, named by the document `where`, that would leave its folder."""
    for key in keys:
        try:
            checked_key(key)
        except BadInput as outside:
            raise CorruptObject(
                f"{where} names {key!r}, which is outside of its folder", remedy="Restore it from a copy."
            ) from outside


def utc_now() -> str:
    """Return the time, UTC, in ISO 8601 to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def user_name() -> str:
    """Return the name of the user of this process, or the number where a container gives it no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def current_user() -> str:
    """Return `user@host` of this process, for records of who did something."""
    return f"{user_name()}@{socket.gethostname()}"


def package_version() -> str:
    """Return the version of this package, for records of what wrote them."""
    try:
        return version("clvr-archive")
    except PackageNotFoundError:  # the sources were shipped to a cluster without being installed
        return "unknown"


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    path = ".".join(map(str, first["loc"]))
    return f"{path}: {first['msg']}" if path else first["msg"]
