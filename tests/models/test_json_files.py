from __future__ import annotations

import copy
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.bundles import INFERENCE, METADATA
from wsi_saliency.errors import ModelError
from wsi_saliency.models.bundle_config import bundle_description, network_of
from wsi_saliency.models.json_files import (
    Document,
    mapping,
    names,
    number,
    objects,
    positive,
    read_document,
    square_rgb,
    text,
    three_numbers,
    three_positive,
    whole,
)
from wsi_saliency.models.timm_config import timm_description
from wsi_saliency.models.wsinfer_config import registered, wsinfer_description

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATH = Path("folder/config.json")


@pytest.mark.parametrize(
    ("take", "value", "taken"),
    [
        (text, "a\tb\x1b", r"a b\x1b"),
        (whole, 3, 3),
        (number, -2, -2.0),
        (positive, 0.5, 0.5),
        (three_numbers, [0, -1, 2.5], (0.0, -1.0, 2.5)),
        (three_positive, [1, 2, 3], (1.0, 2.0, 3.0)),
        (names, ["a", "b\n"], ("a", "b")),
        (mapping, {"a": 1}, {"a": 1}),
        (objects, [{}, {"a": 1}], [{}, {"a": 1}]),
        (square_rgb, [3, 96, 96], 96),
    ],
)
def test_values_are_taken_as_they_are(take: Callable[[Any], Any], value: Any, taken: Any) -> None:
    assert take(value) == taken
    assert type(take(value)) is type(taken)


@pytest.mark.parametrize(
    ("take", "value"),
    [
        *((text, value) for value in (1, ["a"], {})),
        *((whole, value) for value in (0, -1, 1.0, True, "1", 10**10)),
        *((number, value) for value in ("1", True, float("nan"), float("inf"), [1])),
        *((positive, value) for value in (0, -1, "1")),
        *((three_numbers, value) for value in ([1, 2], [1, 2, "3"], "123", {"a": 1})),
        (three_positive, [1, 2, 0]),
        *((names, value) for value in ("ab", [], ["a", 1], {"0": "a"})),
        *((mapping, value) for value in ([], "a", 1)),
        *((objects, value) for value in ({}, [1], "a")),
        *((square_rgb, value) for value in ([3, 96], [96, 96, 3], [3, 96, 95], 96)),
    ],
)
def test_other_values_are_refused_with_file_and_key(take: Callable[[Any], Any], value: Any) -> None:
    document = Document(PATH, {"key": value}, "section.")
    with pytest.raises(ModelError, match=r"^folder/config\.json: section\.key is .* \(") as caught:
        document.get("key", take)
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named_where_it_is_needed() -> None:
    document = Document(PATH, {"a": {"b": 1}, "c": None})
    assert document.get("x", whole) is document.get("c", whole) is None
    assert document.section("a").need("b", whole) == 1
    assert document.section("x").values == {}
    with pytest.raises(ModelError, match=r"config\.json: a\.x is missing"):
        document.section("a").need("x", whole)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        read_document(tmp_path / "missing.json")


# ----------------------------------------------------------------------------- whatever stands in a file

WSINFER: dict[str, Any] = {
    "spec_version": "1.0",
    "architecture": "resnet18",
    "num_classes": 2,
    "class_names": ["other", "tumor"],
    "patch_size_pixels": 350,
    "spacing_um_px": 0.25,
    "transform": [
        {"name": "Resize", "arguments": {"size": 224}},
        {"name": "ToTensor"},
        {"name": "Normalize", "arguments": {"mean": [0.5] * 3, "std": [0.5] * 3}},
    ],
}
TIMM: dict[str, Any] = {
    "architecture": "resnet18",
    "num_classes": 2,
    "label_names": ["a", "b"],
    "model_args": {"img_size": 96},
    "pretrained_cfg": {
        "input_size": [3, 96, 96],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "fixed_input_size": True,
    },
}
REGISTRY: dict[str, Any] = {"models": {"tiny": {"hf_repo_id": "a/b", "hf_revision": "main"}}}
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 300)
    | st.sampled_from([10**400, float("nan"), 1e308, "", "$x", "@y", "ToTensor", "224"])
    | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab01"), inner, max_size=2),
    max_leaves=5,
)


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to all values below a node."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        yield (*path, key)
        yield from places(value, (*path, key))


def with_value(document: Any, path: tuple[Any, ...], value: Any) -> Document:
    copied = copy.deepcopy(document)
    node = copied
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return Document(PATH, copied)


READERS: list[tuple[Any, Callable[[Document], Any]]] = [
    (WSINFER, wsinfer_description),
    (TIMM, timm_description),
    (REGISTRY, lambda document: registered(document, "tiny")),
    (INFERENCE, network_of),
    (INFERENCE, lambda document: bundle_description(document, Document(PATH, METADATA))),
    (METADATA, lambda document: bundle_description(Document(PATH, INFERENCE), document)),
]


@pytest.mark.parametrize(("good", "read"), READERS)
def test_what_is_right_is_read(good: Any, read: Callable[[Document], Any]) -> None:
    assert read(Document(PATH, good)) is not None


@pytest.mark.parametrize(("good", "read"), READERS)
@settings(max_examples=100)
@given(data=st.data())
def test_whatever_stands_in_place_of_a_value_ends_in_one_line(
    good: Any, read: Callable[[Document], Any], data: st.DataObject
) -> None:
    document = with_value(good, data.draw(st.sampled_from(list(places(good)))), data.draw(VALUES))
    with suppress(ModelError):
        read(document)
