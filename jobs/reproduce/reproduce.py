"""`clvr reproduce`: train or take three methods, embed the test images, evaluate all lists, write Table 1.

The folder is also a folder of runs. Below it, each written whole; a repeat continues with what is missing:

    <method>/                   checkpoint and training state, as `clvr train` writes them
    images-<digest>.csv         a list of images to embed
    runs/<run_id>/              features of these images, as `clvr embed` writes them
    evaluations/<method>-<list>-<digest>.json
    table1.html, results.json
    done.json                   last: what the page and the figures were made of, with their digests
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from index.archive.manifest import crop_id_of
from index.archive.reader import reader_of
from index.documents import JsonDocument
from index.lock import acquire
from index.outputs import record_output
from index.runs.run import Run
from index.runs.tombstones import read_tombstones
from infra.errors import BadInput, CorruptObject, ObjectMissing, SchemaMismatch
from infra.logging import logger
from infra.settings import Settings
from infra.store import Store, open_store
from jobs.pages.table1_page import ClassFigure, ClassifiedFigure, build_table1_page
from jobs.reproduce.evaluation import ListFigures, evaluate_list
from jobs.reproduce.features import embed_images, not_erased
from jobs.reproduce.figures import class_figure, classified_figure, classify_held_out, rank_figure
from jobs.reproduce.lists import TestImages, overlap, read_test_images
from jobs.reproduce.page import table1_page
from jobs.reproduce.request import Method, ReproduceRequest
from jobs.reproduce.results import ListResult, MethodResult, Reproduction, Results
from jobs.reproduce.training import Trained, check_trainable, checkpoint_of, held_out_images, with_vehicles

PAGE = "table1.html"
RESULTS = "results.json"
DONE = "done.json"


@dataclass(frozen=True, slots=True)
class Done(JsonDocument):
    """The done-mark. inputs: digest of everything that the files were made of; sha256: of each file."""

    NOUN = "done-mark of clvr reproduce"
    REMEDY = "Delete it and repeat the command."

    inputs: str
    sha256: dict[str, str]


def reproduce(request: ReproduceRequest, settings: Settings) -> Reproduction:
    """Make Table 1 and Figures 4 to 6, or continue; a finished one is only read.

    Raises BadSetting, BadLabels, Locked if another process works in the folder, and the errors of training,
    embedding and evaluating.
    """
    methods = request.chosen()
    folder = open_store(request.folder)
    if folder.local:
        folder.create_bucket()  # creates the local folder; a real bucket must exist
    with acquire(folder, "reproduce", f"clvr reproduce in {folder.uri}"):
        return _reproduce(request, methods, settings, folder)


def _reproduce(
    request: ReproduceRequest, methods: Sequence[Method], settings: Settings, folder: Store
) -> Reproduction:
    settings = settings.model_copy(update={"runs": folder.uri})
    if request.root:
        request = replace(request, root=open_store(request.root).uri)  # lists and trainings name it alike
    images = read_test_images(request)
    for method in methods:
        check_trainable(method, request, folder)
    shown = [crop_id_of(uri) for uri in not_erased(images.uris, open_store(settings.runs))]
    trained = [checkpoint_of(method, request, folder, settings) for method in methods]
    inputs = _digest_of_inputs(request, images, trained)
    done = _finished(folder, inputs)
    if done is not None:
        logger.info(f"{folder.uri} has this result already")
        return done
    runs = [_embed(request, each, images.archive, images.uris, folder, settings) for each in trained]
    figures = [
        evaluate_list(folder, request, each.method, run, each.card, chosen)
        for each, run in zip(trained, runs, strict=True)
        for chosen in images.lists
    ]
    results = Results(
        dataset=images.dataset,
        data=request.data,
        draws=request.repeats,
        seed=request.seed,
        methods=tuple(_method_result(each, run, request) for each, run in zip(trained, runs, strict=True)),
        lists=tuple(
            _list_result(number, images, trained, figures, request) for number in range(len(images.lists))
        ),
        figures=tuple(figures),
    )
    page = _page(request, results, trained, runs, images, folder, settings)
    _write(folder, settings, inputs, {PAGE: page.encode(), RESULTS: results.to_json()}, shown)
    return _reproduction(folder, results)


def _digest_of_inputs(request: ReproduceRequest, images: TestImages, trained: Sequence[Trained]) -> str:
    methods = [
        [each.method.name, each.card.fingerprint, each.is_taken, request.overrides_of(each.method)]
        for each in trained
    ]
    document = [methods, images.digest(), images.uris, request.repeats, request.seed]
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()


def _finished(folder: Store, inputs: str) -> Reproduction | None:
    """Return the finished result of the same inputs, if its files are as they were written."""
    with suppress(ObjectMissing, CorruptObject, SchemaMismatch):
        done = Done.read(folder, DONE)
        if done.inputs != inputs:
            return None
        for name, digest in done.sha256.items():
            if hashlib.sha256(folder.get(name)).hexdigest() != digest:
                logger.info(f"{folder.uri_of(name)} was altered, and is written again")
                return None
        return _reproduction(folder, Results.read(folder, RESULTS))
    return None


def _reproduction(folder: Store, results: Results) -> Reproduction:
    return Reproduction(results, page=folder.uri_of(PAGE), json=folder.uri_of(RESULTS))


def _embed(
    request: ReproduceRequest,
    trained: Trained,
    archive: str,
    uris: Sequence[str],
    folder: Store,
    settings: Settings,
) -> Run:
    return embed_images(
        folder,
        checkpoint=trained.uri,
        fingerprint=trained.card.fingerprint,
        archive=archive,
        uris=uris,
        settings=settings,
        max_quarantine_rate=request.max_quarantine_rate,
    )


def _method_result(trained: Trained, run: Run, request: ReproduceRequest) -> MethodResult:
    metrics = trained.card.metrics
    return MethodResult(
        name=trained.method.name,
        title=trained.method.title,
        recipe=str(trained.card.recipe.get("name", "unknown")),
        labels_used=trained.card.labels_used,
        checkpoint=trained.uri if trained.is_taken else trained.method.name,
        is_taken=trained.is_taken,
        overrides=request.overrides_of(trained.method),
        fingerprint=trained.card.fingerprint,
        run_id=run.run_id,
        training_images=metrics.get("pictures"),
        held_out_images=metrics.get("held_out"),
        epochs=len(metrics.get("history", ())),
        accuracy=metrics.get("accuracy"),
        macro_accuracy=metrics.get("macro_accuracy"),
        rank1=metrics.get("rank1"),
    )


def _list_result(
    number: int,
    images: TestImages,
    trained: Sequence[Trained],
    figures: Sequence[ListFigures],
    request: ReproduceRequest,
) -> ListResult:
    """Describe a list; what a training saw of it is known if every method's training images are."""
    name = images.lists[number].name
    first = next(each for each in figures if each.list_name == name)
    seen = [
        overlap(images, number, with_vehicles(request, each.images))
        for each in trained
        if each.images is not None
    ]
    is_known = len(seen) == len(trained)
    return ListResult(
        name=name,
        images=first.images,
        vehicles=first.vehicles,
        trained_images=max(each.images for each in seen) if is_known else None,
        trained_vehicles=max(each.vehicles for each in seen) if is_known else None,
    )


