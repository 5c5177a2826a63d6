"""`clvr search`: find the crops of the archive that show the same vehicle as a probe."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
from rich.console import Console
from rich.table import Table
from typing_extensions import TypedDict

from clvr_model.card import Card
from index.archive.reader import open_uri
from index.filters import WITHOUT_ATTRIBUTE, Filters
from index.generations.units import TrackOfCrop
from index.milvus.search import Hit
from index.outputs import record_output, withdraw_erased
from index.schema import UNKNOWN_LABEL, UNKNOWN_TIME
from index.search.calibration import Calibration
from index.search.probe import Probe, Sighting, merge_probes
from index.search.retrieval import RERANK_HEAD, Match, Rules
from index.search.track_probe import TRACK
from index.search.travel_time import MAX_SPEED_KMH, CameraMap, TravelCheck, read_cameras
from infra.errors import BadInput, BadSetting
from infra.settings import Settings
from infra.store import format_ms
from jobs.runtime.format import attribute_name, model_name, predicted_values
from jobs.runtime.json_fields import FieldsOf
from jobs.runtime.resolve import epoch_ms
from jobs.runtime.result_table import write_crop_table
from jobs.search.searcher import CROP, Searcher, crop_number, read_image

MAX_SHOWN = 5
"""Crops of a track that a page shows as the probe."""

MATCH_SCHEMA = pa.schema(
    [
        ("rank", pa.int32()),
        ("crop_id", pa.int64()),
        ("distance", pa.float32()),
        ("likelihood", pa.float32()),
        ("uri", pa.string()),
        ("camera_id", pa.string()),
        ("track_id", pa.string()),
        ("captured_at", pa.int64()),
        ("model_id", pa.int32()),
        ("vehicle_model", pa.string()),
        ("model_confidence", pa.float32()),
        ("color", pa.string()),
        ("color_confidence", pa.float32()),
        ("body_type", pa.string()),
        ("body_type_confidence", pa.float32()),
    ]
)
"""The table of `--table`, one row per match."""

SIGHTING_EXAMPLE = "CAMERA@2026-11-22T18:30:05"


@dataclass(frozen=True, slots=True)
class RulesRequest:
    """Rules for matches, as typed by a user; times are ISO 8601, UTC without a zone.

    sweep.json and the audit log contain these fields under these names.
    """

    top: int = 20
    cameras: tuple[str, ...] = ()
    not_cameras: tuple[str, ...] = ()
    since: str | None = None
    until: str | None = None
    models: tuple[str, ...] = ()
    same_model: bool = False
    same_camera: bool = False
    every_crop: bool = False
    max_distance: float | None = None
    camera_file: str | None = None
    max_speed: float = MAX_SPEED_KMH
    drop_impossible: bool = False
    rerank: bool = False
    colors: tuple[str, ...] = ()
    not_colors: tuple[str, ...] = ()
    min_color_confidence: float | None = None
    body_types: tuple[str, ...] = ()
    not_body_types: tuple[str, ...] = ()
    min_body_type_confidence: float | None = None

    def document(self) -> dict[str, Any]:
        """Return the fields for records; those of attributes only if they are given."""
        # Records of sweeps that an older release began have none.
        values = asdict(self)
        return {name: value for name, value in values.items() if name not in _ATTRIBUTE_RULES or value}


_ATTRIBUTE_RULES = tuple(
    name.format(*names)
    for names in (("colors", "color"), ("body_types", "body_type"))
    for name in ("{0}", "not_{0}", "min_{1}_confidence")
)


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """A request of `clvr search`. `sighting`: camera and time of the images, CAMERA@TIME."""

    images: tuple[str, ...]
    checkpoint: str | None = None
    rules: RulesRequest = field(default_factory=RulesRequest)
    sighting: str | None = None
    html: Path | None = None
    table: str | None = None

    def options(self) -> dict[str, Any]:
        """Return what differs from the defaults, by the names of the fields."""
        rules = {each.name: getattr(self.rules, each.name) for each in fields(self.rules)}
        changed = {name: value for name, value in rules.items() if value != getattr(RulesRequest(), name)}
        given = {name: getattr(self, name) for name in ("sighting", "checkpoint", "html", "table")}
        return changed | {name: str(value) for name, value in given.items() if value is not None}


Verdict = Literal["found", "not found", "nothing", "ranked"]


class TrackJson(TypedDict):
    """A track of the index: how many crops it has, and its first and last time in ms, null if unknown."""

    crops: int
    captured_from: int | None
    captured_to: int | None


class MatchFields(TypedDict):
    """One match. captured_at: ms since the epoch, UTC, as the archive has it, -1 if unknown.

    crop_id exceeds the integers that JavaScript has exactly; `crop` is the same as text, `crop:ID`.
    crops_of_pass: crops of the same track that were retrieved. track: in a generation of tracks. journey:
    from a sighting of the probe.
    """

    vehicle_model: str
    crop: str
    likelihood: float | None
    crops_of_pass: int
    track: TrackJson | None
    journey: Annotated[dict[str, Any], FieldsOf(TravelCheck)] | None


MatchJson = Annotated[dict[str, Any], FieldsOf(Hit, MatchFields)]


class SearchFields(TypedDict):
    """The matches of a probe, best first.

    verdict: `found` if a match is within the calibrated threshold, `not found` if none is, `nothing` if no
    crop passes the filters, `ranked` if the model is not calibrated; then `threshold` is null. captured_at of
    a sighting: ms since the epoch, UTC, -1 if unknown.
    """

    probe: str
    sightings: list[Annotated[dict[str, Any], FieldsOf(Sighting)]]
    verdict: Verdict
    generation: str
    fingerprint: str
    threshold: float | None
    answers: list[MatchJson]


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The matches of a probe in one generation, best first.

    verdict: `found` if the first match is within the calibrated threshold, `not found` if no match is,
    `nothing` if no crop passes the filters, `ranked` if the model is not calibrated.
    """

    probe: Probe
    generation: str
    fingerprint: str
    matches: tuple[Match, ...]
    model_names: dict[int, str]
    calibration: Calibration | None = None

    @property
    def verdict(self) -> Verdict:
        """Whether the archive contains the vehicle, in one word."""
        return verdict(self.matches, self.calibration)

    def summary(self) -> str:
        """Whether the archive contains the vehicle, in one sentence; empty without a calibration."""
        if self.verdict == "nothing":
            return "nothing in the archive passes these filters"
        if self.calibration is None:
            return ""
        rate, threshold = self.calibration.false_alarm_rate, self.calibration.threshold
        within = sum(match.hit.distance <= threshold for match in self.matches)
        if not within:
            return f"not in the archive: no match within {threshold:.3f} (false-alarm rate {rate:.1%})"
        return f"{within} of {len(self.matches)} matches within {threshold:.3f} (false-alarm rate {rate:.1%})"

    def model_name(self, model_id: int) -> str:
        """The name of a predicted vehicle model, or its number."""
        return model_name(self.model_names, model_id)

    def to_text(self) -> str:
        """Return the ranks as a table, and the summary."""
        if not self.matches:
            return self.summary()
        table = Table(box=None, pad_edge=False)
        for title, justify in (("rank", "right"), ("distance", "right"), ("same", "right")):
            table.add_column(title, justify=justify)  # type: ignore[arg-type]
        has_attributes = any(predicted_values(asdict(match.hit)) for match in self.matches)
        titles = (
            "camera",
            "time (UTC)",
            "vehicle model",
            *(("color, body type",) if has_attributes else ()),
            "seen",
            "crop",
        )
        for title in titles:
            table.add_column(title, overflow="fold")
        for match in self.matches:
            hit = match.hit
            table.add_row(
                str(match.rank),
                f"{hit.distance:.3f}",
                "-" if match.likelihood is None else f"{match.likelihood:.0%}",
                hit.camera_id or "-",
                format_time(hit.captured_at),
                "-"
                if hit.model_id == UNKNOWN_LABEL
                else f"{self.model_name(hit.model_id)} ({hit.model_confidence:.0%})",
                *((", ".join(predicted_values(asdict(hit))) or "-",) if has_attributes else ()),
                _notes(match),
                f"{CROP}{hit.crop_id} {hit.uri}",
            )
        screen = Console(width=190, no_color=True)
        with screen.capture() as capture:
            screen.print(table)
        return "\n".join(filter(None, (capture.get().rstrip(), self.summary())))

    def to_table(self) -> pa.Table:
        """Return a row per match: the columns of `Hit`, the name of the vehicle model, and the likelihood."""
        rows = [
            {
                **asdict(match.hit),
                "rank": match.rank,
                "vehicle_model": self.model_name(match.hit.model_id),
                "likelihood": match.likelihood,
            }
            for match in self.matches
        ]
        return pa.Table.from_pylist(rows, schema=MATCH_SCHEMA)

    def to_json(self) -> SearchFields:
        """Return the probe, the verdict and the ranks."""
        return {
            "probe": self.probe.name,
            "sightings": [asdict(sighting) for sighting in self.probe.sightings],
            "verdict": self.verdict,
            "generation": self.generation,
            "fingerprint": self.fingerprint,
            "threshold": self.calibration.threshold if self.calibration else None,
            "answers": [match_to_json(match, self.model_name(match.hit.model_id)) for match in self.matches],
        }


