"""Which pictures are evaluated as what: label tables, and the test lists that datasets come with."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa

from clvr_model.datasets.role_lists import RoleList
from clvr_model.datasets.vehicleid import list_test_splits, read_vehicleid
from clvr_model.datasets.veri import read_veri
from clvr_model.datasets.veri_wild import read_veri_wild
from clvr_model.datasets.vric import read_vric
from infra.errors import BadLabels
from infra.store import open_store
from jobs.labels import read_label_table


@dataclass(frozen=True, slots=True)
class EvaluationList:
    """Labels of one list; without a table the run's own manifest tells them.

    `table` has uri or key, and what `index.labels.with_labels` joins. Keys are below `root`.
    """

    name: str = ""
    table: pa.Table | None = None
    root: str = ""
    protocol: str = ""  # that the dataset comes with
    probes: frozenset[str] = field(default_factory=frozenset)  # keys, where the dataset gives the roles
    gallery: frozenset[str] = field(default_factory=frozenset)

    def for_archive(self, archive: str) -> pa.Table | None:
        """The table with URIs as the archive has them, wherever the dataset's lists were read."""
        if self.table is None or not self.root:
            return self.table
        root = self.root if archive.startswith(self.root) else archive
        uris = [f"{root.rstrip('/')}/{key}" for key in self.table["key"].to_pylist()]
        return self.table.drop_columns(["key"]).append_column("uri", pa.array(uris, pa.string()))

    def keys_of(self, archive: str, uris: Iterable[str]) -> list[str]:
        """The keys that `probes` and `gallery` name, of URIs in the archive."""
        root = self.root if archive.startswith(self.root) else archive
        return [uri.removeprefix(f"{root.rstrip('/')}/") for uri in uris]


def evaluation_lists(labels: str | None, split: str | None) -> list[EvaluationList]:
    """What to evaluate.

    labels: None for those in the run's manifest, a `.csv` or `.parquet` (of which `split` picks rows), or
    a folder in the layout of VehicleID, VeRi-776, VERI-Wild or VRIC. Of several test lists all are taken,
    unless `split` names one. Raises BadLabels, StoreError.
    """
    if labels is None:
        return [EvaluationList()]
    if labels.lower().endswith((".csv", ".parquet")):
        return [EvaluationList(split or "", read_label_table(labels, split=split))]
    lists = _dataset_lists(labels, split)
    chosen = [one for one in lists if split is None or one.name == split]
    if not chosen:
        names = ", ".join(one.name for one in lists)
        raise BadLabels(f"{labels} has no test list {split!r}", remedy=f"it has: {names}")
    return chosen


def _dataset_lists(root: str, split: str | None) -> list[EvaluationList]:
    store = open_store(root)
    store.ensure()
    if store.head("train_test_split/vehicle_info.txt") is not None:
        return [_with_roles(found, store.uri) for found in read_veri_wild(root)]
    if store.head("name_query.txt") is not None:
        return [_with_roles(read_veri(root), store.uri)]
    if store.head("vric_probe.txt") is not None:
        return [_with_roles(read_vric(root), store.uri)]
    tests = list_test_splits(root)
    if not tests:
        raise BadLabels(
            f"{root} is neither a label table nor a folder of VehicleID, VeRi-776, VERI-Wild or VRIC",
            remedy="give a .csv or .parquet with uri (or key) and vehicle_id, or the dataset's root",
        )
    lists = []
    for name in tests if split is None else [split]:
        labelled = read_vehicleid(root, name)
        keys = [uri.removeprefix(f"{store.uri}/") for uri in labelled.uris]
        table = pa.table({"key": keys, "vehicle_id": labelled.vehicle_ids})
        lists.append(EvaluationList(name, table, store.uri, "vehicleid-paper"))
    return lists


def _with_roles(found: RoleList, root: str) -> EvaluationList:
    keys = [uri.removeprefix(f"{root}/") for uri in found.uris]
    table = pa.table(
        {
            "key": pa.array(keys, pa.string()),
            "vehicle_id": pa.array(found.vehicle_ids, pa.int64()),
            "camera_id": pa.array(found.camera_ids, pa.string()),
        }
    )
    roles = {
        role: frozenset(key for key, its in zip(keys, found.roles, strict=True) if its == role)
        for role in ("probe", "gallery")
    }
    return EvaluationList(found.name, table, root, found.protocol, roles["probe"], roles["gallery"])
