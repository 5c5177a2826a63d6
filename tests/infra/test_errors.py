"""The tree of errors: drawn completely, with documented exit codes, and pickled without loss."""

import inspect
import pickle
import re

from infra import errors
from infra.errors import ClvrError, UnreadableImage

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, ClvrError)]


def test_the_drawn_tree_has_every_error_below_its_parent() -> None:
    drawn: dict[str, int] = {}
    for line in (errors.__doc__ or "").splitlines():
        entry = re.match(r"^    ([│├└─ ]*)(\w+) ", line)
        if entry:
            drawn[entry[2]] = len(entry[1])
    assert set(drawn) == {kind.__name__ for kind in KINDS}
    for kind in KINDS:
        parent = kind.__bases__[0]
        if issubclass(parent, ClvrError):
            assert drawn[kind.__name__] > drawn[parent.__name__]


def test_message_remedy_and_cause_survive_pickling() -> None:
    error = UnreadableImage("it ends too soon", cause="truncated", remedy="fetch it again")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - bytes of this test
    assert (again.message, again.cause, again.remedy) == ("it ends too soon", "truncated", "fetch it again")
    assert isinstance(again, UnreadableImage)
