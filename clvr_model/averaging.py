"""A moving average of a network's weights, which is often better than the last weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from clvr_model.network import Clvr
from clvr_model.recipe import Stage
from infra.errors import BadCheckpoint


class Average:
    """The exponential moving average of what learns in a network, batch statistics included.

    Early steps count more, so that the first weights are soon forgotten: the decay of step t is at most
    (1 + t) / (10 + t). Every worker keeps its own: their weights are the same, and so are the averages.
    """

    def __init__(self, network: Clvr, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        state = network.state_dict()
        frozen = not any(parameter.requires_grad for parameter in network.backbone.parameters())
        # state_dict shares memory with the network: these follow its weights.
        self._live = {
            name: value
            for name, value in state.items()
            if value.is_floating_point() and not (frozen and name.startswith("backbone."))
        }
        self._kept = {name: value.clone() for name, value in self._live.items()}

    @classmethod
    def of(cls, network: Clvr, stage: Stage) -> "Average | None":
        """The average that a stage asks for, if it does. Call it after `make_optimizer`, which freezes."""
        return cls(network, stage.ema_decay) if stage.ema_decay else None

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after one more step in."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self._kept.values()), list(self._live.values()), 1 - decay)
        self.steps += 1

    @torch.no_grad()
    def install(self) -> None:
        """Make the averages the network's weights, at the end of a stage."""
        for name, value in self._live.items():
            value.copy_(self._kept[name])

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Lend the averages to the network, to measure it between two epochs."""
        before = {name: value.clone() for name, value in self._live.items()}
        self.install()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in self._live.items():
                    value.copy_(before[name])

    def state_dict(self) -> dict[str, Tensor]:
        """What a resume needs; `steps` is among the tensors."""
        return {**self._kept, "steps": torch.tensor(self.steps)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put a saved average back. Raises BadCheckpoint if it is another network's or another stage's."""
        if state.keys() != {*self._kept, "steps"}:
            raise BadCheckpoint(
                "the saved average of the weights is of another network or stage",
                remedy="resume with the recipe that it was started with, or start anew",
            )
        for name, kept in self._kept.items():
            kept.copy_(state[name])
        self.steps = int(state["steps"])