def search_archive(
    request: SearchRequest,
    settings: Settings,
    *,
    before_showing: Callable[[SearchResult], None] = lambda _: None,
) -> SearchResult:
    """Embed images of one vehicle with the model of the live generation, and search that generation.

    before_showing: is called with the result before the page is written and the result returned.
    Raises BadInput for an unreadable image, for an unknown camera and if no generation is live;
    FingerprintMismatch if `request.checkpoint` is another model; BadSetting for an invalid time.
    """
    rules = make_rules(request.rules)
    sighting = _parse_sighting(request.sighting)
    for image in request.images:
        # Read the images before connecting to a server: a wrong path is the most frequent mistake.
        if not image.startswith((CROP, TRACK)):
            read_image(image)
    searcher = Searcher(settings, checkpoint=request.checkpoint)
    try:
        return _search(request, rules, sighting, searcher, before_showing)
    finally:
        # A local index serves one process, which may do more than search.
        searcher.close()


def _search(
    request: SearchRequest,
    rules: Rules,
    sighting: Sighting | None,
    searcher: Searcher,
    before_showing: Callable[[SearchResult], None],
) -> SearchResult:
    searcher.require_cameras((*request.rules.cameras, *request.rules.not_cameras))
    probes = [searcher.probe(image, sighting) for image in request.images]
    probe = probes[0] if len(probes) == 1 else merge_probes(", ".join(request.images), probes)
    if sighting and sighting not in probe.sightings:
        probe = replace(probe, sightings=(*probe.sightings, sighting))
    rules = resolve_model_filters(rules, request.rules, searcher, request.images)
    rules = resolve_attributes(rules, lambda: searcher.card)
    result = SearchResult(
        probe=probe,
        generation=searcher.source.name,
        fingerprint=searcher.source.fingerprint,
        matches=tuple(searcher.search([probe], rules)[0]),
        model_names=searcher.model_names,
        calibration=searcher.calibration,
    )
    before_showing(result)
    if request.table:
        write_crop_table(searcher.run.store, request.table, result.to_table())
    if request.html:
        shown = [match.hit.crop_id for match in result.matches]
        shown += [sighting.crop_id for sighting in probe.sightings if sighting.crop_id is not None]
        record_output(searcher.run.store, "page", str(request.html.resolve()), shown)
        _write_page(request.html, request, result, rules, searcher)
        withdraw_erased(searcher.run.store, request.html, shown)
    return result


