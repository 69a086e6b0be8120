from __future__ import annotations

import json
import logging
from importlib import resources

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from filelock import FileLock, Timeout
from safetensors.torch import save_file
from torch.testing import assert_close

from tests.helpers.nets import spot_classifier
from tests.helpers.paths import SAMPLE
from tests.helpers.slides import section, write_svs
from wsi_saliency.cli import cli
from wsi_saliency.cli.terminal import INTERRUPTED
from wsi_saliency.models.loading import load_classifier
from wsi_saliency.saliency.surrogate import DEMO, Surrogate, surrogate_for
from wsi_saliency.saliency.surrogate_training import score_surrogate
from wsi_saliency.settings import TrainingSettings
from wsi_saliency.workflows import train as training
from wsi_saliency.workflows.sampling import sample_patches
from wsi_saliency.workflows.train import PatchBatches, checkpoint_of

PATCH = 64
LAYERS = [f"layer{i}.0.{part}" for i in (2, 3, 4) for part in ("conv1", "downsample.0")]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def own_logging():
    """Leave no handler behind that writes to a stream of a test that is over."""
    loggers = [logging.getLogger(name) for name in ("wsi_saliency", "tifffile")]
    before = [(logger, logger.handlers[:], logger.level) for logger in loggers]
    yield
    for logger, handlers, level in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return write_svs(tmp_path_factory.mktemp("slides") / "s.svs", [section(512, 640, (64, 64, 384, 512))])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A very narrow ResNet that says nothing is a tumour."""
    torch.manual_seed(0)
    args = {"layers": [1, 1, 1, 1], "channels": [4, 6, 8, 8]}
    net = timm.create_model("resnet18", num_classes=1, **args)
    torch.nn.init.constant_(net.fc.bias, -50)
    described = {
        "architecture": "resnet18",
        "model_args": json.dumps(args),
        "patch": str(PATCH),
        "mpp": "0.5",
        "mean": "[0.5, 0.5, 0.5]",
        "std": "[0.5, 0.5, 0.5]",
        "class_names": '["tumour"]',
    }
    path = tmp_path_factory.mktemp("models") / "narrow.safetensors"
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, path, described)
    return path


def train(slide, model, out, *options):
    few = ("--patches", "20", "--epochs", "2", "--batch", "6", "--workers", "1", "--device", "cpu")
    arguments = ["train-surrogate", str(slide), "--model", str(model), "-o", str(out), *few, *options]
    return CliRunner().invoke(cli, arguments)


def one_line(result):
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert result.output.count("\n") == 1, result.output
    return result.output


def test_a_surrogate_is_trained_from_slide_to_file(slide, model, tmp_path):
    out = tmp_path / "new" / "surrogate.safetensors"
    result = train(slide, model, out)
    assert result.exit_code == 0, result.output
    assert "held out      2 patches" in result.output
    assert "same class" in result.output
    assert all(f"{name}  " in result.output for name in LAYERS)
    surrogate = Surrogate.load(out)
    network = load_classifier(str(model)).module
    surrogate.check(network)
    assert list(surrogate.layers) == list(surrogate.scores.layer_errors) == LAYERS
    facts = {
        "slides": ["s.svs"],
        "patches": 20,
        "epochs": 2,
        "batch": 6,
        "lr": 1e-3,
        "seed": 0,
        "balance": None,
    }
    assert facts.items() <= surrogate.settings.items()
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_a_surrogate_that_is_there_is_replaced_only_if_that_is_wanted(slide, model, tmp_path):
    out = tmp_path / "surrogate.safetensors"
    assert train(slide, model, out, "--epochs", "1").exit_code == 0
    before = out.read_bytes()
    said = one_line(train(slide, model, out))
    assert said == f"Error: {out}: is there already; --overwrite replaces it, -o names another file\n"
    assert out.read_bytes() == before
    assert train(slide, model, out, "--overwrite").exit_code == 0
    assert Surrogate.load(out).settings["epochs"] == 2
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_without_patches_held_out_all_are_trained_on_and_nothing_is_scored(slide, model, tmp_path):
    result = train(slide, model, tmp_path / "s.safetensors", "--held-out", "0")
    assert result.exit_code == 0, result.output
    assert "held out      nothing, so the surrogate is not scored" in result.output
    assert Surrogate.load(tmp_path / "s.safetensors").settings["held_out"] == 0


def test_an_interrupted_training_continues(slide, model, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole.safetensors", tmp_path / "surrogate.safetensors"
    assert train(slide, model, whole).exit_code == 0
    save = Surrogate.save

    def interrupted(self, path):
        raise KeyboardInterrupt

    monkeypatch.setattr(Surrogate, "save", interrupted)
    result = train(slide, model, out)
    assert result.exit_code == INTERRUPTED
    assert "the same command continues from" in result.output
    assert checkpoint_of(out).exists()
    assert not out.exists()
    monkeypatch.setattr(Surrogate, "save", save)
    assert "another seed;" in one_line(train(slide, model, out, "--seed", "3"))
    assert train(slide, model, out).exit_code == 0
    assert not checkpoint_of(out).exists()
    continued, expected = Surrogate.load(out), Surrogate.load(whole)
    assert (continued.settings, continued.scores) == (expected.settings, expected.scores)
    for name, layer in expected.layers.items():
        assert_close(continued.layers[name].state_dict(), layer.state_dict(), rtol=0, atol=0)


def test_quiet_says_nothing(slide, model, tmp_path):
    assert train(slide, model, tmp_path / "s.safetensors", "--quiet").output == ""


def test_too_few_positives(slide, model, tmp_path):
    out = tmp_path / "s.safetensors"
    line = one_line(train(slide, model, out, "--balance", "tumour"))
    assert "only 0 of 9 wanted patches are predicted tumour among 144" in line
    assert "has no class 'stroma'; choose --balance from" in one_line(
        train(slide, model, out, "--balance", "stroma")
    )
    assert not list(tmp_path.iterdir())


def test_no_tissue(model, tmp_path):
    empty = write_svs(tmp_path / "empty.svs", [section(256, 256)])
    result = train(empty, model, tmp_path / "s.safetensors")
    assert result.exit_code == 1
    assert result.output.splitlines()[-1] == f"Error: {empty}: no tissue found; name slides with tissue"


def test_a_missing_slide(model, tmp_path):
    assert "missing.svs" in one_line(train(tmp_path / "missing.svs", model, tmp_path / "s.safetensors"))


def test_an_output_that_cannot_be_written_is_found_before_anything_is_read(model, tmp_path):
    (tmp_path / "file").write_text("")
    line = one_line(train(tmp_path / "missing.svs", model, tmp_path / "file" / "s.safetensors"))
    assert "cannot be written" in line
    assert "-o" in line
    for folder in (tmp_path, ".", ""):
        assert "it is a folder" in one_line(train(tmp_path / "missing.svs", model, folder))


def test_a_slide_is_opened_before_the_classifier_is_loaded_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "load_chosen", lambda *_, **how: pytest.fail("loaded"))
    (tmp_path / "bad.svs").touch()
    line = one_line(train(tmp_path / "bad.svs", "demo", tmp_path / "new" / "folder" / "s.safetensors"))
    assert "bad.svs: the file is empty" in line
    assert [path.name for path in tmp_path.iterdir()] == ["bad.svs"]


def test_a_training_waits_for_another_one_of_the_same_file(slide, model, tmp_path, monkeypatch):
    out = tmp_path / "s.safetensors"
    load = training.load_chosen

    def watched(*args, **how):
        with pytest.raises(Timeout):
            FileLock(tmp_path / ".s.safetensors.lock").acquire(blocking=False)
        return load(*args, **how)

    monkeypatch.setattr(training, "load_chosen", watched)
    assert train(slide, model, out).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_more_patches_than_memory(slide, model, tmp_path):
    line = one_line(train(slide, model, tmp_path / "s.safetensors", "--patches", "1000000"))
    assert "choose --patches 349525 or fewer" in line


def test_batches_are_normalised_and_shuffled_by_epoch():
    patches = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), np.uint8)
    classifier = spot_classifier(8)
    batches = PatchBatches(patches, classifier, 4, seed=1)
    in_order = torch.cat(list(batches))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert len(batches) == 3
    expected = (torch.from_numpy(patches).permute(0, 3, 1, 2) / 255 - 1) / -1
    torch.testing.assert_close(in_order, expected)
    assert in_order.is_contiguous(memory_format=torch.channels_last)
    first, again, second = (torch.cat(list(batches(epoch))) for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    for epoch in (first, second):
        assert torch.equal(epoch.flatten(1).sum(1).sort()[0], in_order.flatten(1).sum(1).sort()[0])


@pytest.mark.parametrize(("output", "expected"), [("softmax", [0, 0, 1]), ("sigmoid", [0, 1, 1])])
def test_what_counts_as_predicted(output, expected):
    classifier = spot_classifier(8)
    logits = iter([torch.tensor([[0.0, -1, -1], [2, 1, 0], [0, 0.2, 0.1]])])
    classifier.module.forward = lambda images: next(logits)
    how = TrainingSettings(balance="tumour", batch=3)
    object.__setattr__(classifier, "output", output)
    balance = training._balance(classifier, how)
    assert balance.name == "tumour"
    assert balance.positive(np.zeros((3, 8, 8, 3), np.uint8)).tolist() == [bool(e) for e in expected]


# ----------------------------------------------------------------------- the surrogate in the package


@pytest.mark.skipif(not SAMPLE.exists(), reason=f"no {SAMPLE}")
def test_the_bundled_surrogate_keeps_to_the_demo_classifier():
    """On the sample slide, which it was not trained on."""
    classifier = load_classifier("demo")
    surrogate = surrogate_for(classifier.module)
    assert surrogate.settings["drawn"]
    fresh = sample_patches([SAMPLE], classifier, TrainingSettings(patches=40, held_out=0)).trained_on
    scores = score_surrogate(
        surrogate, classifier.module, [classifier.normalised(fresh, torch.device("cpu"))], classifier.output
    )
    for known in (surrogate.scores, scores):
        assert known.class_agreement >= 0.95
        assert known.prediction_difference <= 0.05
        assert len(known.layer_errors) == 6


def test_the_bundled_surrogate_is_small():
    with resources.as_file(resources.files("wsi_saliency.models") / DEMO) as file:
        assert file.stat().st_size <= 2.5e6
