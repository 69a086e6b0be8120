"""Which maps there are for which architecture: a table for docs/classifiers.md.

Builds each architecture of timm with random weights, describes it as check-model does, and explains patches
of coloured squares at the default layer of each attribution, by every method. A map counts if it is finite
and not the same everywhere.

    python benchmarks/architectures.py                      # all, a quarter of an hour on one core
    python benchmarks/architectures.py resnet18 convnext_atto
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import click
import timm
import torch
from torch import nn

sys.path[:0] = [str(Path(__file__).parents[1])]

from tests.helpers.nets import untrained  # noqa: E402
from wsi_saliency import ClassifierSpec, explain_patches, own_classifier  # noqa: E402
from wsi_saliency.errors import WsiSaliencyError  # noqa: E402
from wsi_saliency.models.classifier import Classifier  # noqa: E402
from wsi_saliency.saliency.layers import find_layer  # noqa: E402
from wsi_saliency.saliency.smoothing import SMOOTHING  # noqa: E402
from wsi_saliency.settings import ATTRIBUTIONS, METHODS, Attribution, Method, default_layer  # noqa: E402
from wsi_saliency.workflows.describe_model import describe_model  # noqa: E402
from wsi_saliency.workflows.trust import drawn  # noqa: E402

ARCHITECTURES = {
    "resnet18": 64,
    "resnetv2_50": 64,
    "resnext26ts": 64,
    "legacy_seresnet18": 64,
    "vgg11": 64,
    "repvgg_a0": 64,
    "densenet121": 64,
    "dla46_c": 64,
    "hrnet_w18_small": 64,
    "inception_v3": 96,
    "inception_next_atto": 64,
    "legacy_xception": 96,
    "efficientnet_b0": 64,
    "efficientnet_lite0": 64,
    "tf_efficientnetv2_b0": 64,
    "mobilenetv2_050": 64,
    "mobilenetv3_small_050": 64,
    "mobilenetv4_conv_small_050": 64,
    "mnasnet_small": 64,
    "ghostnet_050": 64,
    "regnetx_002": 64,
    "regnety_002": 64,
    "convnext_atto": 64,
    "convnextv2_atto": 64,
    "poolformer_s12": 64,
    "mobilevit_xxs": 64,
    "vit_tiny_patch16_224": 64,
    "swin_tiny_patch4_window7_224": 64,
    "swinv2_tiny_window8_256": 64,
    "maxvit_rmlp_pico_rw_256": 64,
}
"""Names in timm, the smallest of each kind, and a side in pixels that makes them quick."""

CLASSES = ("normal", "tumour")
_SIZED = ("vit_", "swin", "maxvit")  # which have to be told the side of a patch
_NOTHING = "nothing strided"
_REASONS = {
    "rounding noise": "rounding noise",
    "cancel": "channels cancel",
    "strided convolution": _NOTHING,
    "no rule": "no rule",  # of none of these; of a newer timm, perhaps
    "1/16": "no layer at 1/16",
    "grid": "no grid of cells",
}
_STEPS = 4  # of integrated gradients; whether there is a map does not depend on it


def classifier_of(name: str) -> Classifier:
    """Build an architecture with random weights and two classes."""
    torch.manual_seed(0)
    side = ARCHITECTURES[name]
    how = {"img_size": side} if name.startswith(_SIZED) else {}
    net = timm.create_model(name, num_classes=2, **how)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after training: not the same everywhere
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    for parameter in net.get_classifier().parameters():  # some begin with zeros, and say nothing
        nn.init.normal_(parameter, std=0.1)
    seen = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    return own_classifier(net, ClassifierSpec(patch=side, mpp=0.5, class_names=CLASSES, **seen), name)


def outcome(classifier: Classifier, attribution: Attribution, method: Method) -> str:
    """Explain a patch; return ``ok``, or in a few words why there is no map."""
    images = classifier.normalised(drawn(classifier.patch, 1), torch.device("cpu"))
    try:
        surrogate = untrained(classifier.module) if SMOOTHING[method].imitates else None
        maps = explain_patches(
            classifier.module,
            images,
            default_layer(attribution),
            1,
            attribution,
            method,
            surrogate=surrogate,
            steps=_STEPS,
        )
    except WsiSaliencyError as error:
        return next((short for found, short in _REASONS.items() if found in str(error)), str(error))
    if not maps.isfinite().all():
        return "not finite"
    return "ok" if all(one.max() > one.min() for one in maps) else "the same everywhere"


def outcomes(classifier: Classifier, methods: Sequence[Method]) -> dict[tuple[Attribution, Method], str]:
    """Try every method × attribution; methods that have nothing to replace are left out."""
    found = {(a, m): outcome(classifier, a, m) for a in ATTRIBUTIONS for m in methods}
    return {key: text for key, text in found.items() if text != _NOTHING}


def cell(found: dict[Method, str]) -> str:
    """Say for which methods there are maps: ``ok`` or the reason for all, or those that have none and why."""
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    why: dict[str, list[str]] = defaultdict(list)
    for method, text in found.items():
        why[text].append(method)
    return "; ".join(f"{text} ({', '.join(methods)})" for text, methods in why.items())


def smoothing(classifier: Classifier) -> str:
    """Name the methods that smooth the default layer, as check-model finds them."""
    try:
        layer = find_layer(
            classifier.module, default_layer("gradient"), torch.zeros(1, 3, *[classifier.patch] * 2)
        )
    except WsiSaliencyError:
        return "–"
    facts = describe_model(classifier, classifier.uri)
    (effects,) = [f.value["effects"] for f in facts if f.key == "layers" and f.value["name"] == layer]
    smooth = [method for method, effect in effects.items() if effect == "smooths"]
    return f"`{layer}`: {'all' if len(smooth) == len(effects) else ', '.join(smooth) or 'none'}"


def row(name: str, methods: Sequence[Method] = METHODS) -> str:
    """Return an architecture's line of the table."""
    classifier = classifier_of(name)
    found = outcomes(classifier, methods)
    cells = [cell({m: text for (a, m), text in found.items() if a == wanted}) for wanted in ATTRIBUTIONS]
    return f"| `{name}` | {smoothing(classifier)} | {' | '.join(cells)} |"


@click.command(help=__doc__)
@click.argument("names", nargs=-1, type=click.Choice(list(ARCHITECTURES)))
@click.option("--method", "methods", multiple=True, type=click.Choice(METHODS), default=METHODS)
def main(names: tuple[str, ...], methods: tuple[Method, ...]) -> None:
    """Print the table."""
    print(f"| architecture | layer at 1/16: smoothed by | {' | '.join(f'`{a}`' for a in ATTRIBUTIONS)} |")
    print(f"|---|---|{'---|' * len(ATTRIBUTIONS)}")
    for name in names or ARCHITECTURES:
        print(row(name, methods), flush=True)


if __name__ == "__main__":
    main()
