"""``run.json``: what was done, with what, how long it took. A folder without a complete one is unfinished."""

from __future__ import annotations

import json
import platform
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

from wsi_saliency.settings import RunSettings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from wsi_saliency.heatmap.overview import Predictions
    from wsi_saliency.saliency.engine import Explainer
    from wsi_saliency.workflows.plan import Plan

RUN_JSON = "run.json"
ZARR, TIFF, OVERVIEW, TILES = "saliency.ome.zarr", "saliency.ome.tif", "overview.png", "tiles.csv"
COMPLETE = "complete"
_PACKAGES = ("wsi-saliency", "torch", "timm", "openslide-python", "tifffile", "zarr", "numpy")
_WITHOUT_EFFECT = frozenset({"weights", "batch", "workers", "device"})  # the weights' hash is compared
_SURROGATE = "surrogate_sha256"
_T = TypeVar("_T")


class Stopwatch:
    """Seconds spent at each station of a run."""

    def __init__(self) -> None:
        self.started = datetime.now(UTC)
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    @property
    def total(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    @contextmanager
    def station(self, name: str) -> Iterator[None]:
        """Add the time inside the block to a station."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def iterate(self, name: str, items: Iterable[_T]) -> Iterator[_T]:
        """Iterate, adding the time spent waiting for items to a station."""
        waiting = iter(items)
        while True:
            with self.station(name):
                try:
                    item = next(waiting)
                except StopIteration:
                    return
            yield item


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return the record of a complete result, or None where there is none."""
    try:
        record = json.loads((folder / RUN_JSON).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("status") == COMPLETE else None


def differences(
    record: dict[str, Any],
    slide: Path,
    settings: RunSettings,
    weights: Mapping[str, str | None] | None = None,
) -> tuple[str, ...]:
    """Say in what an existing result differs from what is asked now, a few words each.

    Parameters
    ----------
    record
        What `read_record` returned.
    slide, settings
        What is asked now.
    weights
        `weight_hashes` of what would explain the slide now; None if it is not loaded, and then not compared.
    """
    before, now = RunSettings().to_json() | record.get("settings", {}), settings.to_json()
    words = [
        f"{name.replace('_', '-')} {_shown(before[name])} (now {_shown(value)})"
        for name, value in now.items()
        if name not in _WITHOUT_EFFECT and value != before[name]
    ]
    before_weights = record.get("model", {})
    for name, value in (weights or {}).items():
        if value != before_weights.get(name):
            words.append("another surrogate" if name == _SURROGATE else "other weights")
    facts = record.get("slide", {})
    if slide.name != facts.get("name") or (slide.is_file() and slide.stat().st_size != facts.get("bytes")):
        words.append("another slide file")
    return tuple(words)


def weight_hashes(explainer: Explainer) -> dict[str, str | None]:
    """Return the hashes of a classifier's weights and of its surrogate's, None without one."""
    surrogate = explainer.network.surrogate
    return {"sha256": explainer.classifier.sha256, _SURROGATE: surrogate.sha256 if surrogate else None}


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "default" if value is None else str(value)


def run_record(
    plan: Plan, settings: RunSettings, predictions: Predictions, clock: Stopwatch
) -> dict[str, Any]:
    """Collect the record of a finished slide, JSON-ready."""
    geometry = plan.explainer.geometry
    return {
        "status": COMPLETE,
        "started": clock.started.isoformat(timespec="seconds"),
        "seconds": {"total": round(clock.total, 3)} | {k: round(v, 3) for k, v in clock.seconds.items()},
        "slowest_station": max(clock.seconds, key=lambda name: clock.seconds[name]),
        "peak_memory_mb": _peak_memory_mb(),
        "settings": settings.to_json(),
        "slide": _slide_facts(plan),
        "model": _model_facts(plan),
        "layer": asdict(geometry) | {"strided_behind": list(geometry.strided_behind)},
        "grid": _grid_facts(plan),
        "placement": asdict(plan.placement) | {"unit": "level-0 pixels", "cells": asdict(plan.cells)},
        "values": "magnitude" if plan.explainer.network.is_magnitude else "signed",
        "drift": {
            "x": plan.drift[0],
            "y": plan.drift[1],
            "unit": "canvas pixels, taken out of the placement",
        },
        "patches": {
            "grid": len(plan.grid),
            "tissue": len(plan.tiles),
            "positive": predictions.positive,
            "highest_probability": predictions.highest,
        },
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
    }


def _slide_facts(plan: Plan) -> dict[str, Any]:
    slide = plan.slide
    return {
        "name": slide.path.name,
        "bytes": slide.path.stat().st_size,
        "format": slide.format,
        "reader": slide.reader,
        "size": asdict(slide.size),
        "levels": len(slide.levels),
        "mpp": asdict(slide.mpp),
        "mpp_source": slide.mpp_source,
        "objective_power": slide.objective_power,
        "bounds": asdict(slide.bounds),
        "tissue_mm2": round(plan.tissue.area_mm2(slide.mpp), 4),
        "warnings": list(slide.warnings),
    }


def _model_facts(plan: Plan) -> dict[str, Any]:
    explainer, classifier = plan.explainer, plan.explainer.classifier
    return {
        "uri": classifier.uri,
        "architecture": classifier.architecture,
        **weight_hashes(explainer),
        "mpp": classifier.mpp,
        "patch": classifier.patch,
        "mean": list(classifier.mean),
        "std": list(classifier.std),
        "classes": list(classifier.class_names),
        "output": classifier.output,
        "target": classifier.class_names[explainer.target],
        "device": str(explainer.device),
        "precision": explainer.network.precision,
        "batch": explainer.batch,
    }


def _grid_facts(plan: Plan) -> dict[str, Any]:
    grid = plan.grid
    return {
        "canvas": {"w": grid.canvas.w, "h": grid.canvas.h},
        "level0_per_canvas_pixel": {"x": grid.canvas.scale_x, "y": grid.canvas.scale_y},
        "patch": grid.patch,
        "stride": grid.stride,
        "columns": len(grid.canvas_xs),
        "rows": len(grid.canvas_ys),
    }


def _peak_memory_mb() -> float | None:
    """Largest resident memory of this process so far; None where the system does not tell."""
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)
