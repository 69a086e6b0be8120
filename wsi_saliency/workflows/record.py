"""What ``run.json`` says of a run: what was done, with what, and how long it took."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from wsi_saliency.heatmap.exports import wanted_exports
from wsi_saliency.heatmap.result import SURROGATE_HASH, MapRecord, with_names
from wsi_saliency.urls import home_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from wsi_saliency.heatmap.ome_zarr import Heatmap
    from wsi_saliency.heatmap.overview import Predictions
    from wsi_saliency.heatmap.result import Result
    from wsi_saliency.mapspec import MapSpec
    from wsi_saliency.saliency.engine import Explainer
    from wsi_saliency.settings import RunSettings
    from wsi_saliency.workflows.plan import Plan

_PACKAGES = ("wsi-saliency", "torch", "timm", "openslide-python", "tifffile", "zarr", "numpy")
_OF_NO_VALUE = frozenset({"weights", "surrogate", "batch", "workers", "device", "hotspots", "exports"})
"""Settings that change no value of a map, or of which the model's facts say more."""
_T = TypeVar("_T")


class Stopwatch:
    """Seconds spent at each station of a run."""

    def __init__(self) -> None:
        self.started = datetime.now(UTC)
        self.seconds: dict[str, float] = {}
        self.resumed = 0  # runs that were cut short before
        self._start = time.perf_counter()

    @property
    def total(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    def facts(self) -> dict[str, Any]:
        """Return what `go_on` needs, JSON-ready."""
        return {
            "started": self.started.isoformat(),
            "total": self.total,
            "seconds": dict(self.seconds),
            "resumed": self.resumed,
        }

    def go_on(self, earlier: Mapping[str, Any]) -> None:
        """Add the time of an earlier run, whose `facts` are given with ``started`` as a date."""
        self.started, self.resumed = earlier["started"], earlier["resumed"] + 1
        self._start -= earlier["total"]
        for name, seconds in earlier["seconds"].items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds

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


def weight_hashes(explainer: Explainer) -> dict[str, str | None]:
    """Return the hashes of a classifier's weights and of its surrogate's, None without one."""
    surrogate = explainer.network.surrogate
    return {"sha256": explainer.classifier.sha256, SURROGATE_HASH: surrogate.sha256 if surrogate else None}


def map_record(plan: Plan, spec: MapSpec, heatmap: Heatmap) -> MapRecord:
    """Collect what is said of a finished map."""
    geometry = plan.explainer.geometry(spec)
    layer = asdict(geometry) | {"strided_behind": list(geometry.strided_behind)}
    del layer["layout"]  # how cells lie in memory says nothing of the map
    return MapRecord(
        spec,
        plan.explainer.asked_as[spec],
        not plan.explainer.network.is_magnitude(spec.attribution),
        heatmap.info.channels,
        layer,
        plan.placement(spec),
        plan.cells(spec),
        plan.drift(spec),
        heatmap.windows,
    )


def run_record(
    plan: Plan,
    settings: RunSettings,
    maps: Sequence[MapRecord],
    predictions: Sequence[Predictions],
    before: Result | None = None,
) -> dict[str, Any]:
    """Collect the record of a slide whose maps are there, JSON-ready; `finished` adds the rest.

    Parameters
    ----------
    plan, settings
        What was done.
    maps
        All maps of the result.
    predictions
        What the classifier said of the slide, for each target.
    before
        The result that maps were added to, if there was one.
    """
    names = plan.explainer.target_names
    return {
        "settings": _settings_facts(settings, before),
        "slide": _slide_facts(plan),
        "model": _model_facts(plan, before),
        "targets": [
            {"name": name, "index": index, "positive": said.positive, "highest_probability": said.highest}
            for name, index, said in zip(names, plan.explainer.targets, predictions, strict=True)
        ],
        "maps": with_names(maps, names),
        "grid": grid_facts(plan),
        "patches": {"grid": len(plan.grid), "tissue": len(plan.tiles)},
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


@cache  # what is installed is parsed anew each time
def _version(package: str) -> str:
    return version(package)


def what_is_asked(plan: Plan, settings: RunSettings, before: Result | None) -> dict[str, Any]:
    """Collect all that decides what a run computes, JSON-ready: a run that is gone on with has the same."""
    explainer, source = plan.explainer, plan.slide.source
    model = _model_facts(plan, None)
    del model["batch"]
    places = ((tile.column, tile.row) for tile in plan.tiles)
    tiles = np.fromiter(places, np.dtype((np.int64, 2)), len(plan.tiles))
    facts = {
        "settings": {k: v for k, v in settings.to_json().items() if k not in _OF_NO_VALUE},
        "slide file": [*_slide_facts(plan).items(), source.version or source.file.stat().st_mtime_ns],
        "model": model | {"device": explainer.device.type},
        "maps": [spec.name for spec in plan.maps],
        "targets": list(explainer.targets),
        "patches": [grid_facts(plan), _digest(tiles.tobytes()), _digest(plan.tissue_shares.tobytes())],
        "maps that are there": before and _digest(json.dumps(before.record).encode()),
        "versions": _versions(),
    }
    same: dict[str, Any] = json.loads(json.dumps(facts))
    return same


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def finished(
    record: Mapping[str, Any], clock: Stopwatch, exports: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return a record with how long it all took, and what was exported, by file name."""
    return {
        "started": clock.started.isoformat(timespec="seconds"),
        "seconds": {"total": round(clock.total, 3)} | {k: round(v, 3) for k, v in clock.seconds.items()},
        "resumed": clock.resumed,
        "slowest_station": max(clock.seconds, key=lambda name: clock.seconds[name]),
        "peak_memory_mb": _peak_memory_mb(),
        **record,
        "exports": exports,
    }


def _settings_facts(settings: RunSettings, before: Result | None) -> dict[str, Any]:
    """Return the settings; where maps were added, with the layers, methods and attributions of all runs."""
    facts = settings.to_json()
    if before is None:
        return facts
    earlier = before.record["settings"]
    joined = {
        name: list(dict.fromkeys([*earlier[name], *facts[name]]))
        for name in ("layers", "methods", "attributions")
    }
    return facts | joined | {"targets": earlier["targets"]} | wanted_exports(facts, earlier)


def _slide_facts(plan: Plan) -> dict[str, Any]:
    slide = plan.slide
    return {
        "name": slide.name,
        "path": home_of(slide.path),
        "bytes": slide.source.size,
        **({"version": slide.source.version} if slide.source.version else {}),
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


def _model_facts(plan: Plan, before: Result | None) -> dict[str, Any]:
    explainer, classifier = plan.explainer, plan.explainer.classifier
    hashes = weight_hashes(explainer)
    if before is not None and hashes[SURROGATE_HASH] is None:
        hashes[SURROGATE_HASH] = before.record["model"][SURROGATE_HASH]
    return {
        "uri": classifier.uri,
        "architecture": classifier.architecture,
        **hashes,
        "mpp": classifier.mpp,
        "patch": classifier.patch,
        "mean": list(classifier.mean),
        "std": list(classifier.std),
        "classes": list(classifier.class_names),
        "output": classifier.output,
        "notes": list(classifier.notes),
        "device": str(explainer.device),
        "precision": explainer.network.precision,
        "batch": explainer.batch,
    }


def grid_facts(plan: Plan) -> dict[str, Any]:
    """Say where patches lie."""
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
