"""What timm's ``config.json`` says of a checkpoint. Free of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wsi_saliency.models.description import Description
from wsi_saliency.models.json_files import (
    mapping,
    names,
    square_rgb,
    text,
    three_numbers,
    three_positive,
    whole,
)

if TYPE_CHECKING:
    from wsi_saliency.models.json_files import Document


def timm_description(config: Document) -> Description:
    """Read patch, normalisation, classes and arguments of an architecture.

    The preprocessing stands below ``pretrained_cfg`` or, in older files, at the top.

    Raises
    ------
    ModelError
        If a value is not what it has to be, or there is no classifier.
    """
    said = config.section("pretrained_cfg") if "pretrained_cfg" in config.values else config
    return Description(
        architecture=config.need("architecture", text),
        model_args=_arguments(config, said),
        patch=said.get("input_size", square_rgb),
        mean=said.get("mean", three_numbers),
        std=said.get("std", three_positive),
        class_names=config.get("label_names", names) or said.get("label_names", names),
        classes=config.get("num_classes", _classes) or said.get("num_classes", _classes),
    )


def _arguments(config: Document, said: Document) -> dict[str, Any]:
    """Arguments that make the architecture the one that was saved, as timm itself would add them."""
    given = dict(config.get("model_args", mapping) or {})
    pool = said.values.get("global_pool")
    if isinstance(pool, str):
        given.setdefault("global_pool", pool)
    if said.values.get("fixed_input_size") is True and (side := said.get("input_size", square_rgb)):
        given.setdefault("img_size", side)
    return given


def _classes(value: Any) -> int:
    if value == 0:
        raise ValueError("features without a classifier, which has no logits to explain")
    return whole(value)
