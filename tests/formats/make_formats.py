"""How `first_release.tar.xz` was made: by the first release itself, commit 0bbed91, and by no other code.

This is kept as the record of what the archive holds and how each document came to be. It ran once, with that
code only; it is not expected to run with any later one, and nothing imports it:

    PYTHONPATH=. python tests/formats/make_formats.py

It needs some minutes and a local Ray, makes everything below /tmp/clvr-formats, because local stores name
their objects by absolute paths, and packs that folder. `test_first_release.py` unpacks it at the same place.

    archive/          24 crops of 8 vehicles, by 4 cameras on 2 days, and three that are no pictures; then one
                      day more, with 3 crops and one that is no picture, and one crop less
    labels/           labels.parquet, labels.csv, manifest.csv (two keys come twice, one crop is missing),
                      probes.csv (sweep), list.csv (exact sweep), recipe.yaml
    model/            a checkpoint of the paper's network; all runs are by it
    strong-model/     a checkpoint of ResNet-50 with all that a recipe can change, as `clvr train` leaves it
    state/            a training state, of a network small enough for git
    training/         log.jsonl of a training that was killed and continued
    data/             CLVR_RUNS: runs, generations, calibrations, erasures, audit, nights, locks
      runs/first          finished: 2 parts, 24 embedded, 3 quarantined, 2 duplicates
      runs/night-one      finished: what was new in the night, and what had vanished
      runs/unfinished     the first of its two parts is written
    milvus.db         two generations; the second is live, the first is what a rollback returns to
    sweeps/done       finished, from the live generation
    sweeps/open       the first of its two parts is answered; an exact one, from shards
    splits.parquet    two repeats of two protocols, and evaluation.json, what they gave

The last thing that happened there was an erasure whose process died in its middle: it stays begun, and its
lock on rows stays taken by a dead process.

Weights repeat the same thousand numbers over and over, so that 190 MB of them pack into some kilobytes.
"""

import hashlib
import io
import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import ray
import torch
from PIL import Image, ImageDraw

from clvr_model.checkpoint import Card, save_checkpoint
from clvr_model.datasets.labelled import split_per_class
from clvr_model.embedder import Embedder
from clvr_model.network import Clvr
from clvr_model.recipe import Recipe, load_recipe
from clvr_model.training import EpochResult, Totals
from clvr_model.training_state import TrainingState
from index import audit, rows
from index.calibration import calibration_of
from index.crops import crop_id_of
from index.generations import list_generations
from index.scan import ScanSource
from index.sweeps import Sweep
from infra.errors import BudgetExceeded
from infra.settings import Settings
from infra.store import open_store
from jobs.discovery import discover
from jobs.embed import EmbedRequest, create_run, embed
from jobs.embed_part import embed_part
from jobs.evaluation.calibrate import CalibrateRequest, calibrate_run
from jobs.evaluation.evaluate import EvaluateRequest, evaluate_run
from jobs.forget import ForgetRequest, forget_crops
from jobs.load import LoadRequest, load, promote_generation
from jobs.night.reindex import reindex
from jobs.night.request import NightRequest
from jobs.search import RulesRequest, rules_of
from jobs.sweeping.part import SweepWorker
from jobs.sweeping.probe_list import read_probe_list
from jobs.sweeping.sweep import SweepRequest, sweep_probes
from jobs.training.labelled_data import data_digest, read_labelled
from jobs.training.log import TrainLog
from jobs.which import find_run, open_milvus

ROOT = Path("/tmp/clvr-formats")
PACKED = Path(__file__).with_name("first_release.tar.xz")
SETTINGS = Settings(runs=f"{ROOT}/data", milvus=f"{ROOT}/milvus.db")
ARCHIVE, LABELS, MODEL = f"{ROOT}/archive", f"{ROOT}/labels", f"{ROOT}/model"
PATTERN = "dt={date}/cam={camera_id}/{captured_at}_{track_id}.jpg"
VEHICLES, SIGHTINGS, MODELS = 8, 3, 4
FIRST_MOMENT = 1_767_600_000_000  # 2026-01-05 08:00 UTC
DAY = 86_400_000
PERIOD = 1021  # prime, so that no two rows of a weight begin alike

