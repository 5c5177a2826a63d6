"""Self-contained HTML pages: how all of them are rendered, and how figures are written in them."""

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
    """A page from our own template, the same for the same values; every value in it is escaped.

    styles: stylesheets, which the page's content policy admits by their digest. filters: how this page writes
    figures, beside those of `FILTERS`. Raises UnreadablePicture for picture bytes that are not JPEG.
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
        css=Markup(css),  # noqa: S704 (our own templates, rendered without data)
        css_digest=base64.b64encode(hashlib.sha256(css.encode()).digest()).decode(),
        **values,
    )


def percent(share: float, digits: int = 1) -> str:
    """0.1234 -> 12.3."""
    return f"{100 * share:.{digits}f}"


def number(value: int) -> str:
    """1234567 -> 1,234,567."""
    return f"{value:,}"


def figure(value: float) -> str:
    """Three significant digits."""
    return f"{value:#.3g}".rstrip(".") if 1e-3 <= abs(value) < 1e4 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """A length of time as people say it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def moment(milliseconds: int) -> str:
    """A time of capture, UTC; nothing where it is unknown."""
    if milliseconds == UNKNOWN_TIME:
        return ""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%d %b %Y %H:%M:%S")


def sentence(words: str) -> str:
    """With a capital letter."""
    return words[:1].upper() + words[1:]


def picture(jpeg: bytes) -> str:
    """A JPEG as a data URI. Raises UnreadablePicture for anything else."""
    if not jpeg.startswith(b"\xff\xd8"):
        raise UnreadablePicture("a picture for the page is not JPEG", cause="unsupported")
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


FILTERS: dict[str, Callable[..., str]] = {
    one.__name__: one for one in (percent, number, figure, duration, moment, sentence, picture)
}
