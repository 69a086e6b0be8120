from __future__ import annotations

import json

import pytest

from wsi_saliency.errors import ModelError
from wsi_saliency.settings import ModelCheckSettings
from wsi_saliency.workflows.check_model import check_model
from wsi_saliency.workflows.facts import json_of


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
