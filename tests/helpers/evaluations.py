"""Evaluations for tests: plausible figures of any number of methods, attributions and layers, at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from wsi_saliency.evaluation.measured import (
    Evaluation,
    Example,
    KindScores,
    Localisation,
    MapKind,
    Phase,
    SanityStage,
    Stability,
    with_phase,
)

LAYERS = (("input", 1), ("conv1", 2), ("layer1", 4), ("layer2", 8), ("layer3", 16), ("layer4", 32))
METHODS = ("none", "backward-hook", "forward-hook", "surrogate")
ATTRIBUTIONS = ("gradient", "deeplift", "gradcam")
QUALITY = {"none": 0.0, "backward-hook": 0.6, "forward-hook": -0.3, "surrogate": 0.3}
ROUGHNESS = {"none": 1.0, "backward-hook": 0.45, "forward-hook": 0.3, "surrogate": 0.6}

BACKWARD = MapKind("backward-hook", "gradient", "layer2", 8)


@dataclass(frozen=True)
class Shape:
    """How much there is in a made evaluation."""

    methods: tuple[str, ...] = METHODS[:2]
    attributions: tuple[str, ...] = ATTRIBUTIONS[:1]
    layers: tuple[tuple[str, int], ...] = LAYERS[3:4]
    patches: int = 40
    steps: int = 28
    examples: int = 3
    extras: bool = False  # phase and grid stability, sanity, localisation
    slide: str = "slide-1.svs"
    seed: int = 0


SMALL = Shape()
LARGE = Shape(METHODS, ATTRIBUTIONS, LAYERS, patches=100, examples=6, extras=True)


def made_evaluation(shape: Shape = SMALL) -> Evaluation:
    """Make an evaluation; the same shape gives the same figures."""
    rng = np.random.default_rng(shape.seed)
    probability = rng.beta(5, 1.5, shape.patches)
    scored = [_scored(kind, probability, shape.steps, rng) for kind in kinds(shape)]
    phase = _phase(scored, np.random.default_rng(shape.seed)) if shape.extras else []
    return Evaluation(
        facts=_facts(shape),
        patch_rows=[
            {"slide": shape.slide, "x": 512 * i, "y": 1024, "w": 448, "h": 448, "probability": float(p)}
            for i, p in enumerate(probability)
        ],
        scored=with_phase(scored, phase),
        prediction_difference={
            m: rng.random(shape.patches) * (0.05 if m in ("forward-hook", "surrogate") else 0)
            for m in shape.methods
        },
        phase=phase,
        stability=_stability(shape, rng) if shape.extras else [],
        sanity=_sanity(shape, rng) if shape.extras else [],
        localised=_localised(shape, rng) if shape.extras else [],
        examples=[_example(shape, rng, probability[i]) for i in range(shape.examples)],
    )


def kinds(shape: Shape) -> list[MapKind]:
    """Maps of all methods × attributions × layers, then the controls."""
    maps = [
        MapKind(m, a, *layer) for a in shape.attributions for layer in shape.layers for m in shape.methods
    ]
    blurred = [
        MapKind(k.method, k.attribution, k.layer, k.reduction, "blurred-none")
        for k in maps
        if k.method != "none"
    ]
    return [
        *maps,
        MapKind(None, None, None, None, "random"),
        MapKind(None, None, None, None, "centred-gaussian"),
        *blurred,
    ]


def shifted(evaluation: Evaluation, kind: MapKind, insertion: float, deletion: float = 0.0) -> Evaluation:
    """Make one kind of map's areas those of ``none`` plus the same amount on all patches."""
    plain = next(s for s in evaluation.scored if s.kind.method == "none")
    scored = [
        replace(s, insertion=plain.insertion + insertion, deletion=plain.deletion + deletion)
        if s.kind == kind
        else s
        for s in evaluation.scored
    ]
    return replace(evaluation, scored=scored)


def with_an_unchanged_map() -> Evaluation:
    """Make an evaluation whose second of two maps is hardly another when the network is random."""
    scores = np.full(SMALL.patches, 0.5)
    stages = [
        SanityStage(method, "gradcam", "layer4", module, np.full(SMALL.patches, rho), scores, scores)
        for method, last in (("none", 0.1), ("backward-hook", -0.8))
        for module, rho in ((None, 1.0), ("fc", 0.9), ("conv1", last))
    ]
    return replace(made_evaluation(SMALL), sanity=stages)


def _quality(kind: MapKind) -> float:
    """How steeply insertion climbs: best in the middle of the network."""
    if kind.control in ("random", "centred-gaussian"):
        return {"random": 1.0, "centred-gaussian": 1.6}[kind.control]
    depth = np.log2(kind.reduction or 1)
    method = 0.45 if kind.control else QUALITY.get(kind.method or "", 0.0)
    return float(1.3 + 0.5 * depth - 0.08 * depth**2 + method)


