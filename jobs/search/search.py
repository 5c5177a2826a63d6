"""`clvr search`: pictures of one vehicle in, the ranked places where it may have been seen."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from index.archive.reader import open_uri, read_uri
from index.filters import Filters
from index.schema import UNKNOWN_TIME
from index.search.calibration import Calibration
from index.search.probe import Probe, Sighting, merge_probes
from index.search.retrieval import RERANK_HEAD, Match, Rules
from index.search.travel_time import MAX_SPEED_KMH, read_cameras
from infra.errors import BadInput, BadSetting
from infra.settings import Settings
from jobs.pages.search_page import AnswerPage, ProbeStrip, ShownAnswer, build_answer_page
from jobs.pages.thumbnail import thumbnail_of
from jobs.runtime.resolve import epoch_ms
from jobs.search.searcher import CROP, Searcher, crop_number, read_picture

SEEN_FORM = "CAMERA@2026-11-22T18:30:05"


@dataclass(frozen=True, slots=True)
class RulesRequest:
    """Which answers are wanted, as it is typed; times are ISO 8601, UTC where no zone is given."""

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


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """What `clvr search` was asked for. `seen`: where and when the pictures were taken, CAMERA@TIME."""

    pictures: tuple[str, ...]
    checkpoint: str | None = None
    rules: RulesRequest = field(default_factory=RulesRequest)
    seen: str | None = None
    html: Path | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The answers, best first, from one generation, by one model.

    verdict: `found` if the first answer is within the calibrated threshold, `not found` if none is,
    `nothing` if no crop passes the filters, `ranked` where the model is not calibrated.
    """

    probe: Probe
    generation: str
    fingerprint: str
    answers: tuple[Match, ...]
    model_names: dict[int, str]
    calibration: Calibration | None = None

    @property
    def verdict(self) -> str:
        """Whether the vehicle is in the archive, in a word."""
        return verdict(self.answers, self.calibration)

    def sentence(self) -> str:
        """Whether the vehicle is in the archive, in a sentence; empty where nothing tells."""
        if self.verdict == "nothing":
            return "nothing in the archive passes these filters"
        if self.calibration is None:
            return ""
        rate, limit = self.calibration.false_alarm_rate, self.calibration.threshold
        within = sum(each.hit.distance <= limit for each in self.answers)
        if not within:
            return f"not in the archive: no answer within {limit:.3f} (false-alarm rate {rate:.1%})"
        return f"{within} of {len(self.answers)} answers within {limit:.3f} (false-alarm rate {rate:.1%})"

    def table(self) -> str:
        """The ranks as a person reads them."""
        if not self.answers:
            return self.sentence()
        table = Table(box=None, pad_edge=False)
        for title, justify in (("rank", "right"), ("distance", "right"), ("same", "right")):
            table.add_column(title, justify=justify)  # type: ignore[arg-type]
        for title in ("camera", "time (UTC)", "vehicle model", "seen", "crop"):
            table.add_column(title, overflow="fold")
        for each in self.answers:
            hit = each.hit
            table.add_row(
                str(each.rank),
                f"{hit.distance:.3f}",
                "-" if each.likelihood is None else f"{each.likelihood:.0%}",
                hit.camera_id or "-",
                shown_time(hit.captured_at),
                f"{self.model_name(hit.model_id)} ({hit.model_confidence:.0%})",
                _notes(each),
                f"{CROP}{hit.crop_id} {hit.uri}",
            )
        screen = Console(width=190, no_color=True)
        with screen.capture() as capture:
            screen.print(table)
        return "\n".join(filter(None, (capture.get().rstrip(), self.sentence())))

    def model_name(self, model_id: int) -> str:
        """The name of a predicted vehicle model, or its number."""
        return self.model_names.get(model_id, f"model {model_id}")

    def document(self) -> dict[str, Any]:
        """The ranks as a machine reads them."""
        return {
            "probe": self.probe.name,
            "sightings": [asdict(sighting) for sighting in self.probe.sightings],
            "verdict": self.verdict,
            "generation": self.generation,
            "fingerprint": self.fingerprint,
            "threshold": self.calibration.threshold if self.calibration else None,
            "answers": [answer_document(each, self.model_name(each.hit.model_id)) for each in self.answers],
        }


def search_pictures(request: SearchRequest, settings: Settings) -> Found:
    """Embed pictures of one vehicle with the live generation's own model and search the alias.

    Raises BadInput for an unreadable probe, an unknown camera and when nothing is live, FingerprintMismatch
    when `request.checkpoint` is not the live generation's, BadSetting for times that are not times.
    """
    rules = rules_of(request.rules)
    sighting = _parse_sighting(request.seen)
    for picture in request.pictures:
        # Before any server is asked: the commonest mistake is the cheapest to find.
        if not picture.startswith(CROP):
            read_picture(picture)
    searcher = Searcher(settings, checkpoint=request.checkpoint)
    searcher.require_cameras((*request.rules.cameras, *request.rules.not_cameras))
    probes = [searcher.probe(picture) for picture in request.pictures]
    probe = probes[0] if len(probes) == 1 else merge_probes(", ".join(request.pictures), probes)
    if sighting:
        probe = Probe(probe.name, probe.features, (*probe.sightings, sighting))
    rules = resolve_model_filters(rules, request.rules, searcher, request.pictures)
    found = Found(
        probe=probe,
        generation=searcher.source.name,
        fingerprint=searcher.source.fingerprint,
        answers=tuple(searcher.answer([probe], rules)[0]),
        model_names=searcher.model_names,
        calibration=searcher.calibration,
    )
    if request.html:
        _write_page(request.html, request, found, rules, searcher)
    return found


