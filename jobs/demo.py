"""`clvr demo`: the whole way on a small made-up archive, with embedded defaults, and a page to look at."""

import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from clvr_model.checkpoint import load_checkpoint
from clvr_model.synthetic.trips import ArchiveSpec
from index.generations.gate import GateReport
from index.runs.records import RunSummary
from infra.errors import BadInput
from infra.logging import logger
from infra.settings import load_settings
from infra.store import open_store
from jobs.embed.job import EmbedRequest, embed
from jobs.evaluate.evaluate import evaluate_run
from jobs.evaluate.page import ReportText, write_page
from jobs.evaluate.results import EvaluateRequest
from jobs.generate import KEY_PATTERN, GeneratedArchive, generate_archive
from jobs.generations.load import load_generation, promote_generation
from jobs.pages.evaluation_page import Timing
from jobs.search.search import RulesRequest, SearchRequest, search_archive
from jobs.train.train import Trained, TrainRequest, train_checkpoint

SPACE_NEEDED = 300_000_000
# A few bad pictures, so that the quarantine has something to show.
SPOILED_SHARE = 0.005
ANY_SHARE = 1.0  # the demo is too small for a failure budget to mean anything
MARK = ".clvr-demo"


@dataclass(slots=True)
class _Stages:
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, number: int, name: str, saying: str) -> Iterator[None]:
        logger.info(f"[bold]{number}/6 {name}[/bold]  {saying}", extra={"markup": True})
        begun = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - begun


def run_demo(folder: Path, *, seed: int) -> Path:
    """Make an archive, train, embed, load, promote, search, evaluate; return the page's path.

    Everything goes below `folder`, of which what an earlier demo left there is replaced. Raises DiskFull.
    """
    folder = folder.resolve()
    settings = load_settings(
        {"runs": str(folder / "data"), "milvus": str(folder / "milvus.db"), "alias": "vehicles"}
    )
    _make_room(folder)
    stages = _Stages()
    archive, model = str(folder / "archive"), str(folder / "model")

    with stages.stage(1, "archive", "drawing vehicles as many cameras would see them"):
        drawn = generate_archive(archive, str(folder / "labels"), _spec(seed), settings)
    with stages.stage(2, "train", "fitting the CLVR classifier to vehicle models (a very short schedule)"):
        trained = train_checkpoint(
            TrainRequest(
                data=drawn.labels,
                to=model,
                recipe="demo",
                weights="random",
                root=archive,
                split="train",
                workers=2,
                max_bad_fraction=ANY_SHARE,
            ),
            settings,
        )
    with stages.stage(3, "embed", "turning every crop of the archive into 1024 numbers"):
        summary = embed(
            EmbedRequest(
                archive,
                model=model,
                key_pattern=KEY_PATTERN,
                labels=drawn.labels,
                max_quarantine_rate=ANY_SHARE,
            ),
            settings,
        )
    with stages.stage(4, "index", "building a generation, checking it, making it live"):
        load_generation([summary.run_id], settings)
        gate = promote_generation("latest", settings, new_model=False, force=None)
    with stages.stage(5, "evaluate", "ranking vehicles that the training never saw"):
        evaluation = evaluate_run(
            EvaluateRequest(summary.run_id, labels=drawn.labels, split="test", seed=seed), settings
        )
    with stages.stage(6, "search", "asking where one vehicle was seen"):
        probe = evaluation.labelled.crops["uri"][0].as_py()
        result = search_archive(SearchRequest((probe,), rules=RulesRequest(top=5)), settings)
    for text in (result.to_text(), evaluation.to_text()):
        logger.info(text)

    page = folder / "index.html"
    card = load_checkpoint(model).card
    write_page(
        page, evaluation.labelled, evaluation.results, card, _story(stages, drawn, trained, summary, gate)
    )
    logger.info(f"The page: [bold]{page.as_uri()}[/bold]", extra={"markup": True})
    logger.info(f"Try next: clvr search {probe} --runs {settings.runs} --milvus {settings.milvus}")
    return page


def _spec(seed: int) -> ArchiveSpec:
    return ArchiveSpec(
        seed=seed,
        models=12,
        vehicles_per_model=10,
        sightings_per_vehicle=6,
        cameras=8,
        spoiled_share=SPOILED_SHARE,
    )


def _story(
    stages: _Stages, drawn: GeneratedArchive, trained: Trained, summary: RunSummary, gate: GateReport
) -> ReportText:
    amounts = {
        "archive": (drawn.pictures, "pictures"),
        "train": (trained.pictures, "pictures"),
        "embed": (summary.listed, "crops"),
        "index": (gate.rows_indexed, "rows"),
    }
    return ReportText(
        title="Where else was this vehicle seen?",
        summary="A synthetic archive, processed from images to ranks on this machine.",
        dataset="synthetic archive, vehicles that the training never saw",
        note=(
            "Read these figures with care. The network started from random weights and was trained for a few "
            "minutes on drawings of vehicles; the paper starts from ImageNet weights and trains 40 epochs on "
            "90,168 photographs. What you see shows that every part works, not how well CLVR re-identifies."
        ),
        timings=tuple(
            Timing(name, seconds, *amounts.get(name, (0, ""))) for name, seconds in stages.seconds.items()
        ),
        facts={
            "generation": gate.generation,
            "index recall@10": f"{gate.recall_at_10:.3f}",
            "search latency p50": f"{gate.latency_p50_ms:.1f} ms",
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        },
        command="make demo",
    )


def _make_room(folder: Path) -> None:
    """Empty what an earlier demo left; a folder that no demo made is never touched."""
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).exists():
        raise BadInput(f"{folder} holds other things than a demo", remedy="give --folder a new folder")
    open_store(str(folder)).require_space(SPACE_NEEDED)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARK).touch()
