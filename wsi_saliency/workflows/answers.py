"""What a classifier answers, as facts: its output, its target, and what patches of one colour score."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from wsi_saliency.errors import ModelError
from wsi_saliency.models.classifier import TUMOUR_NAMES, probabilities, standard_logits
from wsi_saliency.workflows.facts import Fact, warning

if TYPE_CHECKING:
    from wsi_saliency.models.classifier import Classifier

_BLANKS = {"glass": 255, "black": 0, "grey": 128}
_BLANK_WORDS = {"glass": "white", "black": "black", "grey": "grey"}
_GLASS_HINT = "normalisation or the order of the classes may be wrong, or it was trained without glass"


def output_fact(classifier: Classifier) -> Fact:
    """Say how many logits there are, and whether the network itself made probabilities of them."""
    n, off = len(classifier.class_names), classifier.taken_off
    squashed = f"the {off} at the network's end is taken off" if off else "not squashed by the network"
    text = f"{'one logit' if n == 1 else f'{n} logits'}, {squashed}; {classifier.output} gives probabilities"
    return Fact("output", text, {"logits": n, "taken_off": off, "probabilities": classifier.output})


def target_fact(classifier: Classifier, target: str | None) -> Fact:
    """Say which logit is explained, and why that one.

    Raises
    ------
    ModelError
        If there is no class ``target``.
    """
    try:
        index = classifier.target_index(target)
    except ModelError:
        if target is not None:
            raise
        return _no_target(classifier)
    name = classifier.class_names[index] if classifier.named else None
    why, words = "tumour", "the one class that is called tumour"
    if target is not None:
        why, words = "asked", "as --target says"
    elif len(classifier.class_names) == 1:
        why, words = "only", "the only logit"
    told = f"{index}: {name}" if name is not None else f"{index}"
    return Fact("target", f"{told}, {words}", {"index": index, "name": name, "why": why})


def _no_target(classifier: Classifier) -> Fact:
    """Say why there is no default target."""
    tumours = [name for name in classifier.class_names if name.strip().casefold() in TUMOUR_NAMES]
    why, words = "none", "no class is called tumour"
    if not classifier.named:
        why, words = "unnamed", "the classes are not named"
    elif tumours:
        why, words = "several", f"several classes are called tumour ({', '.join(tumours)})"
    text = f"a run needs --target, a class's {'name or index' if classifier.named else 'index'}: {words}"
    return Fact("target", text, {"index": None, "name": None, "why": why})


def blank_facts(classifier: Classifier, target: int | None) -> list[Fact]:
    """Say what patches of one colour score: a class that is sure of glass is not one to look for tumour in.

    Glass that is the target is a warning: normalisation or the order of the classes is wrong, or the
    classifier has never seen glass.
    """
    values = np.array([*_BLANKS.values()], np.uint8)[:, None, None, None]
    patches = np.broadcast_to(values, (len(values), classifier.patch, classifier.patch, 3)).copy()
    with torch.no_grad():
        logits = standard_logits(classifier.module(classifier.normalised(patches, torch.device("cpu"))))
    scores = probabilities(logits, classifier.output).tolist()
    facts = [
        Fact(key, f"a {colour} patch scores {_scores(classifier, some, target)}", some)
        for (key, colour), some in zip(_BLANK_WORDS.items(), scores, strict=True)
    ]
    if target is not None and scores[0][target] > 0.5:
        name = classifier.class_names[target] if classifier.named else f"class {target}"
        facts.append(warning(f"calls glass {name}: {scores[0][target]:.2f}; {_GLASS_HINT}"))
    return facts


def _scores(classifier: Classifier, scores: list[float], target: int | None, shown: int = 10) -> str:
    """List the score of each class; of many, the highest ones and the target's."""
    listed = list(range(len(scores)))
    if len(scores) > shown:
        highest = sorted(listed, key=lambda i: -scores[i])[: shown // 2]
        listed = [*highest, *([target] if target is not None and target not in highest else [])]
    names = (
        classifier.class_names if classifier.named else [f"class {name}" for name in classifier.class_names]
    )
    told = ", ".join(f"{names[i]} {scores[i]:.3f}" for i in listed)
    if len(listed) == len(scores):
        return told
    return (
        f"{told}: of {len(scores)} classes the highest{' and the target' if len(listed) > shown // 2 else ''}"
    )
