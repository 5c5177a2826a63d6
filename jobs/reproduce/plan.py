"""`clvr reproduce --plan`: hours and cost of each method, by short measurements. Trains nothing."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from clvr_model.checkpoint import Card, Checkpoint, read_card
from clvr_model.embedder import Embedder
from clvr_model.network import Architecture, Clvr
from clvr_model.recipe import Recipe
from infra.errors import BadCheckpoint, BucketMissing
from infra.settings import Settings
from infra.store import open_store
from jobs.embed.sizes import ThroughputSample
from jobs.embed.throughput import measure_throughput, open_exact_model
from jobs.reproduce.lists import read_test_images
from jobs.reproduce.request import Method, ReproduceRequest
from jobs.runtime.format import duration
from jobs.runtime.ray_cluster import connect, num_cpus, num_gpus, num_nodes
from jobs.train.plan import TrainPlan, plan_training
from jobs.train.train import requested_recipe


@dataclass(frozen=True, slots=True)
class MethodPlan:
    """One method. training: None if its checkpoint exists. Hours are of the training and of the embedding."""

    method: str
    title: str
    training: TrainPlan | None
    embedded_images: int
    embedding: ThroughputSample
    embedding_hours: float
    hours: float
    cost: float | None


@dataclass(frozen=True, slots=True)
class ReproducePlan:
    """The plan of a reproduction. The names of the fields are keys of the command's JSON."""

    lists: Mapping[str, int]  # images of each
    methods: tuple[MethodPlan, ...]
    hours: float
    cost: float | None

    def to_text(self) -> str:
        """Return the plan as several lines."""
        lines = ["lists: " + ", ".join(f"{name} {count:,} images" for name, count in self.lists.items())]
        for method in self.methods:
            lines += ["", f"{method.title}, {duration(3600 * method.hours)}{_cost(method.cost)}"]
            lines += (
                ["  trained already"]
                if method.training is None
                else [f"  {line}" for line in method.training.to_text().splitlines()]
            )
            lines.append(
                f"  embed {method.embedded_images:,} images: "
                f"{method.embedding.crops_per_second:,.1f} images/s with {method.embedding.actors} actors, "
                f"{duration(3600 * method.embedding_hours)}"
            )
        lines += [
            "",
            f"in all {duration(3600 * self.hours)}{_cost(self.cost)}, one method after the other",
            "not included: evaluation, page, and the features of CLVR's held-out images for Figures 4 and 5",
        ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as a JSON object."""
        return asdict(self)


def plan_reproduction(request: ReproduceRequest, settings: Settings) -> ReproducePlan:
    """Measure the training steps and the embedding of each method on this machine.

    Raises BadSetting, BadLabels, BadInput if no sampled image can be read.
    """
    methods = request.chosen()
    images = read_test_images(request)
    trainings = {method: _training_plan(method, request) for method in methods}
    connect(settings)
    plans = []
    for method in methods:
        training = trainings[method]
        sample = measure_throughput(
            pa.table({"uri": images.uris}),
            open_store(images.archive),
            _opener(method, request, training),
            num_gpus() or num_cpus(),
        )
        hours = (len(images.uris) / sample.crops_per_second + sample.startup_seconds) / 3600
        whole = hours + (training.hours if training else 0.0)
        price, nodes = request.price_per_node_hour, num_nodes()
        training_cost = (training.cost or 0.0) if training else 0.0
        plans.append(
            MethodPlan(
                method=method.name,
                title=method.title,
                training=training,
                embedded_images=len(images.uris),
                embedding=sample,
                embedding_hours=hours,
                hours=whole,
                cost=None if price is None else training_cost + price * hours * nodes,
            )
        )
    return ReproducePlan(
        lists={each.name: len(uris) for each, uris in zip(images.lists, images.uris_of, strict=True)},
        methods=tuple(plans),
        hours=sum(plan.hours for plan in plans),
        cost=None if request.price_per_node_hour is None else sum(plan.cost or 0.0 for plan in plans),
    )


def _training_plan(method: Method, request: ReproduceRequest) -> TrainPlan | None:
    if _existing(method, request) is not None:
        return None
    return plan_training(request.training_of(method, open_store(request.folder)))


def _existing(method: Method, request: ReproduceRequest) -> str | None:
    """Return the URI of a method's checkpoint if there is one."""
    taken = request.checkpoint_of(method)
    if taken is not None:
        return taken
    uri = open_store(request.folder).uri_of(method.name)
    with suppress(BadCheckpoint, BucketMissing):
        read_card(uri)
        return uri
    return None


def _opener(method: Method, request: ReproduceRequest, training: TrainPlan | None) -> Callable[[], Embedder]:
    existing = _existing(method, request)
    if existing is not None or training is None:
        return partial(open_exact_model, str(existing))
    recipe = requested_recipe(request.training_of(method, open_store(request.folder)))
    return partial(_open_untrained, recipe, training.classes)


def _open_untrained(recipe: Recipe, classes: int) -> Embedder:
    """Return an embedder with random weights: an embedding takes as long with them as with trained ones."""
    architecture: Architecture = recipe.architecture(classes)
    network = Clvr.of(architecture).eval()
    return Embedder(Checkpoint(network, Card(label_ids=tuple(range(architecture.classes))), "0" * 16))


def _cost(cost: float | None) -> str:
    return "" if cost is None else f", cost {cost:,.2f}"
