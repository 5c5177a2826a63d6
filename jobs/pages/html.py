"""Rendering of self-contained HTML pages; every value in them is escaped."""

import base64
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from index.outputs import unfinished_page
from infra.errors import BadSetting, UnreadableImage
from jobs.runtime import format

CONTENTS = "<!-- contents -->"
"""Where a template lists its sections."""

MIN_SECTIONS = 4
"""Sections of a page that has such a list."""


def render(
    template: str,
    *,
    styles: Sequence[str] = ("page.css.j2",),
    filters: Mapping[str, Callable[..., str]] | None = None,
    **values: Any,
) -> str:
    """Render a template; all values are escaped, and the same values give the same HTML.

    styles: stylesheets; the content policy of the page admits them by their digest. filters: formats of
    this page, in addition to `FILTERS`. Raises UnreadableImage for image bytes that are not JPEG.
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
    page = environment.get_template(template).render(
        css=Markup(css),  # noqa: S704 (templates of this package, rendered without data)
        css_digest=base64.b64encode(hashlib.sha256(css.encode()).digest()).decode(),
        **values,
    )
    return _with_contents(page)


def _with_contents(page: str) -> str:
    """Number the sections of a page, and list them where it asks for that, if they are many."""
    headings: list[str] = []

    def number(found: re.Match[str]) -> str:
        headings.append(re.sub(r"<[^>]*>", "", found[1]).strip())
        return f'<h2 id="section-{len(headings)}">{found[1]}</h2>'

    numbered = re.sub(r"<h2>(.*?)</h2>", number, page, flags=re.DOTALL)
    if CONTENTS not in page or len(headings) < MIN_SECTIONS:
        return page.replace(CONTENTS, "")
    links = (f'<a href="#section-{place}">{text}</a>' for place, text in enumerate(headings, start=1))
    return numbered.replace(
        CONTENTS, f'<nav class="contents" aria-label="Sections of this page">{"".join(links)}</nav>'
    )


def write_page(path: Path, page: str) -> None:
    """Write a page: readers see the old one or the whole new one. Raises BadSetting if that is impossible."""
    unfinished = path.with_name(unfinished_page(path.name))
    try:
        unfinished.write_text(page, encoding="utf-8")
        unfinished.replace(path)
    except OSError as failure:
        raise BadSetting(
            f"the page {path} cannot be written: {failure.strerror}",
            remedy="Choose another folder.",
        ) from failure


def sentence(text: str) -> str:
    """Capitalize the first letter."""
    return text[:1].upper() + text[1:]


def image(jpeg: bytes) -> str:
    """Return a JPEG as a data URI. Raises UnreadableImage for other bytes."""
    if not jpeg.startswith(b"\xff\xd8"):
        raise UnreadableImage("an image of the page is not JPEG", cause="unsupported")
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


FILTERS: dict[str, Callable[..., str]] = {
    "percent": format.percent,
    "number": format.count,
    "money": format.money,
    "figure": format.significant,
    "duration": format.duration,
    "moment": format.capture_time,
    "sentence": sentence,
    "image": image,
}