def _page(
    request: ReproduceRequest,
    results: Results,
    trained: Sequence[Trained],
    runs: Sequence[Run],
    images: TestImages,
    folder: Store,
    settings: Settings,
) -> str:
    """Render the page. Figures 4 to 6 are those of CLVR, or of the last method without it."""
    shown, run = trained[-1], runs[-1]
    classes, classified, why = _model_figures(request, shown, folder, settings)
    content = table1_page(
        results,
        [each.card for each in trained],
        classes=classes,
        classified=classified,
        ranks=rank_figure(shown, run, images.lists[0], request.seed),
        without_figures=why,
    )
    return build_table1_page(content)


def _model_figures(
    request: ReproduceRequest, shown: Trained, folder: Store, settings: Settings
) -> tuple[ClassFigure | None, ClassifiedFigure | None, str]:
    """Return Figures 4 and 5, or why there are none."""
    title = shown.method.title
    if not shown.card.label_ids or shown.card.architecture.get("head", "single") != "single":
        return None, None, f"They show how a network names vehicle models, and {title} is not made for that."
    sets = held_out_images(shown, request, folder, settings)
    if sets is None:
        why = f"They are of the images that the training of {title} held out. It was of other data."
        return None, None, why
    training, held_out = sets
    if not len(held_out):
        return None, None, f"They are of held-out images, and the training of {title} held out none."
    archive = _folder_of(request, held_out.uris)
    run = _embed(request, shown, archive, held_out.uris, folder, settings)
    classified = classify_held_out(shown, run, held_out)
    return class_figure(shown, classified, training), classified_figure(shown.card, classified), ""


def _folder_of(request: ReproduceRequest, uris: Sequence[str]) -> str:
    return reader_of(uris).uri


def _write(
    folder: Store, settings: Settings, inputs: str, files: dict[str, bytes], crop_ids: Sequence[int]
) -> None:
    """Write the files and then the done-mark; they are recorded for a purge before.

    crop_ids: of the images. Raises BadInput if one of them was erased meanwhile.
    """
    runs = open_store(settings.runs)
    for name in files:
        record_output(runs, "page", folder.uri_of(name), crop_ids)
    for name, data in files.items():
        folder.put(name, data)
    if read_tombstones(runs).erased_ids(crop_ids):
        folder.delete(*files)
        raise BadInput("an image of the page was erased meanwhile", remedy="Run the same command again.")
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    folder.put(DONE, Done(inputs, digests).to_json())
