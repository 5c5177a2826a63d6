"""`clvr search`: one picture in, the ranked places where that vehicle may have been seen."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from clvr_model.checkpoint import load_checkpoint
from clvr_model.embedder import Embedder
from clvr_model.preprocessing import decode
from index.filters import Filters
from index.generations import live
from index.manifest import crop_id_of
from index.schemas import UNKNOWN_TIME
from index.search import Hit, search
from infra.errors import BadInput, BadSetting, UnreadablePicture
from infra.settings import Settings
from infra.store import open_store, split_uri
from jobs.which import find_run, open_milvus


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """What `clvr search` was asked for; times are ISO 8601, UTC where no zone is given."""

    picture: str
    model: str | None = None
    top: int = 20
    cameras: tuple[str, ...] = ()
    not_cameras: tuple[str, ...] = ()
    since: str | None = None
    until: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The answer: hits by ascending L2 distance, from one generation, by one model."""

    probe: str
    generation: str
    fingerprint: str
    hits: tuple[Hit, ...]
    model_names: dict[int, str]

    def table(self) -> str:
        """The ranks as a person reads them."""
        if not self.hits:
            return "nothing in the archive passes these filters"
        table = Table(box=None, pad_edge=False)
        for title, justify in (
            ("rank", "right"),
            ("distance", "right"),
            ("camera", "left"),
            ("time (UTC)", "left"),
        ):
            table.add_column(title, justify=justify)  # type: ignore[arg-type]
        table.add_column("vehicle model")
        table.add_column("crop", overflow="fold")
        for hit in self.hits:
            name = self.model_names.get(hit.model_id, f"model {hit.model_id}")
            table.add_row(
                str(hit.rank),
                f"{hit.distance:.3f}",
                hit.camera_id or "-",
                shown_time(hit.captured_at),
                f"{name} ({hit.model_confidence:.0%})",
                hit.uri,
            )
        screen = Console(width=160, no_color=True)
        with screen.capture() as capture:
            screen.print(table)
        return capture.get().rstrip()

    def document(self) -> dict[str, Any]:
        """The ranks as a machine reads them."""
        return asdict(self)


def search_picture(request: SearchRequest, settings: Settings) -> Found:
    """Embed one picture with the live generation's own model and search the alias.

    Raises BadInput for an unreadable probe and when nothing is live, FingerprintMismatch when `request.model`
    is not the live generation's, BadSetting for times that are not times.
    """
    picture = read_picture(request.picture)
    milvus = open_milvus(settings)
    generation = live(milvus, settings.alias)
    if generation is None:
        raise BadInput(
            f"alias {settings.alias} points to no generation",
            remedy="build one: clvr load, then clvr promote",
        )
    checkpoint = load_checkpoint(request.model or find_run(generation.run_ids[-1], settings).info.model)
    features = Embedder(checkpoint, batch_size=1)(picture[None]).features
    filters = Filters(
        cameras=request.cameras,
        not_cameras=request.not_cameras,
        captured_from=_epoch_ms("--from", request.since),
        captured_to=_epoch_ms("--to", request.until),
        not_crop_ids=(_crop_id(request.picture),),
    )
    hits = search(
        milvus, settings.alias, features, fingerprint=checkpoint.fingerprint, top=request.top, filters=filters
    )[0]
    return Found(
        probe=request.picture,
        generation=generation.name,
        fingerprint=checkpoint.fingerprint,
        hits=tuple(hits),
        model_names=dict(checkpoint.card.label_names),
    )


def read_picture(uri: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 (299, 299, 3) of one picture anywhere. Raises BadInput with the cause, StoreError."""
    try:
        return decode(read_bytes(uri))
    except UnreadablePicture as error:
        raise BadInput(f"{uri} is not a usable picture ({error.cause}): {error.message}") from error


def read_bytes(uri: str) -> bytes:
    """The object behind a URI or a path. Raises ObjectMissing, StoreError."""
    root, key = split_uri(uri)
    return open_store(root).get(key)


def shown_time(captured_at: int) -> str:
    """Milliseconds since the epoch as a person reads them, to the second."""
    if captured_at == UNKNOWN_TIME:
        return "-"
    return datetime.fromtimestamp(captured_at / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _crop_id(uri: str) -> int:
    """What the probe is called in the index if it lies in the archive: it must not find itself."""
    root, key = split_uri(uri)
    return crop_id_of(open_store(root).uri_of(key))


def _epoch_ms(flag: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadSetting(
            f"{flag} {text!r} is not an ISO 8601 time", remedy="e.g. 2026-11-22T18:30"
        ) from error
    return int((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)