def _scored(kind: MapKind, probability: np.ndarray, steps: int, rng: np.random.Generator) -> KindScores:
    t = np.linspace(0, 1, steps + 1)
    steepness = np.exp(rng.normal(0, 0.25, (len(probability), 1))) * _quality(kind)
    insertion = probability[:, None] * (1 - np.exp(-steepness * 2 * t)) / (1 - np.exp(-steepness * 2))
    deletion = probability[:, None] - insertion + 0.02
    roughness = {"random": 2.8, "centred-gaussian": 0.1}.get(kind.control or "") or (
        (0.6 + 1.4 * ROUGHNESS.get(kind.method or "", 1.0)) / np.sqrt(np.log2(kind.reduction or 1) + 1)
    )
    return KindScores(
        kind,
        insertion,
        deletion,
        area(insertion),
        area(deletion),
        roughness * np.exp(rng.normal(0, 0.1, len(probability))),
        np.full(len(probability), np.nan),
    )


STEADINESS = {"none": 0.1, "backward-hook": 0.7, "forward-hook": 0.85, "surrogate": 0.5}


def _phase(scored: list[KindScores], rng: np.random.Generator) -> list[Phase]:
    """Moves of each patch by multiples of 8 px; deeper layers are less steady, and one has no figure."""
    found = []
    for s in scored:
        if s.kind.layer:
            n, depth = len(s.insertion), np.log2(s.kind.reduction or 1)
            level = STEADINESS.get(s.kind.method or "", 0.5) - 0.06 * depth - 0.2 * bool(s.kind.control)
            moves = 8 * rng.integers(1, 4, (n, 4, 2))
            alike = np.clip(level + rng.normal(0, 0.1, (n, 4)), -1, 1)
            found.append(Phase(s.kind, moves, np.where(depth == 5, np.nan, alike)))
    return found


def area(curves: np.ndarray) -> np.ndarray:
    """Area under curves (N, steps + 1), as the project defines it."""
    return np.asarray((curves.sum(1) - curves[:, 0] / 2 - curves[:, -1] / 2) / (curves.shape[1] - 1))


def _facts(shape: Shape) -> dict[str, object]:
    return {
        "model": {"uri": "demo", "sha256": "0123456789abcdef" * 4, "classes": ["normal", "tumour"]},
        "target": "tumour",
        "total_stride": 32,
        "slides": [shape.slide],
        "settings": {"patches": shape.patches, "seed": shape.seed, "score_on": "original", "layers": []},
        "versions": {"wsi-saliency": "0.1.0", "torch": "2.15.0"},
        "seconds": {"total": 12.34, "scores": 9.87},
    }


def _stability(shape: Shape, rng: np.random.Generator) -> list[Stability]:
    return [
        Stability(
            f"slide-{s}.svs", m, a, "layer2", overlap, 0.3 + 0.5 * overlap + 0.1 * rng.random() + 0.1 * i
        )
        for s in (1, 2)
        for a in shape.attributions
        for i, m in enumerate(shape.methods)
        for overlap in (0.0, 0.5, 0.75)
    ]


def _sanity(shape: Shape, rng: np.random.Generator) -> list[SanityStage]:
    modules = (None, "fc", "layer4", "layer3", "layer2", "layer1", "conv1")
    return [
        SanityStage(
            m,
            a,
            "layer2",
            module,
            np.clip((0.92 if a == "gradcam" else 0.55) ** k + rng.normal(0, 0.05, shape.patches), -1, 1),
            0.7 - 0.3 * (k > 0) + 0.05 * rng.random(shape.patches),
            0.2 + 0.3 * (k > 0) + 0.05 * rng.random(shape.patches),
        )
        for a in shape.attributions
        for m in shape.methods
        for k, module in enumerate(modules)
    ]


def _localised(shape: Shape, rng: np.random.Generator) -> list[Localisation]:
    kinds_or_patches = [MapKind(m, "gradient", "layer2", 8) for m in shape.methods] + [None]
    return [
        Localisation(shape.slide, kind, 0.7 + 0.2 * rng.random(), 0.4 + 0.3 * rng.random(), True, 0.21)
        for kind in kinds_or_patches
    ]


def _example(shape: Shape, rng: np.random.Generator, probability: float) -> Example:
    """Purple nuclei on a pink ground, and maps of some of them; a checkerboard on the unsmoothed one."""
    nuclei = ndimage.gaussian_filter(rng.random((224, 224)), 5)
    nuclei = np.clip((nuclei - nuclei.mean()) / nuclei.std(), 0, 2) / 2
    ground = np.array([236, 188, 214]) + rng.normal(0, 6, (224, 224, 1))
    patch = ground * (1 - nuclei[..., None]) + np.array([92, 48, 140]) * nuclei[..., None]
    name, reduction = shape.layers[min(1, len(shape.layers) - 1)]
    side = max(7, 224 // max(4, reduction))
    signal = ndimage.zoom(nuclei, side / 224, order=1)[:side, :side] - 0.2
    board = (np.indices((side, side)).sum(0) % 2) * 2 - 1
    maps = {
        MapKind(m, shape.attributions[0], name, reduction): (
            1e-3 * (signal + 0.5 * ROUGHNESS.get(m, 1.0) * board * rng.random((side, side)))
        ).astype(np.float32)
        for m in shape.methods
    }
    return Example(np.clip(patch, 0, 255).astype(np.uint8), float(probability), maps)
