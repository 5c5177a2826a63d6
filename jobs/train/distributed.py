"""Collective operations of the workers of one training."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class DistributedContext:
    """This worker among `world_size` workers; rank r handles rows r, r + world_size, … of shared work."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is the worker that logs and saves."""
        return self.rank == 0

    def all_reduce_sum(self, *values: float) -> tuple[float, ...]:
        """Return the sum of each value over all workers."""
        if self.world_size == 1:
            return values
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        return tuple(sums.tolist())

    def broadcast_flag(self, flag: bool) -> bool:
        """Return the flag of rank 0 on all workers, so that they leave a loop at the same step."""
        if self.world_size == 1:
            return flag
        tensor = torch.tensor([int(flag)], device=self.device)
        dist.broadcast(tensor, src=0)
        return bool(tensor.item())

    def all_gather_rows(self, local_rows: Tensor, count: int) -> Tensor:
        """Return all `count` rows, on the CPU, from the rows rank, rank + world_size, … of each worker."""
        if self.world_size == 1:
            return local_rows.cpu()
        rows = torch.empty((count, *local_rows.shape[1:]), dtype=local_rows.dtype)
        for rank in range(self.world_size):
            indices = torch.arange(rank, count, self.world_size)
            part = (local_rows if rank == self.rank else rows[indices]).to(self.device).contiguous()
            dist.broadcast(part, src=rank)
            rows[indices] = part.cpu()
        return rows
