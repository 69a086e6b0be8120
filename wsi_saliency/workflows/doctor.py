"""Whether the program can work here: what it needs, what there is, and what to do about the rest."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Verdict = Literal["ok", "note", "fault"]

PACKAGES = ("torch", "timm", "openslide-python", "tifffile", "zarr", "numpy", "click", "huggingface-hub")
SCARCE_DISK_GB = 5  # a map of a large slide takes hundreds of MB, the default classifier's cache some more
SCARCE_MEMORY_GB = 4


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what it is called, how it is, and what to do if it is not well."""

    name: str
    verdict: Verdict
    text: str
    advice: str = ""


def examine(out: Path) -> Iterator[Finding]:
    """Look at all that a run needs, one after another.

    Parameters
    ----------
    out
        Where results would go.
    """
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}")
    yield Finding("versions", "ok", ", ".join(f"{name} {installed(name)}" for name in PACKAGES))
    yield _tried("openslide", _openslide)
    yield _tried("torch", _torch)
    yield _tried("device", _devices)
    yield _tried("memory", _memory)
    yield _tried("output", partial(_disk, out))
    yield _tried("cache", _cache)


def installed(package: str) -> str:
    """Return a package's version, or say that it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _tried(name: str, look: Callable[[], Finding]) -> Finding:
    """Look; what goes wrong on the way is a fault with the name of what was looked at."""
    try:
        return look()
    except Exception as error:  # whatever a broken installation does
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return Finding(name, "fault", text, "install again: pip install --force-reinstall wsi-saliency")


def _openslide() -> Finding:
    import openslide

    return Finding("openslide", "ok", f"library {openslide.__library_version__}")


def _torch() -> Finding:
    import torch

    with torch.no_grad():
        alive = torch.nn.functional.conv2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 2, 2)).sum().item()
    if alive != 36:
        return Finding("torch", "fault", "a convolution gives wrong numbers", "install torch again")
    return Finding("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")


def _devices() -> Finding:
    import torch

    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        listed = ", ".join(f"{gpu.name} ({gpu.total_memory / 1e9:.0f} GB)" for gpu in gpus)
        return Finding("device", "ok", f"CUDA: {listed}")
    if torch.backends.mps.is_available():
        return Finding("device", "ok", "MPS (Apple)")
    built = (
        f"this torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build of torch"
    )
    advice = "with an NVIDIA GPU, see that nvidia-smi lists it and that its driver is new enough"
    return Finding("device", "note", f"CPU only ({built}): a slide takes minutes to hours", advice)


def _memory() -> Finding:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return Finding("memory", "ok", "the system does not tell")
    gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    if gb < SCARCE_MEMORY_GB:
        return Finding("memory", "note", f"{gb:.1f} GB", "use a small --batch and --workers 1")
    return Finding("memory", "ok", f"{gb:.0f} GB")


def _disk(out: Path) -> Finding:
    where = next(place for place in (out.absolute(), *out.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=where) as file:
            file.write(b"x")
    except OSError as error:
        text = f"{where} cannot be written ({error.strerror})"
        return Finding("output", "fault", text, "choose another folder with -o")
    free = shutil.disk_usage(where).free / 1e9
    text = f"{where} can be written, {free:.0f} GB are free"
    if free < SCARCE_DISK_GB:
        return Finding("output", "note", text, "make room, or choose another folder with -o")
    return Finding("output", "ok", text)


def _cache() -> Finding:
    from huggingface_hub import constants

    where = Path(constants.HF_HUB_CACHE)
    models = sorted(folder.name for folder in where.glob("models--*")) if where.is_dir() else []
    names = ", ".join(name.removeprefix("models--").replace("--", "/") for name in models) or "no models"
    offline = "; HF_HUB_OFFLINE is set: nothing is downloaded" if constants.HF_HUB_OFFLINE else ""
    return Finding("cache", "ok", f"{where}: {names}{offline}")


def version_lines() -> str:
    """Return the versions of what the program stands on, for ``--version``."""
    packages = ", ".join(f"{name} {installed(name)}" for name in PACKAGES[:6])
    return f"Python {platform.python_version()} ({sys.platform}), {packages}"
