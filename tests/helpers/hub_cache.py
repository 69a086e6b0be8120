"""A cache as huggingface_hub lays it out, and files of models as bytes."""

from __future__ import annotations

import hashlib
import io
import json
import os
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

COMMIT = "3ceb398" + 33 * "0"


def cached(
    cache: Path, repo: str, files: Mapping[str, bytes], revision: str = "main", kind: str = "models"
) -> Path:
    """Lay files down as after downloading them by a tag or branch; return the cache."""
    folder = cache / "--".join([kind, *repo.split("/")])
    for sub in ("blobs", "refs"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    (folder / "refs" / revision).write_text(COMMIT)
    for name, content in files.items():
        blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        link = folder / "snapshots" / COMMIT / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return cache


def torch_bytes(state: Any) -> bytes:
    """What ``torch.save`` writes."""
    written = io.BytesIO()
    torch.save(state, written)
    return written.getvalue()


def safetensors_bytes(state: Mapping[str, torch.Tensor]) -> bytes:
    """What safetensors writes."""
    return save({name: value.contiguous() for name, value in state.items()})


def json_bytes(values: Any) -> bytes:
    """JSON, as UTF-8."""
    return json.dumps(values).encode()