RECIPE = """\
name: everything
backbone: random
network: resnet50
pooling: gem
last_stride: 1
bnneck: true
feature_relu: false
normalised: true
classifier: cosine
cosine_scale: 12.5
batch: 4
train_share: 0.5
seed: 7
precision: bf16
reestimate_statistics: 8
stages:
  - name: warmup
    trainable: head
    epochs: 2
    optimizer: rmsprop
    lr: 0.01
    label_smoothing: 0.1
    sampling: balanced
    schedule: cosine
    warmup_epochs: 0.5
    cache_features: false
  - name: target
    trainable: all
    epochs: 3
    optimizer: sgd
    lr: 0.02
    momentum: 0.9
    weight_decay: 0.0005
    frozen_statistics: true
    flip: true
    micro_batch: 2
    erase: 0.5
    colour: 0.2
    blur: 0.1
    ema: 0.99
    clip: 5.0
"""


def make() -> None:
    """Make everything, then pack it."""
    shutil.rmtree(ROOT, ignore_errors=True)
    ROOT.mkdir(parents=True)
    draw_archive()
    write_lists()
    paper_checkpoint()
    strong_checkpoint()
    training_state()
    training_log()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    first_run_and_generation()
    first_erasure()
    evaluation()
    night()
    finished_sweep()
    ray.shutdown()
    unfinished_sweep()
    unfinished_run()
    erasure_that_dies()
    tell()
    pack()


def key_of(vehicle: int, sighting: int) -> str:
    """Key of a crop: three cameras see each vehicle, the last one a day later."""
    moment = FIRST_MOMENT + vehicle * 60_000 + sighting * 600_000 + (DAY if sighting == 2 else 0)
    day = f"{datetime.fromtimestamp(moment / 1000, UTC):%Y-%m-%d}"
    return f"dt={day}/cam=c{1 + (vehicle + sighting) % 4}/{moment}_t{vehicle}-{sighting}.jpg"


def picture(vehicle: int, sighting: int) -> bytes:
    """A JPEG of a box in the vehicle's colours, some hundred bytes."""
    look = np.random.default_rng(vehicle)
    body, roof, road = (tuple(int(c) for c in look.integers(20, 240, 3)) for _ in range(3))
    image = Image.new("RGB", (96, 72), road)
    drawing = ImageDraw.Draw(image)
    x = 3 * sighting
    drawing.rectangle((8 + x, 30, 78 + x, 58), fill=body)
    drawing.rectangle((22 + x, 12, 62 + x, 30), fill=roof)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75)
    return buffer.getvalue()


def draw_archive() -> None:
    """The crops of the first two days."""
    archive = open_store(ARCHIVE)
    for vehicle in range(VEHICLES):
        for sighting in range(SIGHTINGS):
            archive.put(key_of(vehicle, sighting), picture(vehicle, sighting))
    archive.put(f"dt=2026-01-05/cam=c1/{FIRST_MOMENT}_broken.jpg", b"no picture")
    archive.put(f"dt=2026-01-05/cam=c1/{FIRST_MOMENT}_empty.jpg", b"")


