from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.helpers.classifiers import classifier, network
from wsi_saliency.errors import ModelError
from wsi_saliency.models.classifier import checked, probabilities, standard_logits

if TYPE_CHECKING:
    from collections.abc import Callable


class Returning(nn.Module):
    """Gives whatever the function makes of the features of each patch, (N, 4)."""

    def __init__(self, out: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.features, self.out = network(4), out

    def forward(self, x: Tensor) -> Any:
        return self.out(self.features(x))


def test_target_is_found_by_name_and_index() -> None:
    three = classifier("Stroma", "Tumor", "Debris")
    assert three.target_index("tumor") == 1
    assert three.target_index(" DEBRIS ") == 2
    assert [three.target_index(str(i)) for i in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("name", ["tumour", "Tumor", "METASTASIS", "metastases", "cancer"])
def test_default_target_is_the_tumour_class(name: str) -> None:
    assert classifier("stroma", name, "fat").target_index(None) == 1


def test_default_target_of_one_logit_is_that_logit() -> None:
    assert classifier("0").target_index(None) == 0


@pytest.mark.parametrize("names", [("a", "b"), ("tumour", "cancer"), ("tumour_free", "no tumor")])
def test_default_target_is_never_guessed(names: tuple[str, ...]) -> None:
    with pytest.raises(ModelError, match="--target") as caught:
        classifier(*names).target_index(None)
    assert all(name in str(caught.value) for name in names)


@pytest.mark.parametrize("target", ["fat", "2", "-1", "1.0", "", "²"])
def test_unknown_target_lists_the_classes(target: str) -> None:
    with pytest.raises(ModelError, match="0: stroma, 1: tumour"):
        classifier("stroma", "tumour").target_index(target)


def test_the_message_names_the_option_that_was_used() -> None:
    with pytest.raises(ModelError, match=r"no class 'tumr'; choose --balance from 0: stroma, 1: tumour"):
        classifier("stroma", "tumour").target_index("tumr", "--balance")


@pytest.mark.parametrize("target", [None, "tumour", "3"])
def test_classes_without_names_are_not_listed_as_if_they_had_some(target: str | None) -> None:
    unnamed = replace(classifier("0", "1", "2"), named=False)
    with pytest.raises(ModelError, match="choose --target from the indices 0 to 2"):
        unnamed.target_index(target)
    assert unnamed.target_index("2") == 2


def test_many_classes_are_not_all_listed_in_a_message() -> None:
    with pytest.raises(ModelError, match=r"19: 19 and 980 more, which check-model lists$"):
        classifier(*map(str, range(1000))).target_index("tumour")


def test_a_name_that_looks_like_an_index_is_a_name() -> None:
    assert classifier("1", "0").target_index("0") == 1


def test_names_that_differ_in_case_only_are_told_apart_by_index() -> None:
    twins = classifier("tum", "TUM")
    with pytest.raises(ModelError, match="0: tum, 1: TUM"):
        twins.target_index("Tum")
    assert twins.target_index("1") == 1


@given(st.integers(1, 4), st.integers(1, 5))
def test_standard_logits_keeps_the_values(n: int, k: int) -> None:
    logits = torch.arange(float(n * k)).view(n, k)
    assert torch.equal(standard_logits(logits), logits)
    assert torch.equal(standard_logits(logits[:, :, None, None]), logits)
    assert torch.equal(standard_logits(logits[:, 0]), logits[:, :1])


@pytest.mark.parametrize(
    ("out", "said"),
    [
        (torch.zeros(2, 3, 7, 7), "(2, 3, 7, 7)"),
        (torch.zeros(2, 3, 1), "(2, 3, 1)"),
        (torch.zeros(()), "()"),
        ((torch.zeros(2, 3), torch.zeros(2, 3)), "a tuple"),
        ({"logits": torch.zeros(2, 3)}, "a dict"),
        (None, "a NoneType"),
    ],
)
def test_other_outputs_are_refused(out: object, said: str) -> None:
    with pytest.raises(ModelError) as caught:
        standard_logits(out)
    assert said in str(caught.value)


def test_probabilities_follow_their_definition() -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]], dtype=torch.float64)
    softmax = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    torch.testing.assert_close(probabilities(logits, "softmax"), softmax)
    torch.testing.assert_close(probabilities(logits[:, :1], "sigmoid"), 1 / (1 + (-logits[:, :1]).exp()))


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_logits_pass_the_check(classes: int) -> None:
    good = classifier(*map(str, range(classes)))
    assert checked(good) is good


def test_a_logit_between_0_and_1_is_no_probability() -> None:
    module = network(1)
    head = module[4]
    assert isinstance(head, nn.Linear)
    nn.init.zeros_(head.weight)
    nn.init.constant_(head.bias, 0.5)
    checked(classifier("tumour", module=module))


