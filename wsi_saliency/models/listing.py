"""Which classifiers there are: sources, short names, what is downloaded. Free of torch and of the network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from huggingface_hub import CacheNotFound, constants, scan_cache_dir

from wsi_saliency.errors import ModelError
from wsi_saliency.messages import bytes_in_words, one_line
from wsi_saliency.models.bundle_config import CONFIGS, WEIGHTS_FILE, bundle_description
from wsi_saliency.models.json_files import read_document
from wsi_saliency.models.plugins import package_of, plugins
from wsi_saliency.models.sources import ALIASES, SOURCES, described_sources
from wsi_saliency.models.tiatoolbox_config import DATASETS
from wsi_saliency.models.timm_config import timm_description
from wsi_saliency.models.wording import some
from wsi_saliency.models.wsinfer_config import REGISTRY_FILE, is_wsinfer, registered, wsinfer_description

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from huggingface_hub import CachedRepoInfo, CachedRevisionInfo

    from wsi_saliency.models.description import Description
    from wsi_saliency.models.json_files import Document

Lines = list[tuple[str, str]]

_WEIGHTS = {"model.safetensors", "pytorch_model.bin", "torchscript_model.pt", WEIGHTS_FILE}


def listed_models() -> Lines:
    """Return labels with lines of text: short names, sources, what is downloaded."""
    aliases = [("short name", f"{name}: {a.what}; {a.facts} ({a.uri})") for name, a in ALIASES.items()]
    sources = [
        ("source", f"{written}: {what}") for written, what in described_sources() if written not in ALIASES
    ]
    brought = [
        ("plug-in", one_line(f"{scheme}:NAME: of the package {package_of(entry)}"))
        for scheme, entry in sorted(plugins().items())
        if scheme not in SOURCES
    ]
    datasets = [
        ("tiatoolbox", f"ARCHITECTURE-{name}: {facts(description)}") for name, description in DATASETS.items()
    ]
    return [*aliases, *sources, *brought, *datasets, *(_downloaded() or [("downloaded", "nothing yet")])]


def facts(description: Description) -> str:
    """Say in a line what is known of a classifier's network, input and classes."""
    said = description
    known = [
        said.architecture,
        f"{said.patch} px" if said.patch else None,
        f"{said.mpp:g} µm/px" if said.mpp else None,
        f"classes {some(list(said.class_names), 9)}" if said.class_names else "classes not named",
    ]
    return ", ".join(filter(None, known))


def _downloaded() -> Lines:
    """Return what of the Hub's cache is a classifier."""
    try:
        repos = sorted(scan_cache_dir(constants.HF_HUB_CACHE).repos, key=lambda repo: repo.repo_id)
    except CacheNotFound:
        return []
    names = _wsinfer_names(repos)
    found: Lines = []
    for repo in repos:
        if repo.repo_type == "model":
            found += [("downloaded", one_line(line)) for line in _lines_of(repo, names)]
    return found


def _lines_of(repo: CachedRepoInfo, names: Mapping[tuple[str, str], str]) -> Iterator[str]:
    """Yield a line for each revision of a repository that holds a classifier."""
    for revision in sorted(repo.revisions, key=lambda revision: revision.commit_hash):
        files = _files(revision)
        weights = {files[name] for name in _WEIGHTS & files.keys()}
        if not weights:
            continue
        size = bytes_in_words(sum(f.size_on_disk for f in revision.files if f.file_path in weights))
        label = min(revision.refs) if revision.refs else revision.commit_hash
        yield f"{_uri(repo.repo_id, label, files, names)}: {size}; {_known(files)}"


def _files(revision: CachedRevisionInfo) -> dict[str, Path]:
    snapshot = revision.snapshot_path
    return {file.file_path.relative_to(snapshot).as_posix(): file.file_path for file in revision.files}


def _uri(repo: str, revision: str, files: Mapping[str, Path], names: Mapping[tuple[str, str], str]) -> str:
    """Return how a downloaded classifier is written behind ``--model``."""
    if (repo, revision) in names:
        return f"wsinfer:{names[repo, revision]}"
    name = repo if revision == "main" else f"{repo}@{revision}"
    if WEIGHTS_FILE not in files:
        return f"hf-hub:{name}"
    alias = next((short for short, alias in ALIASES.items() if alias.uri == f"monai:{repo}"), None)
    return alias or f"monai:{name}"


def _known(files: Mapping[str, Path]) -> str:
    """Say what the configuration among the files of a repository says."""
    try:
        if "config.json" in files:
            return facts(_described(read_document(files["config.json"])))
        inference, metadata = (
            next((files[name] for name in names if name in files), None) for names in CONFIGS
        )
        if inference is not None and metadata is not None:
            return facts(bundle_description(read_document(inference), read_document(metadata)))
    except ModelError as error:
        return f"not understood: {error}"
    return "weights without a configuration"


def _described(config: Document) -> Description:
    return wsinfer_description(config) if is_wsinfer(config) else timm_description(config)


def _wsinfer_names(repos: list[CachedRepoInfo]) -> dict[tuple[str, str], str]:
    """Return the names of WSInfer's registry, if it is downloaded, by repository and revision."""
    names: dict[tuple[str, str], str] = {}
    for repo in repos:
        for revision in repo.revisions if repo.repo_type == "dataset" else ():
            registry = _files(revision).get(REGISTRY_FILE)
            if registry is not None:
                names |= _names_in(registry)
    return names


def _names_in(registry: Path) -> dict[tuple[str, str], str]:
    try:
        document = read_document(registry)
        return {registered(document, name): name for name in document.section("models").values}
    except ModelError:  # what is wrong with it is said when a name of it is used
        return {}
