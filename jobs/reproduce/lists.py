"""The images that are evaluated: the lists of a release or of a table, and what the training saw of them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from clvr_model.datasets.labelled import LabeledImages
from index.archive.labels import lists_of, read_label_table
from index.archive.reader import reader_of
from infra.errors import BadLabels
from infra.store import open_store
from jobs.evaluate.dataset import EvaluationList, evaluation_lists
from jobs.reproduce.request import ReproduceRequest

TEST_SPLIT = "test"  # of a table without lists


@dataclass(frozen=True, slots=True)
class TestImages:
    """The lists to evaluate. archive: the folder that all their images are below."""

    dataset: str  # the release's name, '' for a table
    archive: str
    lists: Sequence[EvaluationList]
    uris_of: Sequence[Sequence[str]]  # by list

    @property
    def uris(self) -> list[str]:
        """The images of all lists, each once, sorted."""
        return sorted({uri for uris in self.uris_of for uri in uris})

    def digest(self) -> str:
        """Return the SHA-256 of the lists, with their labels."""
        return hashlib.sha256(json.dumps([digest_of(each) for each in self.lists]).encode()).hexdigest()


def read_test_images(request: ReproduceRequest) -> TestImages:
    """Read the test lists of the dataset, smallest first where the release has sizes.

    A table has the lists of its column test_list, or its split 'test'. Raises BadLabels, StoreError.
    """
    if not request.has_table:
        lists = evaluation_lists(request.data, None)
        archive = lists[0].root
        uris_of = [[f"{archive}/{key}" for key in _keys(each)] for each in lists]
        return TestImages(lists[0].dataset, archive, lists, uris_of)
    table = read_label_table(request.data)
    if "split" not in table.column_names or not pc.any(pc.equal(table["split"], "train")).as_py():
        raise BadLabels(
            f"{request.data} does not say which images are for the training",
            remedy="give a table with the column split, train or test, or a release's folder",
        )
    names = lists_of(table) or [TEST_SPLIT]
    lists = [evaluation_lists(request.data, name)[0] for name in names]
    if "key" in table.column_names and "uri" not in table.column_names:
        if not request.root:
            raise BadLabels(f"{request.data} gives keys, not URIs", remedy="give their folder with --root")
        archive = open_store(request.root).uri
        return TestImages("", archive, lists, [[f"{archive}/{key}" for key in _keys(each)] for each in lists])
    uris_of = [_column(each, "uri") for each in lists]
    archive = reader_of([uri for uris in uris_of for uri in uris]).uri
    return TestImages("", archive, lists, uris_of)


def digest_of(chosen: EvaluationList) -> str:
    """Return the SHA-256 of a list: its name, images, labels and roles."""
    table = {} if chosen.table is None else chosen.table.to_pydict()
    document = [chosen.name, chosen.protocol, table, sorted(chosen.probes), sorted(chosen.gallery)]
    return hashlib.sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest()


def vehicles_of(chosen: EvaluationList) -> set[int]:
    """Return the vehicles of a list."""
    numbers = [] if chosen.table is None else chosen.table["vehicle_id"].to_pylist()
    return {number for number in numbers if number is not None and number >= 0}


@dataclass(frozen=True, slots=True)
class Overlap:
    """How much of a list a training has seen."""

    images: int
    vehicles: int


def overlap(images: TestImages, number: int, training: LabeledImages) -> Overlap:
    """Count the images and the vehicles of list `number` that are among the training's."""
    seen = set(training.uris)
    trained = set() if training.vehicle_ids is None else set(np.unique(training.vehicle_ids).tolist())
    return Overlap(
        images=sum(uri in seen for uri in images.uris_of[number]),
        vehicles=len(trained & vehicles_of(images.lists[number])),
    )


def _keys(chosen: EvaluationList) -> list[str]:
    return _column(chosen, "key")


def _column(chosen: EvaluationList, name: str) -> list[str]:
    return [] if chosen.table is None else chosen.table[name].to_pylist()
