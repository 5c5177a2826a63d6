"""What the HTTP API takes and gives: the models of its OpenAPI document, which a test keeps stable."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from index.search.retrieval import Rules
from index.search.travel_time import CameraMap
from jobs.cases.documents import CaseSummary, SearchEntry, ShownEntry, WatchHitEntry
from jobs.search.search import RulesRequest, make_rules

MAX_IMAGES = 5
MAX_TOP = 1000


def _encodable(text: str) -> str:
    if not text.isprintable():  # half of a surrogate pair cannot be sent on; no name has control characters
        raise ValueError("it has characters that no name has")
    return text


Name = Annotated[str, Field(max_length=1000), AfterValidator(_encodable)]


class WebRules(BaseModel):
    """The rules that the page sends: a subset of those of `clvr search`, with vehicle models by id."""

    model_config = ConfigDict(extra="forbid")

    top: int = Field(50, ge=1, le=MAX_TOP)
    cameras: list[Name] = Field(default_factory=list, max_length=500)
    not_cameras: list[Name] = Field(default_factory=list, max_length=500)
    since: Name | None = Field(None, max_length=40)
    until: Name | None = Field(None, max_length=40)
    models: list[Annotated[int, Field(ge=-1, lt=2**63)]] = Field(default_factory=list, max_length=500)
    same_camera: bool = False
    every_crop: bool = False
    max_distance: float | None = Field(None, gt=0, allow_inf_nan=False)
    drop_impossible: bool = False
    rerank: bool = False
    colors: list[Name] = Field(default_factory=list, max_length=100)
    not_colors: list[Name] = Field(default_factory=list, max_length=100)
    min_color_confidence: float | None = Field(None, ge=0, le=1)
    body_types: list[Name] = Field(default_factory=list, max_length=100)
    not_body_types: list[Name] = Field(default_factory=list, max_length=100)
    min_body_type_confidence: float | None = Field(None, ge=0, le=1)

    def to_rules(self, cameras: CameraMap | None) -> Rules:
        """Convert to the rules of the index. Raises BadSetting."""
        fields = self.model_dump(exclude={"models"})
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
        return make_rules(RulesRequest(**fields), cameras=cameras, model_ids=self.models)


class Failure(BaseModel):
    """Why a request was refused, and what to do."""

    error: str
    remedy: str = ""


class UserInfo(BaseModel):
    """The user of this session."""

    name: str
    roles: list[str]


class TilesInfo(BaseModel):
    """The images under the map: the template of their addresses, and whose they are."""

    url: str
    attribution: str


class About(BaseModel):
    """What the page shows before the first search."""

    generation: str
    fingerprint: str
    crops: int
    unit: str
    cameras: list[str]
    positions: dict[str, tuple[float, float]]
    models: dict[int, str]
    attributes: dict[str, list[str]]
    first: int | None
    last: int | None
    threshold: float | None
    false_alarm_rate: float | None
    max_top: int
    max_pictures: int
    max_upload_bytes: int
    max_speed_kmh: float | None
    case_required: bool
    has_video: bool
    tiles: TilesInfo | None
    user: UserInfo


class Leg(BaseModel):
    """The way from the probe to a match, or between two stops."""

    km: float | None = None
    seconds: float
    kmh: float | None = None
    possible: bool | None = None


class TrackFacts(BaseModel):
    """A track that a row of the generation stands for: its crops, and its first and last time in ms."""

    crops: int
    captured_from: int | None
    captured_to: int | None


class Answer(BaseModel):
    """One match. `crop` is text, because JavaScript rounds integers of that size."""

    rank: int
    crop: str
    crop_id: int
    distance: float
    likelihood: float | None
    uri: str
    camera_id: str
    track_id: str
    captured_at: int
    model_id: int
    model_confidence: float
    vehicle_model: str
    color: str = ""
    color_confidence: float = 0.0
    body_type: str = ""
    body_type_confidence: float = 0.0
    crops_of_pass: int
    track: TrackFacts | None = None
    journey: Leg | None
    video: str | None = None


class ProbeFacts(BaseModel):
    """An image of the probe: what was searched with, and where it was seen, if that is known."""

    spec: str
    image: str
    camera_id: str = ""
    track_id: str = ""
    captured_at: int = -1
    video: str | None = None


class FeedbackFacts(BaseModel):
    """The judged crops of a case that a search used."""

    confirmed: int
    rejected: int


class SearchResponse(BaseModel):
    """The answers of a search. search_id: of its audit record."""

    search_id: str
    generation: str
    fingerprint: str
    transform: str
    verdict: str
    threshold: float | None
    false_alarm_rate: float | None
    probes: list[ProbeFacts]
    feedback: FeedbackFacts | None = None
    answers: list[Answer]
    embed_ms: float
    search_ms: float


class UploadResponse(BaseModel):
    """An image that is kept: `spec` names it as a probe."""

    spec: str
    sha256: str
    size: int
    width: int
    height: int


class CropResponse(BaseModel):
    """The facts of a crop, and the other crops of its track by time. sha256: of its bytes in the archive."""

    crop: str
    uri: str
    camera_id: str
    track_id: str
    captured_at: int
    vehicle_model: str
    model_confidence: float
    video: str | None
    track: list[ProbeFacts]


class CaseList(BaseModel):
    """All cases, the newest first."""

    cases: list[CaseSummary]


class NewCase(BaseModel):
    """A case to create."""

    model_config = ConfigDict(extra="forbid")
    number: Name
    title: Name = ""


class CaseChange(BaseModel):
    """What to change of a case."""

    model_config = ConfigDict(extra="forbid")
    state: Name
    title: Name | None = None


class NewProbe(BaseModel):
    """A probe to add to a case, or to remove."""

    model_config = ConfigDict(extra="forbid")
    spec: Name


class NewJudgement(BaseModel):
    """A judgement of a crop; search_id: of the search that showed it."""

    model_config = ConfigDict(extra="forbid")
    crop: Name
    verdict: Name
    note: str = Field("", max_length=20_000)
    search_id: Name = ""


class NewNote(BaseModel):
    """A note to add to a case."""

    model_config = ConfigDict(extra="forbid")
    text: str = Field(max_length=20_000)


class WatchSwitch(BaseModel):
    """Whether the confirmed vehicle of a case is watched."""

    model_config = ConfigDict(extra="forbid")
    on: bool


class StopFacts(BaseModel):
    """A stop of a journey: one pass before one camera."""

    camera_id: str
    track_id: str
    first: int
    last: int
    crops: list[str]
    position: tuple[float, float] | None
    video: str | None = None


class JourneyResponse(BaseModel):
    """The confirmed crops of a case in order of time. legs: between the stops, one fewer."""

    stops: list[StopFacts]
    legs: list[Leg]
    untimed: list[str]
    impossible: int
    max_speed_kmh: float | None


class CompanionSearch(BaseModel):
    """How near in time a companion is to a stop, and how alike its crops are; by default as calibrated."""

    model_config = ConfigDict(extra="forbid")
    window_seconds: float = Field(60, gt=0, le=3600)
    max_distance: float | None = Field(None, gt=0, allow_inf_nan=False)


class CompanionFacts(BaseModel):
    """A vehicle that was near several stops; `stops` are their places in the journey."""

    stops: list[int]
    crops: list[ProbeFacts]
    distance: float
    seconds: float


class CompanionsResponse(BaseModel):
    """Vehicles near the stops of a journey, those at the most stops first."""

    companions: list[CompanionFacts]
    window_seconds: float
    max_distance: float
    stops: int


class WatchList(BaseModel):
    """New crops of all watched vehicles, the newest first."""

    hits: list[WatchHitEntry]


class AuditList(BaseModel):
    """Audit records of searches, the newest first."""

    searches: list[SearchEntry]


class ShownList(BaseModel):
    """What a search showed, without what was erased since."""

    shown: list[ShownEntry]


class Health(BaseModel):
    """The state of the server."""

    status: str
    checks: dict[str, str] = Field(default_factory=dict)


FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure, "description": text}
    for status, text in (
        (400, "The input is wrong"),
        (401, "No token, or no user"),
        (403, "The role of the user does not permit it"),
        (429, "Too many searches"),
        (502, "A server behind the page fails"),
        (503, "The page is busy"),
    )
}
"""Responses of every route beside its own."""
