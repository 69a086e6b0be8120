"""MONAI bundles, rebuilt without MONAI: networks of MONAI, and those of torchvision and timm.

The Camelyon16 metastasis classifier ``MONAI/pathology_tumor_detection`` is one; what its configuration says
stands here, at a pinned version, so that its weights are all that has to be downloaded.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from wsi_saliency.errors import ModelError
from wsi_saliency.messages import one_line
from wsi_saliency.models.assembly import assemble
from wsi_saliency.models.bundle_config import (
    CONFIGS,
    WEIGHTS_FILE,
    arguments_of,
    bundle_description,
    network_of,
)
from wsi_saliency.models.description import Description
from wsi_saliency.models.hub import HubRepo, hub_repo
from wsi_saliency.models.json_files import read_document
from wsi_saliency.models.monai_nets import NETS, rebuilt
from wsi_saliency.models.resnets import RESNETS, unwrapped
from wsi_saliency.models.sources import PATHOLOGY_TUMOR_DETECTION, imported
from wsi_saliency.models.timm import build
from wsi_saliency.models.weights import read_weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from wsi_saliency.models.bundle_config import Network
    from wsi_saliency.models.classifier import Classifier
    from wsi_saliency.models.files import Files
    from wsi_saliency.models.weights import Weights

REVISION = "0.6.3"  # MONAI tags each bundle version on the Hub; 0.6.4 has the same weights
_OTHERWISE = (
    "give a copy of it with --weights FILE (elsewhere: hf download "
    f"{PATHOLOGY_TUMOR_DETECTION} {WEIGHTS_FILE} --revision {REVISION}), or use "
    "--model timm:NAME --weights FILE"
)
# Of Camelyon16's finest level; x / 127.5 − 1.
_PATHOLOGY = Description(
    architecture="resnet18",
    patch=224,
    mpp=0.25,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    class_names=("metastasis",),
    note="MONAI calls this model an example, not to be used for diagnostic purposes",
)
_CELLS = 7  # TorchVisionFCModel's pooling averages 7 × 7 cells, all of the last feature map at 7 · 32 pixels
_POOL = ["avg", {"kernel_size": _CELLS, "stride": 1}]


def load_monai(repo: str, weights: Path | None) -> Classifier:
    """Load a MONAI bundle of the Hub; ``weights`` is a local copy of its ``model.pt``.

    Raises
    ------
    ModelError
        If its files are neither cached nor reachable, its network is none that can be rebuilt, or the weights
        do not fit.
    """
    if repo != PATHOLOGY_TUMOR_DETECTION:
        return bundle_classifier(hub_repo(repo, "monai"), f"monai:{repo}", weights)
    read = read_weights(weights or HubRepo(repo, REVISION, otherwise=_OTHERWISE).file(WEIGHTS_FILE))
    return build(replace(read, state=unwrapped(read.state), description=_PATHOLOGY), f"monai:{repo}")


def bundle_classifier(files: Files, uri: str, weights: Path | None) -> Classifier:
    """Build what the configuration of a bundle describes.

    Raises
    ------
    ModelError
        As `load_monai`.
    """
    inference, metadata = (read_document(files.file(*names)) for names in CONFIGS)
    network, description = network_of(inference), bundle_description(inference, metadata)
    rebuild = _rebuilder(network)
    read = read_weights(weights or files.file(WEIGHTS_FILE))
    return rebuild(network, replace(read, description=description), uri)


def _rebuilder(network: Network) -> Callable[[Network, Weights, str], Classifier]:
    """Return what rebuilds a network."""
    if network.package == "torchvision.models":
        return _torchvision
    if (network.package, network.target) == ("timm", "create_model"):
        return _timm
    if not network.package and network.target == "TorchVisionFCModel":
        return _fc_model
    if not network.package and network.target.casefold() in NETS:
        return _own_net
    raise ModelError(
        f"{network.named} is {one_line(network.target)}, which cannot be rebuilt; those that can: "
        "TorchVisionFCModel, ResNet, DenseNet, EfficientNetBN, SENet154, SEResNet, SEResNeXt and ViT "
        "of MONAI, torchvision.models.NAME, timm.create_model"
    )


def _fc_model(network: Network, weights: Weights, uri: str) -> Classifier:
    """Rebuild ``TorchVisionFCModel``: a ResNet of torchvision, whose head is linear or a 1×1 convolution."""
    same = {"dim": 2, "in_channels": None, "fc_name": "fc", "node_name": ""}
    taken = arguments_of(network, "model_name", "num_classes", "use_conv", "pool", **same)
    name = taken.get("model_name", "resnet18")
    if name not in RESNETS:
        raise ModelError(
            f"{network.named} has model_name {one_line(str(name))!r}; understood are {', '.join(RESNETS)}"
        )
    pool, side = taken.get("pool", _POOL), weights.description.patch
    if pool is not None and (pool != _POOL or side != 32 * _CELLS):
        raise ModelError(
            f"{network.named} has pool {one_line(str(pool))} at a patch of {side} px; only the average over "
            f"{_CELLS} × {_CELLS} cells, at {32 * _CELLS} px, or over all cells (null) can be rebuilt"
        )
    return _with_timm(name, replace(weights, state=unwrapped(weights.state)), uri)


def _own_net(network: Network, weights: Weights, uri: str) -> Classifier:
    return assemble(*rebuilt(network, weights), uri)


def _torchvision(network: Network, weights: Weights, uri: str) -> Classifier:
    arguments_of(network, "num_classes")
    blueprint = imported("wsi_saliency.models.torchvision:blueprint", uri, "torchvision")
    try:
        return assemble(blueprint(network.target), weights, uri)
    except ModelError as error:
        raise ModelError(f"{network.named}: {error}") from error


def _timm(network: Network, weights: Weights, uri: str) -> Classifier:
    arguments = {k: v for k, v in network.arguments.items() if k not in ("model_name", "pretrained")}
    description = replace(weights.description, model_args=arguments)
    return _with_timm(
        str(network.arguments.get("model_name")), replace(weights, description=description), uri
    )


def _with_timm(architecture: str, weights: Weights, uri: str) -> Classifier:
    description = replace(weights.description, architecture=architecture)
    return build(replace(weights, description=description), uri)
