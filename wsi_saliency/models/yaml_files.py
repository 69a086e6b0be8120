"""YAML that others have written: plain values only, read within bounds. Free of torch.

Tags, which would make objects, are refused, and so are aliases (``*name``): a few lines of them can stand for
more values than there is memory for. Names of values become texts, as in JSON.
"""

from __future__ import annotations

from typing import Any

import yaml

LARGEST = 256 * 2**10  # bytes; the parser is slow, and a configuration takes some thousands


class _Plain(yaml.SafeLoader):  # type: ignore[misc]
    """Loads what JSON has too."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse an alias; else read the next value."""
        if self.check_event(yaml.AliasEvent):
            raise ValueError(f"aliases are not understood: {self.peek_event().anchor}")
        return super().compose_node(parent, index)


def parsed_yaml(content: bytes) -> Any:
    """Return the values of a YAML document.

    Raises
    ------
    ValueError
        If it is no YAML, larger than a configuration ever is, or not plain.
    """
    if len(content) > LARGEST:
        raise ValueError(f"it has {len(content)} bytes; no configuration is so large")
    try:
        return _with_texts(yaml.load(content, _Plain))  # a SafeLoader: it makes no objects
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _with_texts(value: Any) -> Any:
    """Turn the keys of all mappings into texts."""
    if isinstance(value, dict):
        return {str(key): _with_texts(inner) for key, inner in value.items()}
    return [_with_texts(inner) for inner in value] if isinstance(value, list) else value
