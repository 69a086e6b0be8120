from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.classifiers import network
from wsi_saliency import ClassifierSpec, own_classifier
from wsi_saliency.errors import ModelError
from wsi_saliency.models.loading import load_chosen, load_classifier
from wsi_saliency.settings import ModelSettings

if TYPE_CHECKING:
    from pathlib import Path

SPEC = ClassifierSpec(
    patch=16, mpp=0.5, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), class_names=("stroma", "tumour")
)

CODE = """
import torch
from torch import nn
from wsi_saliency import ClassifierSpec

torch.manual_seed(0)

def make():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    spec = ClassifierSpec(
        patch=16, mpp=0.5, mean=(0.5,) * 3, std=(0.5,) * 3,
        class_names=("stroma", "tumour"), notes=("of mine",),
    )
    return net, spec

def squashed():
    net, spec = make()
    return nn.Sequential(net, nn.Softmax(dim=1)), spec

def nothing():
    return None

def fails():
    raise RuntimeError("no\\nluck")

number = 3
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder."""
    name = "a_network_of_a_user"
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def refused(uri: str, weights: Path | None = None, *, allow_code: bool = True) -> str:
    with pytest.raises(ModelError) as caught:
        load_classifier(uri, weights, allow_code=allow_code)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_network_with_its_spec_is_a_classifier() -> None:
    net = network(2).double().train()
    made = own_classifier(net, SPEC)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(made.module(images), network(2)(images))
    assert (made.patch, made.mpp, made.mean, made.std) == (16, 0.5, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (made.class_names, made.output, made.named) == (("stroma", "tumour"), "softmax", True)
    assert not made.module.training
    assert not any(parameter.requires_grad for parameter in made.module.parameters())


def test_the_network_stays_as_it_is() -> None:
    net = network(2).double().train()
    own_classifier(net, SPEC)
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float64}


def test_the_hash_is_that_of_names_and_values() -> None:
    first, other = network(2), network(2)
    assert own_classifier(first, SPEC).sha256 == own_classifier(other, SPEC).sha256
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-6
    assert own_classifier(first, SPEC).sha256 != own_classifier(other, SPEC).sha256
    renamed = nn.Sequential()
    for name, child in first.named_children():
        renamed.add_module(f"{name}x", child)
    assert own_classifier(first, SPEC).sha256 != own_classifier(renamed, SPEC).sha256


def test_a_network_that_cannot_be_copied_is_refused() -> None:
    net = network(2)
    net.made = next(net.parameters()) * 2  # type: ignore[assignment]
    with pytest.raises(ModelError, match="cannot be copied"):
        own_classifier(net, SPEC)


def test_a_network_without_logits_is_refused() -> None:
    with pytest.raises(ModelError, match=r"mine gives \(2, 3\) for 2 patches and 2 classes"):
        own_classifier(network(3), SPEC, "mine")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_scripted_module_is_refused() -> None:
    with pytest.raises(ModelError, match="scripted module, which has no hooks"):
        own_classifier(torch.jit.script(network(2)), SPEC)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"patch": 0}, "patch 0"),
        ({"patch": 16.0}, "patch 16.0"),
        ({"mpp": 0}, "mpp 0"),
        ({"mpp": float("nan")}, "mpp nan"),
        ({"mean": (0.5, 0.5)}, "mean"),
        ({"std": (0.5, 0.5, 0)}, "std"),
        ({"class_names": "tumour"}, "class_names 'tumour'"),
        ({"class_names": ()}, "class_names"),
        ({"output": "relu"}, "output 'relu'"),
    ],
)
def test_a_spec_that_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match="ClassifierSpec: ") as caught:
        ClassifierSpec(**{**vars(SPEC), **changes})
    assert said in str(caught.value)


def test_code_is_not_run_unless_it_may(code: str, tmp_path: Path) -> None:
    (tmp_path / f"{code}.py").write_text("raise SystemExit('it ran')")
    message = refused(f"python:{code}:make", allow_code=False)
    assert f"would run the code of {code}:make, with all your rights" in message
    assert message.endswith("if you trust it, add --allow-code")
    with pytest.raises(ModelError, match="--allow-code"):
        load_chosen(ModelSettings(model=f"python:{code}:make"))
    assert code not in sys.modules


def test_a_function_gives_the_network(code: str) -> None:
    path = list(sys.path)
    loaded = load_chosen(ModelSettings(model=f"python:{code}:make", allow_code=True, model_mpp=1.0))
    assert (loaded.uri, loaded.mpp, loaded.patch) == (f"python:{code}:make", 1.0, 16)
    assert (loaded.class_names, loaded.notes) == (("stroma", "tumour"), ("of mine",))
    assert sys.path == path


def test_a_network_that_ends_in_a_softmax_is_shortened(code: str) -> None:
    loaded = load_classifier(f"python:{code}:squashed", allow_code=True)
    assert "the Softmax at its end is taken off" in loaded.notes[1]
    logits = loaded.module(torch.randn(2, 3, 16, 16))
    assert not torch.allclose(logits.sum(1), torch.ones(2))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("nothing", "gives NoneType; a network (nn.Module) and its ClassifierSpec are needed"),
        ("fails", "failed (RuntimeError: no luck)"),
        ("missing", "failed (AttributeError: "),
        ("number", "failed (TypeError: "),
        ("", "names no function; write python:package.module:function"),
    ],
)
def test_what_a_function_does_wrong_is_said_in_one_line(code: str, function: str, said: str) -> None:
    message = refused(f"python:{code}:{function}")
    assert said in message
    assert f"python:{code}" in message


def test_a_missing_module_and_weights_besides(code: str, tmp_path: Path) -> None:
    assert "ModuleNotFoundError" in refused("python:no_such_module_of_a_user:make")
    assert "leave out --weights" in refused(f"python:{code}:make", tmp_path / "w.pt")


def test_a_pair_of_something_else() -> None:
    with pytest.raises(ModelError, match="gives Tensor and ClassifierSpec"):
        own_classifier(Tensor(), SPEC)  # type: ignore[arg-type]
