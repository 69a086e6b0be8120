"""Files of the Hugging Face Hub: from the local cache first, else downloaded, and never after a long wait."""

from __future__ import annotations

import logging
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from wsi_saliency.errors import ModelError
from wsi_saliency.messages import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

log = logging.getLogger(__name__)

_BARS = "huggingface_hub"  # the group of its bars
TIMEOUT = 10.0  # seconds the Hub may take to answer

_KNOWN: Mapping[type[Exception], str] = {  # in this order, for the one is also the other
    OfflineModeIsEnabled: "HF_HUB_OFFLINE is set; without it, it is downloaded once",
    GatedRepoError: "it is gated; accept its terms on its page, then log in with: hf auth login",
    RepositoryNotFoundError: "there is none of this name, or it is private; then log in with: hf auth login",
}

_NAME = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>\w[\w./-]*))?", re.ASCII)


class _NotThere(ModelError):
    """The Hub answers that the repository has no such file."""


@dataclass(frozen=True)
class HubRepo:
    """A repository of the Hub at one revision (tag, branch or commit).

    A cached file is used without asking the network; ``HF_HUB_OFFLINE``, ``HF_HOME`` and ``HF_ENDPOINT``
    are honoured by huggingface_hub. A download shows its progress on a terminal.
    """

    repo: str
    revision: str = "main"
    kind: Literal["model", "dataset"] = "model"
    otherwise: str = ""
    """The way out where there is no network; empty: a copy of the whole repository."""

    def file(self, *names: str) -> Path:
        """Return the local path of a file, the first of ``names`` that there is.

        Raises
        ------
        ModelError
            If none is cached or can be downloaded; the message names the ways out.
        """
        for name in names:
            if (cached := self._cached(name)) is not None:
                return cached
        for name in names[:-1]:
            try:
                return self._downloaded(name)
            except _NotThere:
                continue
        return self._downloaded(names[-1])

    def _cached(self, name: str) -> Path | None:
        found = try_to_load_from_cache(self.repo, name, revision=self.revision, repo_type=self.kind)
        return Path(found) if isinstance(found, str) else None

    def _downloaded(self, name: str) -> Path:
        try:
            # hf_hub_download alone tries an unreachable Hub for 23 seconds, a silent one for six minutes.
            url = hf_hub_url(self.repo, name, revision=self.revision, repo_type=self.kind)
            get_hf_file_metadata(url, timeout=TIMEOUT)
            with _bar():
                where = hf_hub_download(self.repo, name, revision=self.revision, repo_type=self.kind)
            return Path(where)
        except (
            Exception
        ) as error:  # the versions of huggingface_hub raise errors of three different HTTP libraries
            answered = isinstance(error, EntryNotFoundError) and not isinstance(
                error, LocalEntryNotFoundError
            )
            raise (_NotThere if answered else ModelError)(
                f"--model demo works without a network; {name} of {self.repo} (revision {self.revision}) is "
                f"not in the cache and cannot be downloaded ({_reason(error)}): {self._ways_out()}"
            ) from error

    def _ways_out(self) -> str:
        return self.otherwise or (
            f"copy it from elsewhere (hf download {self.repo} --revision {self.revision} --local-dir FOLDER) "
            "and give --model FOLDER"
        )


def hub_repo(name: str, scheme: str) -> HubRepo:
    """Return the repository that ``ORG/NAME`` or ``ORG/NAME@REVISION`` names.

    Raises
    ------
    ModelError
        If it is written in any other way.
    """
    found = _NAME.fullmatch(name)
    if found is None or ".." in name:
        raise ModelError(f"--model {scheme}:{one_line(name)} names no repository; write {scheme}:ORG/NAME")
    return HubRepo(found["repo"], found["revision"] or "main")


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
    """Why, on one line: what to do about it, where that is known, else the error's first sentence."""
    known = next((words for kind, words in _KNOWN.items() if isinstance(error, kind)), None)
    if known is not None:
        return known
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return one_line(first.split(". ")[0].rstrip("."))
