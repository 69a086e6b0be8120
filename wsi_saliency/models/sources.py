"""Where classifiers come from: the table that loading, help, messages and docs read. Free of torch.

A source is imported when a model of it is asked for, so that its library is needed by nobody else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_saliency.errors import ModelError
from wsi_saliency.models.plugins import package_of, plugin_of

if TYPE_CHECKING:
    from wsi_saliency.models.classifier import Classifier

Load = Callable[[str, Path | None], "Classifier"]
"""From what follows the scheme's colon (its path, of a folder or file), and ``--weights``, to one.

A plug-in's may give a network and its `wsi_saliency.ClassifierSpec` as well.
"""

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt")
PATHOLOGY_TUMOR_DETECTION = "MONAI/pathology_tumor_detection"


@dataclass(frozen=True)
class Source:
    """One kind of model URI.

    Parameters
    ----------
    written
        How it is written behind ``--model``.
    what
        What it is, in a few words.
    loader
        ``module:function`` of its `Load`.
    extra
        The package's extra that installs what the loader imports, if it is not installed anyway.
    runs_code
        Whether a name is code of the user's that is run, for which ``--allow-code`` is needed.
    package
        Of a plug-in, the package that brings it.
    """

    written: str
    what: str
    loader: str
    extra: str | None = None
    runs_code: bool = False
    package: str | None = None

    def load(self, name: str, weights: Path | None) -> Classifier:
        """Load what ``name`` says with this source.

        Raises
        ------
        ModelError
            If what the source needs is not installed, or it has no such classifier.
        """
        try:
            load: Load = imported(self.loader, self.written, self.extra)
        except (ImportError, AttributeError) as error:
            if self.package is None:
                raise
            raise ModelError(
                f"--model {self.written} of the package {self.package} cannot be loaded ({error})"
            ) from error
        return load(name, weights)


def imported(where: str, written: str, extra: str | None = None) -> Any:
    """Import ``module:function``.

    Parameters
    ----------
    where
        The module and the function.
    written
        The model URI that needs it, for a message.
    extra
        The package's extra that installs what it imports, if it is not installed anyway.

    Raises
    ------
    ModelError
        If what the extra installs is missing.
    """
    module, _, function = where.partition(":")
    try:
        return getattr(import_module(module), function)
    except ModuleNotFoundError as error:
        if extra is None:
            raise
        raise ModelError(
            f"--model {written} needs {error.name}, which is not installed; install it with: "
            f"pip install 'wsi-saliency[{extra}]'"
        ) from error


@dataclass(frozen=True)
class Alias:
    """A short name for one model of a source.

    Parameters
    ----------
    uri
        The model.
    what
        What it is, in a few words.
    facts
        Its licence, its input and its classes.
    """

    uri: str
    what: str
    facts: str = ""


SOURCES: Mapping[str, Source] = {
    "demo": Source(
        "demo",
        "the bundled classifier of drawn tissue: to try the program, no more",
        "wsi_saliency.models.demo:load_demo",
    ),
    "timm": Source(
        "timm:NAME with --weights FILE",
        "an architecture of timm, with the weights of your file",
        "wsi_saliency.models.timm:load_timm",
    ),
    "hf-hub": Source(
        "hf-hub:ORG/NAME",
        "a checkpoint of timm on the Hugging Face Hub, with the preprocessing of its config.json",
        "wsi_saliency.models.configured:load_hf_hub",
    ),
    "wsinfer": Source(
        "wsinfer:NAME",
        "a model of WSInfer's zoo on the Hugging Face Hub, by its name in the registry",
        "wsi_saliency.models.wsinfer:load_wsinfer",
    ),
    "monai": Source(
        "monai:ORG/NAME",
        "a bundle of MONAI on the Hugging Face Hub: a ResNet, DenseNet, EfficientNet, SENet or ViT",
        "wsi_saliency.models.monai:load_monai",
    ),
    "tiatoolbox": Source(
        "tiatoolbox:NAME with --weights FILE",
        "a ResNet of TIAToolbox, such as resnet18-pcam or resnet18-kather100k",
        "wsi_saliency.models.tiatoolbox:load_tiatoolbox",
    ),
    "torchvision": Source(
        "torchvision:NAME with --weights FILE",
        "an architecture of torchvision, with the weights of your file",
        "wsi_saliency.models.torchvision:load_torchvision",
        "torchvision",
    ),
    "python": Source(
        "python:MODULE:FUNCTION with --allow-code",
        "a network of your own: what the function returns, run with all your rights",
        "wsi_saliency.models.own:load_python",
        runs_code=True,
    ),
}
FILE = Source(
    f"a {'/'.join(SUFFIXES)} file",
    "weights that say in their metadata what they are, or are recognised by their tensors",
    "wsi_saliency.models.weights_file:load_file",
)
FOLDER = Source(
    "a folder",
    "files of one model with the config.json of timm or WSInfer, or a bundle of MONAI",
    "wsi_saliency.models.configured:load_folder",
)
ALIASES: Mapping[str, Alias] = {
    "camelyon16": Alias(
        f"monai:{PATHOLOGY_TUMOR_DETECTION}",
        "the metastasis classifier of MONAI, trained on Camelyon16; downloaded once",
        "licence Apache-2.0; 224 px at 0.25 µm/px; metastasis",
    ),
}


def model_sources() -> str:
    """List the model URIs that are understood, for messages and help."""
    return ", ".join(written for written, _ in described_sources())


def described_sources() -> list[tuple[str, str]]:
    """Return how each kind of model is written, and what it is: short names, schemes, folders, files."""
    kinds = [*SOURCES.values(), FOLDER, FILE]
    return [*((name, alias.what) for name, alias in ALIASES.items()), *((s.written, s.what) for s in kinds)]


def source_of(uri: str) -> tuple[Source, str]:
    """Find the source of a model URI, and what follows its colon; of a folder or file, its path.

    Raises
    ------
    ModelError
        If the URI is of no known scheme, built in or of a plug-in, and is neither a folder nor a file nor
        called like one.
    """
    uri = ALIASES[uri].uri if uri in ALIASES else uri
    scheme, _, name = uri.partition(":")
    if scheme in SOURCES:
        return SOURCES[scheme], name
    if name and (entry := plugin_of(scheme)) is not None:
        what, loader = f"of the package {package_of(entry)}", f"{entry.module}:{entry.attr}"
        return Source(f"{scheme}:NAME", what, loader, package=package_of(entry)), name
    path = Path(uri)
    if uri and path.expanduser().is_dir():
        return FOLDER, uri
    if path.suffix not in SUFFIXES and not path.expanduser().is_file():
        raise ModelError(f"--model {uri!r} is not understood; it can be {model_sources()}")
    return FILE, uri