def write_lists() -> None:
    """What a user brings: labels, a manifest, lists of probes, a recipe."""
    folder = Path(LABELS)
    folder.mkdir()
    pairs = [(vehicle, sighting) for vehicle in range(VEHICLES) for sighting in range(SIGHTINGS)]
    keys = [key_of(*pair) for pair in pairs]
    labels = pa.table(
        {
            "key": keys,
            "vehicle_id": pa.array([100 + vehicle for vehicle, _ in pairs], pa.int64()),
            "model_id": pa.array([10 + vehicle % MODELS for vehicle, _ in pairs], pa.int32()),
            "model_name": [f"Model {vehicle % MODELS}" for vehicle, _ in pairs],
            "split": ["train" if vehicle < MODELS else "test" for vehicle, _ in pairs],
        }
    )
    pa.parquet.write_table(labels, folder / "labels.parquet")
    pa.csv.write_csv(labels, folder / "labels.csv")
    others = [f"dt=2026-01-05/cam=c1/{FIRST_MOMENT}_{name}.jpg" for name in ("broken", "empty", "gone")]
    (folder / "manifest.csv").write_text("\n".join(["key", *keys, *others, keys[0], keys[1]]) + "\n")
    crops = [f"crop:{crop_id(*pair)}" for pair in pairs]
    (folder / "probes.csv").write_text(
        f"probe_id,uri\nblue,{crops[0]}\nred,{crops[13]}\nerased,{crops[9]}\nfile,{ARCHIVE}/{keys[15]}\n"
    )
    twenty = [f"p{place:02d},{crop}" for place, crop in enumerate(crops[:20])]
    (folder / "list.csv").write_text("\n".join(["probe_id,uri", *twenty]) + "\n")
    (folder / "recipe.yaml").write_text(RECIPE)


def crop_id(vehicle: int, sighting: int) -> int:
    """The crop_id of a crop."""
    return crop_id_of(f"{ARCHIVE}/{key_of(vehicle, sighting)}")


def packable(network: Clvr) -> Clvr:
    """The network with weights that repeat: each keeps its scale, to a power of two."""
    pattern = np.random.default_rng(1).normal(size=PERIOD).astype(np.float32)
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point() and value.numel() > PERIOD and float(value.std()):
                scale = 2.0 ** round(float(value.std().log2()))
                repeated = np.resize(pattern * np.float32(scale), value.numel())
                value.copy_(torch.from_numpy(repeated).reshape(value.shape))
    return network.eval()


def paper_checkpoint() -> None:
    """Inception-V3 as the paper has it."""
    recipe = load_recipe("paper")
    card = Card(
        label_ids=tuple(10 + model for model in range(MODELS)),
        label_names={10 + model: f"Model {model}" for model in range(MODELS)},
        recipe=recipe.as_dict(),
        metrics={"accuracy": 0.5, "per_class": [0.5, 0.5, None, 1.0]},
        backbone={"source": recipe.backbone},
        unstated=recipe.unstated(),
        data_digest="5eed" * 16,
    )
    network = packable(Clvr.of(recipe.architecture(MODELS), seed=1))
    with torch.no_grad():
        network.head.dense.weight *= 2.0**14  # such weights make small features, and distances below 1e-4
    saved = save_checkpoint(MODEL, network, card)
    print("model", saved.fingerprint)


def strong_checkpoint() -> None:
    """What `clvr train` leaves, with the identity of its training, so that it is known as trained already."""
    recipe = load_recipe(f"{LABELS}/recipe.yaml", ("stage2.epochs=4",))
    labelled = read_labelled(f"{LABELS}/labels.parquet", root=ARCHIVE, split="train")
    training, held = split_per_class(labelled, recipe.train_share, recipe.seed)
    to = f"{ROOT}/strong-model"
    trained: dict[str, Any] = {
        "accuracy": 0.75,
        "macro_accuracy": 0.625,
        "classes": len(labelled.classes),
        "pictures": len(training),
        "held_out": len(held),
        "largest_class_share": 0.25,
        "unreadable": 0,
        "node_hours": 0.5,
        "cost": 1.25,
        "report": f"{to}/report.html",
    }
    card = Card(
        label_ids=tuple(labelled.classes),
        label_names=labelled.model_names,
        recipe=recipe.as_dict(),
        metrics={
            **trained,
            "per_class": [1.0, 0.5, 0.5, 1.0],
            "history": [history_of(recipe)],
            "job": identity_of(recipe, data_digest(labelled)),
            "picked": "best",
            "unlearned": [],
        },
        backbone={"source": recipe.backbone},
        unstated=recipe.unstated(),
        data_digest=data_digest(labelled),
    )
    architecture = recipe.architecture(len(labelled.classes))
    saved = save_checkpoint(to, packable(Clvr.of(architecture, seed=1)), card)
    print("strong model", saved.fingerprint, "job", card.metrics["job"])


