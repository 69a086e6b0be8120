"""Training a surrogate on slides: patches are sampled from their tissue, then each layer learns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from wsi_saliency.errors import ModelError, OutputError
from wsi_saliency.files import check_file, locked
from wsi_saliency.interruption import reraise_interruption
from wsi_saliency.models.classifier import Classifier, probabilities, standard_logits
from wsi_saliency.models.loading import load_chosen
from wsi_saliency.saliency.engine import choose_device
from wsi_saliency.saliency.surrogate import replaceable
from wsi_saliency.saliency.surrogate_training import train_surrogate
from wsi_saliency.settings import TrainingSettings
from wsi_saliency.slides.opening import open_slide
from wsi_saliency.urls import name_of
from wsi_saliency.workflows.progress import download, shown_by
from wsi_saliency.workflows.sampling import Balance, Sample, sample_patches

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from wsi_saliency.saliency.surrogate import Surrogate
    from wsi_saliency.saliency.surrogate_training import TrainingStep
    from wsi_saliency.urls import Location
    from wsi_saliency.workflows.sampling import Patches


def train_surrogate_on_slides(
    slides: Sequence[Location | str],
    file: Path | str,
    settings: TrainingSettings | None = None,
    *,
    overwrite: bool = False,
    progress: bool = False,
) -> Surrogate:
    """Train a surrogate for a classifier on patches of slides, and write it to a file.

    After each epoch a checkpoint is written beside the file; the same call continues from it. It is deleted
    when the file is there. While another training works on the file, this one waits.

    Parameters
    ----------
    slides
        Whole-slide images, files or URLs.
    file
        Where the surrogate goes.
    settings
        How it is trained; the defaults of `TrainingSettings` if left out.
    overwrite
        Replace a file that is there, when the new surrogate is; otherwise that is an error.
    progress
        Show a bar with the loss of each layer, where there is a terminal.

    Raises
    ------
    SlideError, ModelError, SettingsError, OutputError
        If the slides cannot be read or have no tissue, the classifier cannot be loaded or has nothing to
        replace, the settings do not fit, or the file cannot be written.
    """
    file, settings = Path(file), settings or TrainingSettings()
    _check_free(file, overwrite=overwrite)
    with locked(file, "file"):
        _check_free(file, overwrite=overwrite)  # another training may have been at it meanwhile
        for path in slides:
            watch = download(shown_by(progress), name_of(path))
            # raises before the classifier is loaded, not after
            open_slide(path, settings.mpp, cache=settings, watch=watch).close()
        classifier = load_chosen(settings)
        replaceable(classifier.module)  # raises before the slides are read, not after
        device = choose_device(settings.device)
        classifier.module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        balance = _balance(classifier, settings)
        patches = sample_patches(slides, classifier, settings, balance, progress=progress)
        checkpoint, facts = checkpoint_of(file), _facts(slides, settings)
        surrogate = _train(classifier, patches, settings, facts, checkpoint, progress=progress)
        surrogate.save(file)
        checkpoint.unlink(missing_ok=True)
    return surrogate


def _check_free(file: Path, *, overwrite: bool) -> None:
    """Refuse to replace what may have taken hours, unless that is wanted.

    Raises
    ------
    OutputError
        If a file is there, or a folder.
    """
    check_file(file)
    if file.exists() and not overwrite:
        raise OutputError(f"{file}: is there already; --overwrite replaces it, -o names another file")


def checkpoint_of(file: Path) -> Path:
    """Return where the checkpoint lies while ``file`` is being made."""
    return file.parent / f"{file.name}.checkpoint"


def _facts(slides: Sequence[Location | str], settings: TrainingSettings) -> dict[str, Any]:
    """Return what the surrogate's file says about its training, and what has to be the same on resuming."""
    names = ("model", "patches", "held_out", "balance", "batch", "seed", "mpp", "model_mpp", "patch")
    return {name: getattr(settings, name) for name in names} | {"slides": [name_of(s) for s in slides]}


