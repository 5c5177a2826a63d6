"""Memory: given back to the system, and where it was not enough, how many pictures would fit."""

import ctypes
import gc
import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

# Left free for what a pass needs for a moment only, and for other programs.
HEADROOM = 0.75
_M_MMAP_THRESHOLD = -3  # glibc's malloc.h


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a GPU or of this machine was not enough."""
    # torch's CPU allocator has no class of its own for it, and oneDNN says only that it could not.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError)
        and any(said in str(error) for said in ("DefaultCPUAllocator", "could not create a memory object"))
    )


def pictures_that_fit(loss_of: Callable[[int], Tensor], device: torch.device) -> int:
    """How many pictures a pass forward and back has memory for; 0 if one does not fit.

    loss_of(n): the loss of n pictures. Measured on one and on two, so that what does not grow with the
    pictures is told from what does.
    """
    gc.collect()
    give_back_memory()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    taken: list[int] = []
    try:
        for count in (1, 2):
            taken.append(_taken(loss_of, count, device))
            gc.collect()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    if not taken:
        return 0
    each = max(taken[-1] - taken[0] if len(taken) > 1 else taken[0], 1)
    return max(len(taken), int(HEADROOM * free_bytes(device) / each))


def map_large_blocks(least: int = 1 << 20) -> None:
    """Let malloc ask the system for each block of at least so many bytes, and give it back when it is freed.

    By itself it keeps blocks of up to 32 MiB for later and in pieces: an actor that needed 260 MiB grew to
    490 MiB within forty parts, and went on growing.
    """
    with suppress(OSError, AttributeError):  # other C libraries than glibc have no mallopt
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, least)


def give_back_memory() -> None:
    """Return freed memory to the system: malloc keeps it, in pieces, for later requests of their size."""
    with suppress(OSError, AttributeError):  # other C libraries than glibc have no malloc_trim
        ctypes.CDLL(None).malloc_trim(0)


def free_bytes(device: torch.device) -> int:
    """Bytes that a process can still get on that device."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    facts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line)
    free = int(facts["MemAvailable"].split()[0]) * 1024
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        free = min(free, max(0, limit - used))
    return free


def _taken(loss_of: Callable[[int], Tensor], count: int, device: torch.device) -> int:
    """The bytes that a pass takes: the measured peak on a GPU; elsewhere, what it keeps for its gradient."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        loss_of(count).backward()  # type: ignore[no-untyped-call]
        return int(torch.cuda.max_memory_allocated(device)) - before
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = loss_of(count)
    loss.backward()  # type: ignore[no-untyped-call]
    return sum(kept.values())
