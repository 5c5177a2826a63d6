"""The workers of one training among each other: sums, gathered rows, and one answer for all."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class DistributedContext:
    """This worker among `world` workers; row r of anything shared out belongs to worker r % world."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the one worker that logs and saves."""
        return self.rank == 0

    def summed(self, *values: float) -> tuple[float, ...]:
        """Each value's sum over all workers."""
        if self.world == 1:
            return values
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        return tuple(sums.tolist())

    def agreed(self, wish: bool) -> bool:
        """What the first worker wants, everywhere: all must leave a loop at the same step."""
        if self.world == 1:
            return wish
        flag = torch.tensor([int(wish)], device=self.device)
        dist.broadcast(flag, src=0)
        return bool(flag.item())

    def gathered(self, mine: Tensor, count: int) -> Tensor:
        """All `count` rows, on the CPU, from each worker's rows rank, rank + world, …"""
        if self.world == 1:
            return mine.cpu()
        everything = torch.empty((count, *mine.shape[1:]), dtype=mine.dtype)
        for rank in range(self.world):
            places = torch.arange(rank, count, self.world)
            part = (mine if rank == self.rank else everything[places]).to(self.device).contiguous()
            dist.broadcast(part, src=rank)
            everything[places] = part.cpu()
        return everything
