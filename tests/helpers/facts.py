"""Whether lines for people and JSON for programs say the same facts."""

from __future__ import annotations

import re

LISTS = ("layers", "notes", "warnings")
LABELS = {"patch": "input", "layers": "layer", "notes": "note", "warnings": "warning"}
CODES = ("smooths", "nothing", "changes")
_NUMBER = re.compile(r"(-?\d+(?:\.(\d+))?)(?:e([-+]\d+))?")


def check_same(lines, told):
    """Compare labels and texts with the object of the JSON: as many facts, and in them the same values."""
    assert sorted(label for label, _ in entries(told)) == sorted(label for label, _ in lines)
    for label, value in entries(told):
        texts = [text for other, text in lines if other == label]
        assert any(all(is_in(n, text) for n in leaves(value)) for text in texts), (label, value, texts)


def entries(told):
    """Each fact of the JSON by the label of its line, as often as there is one."""
    for key, value in told.items():
        for one in value if key in LISTS else [value]:
            yield LABELS.get(key, key.replace("_", " ")), one


def leaves(value):
    """All numbers and texts in a value of JSON, but codes."""
    if isinstance(value, dict):
        return [n for key, inner in value.items() if key != "why" for n in leaves(inner)]
    if isinstance(value, list):
        return [n for inner in value for n in leaves(inner)]
    return [] if value is None or isinstance(value, bool) or value in CODES else [value]


def is_in(value, text):
    """Whether a line has a text, or a number at whatever precision, also in millions."""
    if isinstance(value, str):
        return value in text
    for digits, decimals, exponent in _NUMBER.findall(text.replace("one", "1")):
        power = 10.0 ** int(exponent or 0)
        rounding = 0.51 * power * 10.0 ** -len(decimals)
        if any(abs(float(digits) * power - value / scale) <= rounding for scale in (1, 1e6)):
            return True
    return False
