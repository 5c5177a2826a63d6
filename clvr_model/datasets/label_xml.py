"""The XML label files of VeRi-776, VehicleX and AI City: one Item an image, with attributes.

<?xml version="1.0" encoding="gb2312"?>
<TrainingImages Version="1.0"><Items number="37778">
<Item imageName="0001_c001_00016450_0.jpg" vehicleID="0001" cameraID="c001" colorID="7" typeID="5"/>
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final
from xml.parsers import expat

from clvr_model.datasets.test_lists import text_of
from infra.errors import BadLabels

if TYPE_CHECKING:
    from infra.store import Store

LABEL_FILES: Final = ("train_label.xml", "query_label.xml", "test_label.xml")

Item = tuple[str, dict[str, str]]  # its location, and its attributes


class _EnoughRead(Exception):
    pass


def read_items(store: "Store", name: str, limit: int | None = None) -> list[Item]:
    """Return (location, attributes) of each Item, at most `limit`.

    Raises BadLabels, with the line, for invalid XML and for a document type, whose entities could expand
    without limit.
    """
    location = store.uri_of(name)
    items: list[Item] = []
    # expat does not support GB2312, which the file declares, so the file is decoded first.
    parser = expat.ParserCreate("utf-8")

    def element(tag: str, attributes: dict[str, str]) -> None:
        if tag == "Item":
            items.append((f"{location}, line {parser.CurrentLineNumber}", attributes))
            if limit is not None and len(items) >= limit:
                raise _EnoughRead

    def refuse_doctype(*_: Any) -> None:
        raise BadLabels(f"{location}, line {parser.CurrentLineNumber}: a document type is not allowed")

    parser.StartElementHandler = element
    parser.StartDoctypeDeclHandler = refuse_doctype
    try:
        parser.Parse(text_of(store, name).encode(), True)
    except _EnoughRead:
        pass
    except expat.ExpatError as error:
        raise BadLabels(f"{location}, line {error.lineno}: {expat.ErrorString(error.code)}") from None
    return items


def number_of(item: Item, name: str, values: Callable[[int], bool], expected: str) -> int:
    """Return an item's attribute as a number. Raises BadLabels if it is none, or not one of `values`."""
    where, attributes = item
    text = attributes.get(name, "")
    if not (text.isascii() and text.isdecimal() and len(text) <= 9 and values(int(text))):
        raise BadLabels(f"{where}: {name} is {text[:20]!r}, not {expected}")
    return int(text)
