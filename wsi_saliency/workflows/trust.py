"""Whether results depend on what should not matter: the other patches of a batch, and the number format."""

from __future__ import annotations

import math
import time
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from wsi_saliency.errors import ModelError
from wsi_saliency.evaluation.correlation import pearson
from wsi_saliency.messages import one_line
from wsi_saliency.saliency.engine import Explainer
from wsi_saliency.workflows.facts import Fact, warning
from wsi_saliency.workflows.scores import logits_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray

    from wsi_saliency.models.classifier import Classifier
    from wsi_saliency.settings import Precision

_TOGETHER = 8  # patches that are compared, alone and in one batch
_PIXELS = 8 * 512**2  # of a batch, at most, if it is to be quick
_TOLERANCE = 1e-3  # of the largest logit; rounding in another order makes a hundredth of it
_COARSE = {"cuda": ("bf16", "fp16"), "mps": ("fp16",), "cpu": ("bf16",)}
_EQUAL = 0.999  # correlation from which maps are the same to anyone who looks at them
_PAIRS = {"cpu": 2}
_MAPS = {"cpu": 4}


def drawn(patch: int, n: int = _TOGETHER) -> NDArray[np.uint8]:
    """Draw patches (n, P, P, 3) of coloured squares, where nobody has given any."""
    squares = np.random.default_rng(0).integers(0, 256, (n, 8, 8, 3)).astype(np.uint8)
    index = np.arange(patch) * 8 // patch
    return squares[:, index[:, None], index]


def batch_facts(classifier: Classifier, patches: NDArray[np.uint8], device: torch.device) -> list[Fact]:
    """Compare the logits of patches (N, P, P, 3), each alone, with those in one batch of them."""
    n = max(2, min(_TOGETHER, _PIXELS // classifier.patch**2))
    some = patches[:n]
    together = logits_of(classifier, some, device, len(some))
    alone = logits_of(classifier, some, device, 1)
    largest, scale = float((together - alone).abs().max()), float(alone.abs().max())
    text = f"a patch alone and in a batch of {len(some)}: logits differ by {largest:.1e} at most"
    facts = [Fact("batch", text, {"patches": len(some), "largest_difference": largest})]
    if not largest <= _TOLERANCE * max(1.0, scale):
        facts.append(
            warning(
                f"what a patch scores depends on the others of its batch (by {largest:.2g}): the network "
                "mixes patches, and so would its maps"
            )
        )
    return facts


def precision_fact(
    classifier: Classifier, patches: NDArray[np.uint8], targets: Sequence[str], device: torch.device
) -> Fact:
    """Compare the default map in fp32 with the coarser formats that a device has, also in time.

    Parameters
    ----------
    classifier
        On the CPU.
    patches
        (N, P, P, 3), RGB; some of them are explained.
    targets
        The class to explain; none for the default one.
    device
        Where.
    """
    n = _MAPS.get(device.type, 16)
    some = patches[:: max(1, len(patches) // n)][:n]
    try:
        full = _explainer(classifier, targets, device, "fp32")
        formats = {
            name: _compared(full, _explainer(classifier, targets, device, name), some)  # type: ignore[arg-type]
            for name in _COARSE[device.type]
        }
    except (ModelError, RuntimeError) as error:  # of formats that an operation does not know
        value: dict[str, object] = {"recommended": "fp32", "formats": {}}
        return Fact("precision", f"fp32; others not compared: {one_line(error)}", value)
    equal = {n: f for n, f in formats.items() if min(f["logits"], f["maps"]) >= _EQUAL and f["speed"] > 1}
    best = max(equal, key=lambda name: equal[name]["speed"], default="fp32")
    told = [
        f"{name}: logits {_r(f['logits'])}, maps {_r(f['maps'])}, {f['speed']:.2f} × as fast"
        for name, f in formats.items()
    ]
    why = f"is faster and equal (r ≥ {_EQUAL})" if equal else "is recommended"
    value = {"recommended": best, "formats": formats, "patches": len(some)}
    return Fact("precision", f"on {len(some)} patches, {'; '.join(told)}; {best} {why}", value)


def _r(correlation: float) -> str:
    """Write a correlation; where all values are the same there is none."""
    return "all the same" if math.isnan(correlation) else f"r = {correlation:.5f}"


def _explainer(
    classifier: Classifier, targets: Sequence[str], device: torch.device, precision: Precision
) -> Explainer:
    return Explainer.of(classifier, targets=targets, device=str(device), precision=precision)


def _compared(full: Explainer, coarse: Explainer, patches: NDArray[np.uint8]) -> dict[str, float]:
    """Correlate logits and maps, and time both in turn: whatever else the machine does slows both alike."""
    (spec,) = full.maps
    target = full.targets[0]
    (maps, logits), (other_maps, other_logits) = full(patches), coarse(patches)
    pairs = [
        (_seconds(full, patches), _seconds(coarse, patches)) for _ in range(_PAIRS.get(full.device.type, 5))
    ]
    return {
        "logits": pearson(logits[:, target].numpy(), other_logits[:, target].numpy()),
        "maps": pearson(maps[spec].numpy(), other_maps[spec].numpy()),
        "speed": median(one / other for one, other in pairs),
    }


def _seconds(explainer: Explainer, patches: NDArray[np.uint8]) -> float:
    start = time.perf_counter()
    explainer(patches)  # maps come to the CPU, so nothing is left to wait for
    return time.perf_counter() - start
