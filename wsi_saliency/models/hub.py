"""Files of the Hugging Face Hub: from the local cache first, else downloaded, and never after a long wait."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

from wsi_saliency.errors import ModelError

TIMEOUT = 10.0  # seconds the Hub may take to answer


def hub_file(repo: str, filename: str, revision: str) -> Path:
    """Return the local path of one file of a model repository at a pinned revision (tag or commit).

    A cached file is used without asking the network; ``HF_HUB_OFFLINE``, ``HF_HOME`` and ``HF_ENDPOINT``
    are honoured by huggingface_hub.

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
        return Path(hf_hub_download(repo, filename, revision=revision))
    except (
        Exception
    ) as error:  # the versions of huggingface_hub raise errors of three different HTTP libraries
        raise ModelError(
            f"{filename} of {repo} (revision {revision}) is not in the cache and cannot be downloaded "
            f"({_reason(error)}); use --model demo, or a local file: a copy of it with --weights FILE, "
            "or --model timm:NAME --weights FILE"
        ) from error


def _reason(error: Exception) -> str:
    """First sentence of the error, on one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0].rstrip(".")