def test_convolutional_head_passes_the_check() -> None:
    checked(classifier("a", "b", "c", "d", module=Returning(lambda y: y[:, :, None, None])))


@pytest.mark.parametrize(
    ("classes", "last", "named"),
    [
        (3, nn.Softmax(dim=0), "softmax"),
        (1, nn.Softmax(dim=1), "softmax"),
        (3, nn.Sequential(nn.Softmax(dim=1), nn.Threshold(0, 0)), "softmax"),
        (3, nn.Sequential(nn.Softmax(dim=1), nn.Threshold(0.5, 0, inplace=True)), "softmax"),
        (3, nn.Sequential(nn.Sigmoid(), nn.Softmax(dim=1)), "sigmoid"),
        (1, nn.Hardsigmoid(), "hardsigmoid"),
    ],
)
def test_probabilities_in_place_of_logits_are_refused(classes: int, last: nn.Module, named: str) -> None:
    squashed = classifier(*map(str, range(classes)), module=network(classes, last))
    with pytest.raises(ModelError, match=f"ends in a {named}; .*logits"):
        checked(squashed)


@pytest.mark.parametrize(
    ("classes", "last", "output"),
    [
        (3, nn.Softmax(dim=1), "softmax"),
        (3, nn.Softmax(dim=-1), "softmax"),
        (3, nn.LogSoftmax(dim=1), "softmax"),
        (3, nn.Sigmoid(), "sigmoid"),
        (1, nn.Sigmoid(), "sigmoid"),
    ],
)
def test_a_module_that_squashes_at_the_end_is_taken_off(classes: int, last: nn.Module, output: Any) -> None:
    squashed = classifier(*map(str, range(classes)), module=network(classes, last))
    logits = checked(squashed)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(logits.module(images), network(classes)(images))
        assert torch.equal(last(logits.module(images)), squashed.module(images))
    assert logits.output == output
    assert logits.notes == (
        f"the {type(last).__name__} at its end is taken off, so that logits are explained",
    )
    assert not logits.module.training
    assert not any(m._forward_hooks for m in squashed.module.modules())


def test_a_module_that_squashes_elsewhere_too_is_not_taken_off() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.squash = network(4), nn.Sigmoid()

        def forward(self, x: Tensor) -> Any:
            return self.squash(self.squash(self.features(x)))

    with pytest.raises(ModelError, match="ends in a sigmoid"):
        checked(classifier("a", "b", "c", "d", module=Twice().eval()))


def twice(y: Tensor) -> Tensor:
    return torch.sigmoid(y)


@pytest.mark.parametrize(
    "squash",
    [
        lambda y: torch.softmax(y, 1).clamp(1e-6, 1),
        lambda y: y.sigmoid_(),
        lambda y: y.softmax(0),
        lambda y: torch.sigmoid(torch.sigmoid(y)),
        lambda y: twice(twice(y)),
        lambda y: nn.functional.log_softmax(y.sigmoid() * y, dim=1),
        lambda y: nn.Softmax(dim=1)(y),
        lambda y: torch.sigmoid(y).flip(1),
        lambda y: torch.sigmoid(torch.cat([y, y], 1))[:, :4],
        lambda y: torch.sigmoid(y[:, :2].repeat(1, 2)).view(-1, 2, 2).mT.flatten(1),
        lambda y: torch.softmax(y[:, None], 2).squeeze(1),
        lambda y: torch.softmax(y[:, :, None], 2).squeeze(2),
        lambda y: torch.sigmoid(y)[:, :, None, None].clamp_(0.1, 1),
    ],
)
def test_functions_that_squash_are_seen_too(squash: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ModelError, match="saliency needs logits"):
        checked(classifier("a", "b", "c", "d", module=Returning(squash)))


@pytest.mark.parametrize(
    ("squash", "name", "output"),
    [
        (lambda y: torch.softmax(y, 1), "softmax", "softmax"),
        (lambda y: y.softmax(-1), "softmax", "softmax"),
        (lambda y: nn.functional.softmax(y, dim=1), "softmax", "softmax"),
        (lambda y: nn.functional.log_softmax(y, dim=1), "log_softmax", "softmax"),
        (lambda y: nn.functional.sigmoid(y), "sigmoid", "sigmoid"),
        (lambda y: torch.special.expit(torch.sigmoid(y).matmul(torch.eye(4))), "special_expit", "sigmoid"),
    ],
)
def test_the_last_function_is_taken_off(squash: Callable[[Tensor], Tensor], name: str, output: Any) -> None:
    squashed = classifier("a", "b", "c", "d", module=Returning(squash))
    logits = checked(squashed)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        again = logits.module(images)
        made = again.log_softmax(1) if name == "log_softmax" else probabilities(again, output)
        assert torch.equal(made, squashed.module(images))
    assert (logits.output, logits.taken_off) == (output, name)
    assert logits.notes == (f"the {name} at its end is taken off, so that logits are explained",)
    assert [n for n, _ in logits.module.named_modules()] == [n for n, _ in squashed.module.named_modules()]
    assert type(logits.module).__name__ == type(squashed.module).__name__


