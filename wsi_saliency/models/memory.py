"""Memory: how much a pass through a network takes, found out without taking any."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_UNKNOWN = 16 * 2**30  # bytes, where the system does not say


def bytes_of_memory() -> int:
    """Return how many bytes of memory this machine has."""
    if not hasattr(os, "sysconf"):
        return _UNKNOWN
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def pass_bytes(module: nn.Module, side: int) -> int:
    """Return the bytes of all that a pass of one image (1, 3, side, side) computes.

    The pass is made on the meta device, where tensors have shapes and no memory. Where a network cannot be
    run there, for it reads values on its way, a stem of 64 channels at half the resolution is counted.

    Raises
    ------
    Exception
        Whatever the network raises of images that it does not take.
    """
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    shapes = {name: value.to("meta") for name, value in held.items()}
    sizes = _Sizes()
    try:
        with torch.no_grad(), sizes:
            functional_call(module, shapes, (torch.empty(1, 3, side, side, device="meta"),))
    except (NotImplementedError, RuntimeError) as error:
        if "meta" not in str(error).lower():
            raise
        return 64 * 4 * (side // 2) ** 2
    return sizes.total


class _Sizes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of all tensors that are made."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0
        self._made: dict[int, object] = {}  # storages by address, kept so that no other takes one's place

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._made:
                storage = tensor.untyped_storage()
                self._made[storage._cdata] = storage
                self.total += storage.nbytes()
        return result
