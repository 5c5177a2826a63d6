"""Rendering of self-contained HTML pages, and the formats of their figures."""

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import jinja2
from markupsafe import Markup

from index.schema import UNKNOWN_TIME
from infra.errors import UnreadablePicture


def render(
    template: str,
    *,
    styles: Sequence[str] = ("page.css.j2",),
    filters: Mapping[str, Callable[..., str]] | None = None,
    **values: Any,
) -> str:
    """Render a template; all values are escaped, and the same values give the same HTML.

    styles: stylesheets; the content policy of the page admits them by their digest. filters: formats of
    this page, in addition to `FILTERS`. Raises UnreadablePicture for image bytes that are not JPEG.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jobs.pages", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    environment.filters.update(filters or {})
    css = "\n".join(environment.get_template(style).render() for style in styles)
    return environment.get_template(template).render(
        css=Markup(css),  # noqa: S704 (templates of this package, rendered without data)
        css_digest=base64.b64encode(hashlib.sha256(css.encode()).digest()).decode(),
        **values,
    )


def percent(share: float, digits: int = 1) -> str:
    """Format 0.1234 as 12.3."""
    return f"{100 * share:.{digits}f}"


def number(value: int) -> str:
    """Format 1234567 as 1,234,567."""
    return f"{value:,}"


def figure(value: float) -> str:
    """Format with three significant digits."""
    return f"{value:#.3g}".rstrip(".") if 1e-3 <= abs(value) < 1e4 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Format seconds as s, min and s, or h and min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def moment(milliseconds: int) -> str:
    """Format a time of capture in UTC; an unknown time is empty."""
    if milliseconds == UNKNOWN_TIME:
        return ""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%d %b %Y %H:%M:%S")


def sentence(text: str) -> str:
    """Capitalize the first letter."""
    return text[:1].upper() + text[1:]


def image(jpeg: bytes) -> str:
    """Return a JPEG as a data URI. Raises UnreadablePicture for other bytes."""
    if not jpeg.startswith(b"\xff\xd8"):
        raise UnreadablePicture("an image of the page is not JPEG", cause="unsupported")
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


FILTERS: dict[str, Callable[..., str]] = {
    format_.__name__: format_ for format_ in (percent, number, figure, duration, moment, sentence, image)
}