def identity_of(recipe: Recipe, digest: str) -> str:
    """As `jobs.training.train` has it."""
    return hashlib.sha256(json.dumps([recipe.as_dict(), digest], sort_keys=True).encode()).hexdigest()


def history_of(recipe: Recipe) -> dict[str, Any]:
    """One epoch as a training remembers it."""
    return asdict(EpochResult(recipe.stages[0].name, 0, 1.5, 0.25, 12, 3.5))


def training_state() -> None:
    """In the middle of an epoch of a stage with a moving average; two small layers stand for a network."""
    torch.manual_seed(3)
    network = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9, weight_decay=0.0005)
    network(torch.ones(2, 6) * torch.tensor([[1.0], [2.0]])).square().sum().backward()
    optimizer.step()
    average = {f"0.{name}": torch.full((4,), 0.5) for name in ("bias", "running_mean")}
    folder = ROOT / "state"
    folder.mkdir()
    TrainingState.capture(
        network,
        optimizer,
        stage=1,
        epoch=2,
        seed=7,
        history=[EpochResult("warmup", 0, 1.5, 0.25, 12, 3.5), EpochResult("target", 1, 1.0, 0.5, 12, 4.5)],
        totals=Totals(loss=6.5, correct=5, pictures=8),
        average=average,
    ).save(folder)


def training_log() -> None:
    """Two attempts at one training; the first one was killed."""
    folder = open_store(f"{ROOT}/training")
    folder.create_bucket()
    log = TrainLog(folder)
    log.write("start", nodes=2, workers=2)
    log.write("step", stage="warmup", epoch=0, pictures_seen=4, loss=1.5)
    log.write("epoch", stage="warmup", epoch=0, pictures_seen=12, loss=1.25, micro=0.5)
    log.write("start", nodes=1, workers=1)
    log.write("final", micro=0.75, macro=0.625)
    shutil.rmtree(ROOT / "training" / "tensorboard", ignore_errors=True)


def asked(run_id: str) -> EmbedRequest:
    """The first run: `clvr embed` has no flag for so small parts."""
    return EmbedRequest(
        ARCHIVE,
        key_pattern=PATTERN,
        manifest=f"{LABELS}/manifest.csv",
        labels=f"{LABELS}/labels.parquet",
        model=MODEL,
        run_id=run_id,
        actors=1,
        rows_per_part=16,
        rows_per_shard=16,
        max_quarantine_rate=0.5,
    )


def first_run_and_generation() -> None:
    """clvr embed, calibrate, load, promote."""
    embed(asked("first"), SETTINGS)
    calibrate_run(CalibrateRequest("first", false_alarm_rate=0.2), SETTINGS)
    load(LoadRequest(("first",)), SETTINGS)
    promote_generation("latest", SETTINGS, new_model=False, force=None)


def first_erasure() -> None:
    """clvr forget: all of vehicle 103."""
    forget_crops(ForgetRequest(reason="case-17", vehicles=(103,), dry_run=False), SETTINGS)


def evaluation() -> None:
    """clvr evaluate, with its splits written down."""
    protocols = ("vehicleid-paper", "leave-one-out")
    page = ROOT / "evaluation.html"
    evaluate_run(
        EvaluateRequest(
            "first", protocols=protocols, repeats=2, splits=ROOT / "splits.parquet", html=page, also=()
        ),
        SETTINGS,
    )
    page.unlink()


def night() -> None:
    """clvr reindex: refused at first, because crops had vanished, then done to its end."""
    archive = open_store(ARCHIVE)
    archive.delete(key_of(7, 2))
    for vehicle in range(3):
        moment = FIRST_MOMENT + 2 * DAY + vehicle * 60_000
        archive.put(f"dt=2026-01-07/cam=c4/{moment}_t{vehicle}-3.jpg", picture(vehicle, 3))
    archive.put(f"dt=2026-01-07/cam=c4/{FIRST_MOMENT + 2 * DAY}_broken.jpg", b"no picture either")

    def attempt(max_vanished_rate: float) -> None:
        open_milvus(SETTINGS).close()
        request = NightRequest(
            archive=ARCHIVE,
            model=MODEL,
            night="night-one",
            beside=True,
            key_pattern=PATTERN,
            labels=f"{LABELS}/labels.parquet",
            actors=1,
            max_quarantine_rate=0.5,
            max_vanished_rate=max_vanished_rate,
            price_per_node_hour=2.0,
        )
        reindex(request, SETTINGS)

    try:
        attempt(0.0)
    except BudgetExceeded as refused:
        print("night:", refused.message)
    attempt(0.5)


