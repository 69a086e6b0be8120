"""Settings by what they concern; the settings of a command are put together from these parts.

A command takes a part only if it uses all of it, so that no option is accepted and ignored.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from string import hexdigits
from typing import Any, ClassVar, Literal, get_args

from wsi_saliency.errors import SettingsError
from wsi_saliency.messages import one_line
from wsi_saliency.settings.option import Bounds, check, option, options_of, whole

Method = Literal["none", "backward-hook", "centred-hook", "forward-hook", "surrogate", "shift-average"]
Attribution = Literal["gradient", "gradient-x-activation", "deeplift", "integrated-gradients", "gradcam"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
OmeZarrVersion = Literal["0.4", "0.5"]
ExportFormat = Literal["dicom"]

METHODS: tuple[Method, ...] = get_args(Method)
ATTRIBUTIONS: tuple[Attribution, ...] = get_args(Attribution)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
OME_ZARR_VERSIONS: tuple[OmeZarrVersion, ...] = get_args(OmeZarrVersion)
EXPORT_FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)

DEFAULT_MODEL = "camelyon16"
DEFAULT_METHOD: Method = "centred-hook"  # these three and the overlap follow from docs/choosing.md
DEFAULT_ATTRIBUTION: Attribution = "deeplift"
DEFAULT_LAYER = "16"
DEFAULT_TARGET = "the single logit, or the one class called tumour"
ALL_TARGETS = "all"
ALL_GPUS = "cuda"  # the device that stands for every GPU
IMITATING: Method = "surrogate"  # the method that needs a surrogate

MAX_PATCH = 4096  # pixels; a ResNet's first layers take 4 GB for one such patch
_SHA256_DIGITS = 64
RANGE_LIMIT = 1e30  # of values, and one over it of their distance: far beyond any map


def default_layer(attribution: Attribution) -> str:
    """Return the layer that is explained if none is named: the last stage for Grad-CAM, else that at 1/16."""
    return "last" if attribution == "gradcam" else DEFAULT_LAYER


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all settings can do. ``heading`` is what a part's options stand under in ``--help``."""

    heading: ClassVar[str]

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(f.default, tuple) and not isinstance(value, str):
                object.__setattr__(self, f.name, tuple(value))
        check(self)

    @classmethod
    def heading_of(cls, name: str) -> str:
        """Return the heading of the part that a setting comes from."""
        parts = (part for part in reversed(cls.__mro__) if issubclass(part, Settings))
        return next(part.heading for part in parts if name in vars(part))

    def to_json(self) -> dict[str, Any]:
        """Return the settings that are recorded, as JSON-ready values."""
        known = options_of(self)
        return {k: _json_ready(v) for k, v in asdict(self).items() if known[k].recorded}