@pytest.mark.parametrize(
    ("squash", "name", "output"),
    [
        (lambda y: nn.functional.softmax(y, dim=1)[:, :, None, None], "softmax", "softmax"),
        (lambda y: torch.softmax(y[:, :, None, None], 1).flatten(1), "softmax", "softmax"),
        (lambda y: torch.softmax(y[:, :, None, None], -3)[..., 0, 0], "softmax", "softmax"),
        (lambda y: torch.sigmoid(y[:, :, None]).squeeze(-1), "sigmoid", "sigmoid"),
    ],
)
def test_axes_of_one_element_may_come_or_go_behind_it(
    squash: Callable[[Tensor], Tensor], name: str, output: Any
) -> None:
    made = checked(classifier("a", "b", "c", "d", module=Returning(squash)))
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(made.module(images).flatten(1), Returning(lambda y: y)(images))
    assert (made.output, made.taken_off) == (output, name)


@pytest.mark.parametrize("squeeze", [lambda y: y.squeeze(1), lambda y: y.flatten(), lambda y: y[:, 0]])
def test_one_class_may_lose_its_axis_behind_a_sigmoid(squeeze: Callable[[Tensor], Tensor]) -> None:
    module = Returning(lambda y: squeeze(torch.sigmoid(y[:, :1])))
    made = checked(classifier("tumour", module=module))
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(made.module(images), Returning(lambda y: y[:, 0])(images))
    assert (made.output, made.taken_off) == ("sigmoid", "sigmoid")


def test_a_module_is_taken_off_in_front_of_a_flatten() -> None:
    tail = nn.Sequential(nn.Unflatten(1, (3, 1, 1)), nn.Softmax(dim=1), nn.Flatten())
    made = checked(classifier("a", "b", "c", module=network(3, tail)))
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(made.module(images), network(3)(images))
    assert (made.output, made.taken_off) == ("softmax", "Softmax")


def test_two_patches_and_two_classes_that_change_places_are_no_logits() -> None:
    with pytest.raises(ModelError, match="saliency needs logits"):
        checked(classifier("a", "b", module=Returning(lambda y: torch.sigmoid(y[:, :2]).T)))


def test_a_network_that_ends_in_another_way_later_is_refused() -> None:
    def changing(y: Tensor) -> Tensor:
        return torch.sigmoid(y) if len(y) == 2 else y

    module = checked(classifier("a", "b", "c", "d", module=Returning(changing))).module
    with pytest.raises(ModelError, match="does not always end in the same way"):
        module(torch.zeros(3, 3, 16, 16))


@pytest.mark.parametrize(
    ("out", "said"),
    [
        (lambda y: (y, y), "tuple"),
        (lambda y: y[:, :, None, None].expand(-1, -1, 7, 7), r"\(2, 4, 7, 7\)"),
        (lambda y: y[:1], r"\(1, 4\) for 2 patches and 4 classes \(a, b, c, d\)"),
        (lambda y: y.repeat(1, 3), r"\(2, 12\)"),
        (lambda y: y * float("nan"), "NaN"),
        (lambda y: y / 0, "NaN or infinite"),
    ],
)
def test_a_bad_head_is_refused_in_one_line(out: Callable[[Tensor], Any], said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        checked(classifier("a", "b", "c", "d", module=Returning(out)))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("model.pt")


def test_a_patch_too_small_names_the_option() -> None:
    with pytest.raises(ModelError, match=r"2 px \(.*--patch"):
        checked(replace(classifier("a"), patch=2))


def test_the_dry_run_is_a_white_patch() -> None:
    seen: list[Tensor] = []
    module = network(1)
    module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    checked(replace(classifier("a", module=module), mean=(0.2, 0.5, 0.8), std=(0.4, 0.5, 0.1)))
    assert seen[0].shape == (2, 3, 16, 16)
    torch.testing.assert_close(seen[0][0, :, 0, 0], torch.tensor([2.0, 1.0, 2.0]))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("tumour", "normal"), ("tumour", "normal")),
        (("a\ud800", "b\x00\n"), ("a\ufffd", "b\ufffd\ufffd")),
        (("other", "tumour", "other"), ("other (0)", "tumour", "other (2)")),
        (("\ud800", "\udfff"), ("\ufffd (0)", "\ufffd (1)")),
    ],
)
def test_class_names_are_such_as_files_can_hold_and_each_is_another(
    names: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    made = classifier(*names)
    assert made.class_names == expected
    assert replace(made, patch=32).class_names == expected
    "".join(made.class_names).encode()