def finished_sweep() -> None:
    """clvr sweep over the live generation."""
    open_milvus(SETTINGS).close()  # the actor opens the file
    rules = RulesRequest(top=3, max_distance=1e6)
    sweep_probes(
        SweepRequest(
            f"{LABELS}/probes.csv", f"{ROOT}/sweeps/done", "26-117", rules, who="an officer", strips=4
        ),
        SETTINGS,
    )
    (ROOT / "sweeps/done/report.html").unlink()


def unfinished_sweep() -> None:
    """clvr sweep --exact, killed after the first of its two parts."""
    out, rules = f"{ROOT}/sweeps/open", RulesRequest(top=3)
    run = find_run("first", SETTINGS)
    request = {**asdict(rules), "exact": True}
    entry = audit.Entry(
        who="an officer",
        case="26-118",
        action="sweep start",
        generation="exact:first",
        fingerprint=run.fingerprint,
        request={**request, "probes": f"{LABELS}/list.csv", "out": out},
    )
    sweep = Sweep.create(
        open_store(out),
        read_probe_list(f"{LABELS}/list.csv"),
        request=request,
        generation="exact:first",
        fingerprint=run.fingerprint,
        audit=audit.append(run.store, entry),
        rows_per_part=16,
    )
    calibration = calibration_of(run.store, run.fingerprint)
    SweepWorker(sweep, ScanSource([run]), rules_of(rules), no_embedder, calibration).do(0)


def no_embedder() -> Embedder:
    """All probes are crops."""
    raise AssertionError("a probe is not in the archive")


def unfinished_run() -> None:
    """clvr embed, killed after the first of its two parts."""
    store, archive, request = open_store(SETTINGS.runs), open_store(ARCHIVE), asked("unfinished")
    embedder = Embedder(MODEL)
    run, _ = create_run(
        discover(request, archive, store), request, store, archive, embedder.fingerprint, 1, {"num_cpus": 1}
    )
    embed_part(run, 0, embedder, archive)


def erasure_that_dies() -> None:
    """clvr forget in a process that dies when the tombstones stand and the first rows are to go."""
    open_milvus(SETTINGS).close()
    done = subprocess.run([sys.executable, __file__, "--die"], check=False)
    assert done.returncode == 9, done.returncode


def die() -> None:
    """See `erasure_that_dies`."""
    dying: Callable[..., None] = lambda *arguments: os._exit(9)  # noqa: E731
    rows.delete = dying
    forget_crops(ForgetRequest(reason="case-18", crops=(str(crop_id(5, 0)),), dry_run=False), SETTINGS)


def tell() -> None:
    """Print the names that the test has to know."""
    with open_milvus(SETTINGS) as milvus:
        print("generations", [one.name for one in list_generations(milvus)])
    for path in sorted(ROOT.rglob("*")):
        if path.is_file():
            print(f"{path.stat().st_size:12,}  {path.relative_to(ROOT)}")


def pack() -> None:
    """Pack the folder, without who and when: what lies there is what counts."""
    # What repeats for hundreds of megabytes is slow to pack by the usual search for matches.
    how = {"dict_size": 8 << 20, "mode": lzma.MODE_FAST, "mf": lzma.MF_HC4, "nice_len": 273, "depth": 8}
    filters = [{"id": lzma.FILTER_LZMA2, **how}]
    with (
        lzma.open(PACKED, "wb", format=lzma.FORMAT_XZ, filters=filters) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        tar.add(ROOT, ".")
    print(f"{PACKED}: {PACKED.stat().st_size:,} bytes")


if __name__ == "__main__":
    die() if "--die" in sys.argv else make()