def _json_ready(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Settings):
    """Which classifier it is."""

    heading: ClassVar[str] = "Classifier"
    model: str = option(
        DEFAULT_MODEL,
        # As `models.sources` lists them, which settings come before; a test compares.
        "Classifier, one of: camelyon16, demo, timm:NAME with --weights FILE, hf-hub:ORG/NAME, "
        "wsinfer:NAME, monai:ORG/NAME, tiatoolbox:NAME with --weights FILE, "
        "torchvision:NAME with --weights FILE, python:MODULE:FUNCTION with --allow-code, "
        "a folder, a .safetensors/.pt/.pth/.ckpt file.",
        metavar="URI",
    )
    weights: Path | None = option(
        None,
        "Weights for --model timm:NAME and others (safetensors or a PyTorch state dict).",
        metavar="FILE",
    )
    model_mpp: float | None = option(
        None,
        "µm per pixel the classifier was trained at, where its file does not say.",
        metavar="UM",
        within=Bounds(0, open=True),
    )
    patch: int | None = option(
        None,
        "Side of a patch in pixels at the classifier's resolution.",
        metavar="PX",
        within=whole(8, MAX_PATCH),
        shown="the classifier's",
    )
    allow_code: bool = option(
        False, "Let --model python:MODULE:FUNCTION run the code that it names, with all your rights."
    )
    sha256: str | None = option(
        None,
        "SHA-256 that the weights have to have, as check-model and run.json say it; others are refused.",
        metavar="HEX",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sha256 is None:
            return
        digits = self.sha256.strip().lower()
        if len(digits) != _SHA256_DIGITS or not set(digits) <= set(hexdigits):
            raise SettingsError(
                f"sha256 (--sha256) is {one_line(self.sha256)!r}; it has to be {_SHA256_DIGITS} hexadecimal "
                "digits"
            )
        object.__setattr__(self, "sha256", digits)


@dataclass(frozen=True, kw_only=True)
class MapSettings(Settings):
    """Which maps are made: every layer × attribution × method, each with a channel for every target."""

    heading: ClassVar[str] = "Maps"
    methods: tuple[Method, ...] = option(
        (DEFAULT_METHOD,),
        "How the checkerboard of strided convolutions is removed. centred-hook averages the gradient at "
        "every strided convolution, to all sides alike; predictions stay as they are. backward-hook, "
        "forward-hook and surrogate are those of the paper. shift-average, for networks of tokens and "
        "others, is the mean of the maps of four shifts of the patch, and takes about five times as long.",
        flag="method",
        metavar="LIST",
        choices=METHODS,
    )
    attributions: tuple[Attribution, ...] = option(
        (DEFAULT_ATTRIBUTION,),
        "What is computed from the layer's activation A and the logit y: gradient ∂y/∂A; "
        "gradient-x-activation A · ∂y/∂A; deeplift and integrated-gradients, the layer's share of y − y′ "
        "against a grey baseline; gradcam A · mean ∂y/∂A. Then the mean over channels.",
        flag="attribution",
        metavar="LIST",
        choices=ATTRIBUTIONS,
    )
    signed: bool = option(
        False,
        "Keep the sign of --attribution gradient, which is that of the layer's channels and cancels in "
        "coarser levels; else its magnitude is stored. The other attributions are always signed evidence.",
    )
    layers: tuple[str, ...] = option(
        (),
        "Layers to explain: module names (layer2), reductions (8: the last stage at 1/8 of the patch's "
        "resolution), last for the last stage, or input.",
        flag="layer",
        metavar="LIST",
        shown=f"{DEFAULT_LAYER}; last for gradcam",
    )
    targets: tuple[str, ...] = option(
        (),
        "Classes to explain, names or indices; each is a channel of the maps. all: all classes.",
        flag="target",
        metavar="all|LIST",
        shown=DEFAULT_TARGET,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("methods", "attributions"):
            if not getattr(self, name):
                raise SettingsError(f"{name} (--{name[:-1]}) is empty; name at least one")


@dataclass(frozen=True, kw_only=True)
class TargetSettings(Settings):
    """Which class is explained."""

    heading: ClassVar[str] = "Maps"
    target: str | None = option(None, "Class to explain.", metavar="NAME|INDEX", shown=DEFAULT_TARGET)


@dataclass(frozen=True, kw_only=True)
class SurrogateSettings(Settings):
    """Which surrogate stands in for strided convolutions."""

    heading: ClassVar[str] = "Maps"
    surrogate: Path | None = option(
        None,
        "What train-surrogate has written, for --method surrogate.",
        metavar="FILE",
        shown="the one bundled for demo",
    )


@dataclass(frozen=True, kw_only=True)
class SlideSettings(Settings):
    """What a slide is."""

    heading: ClassVar[str] = "Slides"
    mpp: float | None = option(
        None,
        "µm per pixel of the slide, in place of what its file says.",
        metavar="UM",
        within=Bounds(0, open=True),
    )


@dataclass(frozen=True, kw_only=True)
class ReadSettings(SlideSettings):
    """How a slide is read."""

    workers: int = option(4, "Threads that read slides.", metavar="N", within=whole(1))


@dataclass(frozen=True, kw_only=True)
class CacheSettings(Settings):
    """Where slides from URLs are kept on this machine."""

    heading: ClassVar[str] = "Slides at URLs"
    slide_cache: Path | None = option(
        None,
        "Where slides from URLs are brought, to be read there, now and by later runs.",
        metavar="FOLDER",
        shown="wsi-saliency/slides in the user's cache",
        recorded=False,
    )
    slide_cache_size: str = option(
        "50 GB",
        "How much they take at most; those that were not used for longest go first. 0: each goes when it is "
        "closed.",
        metavar="SIZE",
        recorded=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.cache_bytes  # which is checked

    @property
    def cache_bytes(self) -> int:
        """The size in bytes."""
        size = self.slide_cache_size
        found = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*([kMGT]i?)?B?\s*", size, re.ASCII)
        if found is None or (float(found[1]) and not found[2]):
            raise SettingsError(
                f"slide_cache_size (--slide-cache-size) is {one_line(size)!r}; it has to be a size, such as "
                "200 GB or 1.5 TB, or 0"
            )
        unit = found[2] or "k"
        step, steps = 1024 if unit[1:] else 1000, "kMGT".index(unit[0]) + 1
        return round(float(found[1]) * float(step) ** steps)


@dataclass(frozen=True, kw_only=True)
class TissueSettings(Settings):
    """Which patches of a slide count."""

    heading: ClassVar[str] = "Slides"
    tissue_threshold: float = option(
        0.1,
        "Explain patches of which at least this share is tissue.",
        metavar="F",
        within=Bounds(0, 1),
    )


@dataclass(frozen=True, kw_only=True)
class GridSettings(TissueSettings):
    """Which patches are laid over a slide."""

    heading: ClassVar[str] = "Slides"
    overlap: float = option(
        0.5,
        "Share of a patch in common with the next, rounded so that patches lie differently on the network's "
        "strides; 0 for a quick preview.",
        metavar="F",
        within=Bounds(0, 0.9),
    )


@dataclass(frozen=True, kw_only=True)
class QualitySettings(Settings):
    """Whether what spoils tissue is looked for."""

    heading: ClassVar[str] = "Slides"
    qc: bool = option(
        False,
        "Note pen, folds and blur of each patch in tiles.csv, and count them; all patches are explained "
        "nevertheless.",
    )


@dataclass(frozen=True, kw_only=True)
class DeviceSettings(Settings):
    """Where networks run, and on how much at a time."""

    heading: ClassVar[str] = "Device"
    device: str = option(
        "auto",
        "Where the classifier runs; auto is a GPU where there is one.",
        metavar="auto|cpu|cuda[:i]|mps",
    )
    batch: int | None = option(
        None,
        "Patches per pass; halved when they do not fit.",
        metavar="N",
        within=whole(1),
        shown="by device and its free memory",
    )


@dataclass(frozen=True, kw_only=True)
class PrecisionSettings(Settings):
    """How precisely a network computes."""

    heading: ClassVar[str] = "Device"
    precision: Precision = option(
        "auto", "Number format of the classifier's arithmetic; auto is fp32.", choices=PRECISIONS
    )


@dataclass(frozen=True, kw_only=True)
class OutputSettings(Settings):
    """How results are written."""

    heading: ClassVar[str] = "Results"
    ome_zarr: OmeZarrVersion = option(
        "0.4", "OME-Zarr version; QuPath reads 0.4 only.", choices=OME_ZARR_VERSIONS
    )
    range: tuple[float, float] | None = option(
        None,
        "Values of the first and the last colour, so that slides can be compared.",
        metavar="LOW,HIGH",
        shown="each slide's percentiles 1 and 99",
    )
    hotspots: int = option(
        0,
        "Outline so many of the strongest regions of each map, for its first target, in hotspots.geojson.",
        metavar="N",
        within=whole(0),
        shown="none",
    )
    exports: tuple[ExportFormat, ...] = option(
        (),
        "Write each map in these formats, too. dicom: a Parametric Map for each target, saliency.dcm; needs "
        "pip install 'wsi-saliency[dicom]'.",
        flag="export",
        metavar="LIST",
        choices=EXPORT_FORMATS,
        shown="none",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.range is not None:
            check_range(*self.range)


def check_range(low: float, high: float) -> None:
    """Find out whether colours can span two values.

    Raises
    ------
    SettingsError
        If they are not finite, or the first is not below the second.
    """
    if not -RANGE_LIMIT <= low < high <= RANGE_LIMIT or high - low < 1 / RANGE_LIMIT:
        raise SettingsError(
            f"range (--range) is {low:g},{high:g}; LOW has to be below HIGH, both finite, as in 0,0.001"
        )


@dataclass(frozen=True, kw_only=True)
class SampleSettings(Settings):
    """Which patches are drawn from slides."""

    heading: ClassVar[str] = "Patches"
    patches: int = option(
        100, "Patches to sample from the tissue, evenly over the slides.", metavar="N", within=whole(1)
    )
    seed: int = option(0, "Decides which patches are taken.", metavar="N", within=whole(0))
