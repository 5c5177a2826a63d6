"""Rendering of self-contained HTML pages; every value in them is escaped."""

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from infra.errors import UnreadablePicture
from jobs.runtime import format


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


def sentence(words: str) -> str:
    """With a capital letter."""
    return words[:1].upper() + words[1:]


def picture(jpeg: bytes) -> str:
    """A JPEG as a data URI. Raises UnreadablePicture for anything else."""
    if not jpeg.startswith(b"\xff\xd8"):
        raise UnreadablePicture("a picture for the page is not JPEG", cause="unsupported")
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


FILTERS: dict[str, Callable[..., str]] = {
    "percent": format.percent,
    "number": format.count,
    "figure": format.significant,
    "duration": format.duration,
    "moment": format.capture_time,
    "sentence": sentence,
    "picture": picture,
}