def _balance(classifier: Classifier, settings: TrainingSettings) -> Balance | None:
    if settings.balance is None:
        return None
    target = classifier.target_index(settings.balance, "--balance")

    @torch.no_grad()
    def positive(patches: Patches) -> NDArray[np.bool_]:
        batches = PatchBatches(patches, classifier, settings.batch)
        p = torch.cat([_probabilities(classifier, images) for images in batches])
        chosen = p.argmax(1) == target if classifier.output == "softmax" else p[:, target] >= 0.5
        return np.asarray(chosen.numpy(), bool)

    return Balance(classifier.class_names[target], positive)


def _probabilities(classifier: Classifier, images: torch.Tensor) -> torch.Tensor:
    return probabilities(standard_logits(classifier.module(images)), classifier.output).cpu()


@dataclass(frozen=True)
class PatchBatches:
    """Batches of patches as `train_surrogate` takes them: normalised, in another order in each epoch.

    Parameters
    ----------
    patches
        (N, P, P, 3) uint8 RGB.
    classifier
        Says how they are normalised.
    size
        Patches per batch.
    seed
        Decides the order, with the number of the epoch.
    """

    patches: Patches
    classifier: Classifier
    size: int
    seed: int = 0

    def __call__(self, epoch: int) -> Iterator[torch.Tensor]:
        """Yield (n, 3, P, P) float32 tensors, shuffled."""
        yield from self._in_order(np.random.default_rng([self.seed, epoch]).permutation(len(self.patches)))

    def __iter__(self) -> Iterator[torch.Tensor]:
        yield from self._in_order(np.arange(len(self.patches)))

    def __len__(self) -> int:
        return math.ceil(len(self.patches) / self.size)

    def _in_order(self, order: NDArray[np.intp]) -> Iterator[torch.Tensor]:
        device = next(self.classifier.module.parameters()).device
        for start in range(0, len(order), self.size):
            yield self.classifier.normalised(self.patches[order[start : start + self.size]], device)
            reraise_interruption()  # of a signal whose exception was lost in a library's callback


def _train(
    classifier: Classifier,
    patches: Sample,
    settings: TrainingSettings,
    facts: dict[str, Any],
    checkpoint: Path,
    *,
    progress: bool,
) -> Surrogate:
    batches = PatchBatches(patches.trained_on, classifier, settings.batch, settings.seed)
    with tqdm(
        total=settings.epochs * len(batches), desc="training", unit="step", disable=None if progress else True
    ) as bar:

        def show(step: TrainingStep) -> None:
            bar.set_postfix_str(
                "L1 " + " ".join(f"{loss:.2g}" for loss in step.losses.values()), refresh=False
            )
            bar.update(step.epoch * len(batches) + step.step + 1 - bar.n)

        try:
            return train_surrogate(
                classifier.module,
                batches,
                settings.epochs,
                settings.lr,
                held_out=PatchBatches(patches.held_out, classifier, settings.batch),
                output=classifier.output,
                settings=facts,
                checkpoint=checkpoint,
                on_step=show,
            )
        except torch.OutOfMemoryError as e:
            raise ModelError(
                f"{settings.batch} patches do not fit into the device's memory; choose a smaller --batch"
            ) from e


def report(surrogate: Surrogate) -> list[tuple[str, str]]:
    """Say how well a surrogate keeps to its original, as labels and texts."""
    scores = surrogate.scores
    if scores is None:
        return [("held out", "nothing, so the surrogate is not scored")]
    errors = [("", f"{name}  {error:.1%}") for name, error in scores.layer_errors.items()]
    return [
        ("held out", f"{scores.images} patches"),
        (
            "difference",
            f"{scores.prediction_difference:.4f}  mean |probability with the surrogate − without|",
        ),
        ("agreement", f"{scores.class_agreement:.1%}  of the patches get the same class"),
        ("layer errors", "mean |surrogate − original| / mean |original|"),
        *errors,
    ]
