"""The sample slide, its ground truth and the demo classifier that ships with the package."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import numpy as np
import openslide
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors import safe_open

from tests.helpers.paths import SAMPLE_DATA

sys.path.insert(0, str(SAMPLE_DATA))  # the two scripts are no package

import make_sample
import train_demo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

SVS, GEOJSON = SAMPLE_DATA / "tumour_nests.svs", SAMPLE_DATA / "tumour_nests.geojson"
FRESH_SEEDS = (90_001, 90_002)


@pytest.fixture(scope="module")
def slide() -> Iterator[openslide.OpenSlide]:
    with openslide.OpenSlide(SVS) as opened:
        yield opened


@pytest.fixture(scope="module")
def rings() -> list[NDArray[np.int64]]:
    features = json.loads(GEOJSON.read_text(encoding="utf-8"))["features"]
    return [np.array(feature["geometry"]["coordinates"][0]) for feature in features]


@pytest.fixture(scope="module")
def scene() -> make_sample.Scene:
    return make_sample.draw_scene(3, 1024, 896)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return train_demo.load_model()


# ---------------------------------------------------------------------------------------------- slide


def test_slide_is_a_small_aperio_pyramid(slide: openslide.OpenSlide) -> None:
    assert slide.detect_format(SVS) == "aperio"
    assert slide.properties["openslide.mpp-x"] == slide.properties["openslide.mpp-y"] == "0.5"
    assert slide.properties["openslide.objective-power"] == "20"
    assert min(slide.dimensions) >= 4096
    assert slide.level_downsamples == (1, 4, 16)
    assert "thumbnail" in slide.associated_images
    assert SVS.stat().st_size <= 3_000_000


def test_levels_show_the_same_picture(slide: openslide.OpenSlide) -> None:
    shrunk = (
        slide.read_region((1600, 1200), 0, (1024, 1024)).convert("RGB").resize((64, 64), Image.Resampling.BOX)
    )
    fine = np.asarray(shrunk, float)
    coarse = np.asarray(slide.read_region((1600, 1200), 2, (64, 64)).convert("RGB"), float)
    in_place = abs(fine - coarse).mean()
    for step in (-1, 1):  # one pixel of the level off, either way: much worse
        for axis in (0, 1):
            assert abs(np.roll(fine, step, axis) - coarse).mean() > 3 * in_place


def test_geojson_is_what_qupath_reads(rings: list[NDArray[np.int64]], slide: openslide.OpenSlide) -> None:
    collection = json.loads(GEOJSON.read_text(encoding="utf-8"))
    assert collection["type"] == "FeatureCollection"
    assert len({feature["id"] for feature in collection["features"]}) == len(rings) >= 5
    for feature, ring in zip(collection["features"], rings, strict=True):
        assert (feature["type"], feature["geometry"]["type"]) == ("Feature", "Polygon")
        assert feature["properties"]["objectType"] == "annotation"
        assert feature["properties"]["classification"] == {"name": "Tumor", "color": [200, 0, 0]}
        assert (ring[0] == ring[-1]).all()
        assert (ring >= 0).all()
        assert (ring < slide.dimensions).all()


def test_nests_lie_where_the_geojson_says(rings: list[NDArray[np.int64]], slide: openslide.OpenSlide) -> None:
    image = np.asarray(slide.read_region((0, 0), 1, slide.level_dimensions[1]).convert("RGB"), float)
    inside = _rasterised([ring / 4 for ring in rings], slide.level_dimensions[1])
    tissue = np.ptp(image, axis=2) > 25
    dark = image[:, :, 0] < 130  # haematoxylin takes the red
    assert tissue[inside].mean() > 0.95
    assert dark[inside].mean() > 2.5 * dark[tissue & ~inside].mean()


def _rasterised(rings: list[NDArray[np.float64]], size: tuple[int, int]) -> NDArray[np.bool_]:
    canvas = Image.new("1", size)
    for ring in rings:
        ImageDraw.Draw(canvas).polygon([(x, y) for x, y in ring], fill=1)
    return np.asarray(canvas, bool)


def test_default_seed_gives_the_committed_nests(rings: list[NDArray[np.int64]]) -> None:
    polygons = make_sample.nest_polygons(make_sample.SEED, make_sample.SLIDE_W, make_sample.SLIDE_H)
    assert len(polygons) == len(rings)
    for polygon, ring in zip(polygons, rings, strict=True):
        np.testing.assert_array_equal(polygon, ring[:-1])


# -------------------------------------------------------------------------------------------- drawing


def test_same_seed_same_section(scene: make_sample.Scene) -> None:
    again = make_sample.draw_scene(3, 1024, 896)
    np.testing.assert_array_equal(again.image, scene.image)
    np.testing.assert_array_equal(again.nuclei, scene.nuclei)
    assert (make_sample.draw_scene(4, 1024, 896).image != scene.image).mean() > 0.5


def test_masks_tell_the_truth(scene: make_sample.Scene) -> None:
    assert scene.image.shape == (896, 1024, 3)
    assert scene.nests.any()
    assert not (scene.nests & ~scene.tissue).any()
    np.testing.assert_array_equal(
        scene.nests, _rasterised([polygon.astype(float) for polygon in scene.polygons], (1024, 896))
    )
    tumour = scene.nuclei == make_sample.TUMOUR_NUCLEUS
    assert tumour[scene.nests].mean() > 0.3
    assert (tumour & ~scene.nests).sum() < 0.05 * tumour.sum()
    assert (scene.nuclei == make_sample.NORMAL_NUCLEUS).any()
    red = scene.image[:, :, 0].astype(float)
    assert red[tumour].mean() + 40 < red[scene.nests & ~tumour].mean()


def test_small_section_that_touches_the_frame() -> None:
    scene = make_sample.draw_scene(9, 512, 448)  # a vessel's red cells reach past the frame
    assert scene.tissue.any()


def test_size_must_fit_the_coarse_map() -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        make_sample.draw_scene(1, 1001, 800)


def test_written_slide_comes_back(tmp_path: Path, scene: make_sample.Scene) -> None:
    make_sample.write_svs(tmp_path / "small.svs", scene.image, quality=90)
    with openslide.OpenSlide(tmp_path / "small.svs") as small:
        assert small.level_dimensions == ((1024, 896), (256, 224), (64, 56))
        back = np.asarray(small.read_region((0, 0), 0, (1024, 896)).convert("RGB"), float)
    assert abs(back - scene.image).mean() < 4


# ----------------------------------------------------------------------------------------- classifier


def test_weights_say_how_to_use_them() -> None:
    assert train_demo.WEIGHTS.stat().st_size <= 2_500_000
    with safe_open(train_demo.WEIGHTS, "pt") as file:
        metadata = file.metadata()
    assert (metadata["patch"], metadata["mpp"]) == ("224", "0.5")
    assert json.loads(metadata["class_names"]) == ["tumour"]
    assert len(json.loads(metadata["mean"])) == len(json.loads(metadata["std"])) == 3
    assert json.loads(metadata["model_args"]) == train_demo.MODEL_ARGS
    assert "no medical meaning" in metadata["note"]


def test_classifier_recognises_fresh_sections(model: torch.nn.Module) -> None:
    patches, nest_share = train_demo.sample_patches(FRESH_SEEDS, 40)
    tumour = nest_share.mean((1, 2)) >= train_demo.TUMOUR_FROM
    assert 10 < tumour.sum() < len(tumour) - 10
    assert train_demo.auroc(train_demo.predict(model, patches), tumour) >= 0.95


def test_glass_is_no_tumour(model: torch.nn.Module) -> None:
    shades = np.array([0, 128, 235, 255], np.uint8)[:, None, None, None]
    assert (train_demo.predict(model, np.broadcast_to(shades, (4, 224, 224, 3)).copy()) < 0).all()


def test_evidence_is_never_negative(model: torch.nn.Module) -> None:
    assert (model.get_parameter("fc.weight") >= 0).all()
    strided = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d) and max(m.stride) > 1]
    assert len(strided) > 1, "nothing to smooth"


@pytest.mark.parametrize("times_activation", [False, True])
def test_saliency_is_in_the_nests(
    model: torch.nn.Module, scene: make_sample.Scene, *, times_activation: bool
) -> None:
    assert train_demo.contrast(model, scene, "layer2", smooth=True, times_activation=times_activation) > 2


def test_measuring_leaves_no_hook(model: torch.nn.Module) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8)
    train_demo.patch_maps(model, noise, "layer2", smooth=True, times_activation=False)
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())


def test_training_and_evaluation_seeds_are_apart() -> None:
    sets = [
        {make_sample.SEED},
        set(train_demo.TRAIN_SEEDS),
        set(train_demo.EVALUATION_SEEDS),
        set(FRESH_SEEDS),
    ]
    assert len(set.union(*sets)) == sum(map(len, sets))


@pytest.mark.parametrize(("scores", "area"), [([0, 1, 2, 3], 1.0), ([3, 2, 1, 0], 0.0), ([1, 1, 1, 1], 0.5)])
def test_auroc_closed_forms(scores: list[float], area: float) -> None:
    assert train_demo.auroc(np.array(scores), np.array([False, False, True, True])) == area