def make_rules(
    request: RulesRequest, *, cameras: CameraMap | None = None, model_ids: Sequence[int] = ()
) -> Rules:
    """Check a request and convert it to the rules of the index.

    cameras: positions that are read already; otherwise `request.camera_file` is read. model_ids: vehicle
    models by number, see `resolve_model_filters` for names. Raises BadSetting, BadInput.
    """
    if cameras is None and request.camera_file:
        cameras = read_cameras(request.camera_file, max_speed_kmh=request.max_speed)
    start, end = epoch_ms("from", request.since), epoch_ms("until", request.until)
    if start is not None and end is not None and start >= end:
        raise BadSetting(f"the time window is empty: from {request.since} until {request.until}")
    return Rules(
        top=request.top,
        filters=Filters(
            cameras=request.cameras,
            not_cameras=request.not_cameras,
            captured_from=start,
            captured_to=end,
            model_ids=tuple(model_ids),
            **{name: getattr(request, name) for name in _ATTRIBUTE_RULES},
        ),
        same_camera=request.same_camera,
        group_by_track=not request.every_crop,
        max_distance=request.max_distance,
        cameras=cameras,
        drop_impossible=request.drop_impossible,
        rerank_depth=max(RERANK_HEAD, request.top) if request.rerank else 0,
    )


