"""Saved state of a training: network, optimizer and history, without pickle."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from clvr_model.training import EpochResult, Totals, unwrap_ddp
from infra.errors import BadCheckpoint

_TENSORS = "state.safetensors"
_VALUES = "state.json"


@dataclass(slots=True)
class TrainingState:
    """Everything that a resume needs.

    stage, epoch: the next to run, from 0. seed: of `epoch_order`; a resume with another seed repeats some
    images and misses others. totals: of the finished batches of an interrupted epoch. average: the moving
    average of the weights, if the stage has one.
    """

    stage: int
    epoch: int
    seed: int
    network: dict[str, Tensor]
    optimizer: dict[str, Any]
    history: list[dict[str, Any]] = field(default_factory=list)
    totals: Totals = field(default_factory=Totals)
    average: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def capture(
        cls,
        network: nn.Module,
        optimizer: Optimizer | None,
        *,
        stage: int,
        epoch: int,
        seed: int,
        history: Iterable[EpochResult | dict[str, Any]] = (),
        totals: Totals | None = None,
        average: Mapping[str, Tensor] | None = None,
    ) -> "TrainingState":
        """Capture a network (wrapped or not) and its optimizer, which is None between two stages."""
        return cls(
            stage,
            epoch,
            seed,
            unwrap_ddp(network).state_dict(),
            optimizer.state_dict() if optimizer else {},
            [asdict(entry) if isinstance(entry, EpochResult) else entry for entry in history],
            totals or Totals(),
            dict(average or {}),
        )

    def restore(self, network: nn.Module, optimizer: Optimizer | None = None) -> None:
        """Restore the state. Raises BadCheckpoint for another network or stage."""
        try:
            unwrap_ddp(network).load_state_dict(self.network)
            if optimizer is not None and self.optimizer:
                optimizer.load_state_dict(self.optimizer)
        except (RuntimeError, ValueError, KeyError) as error:
            raise BadCheckpoint(
                f"the saved training state does not fit: {str(error)[:200]}",
                remedy="resume with the recipe and the labels that it was started with, or start anew",
            ) from error

    def save(self, folder: Path) -> None:
        """Write two files into an existing folder, the small one last."""
        # Imported late, so that the network needs no object storage client.
        from infra.store.sealed import seal

        tensors = {f"network.{name}": value.detach() for name, value in self.network.items()}
        tensors |= {f"average.{name}": value.detach() for name, value in self.average.items()}
        states: dict[str, dict[str, Any]] = {}
        for index, entries in self.optimizer.get("state", {}).items():
            plain = states[str(index)] = {}
            for name, value in entries.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{name}"] = value.detach()
                else:
                    plain[name] = value
        path = folder / _TENSORS
        save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, path)
        values = {
            "stage": self.stage,
            "epoch": self.epoch,
            "seed": self.seed,
            "history": self.history,
            "totals": asdict(self.totals),
            "groups": self.optimizer.get("param_groups"),
            "states": states,
            "sha256": _sha256(path),
        }
        (folder / _VALUES).write_bytes(seal(values))

    @classmethod
    def load(cls, folder: Path) -> "TrainingState":
        """Read what `save` wrote.

        Raises BadCheckpoint if it is incomplete or its tensors were altered, CorruptObject for other values.
        """
        from infra.store.sealed import unseal

        try:
            values = unseal((folder / _VALUES).read_bytes(), str(folder / _VALUES))
            data = (folder / _TENSORS).read_bytes()
            if hashlib.sha256(data).hexdigest() != values["sha256"]:
                raise ValueError(f"{_TENSORS} is truncated or was altered")
            tensors = load(data)
            states: dict[int, dict[str, Any]] = {int(index): dict(v) for index, v in values["states"].items()}
            network, average = {}, {}
            for name, tensor in tensors.items():
                owner, _, rest = name.partition(".")
                if owner == "network":
                    network[rest] = tensor
                elif owner == "average":
                    average[rest] = tensor
                else:
                    index, _, entry = rest.partition(".")
                    states[int(index)][entry] = tensor
            groups = values["groups"]
            optimizer = {"state": states, "param_groups": groups} if groups else {}
            return cls(
                values["stage"],
                values["epoch"],
                values["seed"],
                network,
                optimizer,
                values["history"],
                Totals(**values.get("totals", {})),
                average,
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadCheckpoint(
                f"{folder} has no complete training state: {error}", remedy="resume from an earlier one"
            ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
