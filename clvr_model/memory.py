"""Memory: what is free, and the batch size that fits."""

import gc
import resource
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from clvr_model.malloc import malloc_trim

# The rest is left for temporary tensors and for other programs.
HEADROOM = 0.75
# Plain RuntimeErrors of the CPU allocator and of oneDNN, whose machine code takes memory too.
_OF_MEMORY = ("DefaultCPUAllocator", "could not create a memory object", "could not create a primitive")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a GPU or this machine ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in _OF_MEMORY)
    )


def max_batch_size(loss_of: Callable[[int], Tensor], device: torch.device) -> int:
    """Estimate how many images fit into a forward and backward pass; 0 if one does not fit.

    loss_of(n): the loss of n images. Measures one and two images, to separate the memory that grows with the
    batch from the memory that does not.
    """
    gc.collect()
    malloc_trim()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    used: list[int] = []
    try:
        for count in (1, 2):
            used.append(_bytes_used(loss_of, count, device))
            gc.collect()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    if not used:
        return 0
    per_image = max(used[-1] - used[0] if len(used) > 1 else used[0], 1)
    return max(len(used), int(HEADROOM * free_bytes(device) / per_image))


def free_bytes(device: torch.device) -> int:
    """Return the bytes that this process can still allocate on the device."""
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


def _bytes_used(loss_of: Callable[[int], Tensor], count: int, device: torch.device) -> int:
    """Measure the bytes of a pass: the peak on a GPU, and the saved tensors of the gradient elsewhere."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        loss_of(count).backward()  # type: ignore[no-untyped-call]
        return int(torch.cuda.max_memory_allocated(device)) - before
    saved: dict[int, int] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        loss = loss_of(count)
    loss.backward()  # type: ignore[no-untyped-call]
    return sum(saved.values())
