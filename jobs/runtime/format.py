"""Numbers, durations and times as people read them, in text and in pages."""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from index.schema import UNKNOWN_LABEL, UNKNOWN_TIME
from infra.store import format_ms

if TYPE_CHECKING:
    from clvr_model.card import Card

NO_VALUE = "\N{EN DASH}"
_LABELS_USED = {
    "model": "vehicle models",
    "vehicle": "vehicles",
    "both": "vehicle models and vehicles",
    "none": "none: pretrained on other images",
}
_ATTRIBUTES = {"color": "colors", "body_type": "body types"}


def labels_used(card: "Card") -> str:
    """The labels that a network learned from, in words."""
    learned = [words for name, words in _ATTRIBUTES.items() if name in card.attributes]
    used = _LABELS_USED[card.labels_used]
    if card.recipe.get("identity") == "track":  # which the archive states without labels
        used = "none: trained on tracks" if card.labels_used == "none" else f"{used}, and tracks"
    return ", ".join([used, *learned])


def predicted_values(crop: Mapping[str, Any]) -> list[str]:
    """The predicted color and body type of a crop with their confidences; none that the model lacks."""
    return [f"{crop[name]} ({crop[f'{name}_confidence']:.0%})" for name in _ATTRIBUTES if crop.get(name)]


def attribute_name(name: str) -> str:
    """body_type -> body type."""
    return name.replace("_", " ")


def model_name(names: Mapping[int, str], model: int) -> str:
    """The name of a predicted vehicle model, or its number; a network without a classifier predicts none."""
    return "unknown model" if model == UNKNOWN_LABEL else names.get(model, f"model {model}")


def count(value: float | None) -> str:
    """1234567 -> 1,234,567."""
    return NO_VALUE if value is None else f"{value:,.0f}"


def percent(share: float, digits: int = 1) -> str:
    """0.1234 -> 12.3."""
    return f"{100 * share:.{digits}f}"


def ratio(value: float | None) -> str:
    """A value between 0 and 1 with four digits."""
    return NO_VALUE if value is None else f"{value:.4f}"


def significant(value: float) -> str:
    """Three significant digits."""
    return f"{value:#.3g}".rstrip(".") if 1e-3 <= abs(value) < 1e4 else f"{value:.3g}"


def money(value: float | None) -> str:
    """An amount in the unit of the price; small amounts with four digits."""
    return NO_VALUE if value is None else f"{value:,.4f}" if value < 0.1 else f"{value:,.2f}"


def latency(milliseconds: float | None) -> str:
    """12.345 -> 12.3 ms."""
    return NO_VALUE if milliseconds is None else f"{milliseconds:,.1f} ms"


def duration(seconds: float | None) -> str:
    """1.5 -> 1.5 s; 125 -> 2 min 05 s; 3725 -> 1 h 02 min; 210319 -> 2 d 10 h."""
    if seconds is None:
        return NO_VALUE
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24:02d} h"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def age(created: str) -> str:
    """The time since an ISO 8601 timestamp, in its largest unit: 3 d, 5 h, 12 min, 8 s."""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds()
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def capture_time(milliseconds: int) -> str:
    """A capture time in ms since the epoch, UTC; empty if it is unknown."""
    if milliseconds == UNKNOWN_TIME:
        return ""
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):  # a time that no calendar has must not hide the crop
        return format_ms(milliseconds)


def timestamp(iso: str | None) -> str:
    """An ISO 8601 timestamp to the second, UTC."""
    return f"{iso[:10]} {iso[11:19]} UTC" if iso else NO_VALUE


def iso_timestamp(milliseconds: int | None) -> str | None:
    """ISO 8601, UTC, to the second, of ms since the epoch; None if it is unknown or in no calendar."""
    if milliseconds is None:
        return None
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError, OSError):
        return None


def text_table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[str] = ()) -> str:
    """Return rows of cells as aligned columns below their titles. right: titles of right-aligned columns."""
    lines = [titles, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    signs = [">" if title in right else "<" for title in titles]

    def text_line(cells: Sequence[str]) -> str:
        padded = (f"{cell:{sign}{size}}" for cell, sign, size in zip(cells, signs, widths, strict=True))
        return "  ".join(padded).rstrip()

    return "\n".join(map(text_line, lines))
