from __future__ import annotations

import json
import math

from wsi_saliency.workflows.facts import LISTS, Fact, json_of, lines_of, note, warning

FACTS = [
    Fact("patch", "224 × 224 px", 224),
    Fact("batch_effect", "none", {"largest": math.inf, "others": (1, 2.5)}),
    note("first \x9b"),
    warning("beware"),
    note("second"),
]


def test_a_line_has_a_label_in_words():
    assert lines_of(FACTS) == [
        ("input", "224 × 224 px"),
        ("batch effect", "none"),
        ("note", "first \x9b"),
        ("warning", "beware"),
        ("note", "second"),
    ]


def test_json_is_strict_and_cannot_steer_a_terminal():
    text = json_of(FACTS)
    assert text.isascii()
    told = json.loads(text, parse_constant=lambda name: 1 / 0)
    assert told == {
        "patch": 224,
        "batch_effect": {"largest": None, "others": [1, 2.5]},
        "notes": ["first \x9b", "second"],
        "warnings": ["beware"],
        "layers": [],
    }


def test_lists_are_there_even_if_they_are_empty():
    assert json.loads(json_of([])) == {key: [] for key in LISTS}
