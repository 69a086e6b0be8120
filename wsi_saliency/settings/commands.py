"""The settings of each command, put together from parts.

A dataclass takes over the fields of its bases from the last to the first, so the bases stand in reverse: the
classifier, which comes last, is shown and written first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - the command line reads the types
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from wsi_saliency.errors import SettingsError
from wsi_saliency.settings.evaluation import (
    AnnotationSettings,
    CheckSettings,
    ComparisonSettings,
    ScoredPatchesSettings,
    ScoringSettings,
)
from wsi_saliency.settings.option import Bounds, documented, option, varied, whole
from wsi_saliency.settings.parts import (
    ALL_GPUS,
    IMITATING,
    METHODS,
    CacheSettings,
    DeviceSettings,
    GridSettings,
    MapSettings,
    ModelSettings,
    OutputSettings,
    PrecisionSettings,
    QualitySettings,
    ReadSettings,
    SampleSettings,
    Settings,
    SlideSettings,
    SurrogateSettings,
    TargetSettings,
    TissueSettings,
)

if TYPE_CHECKING:
    from wsi_saliency.settings.parts import Method


@documented
@dataclass(frozen=True, kw_only=True)
class InspectSettings(CacheSettings, GridSettings, SlideSettings, ModelSettings):
    """What decides which patches of a slide a run would explain."""


@dataclass(frozen=True, kw_only=True)
class TriedPatchesSettings(Settings):
    """On which patches a classifier is tried out."""

    heading: ClassVar[str] = "Patches"
    pictures: Path | None = option(
        None,
        "Try the classifier on the PNG, JPEG and TIFF pictures of a folder; folders in it that are named "
        "after classes say what pictures show.",
        flag="patches",
        metavar="FOLDER",
    )
    slide: str | None = option(
        None, "Try the classifier on patches from the tissue of a slide, a file or a URL.", metavar="SLIDE"
    )
    sample: int = option(100, "Patches that are taken, by chance.", metavar="N", within=whole(1))
    seed: int = varied(SampleSettings, "seed", 0, help="Decides which patches are taken.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pictures is not None and self.slide is not None:
            raise SettingsError("pictures (--patches) and slide (--slide) are both given; choose one")


@documented
@dataclass(frozen=True, kw_only=True)
class ModelCheckSettings(
    DeviceSettings, CacheSettings, TriedPatchesSettings, ReadSettings, TargetSettings, ModelSettings
):
    """What is asked of a classifier before it is trusted with maps."""


@documented
@dataclass(frozen=True, kw_only=True)
class RunSettings(
    OutputSettings,
    PrecisionSettings,
    DeviceSettings,
    CacheSettings,
    QualitySettings,
    GridSettings,
    ReadSettings,
    SurrogateSettings,
    MapSettings,
    ModelSettings,
):
    """Everything that decides what a run computes and writes."""

    device: str = varied(
        DeviceSettings,
        "device",
        "auto",
        help="Where the classifier runs; auto is a GPU where there is one, cuda or all are all GPUs, "
        "a slide on each; cuda:0,cuda:1 these two.",
        metavar="auto|cpu|all|cuda[:i,…]|mps",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.device == "all":
            object.__setattr__(self, "device", ALL_GPUS)
        _check_surrogate(self.surrogate, self.methods)


Engine = Literal["local", "ray"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
_LOST_ON_RAY = 2  # times that a slide is tried again there: machines come and go


@documented
@dataclass(frozen=True, kw_only=True)
class BatchSettings(Settings):
    """How a run deals with its slides; results are the same whatever it is."""

    heading: ClassVar[str] = "Several slides"
    slide_timeout: float | None = option(
        None,
        "Stop a slide that takes longer, and go on with the next.",
        metavar="SECONDS|none",
        within=Bounds(0, open=True),
        shown="none",
        none="none",
    )
    engine: Engine = option(
        "local",
        "What runs slides: processes of this machine, or a Ray cluster; ray needs "
        "pip install 'wsi-saliency[ray]'.",
        choices=ENGINES,
    )
    address: str | None = option(
        None,
        "The Ray cluster, for --engine ray: auto is the one that this machine belongs to.",
        metavar="auto|HOST:PORT",
        shown="one is started on this machine",
    )
    jobs: int = option(
        1,
        "Slides side by side on each device, in processes that share the threads of the processor; with "
        "--engine ray on each machine's CPU or on each GPU.",
        metavar="N",
        within=whole(1),
    )
    retries: int | None = option(
        None,
        "Try a slide so many times again whose process died or whose machine was lost; one that failed "
        "otherwise is not tried again.",
        metavar="N",
        within=whole(0),
        shown="0; with --engine ray 2",
    )
    fail_fast: bool = option(False, "End at the first slide that fails; otherwise the others are done.")
    work: Path | None = option(
        None,
        "A fast disk of this machine, where results that go to a URL grow until they are complete.",
        metavar="FOLDER",
        shown="wsi-saliency-<user> in TMPDIR, else the user's cache",
    )
    limit: int | None = option(None, "Take the first N slides only.", metavar="N", within=whole(1))
    shard: str | None = option(
        None,
        "Take one of N parts of the slides, dealt by name: 1/4, 2/4, … on four machines.",
        metavar="I/N",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.part  # which is checked
        if self.address is not None and self.engine != "ray":
            raise SettingsError(
                f"address (--address) is {self.address!r}, for --engine ray; add that, or leave it out"
            )

    @property
    def times_again(self) -> int:
        """How often a lost slide is tried again."""
        if self.retries is None:
            return _LOST_ON_RAY if self.engine == "ray" else 0
        return self.retries

    @property
    def takes_some(self) -> bool:
        """Whether the slides are some of those that were found, though it be a single one."""
        return self.limit is not None or self.shard is not None

    @property
    def part(self) -> tuple[int, int] | None:
        """Number and count of the parts that ``shard`` says."""
        if self.shard is None:
            return None
        found = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", self.shard, re.ASCII)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise SettingsError(
                f"shard (--shard) is {self.shard!r}; it has to be I/N with I from 1 to N, as 1/4"
            )
        return int(found[1]), int(found[2])


@dataclass(frozen=True, kw_only=True)
class TrainingPatchesSettings(SampleSettings):
    """Which patches a surrogate learns from."""

    patches: int = varied(
        SampleSettings,
        "patches",
        1000,
        help="Patches to sample from the tissue, evenly over the slides, those held out included.",
        within=whole(2),
    )
    seed: int = varied(SampleSettings, "seed", 0, help="Decides which patches are taken, and their order.")
    held_out: float = option(
        0.1,
        "Share of the patches, from a part of each slide of its own, that is scored and not trained on.",
        metavar="F",
        within=Bounds(0, 0.9),
    )
    balance: str | None = option(
        None,
        "Class as which half of the patches shall be predicted.",
        metavar="NAME|INDEX",
        shown="patches as they come",
    )


@documented
@dataclass(frozen=True, kw_only=True)
class TrainingSettings(DeviceSettings, TrainingPatchesSettings, CacheSettings, ReadSettings, ModelSettings):
    """Everything that decides what `wsi_saliency.workflows.train.train_surrogate_on_slides` does."""

    heading: ClassVar[str] = "Training"
    epochs: int = option(10, "Passes over the patches.", metavar="N", within=whole(1))
    lr: float = option(1e-3, "Step size of Adam.", metavar="F", within=Bounds(0, open=True))
    batch: int = varied(DeviceSettings, "batch", 32, help="Patches per step.", shown="")


@documented
@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(
    PrecisionSettings,
    DeviceSettings,
    CheckSettings,
    AnnotationSettings,
    ScoringSettings,
    ScoredPatchesSettings,
    CacheSettings,
    TissueSettings,
    ReadSettings,
    SurrogateSettings,
    TargetSettings,
    ComparisonSettings,
    ModelSettings,
):
    """Everything that decides what an evaluation computes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_surrogate(self.surrogate, self.methods or METHODS)


def _check_surrogate(surrogate: Path | None, methods: tuple[Method, ...]) -> None:
    if surrogate is not None and IMITATING not in methods:
        raise SettingsError(
            f"surrogate (--surrogate) is {surrogate}, for the method of that name; add {IMITATING} to "
            f"--method {','.join(methods)} to use it, or leave it out"
        )
