from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from wsi_saliency.errors import ModelError
from wsi_saliency.models.json_files import read_document
from wsi_saliency.models.yaml_files import LARGEST, parsed_yaml

if TYPE_CHECKING:
    from pathlib import Path


def test_plain_values_are_those_of_json() -> None:
    text = b"a: [1, 2.5, x, null, true]\nb:\n  0: y\n  c: '$z'\n"
    assert parsed_yaml(text) == {"a": [1, 2.5, "x", None, True], "b": {"0": "y", "c": "$z"}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"a: &x [1]\nb: *x\n", "aliases are not understood: x"),
        (b"a: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
        (b"a: !thing 3\n", "could not determine a constructor"),
        (b"a: [1\n", "expected"),
        (b"a: \xff\n", "position 3"),
        (b"a: 1\n" + b"#" * LARGEST, "no configuration is so large"),
        (b"? [1]\n: 2\n", "unhashable"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_anything_else_is_refused_in_one_line(text: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "inference.yaml").write_bytes(text)
    with pytest.raises(ModelError, match="is no YAML") as caught:
        read_document(tmp_path / "inference.yaml")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
