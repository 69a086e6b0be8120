"""MONAI bundles: their configuration, and networks as MONAI defines them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchvision import models  # type: ignore[import-untyped]

from tests.helpers.hub_cache import json_bytes, torch_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

INFERENCE: dict[str, Any] = {
    "imports": ["$import glob"],
    "bundle_root": ".",
    "device": "$torch.device('cpu')",
    "classes": 1,
    "network_def": {
        "_target_": "TorchVisionFCModel",
        "model_name": "resnet18",
        "num_classes": "@classes",
        "use_conv": True,
        "pretrained": True,
    },
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "CastToTyped", "keys": "image", "dtype": "float32"},
            {
                "_target_": "ScaleIntensityRanged",
                "keys": "image",
                "a_min": 0.0,
                "a_max": 255.0,
                "b_min": -1.0,
                "b_max": 1.0,
            },
            {"_target_": "ToTensord", "keys": "image"},
        ],
    },
}
METADATA: dict[str, Any] = {
    "version": "0.1.0",
    "name": "A bundle",
    "intended_use": "an example",
    "network_data_format": {
        "inputs": {"image": {"type": "image", "num_channels": 3, "spatial_shape": [224, 224]}},
        "outputs": {"pred": {"num_channels": 1, "channel_def": {"0": "metastasis"}}},
    },
}


class FCModel(nn.Module):
    """MONAI's TorchVisionFCModel with its own pooling, after its definition."""

    def __init__(self, name: str = "resnet18", classes: int = 1) -> None:
        super().__init__()
        network = models.get_model(name, weights=None)
        self.features = nn.Sequential(*list(network.children())[:-2])
        self.pool = nn.AvgPool2d(kernel_size=7, stride=1)
        self.fc = nn.Conv2d(network.fc.in_features, classes, kernel_size=1)

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.pool(self.features(x)))


def with_statistics(network: nn.Module) -> nn.Module:
    """Give BatchNorm statistics of its own, so that a wrong name shows."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1)
    return network.eval()


def bundle_files(
    state: Mapping[str, Tensor], inference: Any = INFERENCE, metadata: Any = METADATA
) -> dict[str, bytes]:
    """Files of a bundle by their paths in it."""
    return {
        "configs/inference.json": json_bytes(inference),
        "configs/metadata.json": json_bytes(metadata),
        "models/model.pt": torch_bytes(dict(state)),
    }


def bundle_folder(path: Path, files: Mapping[str, bytes]) -> str:
    """Write the files of a bundle into a folder."""
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return str(path)


def same_logits(module: nn.Module, original: nn.Module, side: int = 224) -> None:
    """Compare them on patches from −1 to 1."""
    patches = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(module(patches), original(patches).flatten(1), rtol=1e-5, atol=1e-5)
