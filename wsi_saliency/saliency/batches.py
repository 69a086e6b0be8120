"""How many patches go through a network at a time: as many as fit into the free memory of its device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch

from wsi_saliency.interruption import reraise_interruption

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    _Done = TypeVar("_Done")

DEFAULT_BATCH = {"cuda": 128, "mps": 32, "cpu": 16}
"""Most patches; larger batches are hardly faster."""

SHARE = 0.8
"""Of the free memory: what is left is for other sizes of the libraries' work space, and for fragments."""


@dataclass
class Batch:
    """How many patches go together, shared by all that has to remember it.

    Parameters
    ----------
    size
        Patches; halved for good when they do not fit into the device's memory.
    """

    size: int

    @classmethod
    def of(cls, batch: int | Batch) -> Batch:
        """Return a batch as it is, a number as a new one."""
        return cls(batch) if isinstance(batch, int) else batch

    def over(self, n: int, work: Callable[[slice], _Done]) -> Iterator[_Done]:
        """Do something for n patches, a batch at a time; yield in order what it returns.

        Work that has failed for want of memory is done anew with fewer; it must have left nothing behind.

        Raises
        ------
        torch.OutOfMemoryError
            If a single patch does not fit.
        """
        start = 0
        while start < n:
            end = min(start + self.size, n)
            try:
                done = work(slice(start, end))
            except torch.OutOfMemoryError:
                if self.size == 1:
                    raise
                self.size //= 2
                continue
            yield done
            start = end
            reraise_interruption()  # of a signal whose exception was lost in a library's callback


class DeviceMemory(Protocol):
    """The memory of a device."""

    def free(self) -> int:
        """Return how many bytes this process can still have."""
        ...

    def peak_of(self, work: Callable[[], object]) -> int:
        """Do something; return how many bytes it has taken meanwhile."""
        ...


@dataclass(frozen=True)
class CudaMemory:
    """The memory of a GPU."""

    device: torch.device

    def free(self) -> int:
        """Return what is free on the device, and what this process holds and does not use."""
        kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return int(torch.cuda.mem_get_info(self.device)[0]) + kept

    def peak_of(self, work: Callable[[], object]) -> int:
        """Do something; return how many bytes it has taken meanwhile."""
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        return torch.cuda.max_memory_allocated(self.device) - before


def fitting_batch(most: int, memory: DeviceMemory, explain: Callable[[int], object]) -> int:
    """Halve a batch until it fits into the free memory, by what one and two patches take.

    Parameters
    ----------
    most
        The largest batch.
    memory
        Of the device.
    explain
        Explains so many patches.

    Returns
    -------
    At least 1: whether a single patch fits is found out when it is explained.
    """
    try:
        explain(1)  # which loads libraries and kernels that stay
        one, two = memory.peak_of(lambda: explain(1)), memory.peak_of(lambda: explain(2))
    except torch.OutOfMemoryError:
        return 1
    each, room = max(two - one, 0), SHARE * memory.free()
    while most > 1 and one + (most - 1) * each > room:
        most //= 2
    return most
