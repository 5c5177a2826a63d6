"""The request of `clvr reproduce`, and the methods of Table 1 with the recipes that train them."""

from collections.abc import Iterator
from dataclasses import dataclass

from infra.errors import BadSetting
from infra.store import TABLE_SUFFIXES, Store
from jobs.train.train import TrainRequest


@dataclass(frozen=True, slots=True)
class Method:
    """A method of Table 1. name: in options and folders. title: its row in the paper.

    labels: what it learns from, as cards say it: model, vehicle or both.
    """

    name: str
    title: str
    recipe: str
    labels: str


METHODS = (
    Method("ccl", "CCL", "ccl", "vehicle"),
    Method("mixeddiff", "Mixed Diff + CCL", "mixeddiff", "both"),
    Method("clvr", "CLVR", "paper", "model"),
)


@dataclass(frozen=True, slots=True)
class ReproduceRequest:
    """The request of `clvr reproduce`.

    data: a release's folder, or a label table whose keys are below `root`. methods: names in METHODS, all if
    empty. checkpoints: METHOD=URI of checkpoints that are taken instead of trained. overrides:
    METHOD.FIELD=VALUE changes a recipe. repeats, seed: of the draws of probes.
    """

    data: str
    folder: str
    root: str = ""
    methods: tuple[str, ...] = ()
    checkpoints: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    repeats: int = 10
    seed: int = 0
    workers: int = 1
    gpu: bool | None = None
    max_bad_fraction: float = 0.001
    max_quarantine_rate: float = 0.01
    price_per_node_hour: float | None = None

    @property
    def has_table(self) -> bool:
        """Whether the labels are a table."""
        return self.data.lower().endswith(TABLE_SUFFIXES)

    def chosen(self) -> list[Method]:
        """Return the methods in the order of Table 1. Raises BadSetting for options that name others."""
        known = {method.name: method for method in METHODS}
        for option, given_names in (
            ("--method", list(self.methods)),
            ("--checkpoint", [name for name, _ in self._checkpoints()]),
            ("--set", [name for name, _ in self._overrides()]),
        ):
            for name in given_names:
                if name not in known:
                    raise BadSetting(
                        f"{option} names the method {name!r}", remedy=f"choose one of {', '.join(known)}"
                    )
        chosen = [method for method in METHODS if not self.methods or method.name in self.methods]
        names = {method.name for method in chosen}
        for option, given in (("--checkpoint", self._checkpoints()), ("--set", self._overrides())):
            for name, value in given:
                if name not in names:
                    raise BadSetting(
                        f"{option} {name} {value}: the method is not chosen", remedy=f"add --method {name}"
                    )
        taken = {name for name, _ in self._checkpoints()}
        changed = [name for name, _ in self._overrides() if name in taken]
        if changed:
            raise BadSetting(
                f"--set changes the recipe of {changed[0]}, whose checkpoint is given",
                remedy="leave out --set or --checkpoint",
            )
        return chosen

    def checkpoint_of(self, method: Method) -> str | None:
        """Return the URI of the checkpoint that is taken for a method, None if it is trained."""
        return dict(self._checkpoints()).get(method.name)

    def overrides_of(self, method: Method) -> tuple[str, ...]:
        """Return the changes of a method's recipe, as `clvr train --set` takes them."""
        return tuple(value for name, value in self._overrides() if name == method.name)

    def training_of(self, method: Method, folder: Store) -> TrainRequest:
        """Return the training of a method, into its own folder below `folder`."""
        return TrainRequest(
            data=self.data,
            output=folder.uri_of(method.name),
            recipe=method.recipe,
            overrides=self.overrides_of(method),
            workers=self.workers,
            gpu=self.gpu,
            root=self.root,
            split="train" if self.has_table else None,
            max_bad_fraction=self.max_bad_fraction,
            price_per_node_hour=self.price_per_node_hour,
        )

    def _checkpoints(self) -> Iterator[tuple[str, str]]:
        for text in self.checkpoints:
            name, equals, uri = text.partition("=")
            if not equals or not uri:
                raise BadSetting(
                    f"--checkpoint is {text!r}",
                    remedy="write METHOD=FOLDER, e.g. --checkpoint clvr=models/clvr",
                )
            yield name, uri

    def _overrides(self) -> Iterator[tuple[str, str]]:
        for text in self.overrides:
            name, point, change = text.partition(".")
            if not point or "=" in name or "=" not in change:
                raise BadSetting(
                    f"--set is {text!r}", remedy="write METHOD.FIELD=VALUE, e.g. --set clvr.stage2.epochs=5"
                )
            yield name, change
