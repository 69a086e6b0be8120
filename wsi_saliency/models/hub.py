"""Files of the Hugging Face Hub: from the local cache first, else downloaded, and never after a long wait."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from wsi_saliency.errors import ModelError
from wsi_saliency.messages import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

_BARS = "huggingface_hub"  # the group of its bars
TIMEOUT = 10.0  # seconds the Hub may take to answer


def hub_file(repo: str, filename: str, revision: str) -> Path:
    """Return the local path of one file of a model repository at a pinned revision (tag or commit).

    A cached file is used without asking the network; ``HF_HUB_OFFLINE``, ``HF_HOME`` and ``HF_ENDPOINT``
    are honoured by huggingface_hub. A download shows its progress on a terminal.

    Raises
    ------
    ModelError
        If the file is neither cached nor can be downloaded; the message names the ways out.
    """
    cached = try_to_load_from_cache(repo, filename, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    try:
        # hf_hub_download alone tries an unreachable Hub for 23 seconds, a silent one for six minutes.
        get_hf_file_metadata(hf_hub_url(repo, filename, revision=revision), timeout=TIMEOUT)
        with _bar():
            return Path(hf_hub_download(repo, filename, revision=revision))
    except (
        Exception
    ) as error:  # the versions of huggingface_hub raise errors of three different HTTP libraries
        raise ModelError(
            f"--model demo works without a network; {filename} of {repo} (revision {revision}) is not in the "
            f"cache and cannot be downloaded ({_reason(error)}): give a copy of it with --weights FILE "
            f"(elsewhere: hf download {repo} {filename} --revision {revision}), or use --model timm:NAME "
            "--weights FILE"
        ) from error


@contextmanager
def _bar() -> Iterator[None]:
    """Leave huggingface_hub's bar to it, unless not even warnings are wanted."""
    if log.isEnabledFor(logging.WARNING) or are_progress_bars_disabled(_BARS):
        yield
        return
    disable_progress_bars(_BARS)
    try:
        yield
    finally:
        enable_progress_bars(_BARS)


def _reason(error: Exception) -> str:
    """First sentence of the error, on one line."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return one_line(first.split(". ")[0].rstrip("."))