def resolve_model_filters(
    rules: Rules, request: RulesRequest, searcher: Searcher, images: Sequence[str] = ()
) -> Rules:
    """Add the vehicle models of a request, given by name or number. Raises BadInput for an unknown model."""
    model_ids = [_model_id(text, searcher.model_names) for text in request.models]
    searcher.require_models(model_ids)
    if request.same_model:
        model_ids += [model for image in images for model in _predicted_models(image, searcher)]
    if not model_ids:
        return rules
    return replace(rules, filters=replace(rules.filters, model_ids=tuple(sorted(set(model_ids)))))


def resolve_attributes(rules: Rules, read_model_card: Callable[[], Card]) -> Rules:
    """Spell the colors and body types of the filters as the model does, whose card is read only for these.

    Raises BadInput for an attribute that it does not predict, and for an unknown value.
    """
    if not rules.filters.attributes:
        return rules
    card, found = read_model_card(), dict[str, tuple[str, ...]]()
    for attribute in rules.filters.attributes:
        noun, known = attribute_name(attribute.name), card.attributes.get(attribute.name, ())
        if not known:
            raise BadInput(f"the archive's model predicts no {noun}", remedy=WITHOUT_ATTRIBUTE)
        spelled = {name.casefold(): name for name in known}
        for values in (attribute.values, attribute.excluded):
            unknown = [value for value in values if value.casefold() not in spelled]
            if unknown:
                raise BadInput(
                    f"the archive's model knows no {noun} {unknown[0]!r}",
                    remedy=f"it knows: {', '.join(known)}",
                )
        plural = f"{attribute.name}s"
        found[plural] = tuple(spelled[value.casefold()] for value in attribute.values)
        found[f"not_{plural}"] = tuple(spelled[value.casefold()] for value in attribute.excluded)
    return replace(rules, filters=replace(rules.filters, **found))  # type: ignore[arg-type]


def verdict(matches: Sequence[Match], calibration: Calibration | None) -> Verdict:
    """Return `nothing`, `ranked`, `found` or `not found`; see SearchResult."""
    return verdict_of_distances([match.hit.distance for match in matches], calibration)


def verdict_of_distances(distances: Sequence[float], calibration: Calibration | None) -> Verdict:
    """Return the verdict of matches at these distances, in any order: re-ranking changes it."""
    if not distances:
        return "nothing"
    if calibration is None:
        return "ranked"
    return "found" if min(distances) <= calibration.threshold else "not found"


def match_to_json(match: Match, model: str) -> MatchJson:
    """Return one match as JSON values. `model`: the name of the predicted vehicle model."""
    travel = match.travel
    fields: MatchFields = {
        "vehicle_model": model,
        # A string, because JavaScript rounds integers of this size.
        "crop": f"{CROP}{match.hit.crop_id}",
        "likelihood": match.likelihood,
        "crops_of_pass": match.crops,
        "track": track_to_json(match.track) if match.track else None,
        "journey": asdict(travel) if travel else None,
    }
    return {**asdict(match.hit), "rank": match.rank, **fields}


def track_to_json(track: TrackOfCrop) -> TrackJson:
    """Return how many crops a track has, and its first and last time in ms, None if none is known."""
    first, last = (
        None if time == UNKNOWN_TIME else time for time in (track.captured_from, track.captured_to)
    )
    return {"crops": track.crops, "captured_from": first, "captured_to": last}


