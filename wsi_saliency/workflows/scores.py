"""What a classifier says of patches, as facts: scores, accuracy where folders are classes, and speed."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from wsi_saliency.errors import ModelError
from wsi_saliency.models.classifier import TUMOUR_NAMES, probabilities, standard_logits
from wsi_saliency.saliency.batches import DEFAULT_BATCH, Batch
from wsi_saliency.workflows.facts import Fact, note, warning

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import PurePath

    from numpy.typing import NDArray

    from wsi_saliency.models.classifier import Classifier

_QUANTILES = {"0": "least", "0.05": "5 %", "0.25": "25 %", "0.5": "half below", "0.75": "75 %"}
_QUANTILES |= {"0.95": "95 %", "1": "most"}
_FOLDERS_SHOWN = 12


@dataclass(frozen=True)
class Scored:
    """Patches with what a classifier says of them.

    Parameters
    ----------
    scores
        Probabilities (N, K).
    target
        Index of the class that is explained.
    folders
        Folder of each patch; empty of those from a slide.
    labels
        What each shows, (N,), an index of ``names``; −1 where nobody says.
    answers
        What each is taken for, (N,), an index of ``names``.
    names
        Classes, numbered as labels and answers.
    """

    scores: NDArray[np.float32]
    target: int
    folders: Sequence[PurePath]
    labels: NDArray[np.int64]
    answers: NDArray[np.int64]
    names: tuple[str, ...]

    @classmethod
    def of(
        cls, classifier: Classifier, scores: NDArray[np.float32], target: int, folders: Sequence[PurePath]
    ) -> Scored:
        """Find out which folders are named after classes.

        Of a classifier with a single logit, pictures of other folders show something else, if any folder is
        named after its class.
        """
        names = classifier.class_names
        labels = np.array([_class_of(folder, names) for folder in folders] or [-1] * len(scores), np.int64)
        if len(names) > 1:
            return cls(scores, target, folders, labels, scores.argmax(1), names)
        if (labels == 0).any():
            elsewhere = np.array([bool(folder.parts) for folder in folders])
            labels[(labels == -1) & elsewhere] = 1
        answers = np.where(scores[:, 0] > 0.5, 0, 1)
        return cls(scores, target, folders, labels, answers, (names[0], f"not {names[0]}"))

    @property
    def of_target(self) -> NDArray[np.float32]:
        """Probability (N,) of the target."""
        return self.scores[:, self.target]

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Whether a patch (N,) is taken for another class than its folder's."""
        return np.asarray((self.labels >= 0) & (self.labels != self.answers))


def _class_of(folder: PurePath, names: Sequence[str]) -> int:
    """Return the class that a folder, or the nearest above it, is named after; −1 if there is none."""
    known = {name.strip().casefold(): i for i, name in reversed(list(enumerate(names)))}
    tumours = [i for name, i in known.items() if name in TUMOUR_NAMES]
    if len(tumours) == 1:  # so that a folder tumor is the class tumour
        known = dict.fromkeys(TUMOUR_NAMES, tumours[0]) | known
    found = (known.get(part.strip().casefold()) for part in reversed(folder.parts))
    return next((i for i in found if i is not None), -1)


def logits_of(
    classifier: Classifier, patches: NDArray[np.uint8], device: torch.device, batch: int | None = None
) -> torch.Tensor:
    """Return the logits (N, K), float32 on the CPU, of patches (N, P, P, 3); the network is on the device.

    Raises
    ------
    ModelError
        If a single patch does not fit into the device's memory.
    """

    @torch.no_grad()
    def logits(some: slice) -> torch.Tensor:
        images = classifier.normalised(patches[some], device)
        return standard_logits(classifier.module(images)).float().cpu()

    passes = Batch(batch or DEFAULT_BATCH[device.type]).over(len(patches), logits)
    try:
        return torch.cat(list(passes))
    except torch.OutOfMemoryError as error:
        raise ModelError(f"a single patch does not fit into the memory of {device}") from error


def scored(
    classifier: Classifier,
    patches: NDArray[np.uint8],
    target: int,
    folders: Sequence[PurePath],
    device: torch.device,
    batch: int | None = None,
) -> tuple[Scored, Fact]:
    """Score patches (N, P, P, 3) on a device where the network is; say also how fast that was."""
    if device.type != "cpu":  # whose first pass is like all others
        logits_of(classifier, patches[:1], device, batch)
    start = time.perf_counter()
    logits = logits_of(classifier, patches, device, batch)
    speed = len(patches) / (time.perf_counter() - start)
    scores = probabilities(logits, classifier.output).numpy()
    value = {"patches_per_second": speed, "device": str(device)}
    fact = Fact("speed", f"{speed:.3g} patches/s on {device}, predictions alone", value)
    return Scored.of(classifier, scores, target, folders), fact


def score_facts(found: Scored, name: str) -> list[Fact]:
    """Say how the target's scores are distributed, and how often its class is right."""
    values = np.quantile(found.of_target.astype(np.float64), [float(q) for q in _QUANTILES])
    quantiles = dict(zip(_QUANTILES, values.tolist(), strict=True))
    text = ", ".join(f"{words} {quantiles[q]:.3f}" for q, words in _QUANTILES.items())
    facts = [Fact("scores", f"{name}: {text}", {"target": name, "quantiles": quantiles})]
    return facts + _by_folder(found) + _accuracy(found)


def _by_folder(found: Scored) -> list[Fact]:
    """Say what patches of each folder score in the middle, if there are several folders."""
    folders = np.array([folder.as_posix() for folder in found.folders])
    names = sorted(set(folders.tolist()))
    if len(names) < 2:
        return []
    value = {
        name: {"pictures": int((folders == name).sum()), "median": float(np.median(some))}
        for name in names
        for some in [found.of_target[folders == name]]
    }
    shown = [
        f"{name} {one['median']:.3f} ({one['pictures']} pictures)"
        for name, one in list(value.items())[:_FOLDERS_SHOWN]
    ]
    more = ", …" if len(value) > len(shown) else ""
    return [Fact("folders", f"half of the scores lie below: {', '.join(shown)}{more}", value)]


def _accuracy(found: Scored) -> list[Fact]:
    """Compare answers with folders, where those are classes."""
    known = found.labels >= 0
    if not known.any():
        return []
    n, right = int(known.sum()), float((~found.wrong[known]).mean())
    pairs = Counter(zip(found.labels[known].tolist(), found.answers[known].tolist(), strict=True))
    confusion: dict[str, dict[str, int]] = {}
    for (label, answer), count in sorted(pairs.items()):
        confusion.setdefault(found.names[label], {})[found.names[answer]] = count
    rows = [
        f"{label}: {', '.join(f'{count} as {answer}' for answer, count in row.items())}"
        for label, row in confusion.items()
    ]
    facts = [
        Fact(
            "accuracy",
            f"{right:.3f} of {n} pictures in folders named after classes are taken for that class",
            {"right": right, "pictures": n},
        ),
        Fact("confusion", "; ".join(rows), confusion),
    ]
    others = {f.as_posix() for f, label in zip(found.folders, found.labels, strict=True) if label < 0}
    if others:
        facts.append(note(f"folders that are no class, and do not count: {', '.join(sorted(others))}"))
    if len(confusion) > 1 and right < 1 / len(confusion):
        facts.append(
            warning(
                f"only {right:.2f} of the pictures are taken for the class of their folder, fewer than by "
                "chance; the order of the classes or the normalisation may be wrong"
            )
        )
    return facts
