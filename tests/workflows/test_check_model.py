from __future__ import annotations

import json

import pytest
from PIL import Image

from tests.helpers.commands import PICTURE
from tests.helpers.facts import check_same
from tests.helpers.paths import ROOT
from tests.helpers.pictures import write_pictures
from tests.helpers.slides import write_svs
from wsi_saliency.errors import ModelError, SettingsError
from wsi_saliency.settings import ModelCheckSettings
from wsi_saliency.urls import located
from wsi_saliency.workflows.check_model import check_model
from wsi_saliency.workflows.facts import json_of, lines_of


def test_a_class_that_is_not_there():
    with pytest.raises(ModelError, match="has no class 'liver'"):
        check_model(ModelCheckSettings(model="demo", target="liver"))


def test_the_facts_of_the_demo_classifier():
    told = json.loads(json_of(check_model(ModelCheckSettings(model="demo"))))
    assert told["model"] == "demo"
    assert told["target"] == {"index": 0, "name": "tumour", "why": "only"}
    assert told["mpp"] == {"stated": 0.5, "used": 0.5}
    assert [layer["reduction"] for layer in told["layers"]] == [1, 2, 4, 8, 16, 32]
    assert told["layers"][-1]["effects"]["centred-hook"] == "nothing"
    assert told["layers"][-1]["effects"]["forward-hook"] == "changes"
    assert told["warnings"] == []


def checked(**how):
    facts = check_model(ModelCheckSettings(model="demo", patch=64, **how))
    return facts, json.loads(json_of(facts))


def test_lines_and_json_of_pictures_say_the_same(tmp_path):
    write_pictures(tmp_path, {"tumour/a.png": 90, "normal/b.png": 200, "normal/c.png": 10}, side=80)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    facts, told = checked(pictures=tmp_path)
    check_same(lines_of(facts), told)
    assert told["patches"] == {
        "source": str(tmp_path),
        "taken": 3,
        "found": 4,
        "sizes": [{"width": 80, "height": 80, "pictures": 3}],
        "mpp": None,
    }
    assert told["accuracy"]["pictures"] == 3
    assert set(told["folders"]) == {"tumour", "normal"}
    assert told["batch"]["patches"] == 3
    assert told["warnings"][:2] == [
        "3 of 3 pictures are larger than a patch of 64 px; their middle is taken",
        "1 pictures are left out: broken.png (not a picture, or damaged)",
    ]
    assert "the pictures do not say their µm per pixel; the classifier wants 0.5" in told["notes"]


@pytest.mark.parametrize(("dpi", "warned"), [(50_800, False), (101_600, True)])
def test_another_mpp_than_the_classifier_s_is_a_warning(tmp_path, dpi, warned):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png", dpi=(dpi, dpi))
    _, told = checked(pictures=tmp_path)
    text = "1 of 1 pictures say 0.25 µm per pixel, and the classifier wants 0.5: "
    assert any(warning.startswith(text) for warning in told["warnings"]) == warned
    assert told["patches"]["mpp"][0] == pytest.approx(25_400 / dpi, rel=1e-3)


def test_patches_of_a_slide(tmp_path):
    content, sheet = write_svs(tmp_path / "slide.svs", [PICTURE]).read_bytes(), tmp_path / "sheet.png"
    slide = located("memory://checked/slide.svs")
    slide.parent.mkdir(parents=True, exist_ok=True)
    slide.write_bytes(content)
    asked = {"model": "demo", "patch": 64, "sample": 6, "slide_cache": tmp_path / "cache"}
    facts = check_model(ModelCheckSettings(slide=str(slide), **asked), sheet)
    told = json.loads(json_of(facts))
    assert told["patches"]["source"] == "memory://checked/slide.svs"
    check_same(lines_of(facts), told)
    assert told["patches"]["taken"] == 6
    assert "accuracy" not in told
    assert told["scores"]["target"] == "tumour"
    assert told["precision"]["patches"] == 4
    assert sheet.read_bytes().startswith(b"\x89PNG")


def test_every_key_is_documented(tmp_path):
    write_pictures(tmp_path, {"tumour/a.png": 90, "normal/b.png": 200}, side=64)
    facts = check_model(ModelCheckSettings(model="demo", patch=64, pictures=tmp_path), tmp_path / "sheet.png")
    page = (ROOT / "docs/classifiers.md").read_text()
    assert [fact.key for fact in facts if f"| `{fact.key}` |" not in page] == []


def test_a_sheet_needs_patches(tmp_path):
    with pytest.raises(SettingsError, match="--patches FOLDER or --slide SLIDE"):
        check_model(ModelCheckSettings(model="demo"), tmp_path / "sheet.png")