def rules_of(request: RulesRequest) -> Rules:
    """The rules that were typed. Raises BadSetting, and BadInput for a camera file that is none."""
    cameras = None
    if request.camera_file:
        data = read_uri(request.camera_file)
        cameras = read_cameras(data, request.camera_file, max_speed_kmh=request.max_speed)
    start, end = epoch_ms("--from", request.since), epoch_ms("--to", request.until)
    if start is not None and end is not None and start >= end:
        raise BadSetting(f"nothing lies between --from {request.since} and --to {request.until}")
    return Rules(
        top=request.top,
        filters=Filters(
            cameras=request.cameras,
            not_cameras=request.not_cameras,
            captured_from=start,
            captured_to=end,
        ),
        same_camera=request.same_camera,
        group_by_track=not request.every_crop,
        max_distance=request.max_distance,
        cameras=cameras,
        drop_impossible=request.drop_impossible,
        rerank_depth=max(RERANK_HEAD, request.top) if request.rerank else 0,
    )


def resolve_model_filters(
    rules: Rules, request: RulesRequest, searcher: Searcher, pictures: Sequence[str] = ()
) -> Rules:
    """Add the wanted vehicle models, by name or number. Raises BadInput for a model that is not known."""
    wanted = [_model_id(text, searcher.model_names) for text in request.models]
    if request.same_model:
        wanted += [_predicted(picture, searcher) for picture in pictures]
    if not wanted:
        return rules
    return replace(rules, filters=replace(rules.filters, model_ids=tuple(sorted(set(wanted)))))


def verdict(answers: Sequence[Match], calibration: Calibration | None) -> str:
    """`nothing`, `ranked`, `found` or `not found`; see Found."""
    if not answers:
        return "nothing"
    if calibration is None:
        return "ranked"
    within = any(each.hit.distance <= calibration.threshold for each in answers)
    return "found" if within else "not found"


def answer_document(answer: Match, model: str) -> dict[str, Any]:
    """One answer as a machine reads it."""
    hit = asdict(answer.hit) | {"rank": answer.rank, "vehicle_model": model}
    travel = answer.travel
    return hit | {
        # JavaScript rounds integers of this size.
        "crop": f"{CROP}{answer.hit.crop_id}",
        "likelihood": answer.likelihood,
        "crops_of_pass": answer.crops,
        "journey": asdict(travel) if travel else None,
    }


def shown_answers(
    answers: Sequence[Match], names: dict[int, str], threshold: float | None
) -> list[ShownAnswer]:
    """Answers with their thumbnails, for a page."""
    shown = []
    for each in answers:
        name = names.get(each.hit.model_id, f"model {each.hit.model_id}")
        strong = threshold is not None and each.hit.distance <= threshold
        shown.append(ShownAnswer(each, thumbnail_of(*open_uri(each.hit.uri)), name, strong))
    return shown


def shown_time(captured_at: int) -> str:
    """Milliseconds since the epoch as a person reads them, to the second."""
    if captured_at == UNKNOWN_TIME:
        return "-"
    return datetime.fromtimestamp(captured_at / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _parse_sighting(text: str | None) -> Sighting | None:
    if not text:
        return None
    camera, at, time = text.partition("@")
    if not at:
        raise BadSetting(f"--seen {text!r} says no time", remedy=f"e.g. --seen {SEEN_FORM}")
    captured_at = epoch_ms("--seen", time)
    return Sighting(camera, "", UNKNOWN_TIME if captured_at is None else captured_at)


def _model_id(text: str, names: dict[int, str]) -> int:
    matching = [number for number, name in names.items() if name.casefold() == text.casefold()]
    if matching:
        return matching[0]
    if text.isascii() and text.isdigit() and int(text) < 2**31:
        return int(text)
    near = [name for name in names.values() if text.casefold() in name.casefold()]
    raise BadInput(
        f"no vehicle model is called {text!r}",
        remedy="it knows: " + ", ".join(sorted(near or names.values())[:20]),
    )


def _predicted(picture: str, searcher: Searcher) -> int:
    probe = searcher.probe(picture)
    if probe.crop_ids:
        return searcher.crop(next(iter(probe.crop_ids))).model_id
    return int(searcher.embedder(read_picture(picture)[None]).model_id[0])


def _notes(answer: Match) -> str:
    travel = answer.travel
    parts = [f"{answer.crops} crops" if answer.crops > 1 else ""]
    if travel and not travel.possible:
        parts.append(f"IMPOSSIBLE: {travel.km:.1f} km in {travel.seconds:.0f} s")
    return ", ".join(filter(None, parts))


def _write_page(path: Path, request: SearchRequest, found: Found, rules: Rules, searcher: Searcher) -> None:
    pictures = []
    for picture in request.pictures:
        archived = picture.startswith(CROP)
        uri = searcher.crop(crop_number(picture)).uri if archived else picture
        pictures.append(thumbnail_of(*open_uri(uri)))
    threshold = found.calibration.threshold if found.calibration else None
    strip = ProbeStrip(
        name=found.probe.name,
        verdict=found.verdict,
        note=found.sentence(),
        pictures=pictures,
        facts=[f"camera {each.camera_id}" for each in found.probe.sightings if each.camera_id],
        answers=shown_answers(found.answers, found.model_names, threshold),
    )
    page = build_answer_page(
        AnswerPage(
            title="Where else was it seen?",
            lead=f"The nearest of the archive by L2 distance, {len(found.answers)} answers, best first.",
            strips=[strip],
            facts={"generation": found.generation, "model": found.fingerprint},
            positions=rules.cameras.positions if rules.cameras else {},
            command=f"clvr search {' '.join(request.pictures)} --html {path}",
        )
    )
    unfinished = path.with_suffix(".part")
    unfinished.write_text(page, encoding="utf-8")
    unfinished.replace(path)
