"""Which weights a classifier has, by the hash of their file; free of torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from wsi_saliency.errors import ModelError
from wsi_saliency.models.sources import FILE, source_of

_BUNDLED = {"demo": Path(__file__).with_name("demo.safetensors")}


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_hash(uri: str, weights: Path | None) -> str | None:
    """Return the hash of the weights that a model URI means, without loading them.

    Parameters
    ----------
    uri, weights
        As `wsi_saliency.models.loading.load_classifier` takes them.

    Returns
    -------
    None where the file is not known without a look at the model's description, or cannot be read.
    """
    try:
        source, name = source_of(uri)
        if source.runs_code or source.package:  # which may do with a file what it likes
            return None
        file = weights or _BUNDLED.get(uri) or (Path(name) if source is FILE else None)
        return sha256_of(file.expanduser()) if file else None
    except (ModelError, OSError):  # loading says what is wrong
        return None
