"""The tree of errors is drawn as it is, its exit codes are documented, and it survives pickling."""

import inspect
import pickle
import re

import pytest

from infra import errors
from infra.errors import ClvrError, UnreadablePicture
from jobs.cli.app import EXIT_CODES

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, ClvrError)]


def test_the_tree_names_every_error_below_its_parent() -> None:
    drawn: dict[str, int] = {}
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^    ([│├└─ ]*)(\w+) ", line)
        if found:
            drawn[found[2]] = len(found[1])
    assert set(drawn) == {kind.__name__ for kind in KINDS}
    for kind in KINDS:
        parent = kind.__bases__[0]
        if issubclass(parent, ClvrError):
            assert drawn[kind.__name__] > drawn[parent.__name__]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_its_exit_code_is_documented_in_the_help(kind: type[ClvrError]) -> None:
    assert re.search(rf"\b{kind.exit_code}\b", EXIT_CODES)


def test_what_it_says_survives_pickling() -> None:
    error = UnreadablePicture("it ends too soon", cause="truncated", remedy="fetch it again")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (again.message, again.cause, again.remedy) == ("it ends too soon", "truncated", "fetch it again")
    assert isinstance(again, UnreadablePicture)