def format_time(captured_at: int) -> str:
    """Format milliseconds since the epoch as UTC, to the second."""
    if captured_at == UNKNOWN_TIME:
        return "-"
    return format_ms(captured_at)


def _parse_sighting(text: str | None) -> Sighting | None:
    if not text:
        return None
    camera, separator, time = text.partition("@")
    if not separator:
        raise BadSetting(f"--sighting {text!r} has no time", remedy=f"e.g. --sighting {SIGHTING_EXAMPLE}")
    captured_at = epoch_ms("--sighting", time)
    return Sighting(camera, "", UNKNOWN_TIME if captured_at is None else captured_at)


def _model_id(text: str, names: dict[int, str]) -> int:
    matching = [number for number, name in names.items() if name.casefold() == text.casefold()]
    if matching:
        return matching[0]
    if text.isascii() and text.isdigit() and int(text) < 2**31:
        return int(text)
    similar = [name for name in names.values() if text.casefold() in name.casefold()]
    known = ", ".join(sorted(similar or names.values())[:20])
    raise BadInput(
        f"the checkpoint knows no vehicle model {text!r}",
        remedy=f"vehicle models: {known}" if known else "it names none: search without this filter",
    )


def _predicted_models(image: str, searcher: Searcher) -> set[int]:
    """Return the predicted vehicle model of an image, or those of the crops of a track."""
    probe = searcher.probe(image)
    if probe.crop_ids:
        models = {searcher.crop(crop_id).model_id for crop_id in probe.crop_ids}
    else:
        models = {int(searcher.embedder(read_image(image, searcher.image_size)[None]).model_id[0])}
    if UNKNOWN_LABEL in models:
        raise BadInput(
            "the archive's model has no classifier and predicts no vehicle model",
            remedy="search without the filter by vehicle model",
        )
    return models


def _notes(match: Match) -> str:
    travel = match.travel
    parts = [f"{match.crops} crops{_span(match.track)}" if match.crops > 1 else ""]
    if travel and not travel.possible:
        parts.append(f"IMPOSSIBLE: {travel.km:.1f} km in {travel.seconds:.0f} s")
    return ", ".join(filter(None, parts))


def _span(track: TrackOfCrop | None) -> str:
    if track is None or track.captured_to == UNKNOWN_TIME:
        return ""
    return f" in {(track.captured_to - track.captured_from) / 1000:.0f} s"


def _write_page(
    path: Path, request: SearchRequest, result: SearchResult, rules: Rules, searcher: Searcher
) -> None:
    # Here, because a search without a page needs no jinja2.
    from jobs.pages.html import write_page
    from jobs.pages.search_page import ProbeStrip, SearchPage, build_search_page
    from jobs.pages.thumbnail import thumbnail_of
    from jobs.search.page import page_matches, search_command, sighting_facts

    uris: list[str] = []
    for image in request.images:
        if image.startswith(TRACK):
            crops = searcher.source.crops(sorted(searcher.probe(image).crop_ids)).values()
            uris += [crop.uri for crop in sorted(crops, key=lambda crop: crop.captured_at)][:MAX_SHOWN]
        else:
            uris.append(searcher.crop(crop_number(image)).uri if image.startswith(CROP) else image)
    images = [thumbnail_of(*open_uri(uri)) for uri in uris]
    threshold = result.calibration.threshold if result.calibration else None
    strip = ProbeStrip(
        name=result.probe.name,
        verdict=result.verdict,
        note=result.summary(),
        images=images,
        facts=sighting_facts(result.probe.sightings),
        matches=page_matches(result.matches, result.model_names, threshold),
    )
    page = build_search_page(
        SearchPage(
            title="Search result",
            summary=f"The {len(result.matches)} nearest crops of the archive by L2 distance, best first.",
            strips=[strip],
            facts={"generation": result.generation, "model": result.fingerprint},
            positions=rules.cameras.positions if rules.cameras else {},
            command=search_command(request.images, request.options()),
        )
    )
    write_page(path, page)
