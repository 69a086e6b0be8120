"""Sources of classifiers that installed packages bring, as entry points. Free of torch."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from wsi_saliency.errors import ModelError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "wsi_saliency.models"
"""The entry point's name is the scheme, its value ``module:function``."""


def plugins() -> dict[str, EntryPoint]:
    """Return what installed packages bring, by scheme; nothing of it is imported."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def plugin_of(scheme: str) -> EntryPoint | None:
    """Return what brings a scheme, or None.

    Raises
    ------
    ModelError
        If several packages do.
    """
    found = list(entry_points(group=GROUP, name=scheme))
    if len({entry.value for entry in found}) > 1:
        named = " and ".join(sorted(package_of(entry) for entry in found))
        raise ModelError(f"--model {scheme}: is brought by {named}; uninstall all but one")
    return found[0] if found else None


def package_of(entry: EntryPoint) -> str:
    """Return the name and version of the package that brings it."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unnamed package"
