"""Moving average of a network's weights, often better than the last weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from clvr_model.network import Clvr
from clvr_model.recipe import Stage
from infra.errors import BadCheckpoint


class ExponentialMovingAverage:
    """Exponential moving average of the weights that a stage trains, and of their batch statistics.

    The decay of step t is at most (1 + t) / (10 + t), so that the first weights soon lose their influence.
    Every worker has its own average: their weights are equal, and so are the averages.
    """

    # torch's AveragedModel does not fit: it copies the frozen backbone too, starts from the weights after the
    # first step, and its saved state has other names.

    def __init__(self, network: Clvr, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        state = network.state_dict()
        frozen = not any(parameter.requires_grad for parameter in network.backbone.parameters())
        # state_dict shares memory with the network: these follow its weights.
        self._weights = {
            name: value
            for name, value in state.items()
            if value.is_floating_point() and not (frozen and name.startswith("backbone."))
        }
        self._averages = {name: value.clone() for name, value in self._weights.items()}

    @classmethod
    def of(cls, network: Clvr, stage: Stage) -> "ExponentialMovingAverage | None":
        """Make the stage's average, if it has one. Call it after `make_optimizer`, which freezes layers."""
        return cls(network, stage.ema_decay) if stage.ema_decay else None

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after one more step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average(list(self._averages.values()), list(self._weights.values()), self.steps)
        self.steps += 1

    @torch.no_grad()
    def install(self) -> None:
        """Replace the network's weights by the averages, at the end of a stage."""
        for name, value in self._weights.items():
            value.copy_(self._averages[name])

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Give the network the averages for a while, to validate it between two epochs."""
        before = {name: value.clone() for name, value in self._weights.items()}
        self.install()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in self._weights.items():
                    value.copy_(before[name])

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors that a resume needs, `steps` among them."""
        return {**self._averages, "steps": torch.tensor(self.steps)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a saved average. Raises BadCheckpoint for that of another network or stage."""
        if state.keys() != {*self._averages, "steps"}:
            raise BadCheckpoint(
                "the saved average of the weights is of another network or stage",
                remedy="resume with the recipe that it was started with, or start anew",
            )
        for name, average in self._averages.items():
            average.copy_(state[name])
        self.steps = int(state["steps"])
