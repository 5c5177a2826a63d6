"""What pages of matches show: matches with their images, the facts of probes, and the command."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from index.archive.reader import open_uri
from index.schema import UNKNOWN_TIME
from index.search.probe import Sighting
from index.search.retrieval import Match
from infra.store import format_ms
from jobs.pages.search_page import PageMatch
from jobs.pages.thumbnail import thumbnail_of
from jobs.runtime.format import model_name, predicted_values

_FLAGS = {
    "cameras": "camera",
    "not_cameras": "not-camera",
    "since": "from",
    "models": "vehicle-model",
    "every_crop": "no-group-by-track",
    "camera_file": "camera-positions",
    "colors": "color",
    "not_colors": "not-color",
    "body_types": "body-type",
    "not_body_types": "not-body-type",
}
"""Rules whose flag is not their name."""


def page_matches(matches: Sequence[Match], names: dict[int, str], threshold: float | None) -> list[PageMatch]:
    """Return the matches with their thumbnails, for a page."""
    shown = []
    for match in matches:
        name = model_name(names, match.hit.model_id)
        within = threshold is not None and match.hit.distance <= threshold
        jpeg = thumbnail_of(*open_uri(match.hit.uri))
        shown.append(PageMatch(match, jpeg, name, within, predicted_values(asdict(match.hit))))
    return shown


def sighting_facts(sightings: Sequence[Sighting]) -> list[str]:
    """Return the camera and time of each sighting that has them, as the facts of a probe."""
    facts: list[str] = []
    for sighting in sightings:
        facts += [f"camera {sighting.camera_id}"] if sighting.camera_id else []
        facts += [format_ms(sighting.captured_at)] if sighting.captured_at != UNKNOWN_TIME else []
    return list(dict.fromkeys(facts))


def search_command(images: Sequence[str], options: Mapping[str, Any]) -> str:
    """Return `clvr search` with these options, by the names of the rules; None is left out."""
    words: list[Any] = ["clvr", "search", *images]
    for name, value in options.items():
        flag = f"--{_FLAGS.get(name, name).replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value is not None:
            values = value if isinstance(value, tuple) else (value,)
            words += [word for each in values for word in (flag, each)]
    return shlex.join(map(str, words))
