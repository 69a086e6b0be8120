"""What a patch classifier is, and the checks that every loaded one passes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from wsi_saliency.errors import ModelError
from wsi_saliency.messages import bytes_in_words, one_line, storable
from wsi_saliency.models.heads import SquashWatch, without_squashing
from wsi_saliency.models.memory import bytes_of_memory, pass_bytes
from wsi_saliency.settings import ALL_TARGETS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from wsi_saliency.models.spec import Output as Output

TUMOUR_NAMES = frozenset({"tumour", "tumor", "metastasis", "metastases", "cancer"})

_SMALL_PATCH = 512  # pixels; fits everywhere
_LARGEST_PATCH = 10**6  # pixels; fits nowhere
_GRADIENTS = 2  # a gradient is as large as what it belongs to


@dataclass(frozen=True)
class Classifier:
    """A patch classifier with everything needed to feed it and to read its output.

    Parameters
    ----------
    module
        Maps normalised patches (N, 3, patch, patch), float32, to logits that `standard_logits` accepts; in
        eval mode, on the CPU, its parameters without gradients.
    uri
        Where it came from, as ``--model`` names it.
    architecture
        Name of the architecture, in timm mostly.
    patch
        Side of a patch, pixels at ``mpp``.
    mpp
        µm per pixel it was trained at; None if nobody says.
    mean, std
        Normalisation of pixel / 255, red, green, blue.
    class_names
        One name per logit; a single logit is named after the positive class.
    output
        What turns logits into probabilities.
    sha256
        Hash of the weights file, hexadecimal; of a network from Python, of its state.
    notes
        What a user should be told once when it is used.
    named
        Whether the class names are known; where they are not, they are the logits' numbers.
    taken_off
        Class of the module, or name of the function, that was its last and made probabilities; None where
        there was none.
    """

    module: nn.Module
    uri: str
    architecture: str
    patch: int
    mpp: float | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    class_names: tuple[str, ...]
    output: Output
    sha256: str
    notes: tuple[str, ...] = ()
    named: bool = True
    taken_off: str | None = None

    def __post_init__(self) -> None:
        """Make class names such as files can hold, each another: tables have a column for each class."""
        names = tuple(map(storable, self.class_names))
        count = Counter(names)
        distinct = tuple(f"{name} ({i})" if count[name] > 1 else name for i, name in enumerate(names))
        object.__setattr__(self, "class_names", distinct)

    def normalised(self, patches: NDArray[np.uint8], device: torch.device) -> Tensor:
        """Turn patches (N, P, P, 3), RGB bytes, into what the module takes.

        Returns
        -------
        Tensor
            (N, 3, P, P) float32 on ``device``, channels last: the bytes keep their order.
        """
        images = torch.from_numpy(patches).to(device).permute(0, 3, 1, 2).float()
        mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return images.div_(255).sub_(mean).div_(std)

    def target_index(self, target: str | None, option: str = "--target") -> int:
        """Return the index of the logit to explain.

        Parameters
        ----------
        target
            A class name (in any case) or index. None picks the single logit, else the class that is called
            tumour, tumor, metastasis, metastases or cancer.
        option
            Where the user gave it, for the message.

        Raises
        ------
        ModelError
            If there is no such class, or None leaves the choice open; the message lists the classes.
        """
        if target is None:
            return self._default_target(option)
        named = self._indices_where(lambda name: name.casefold() == target.strip().casefold())
        if len(named) == 1:
            return named[0]
        if target.strip().isdecimal() and int(target) < len(self.class_names):
            return int(target)
        raise ModelError(f"{self.uri} has no class {target!r}; choose {option} from {self._listed_classes()}")

    def target_indices(self, targets: Sequence[str], option: str = "--target") -> tuple[int, ...]:
        """Return the indices of several logits, each once.

        Parameters
        ----------
        targets
            As `target_index` takes them; none pick its default, ``("all",)`` all logits.
        option
            Where the user gave them, for the message.

        Raises
        ------
        ModelError
            As `target_index`.
        """
        if tuple(targets) == (ALL_TARGETS,):
            return tuple(range(len(self.class_names)))
        named: Sequence[str | None] = targets or [None]
        return tuple(dict.fromkeys(self.target_index(target, option) for target in named))

    def _default_target(self, option: str) -> int:
        if len(self.class_names) == 1:
            return 0
        if not self.named:
            raise ModelError(
                f"{self.uri}: the classes are not named; choose {option} from {self._listed_classes()}"
            )
        tumours = self._indices_where(lambda name: name.strip().casefold() in TUMOUR_NAMES)
        if len(tumours) == 1:
            return tumours[0]
        found = "several classes are" if tumours else "no class is"
        raise ModelError(
            f"{self.uri}: {found} called tumour; choose {option} (name or index) from "
            f"{self._listed_classes()}"
        )

    def _indices_where(self, chosen: Callable[[str], bool]) -> list[int]:
        return [i for i, name in enumerate(self.class_names) if chosen(name)]

    def _listed_classes(self, shown: int = 20) -> str:
        if not self.named:
            last = len(self.class_names) - 1
            return f"the indices 0 to {last}" if last else "index 0"
        listed = ", ".join(f"{i}: {name}" for i, name in enumerate(self.class_names[:shown]))
        more = len(self.class_names) - shown
        return f"{listed} and {more} more, which check-model lists" if more > 0 else listed


def standard_logits(out: object) -> Tensor:
    """Bring a classifier's output to one shape.

    Parameters
    ----------
    out
        Logits (N, K), (N,) of one class, or (N, K, 1, 1) of a convolutional head.

    Returns
    -------
    Tensor
        Logits (N, K), the same values.

    Raises
    ------
    ModelError
        If it is anything else, for example a feature map or a tuple.
    """
    if not isinstance(out, Tensor):
        raise ModelError(
            f"the classifier's output is a {type(out).__name__}; it has to be one tensor of logits (N, K)"
        )
    if out.ndim == 1:
        return out[:, None]
    if out.ndim == 4 and out.shape[2:] == (1, 1):
        return out[:, :, 0, 0]
    if out.ndim != 2:
        raise ModelError(
            f"the classifier's output has shape {tuple(out.shape)}, not logits (N, K); "
            "it needs a head that gives one logit per class and patch"
        )
    return out


def probabilities(logits: Tensor, output: Output) -> Tensor:
    """Turn logits (N, K) into probabilities (N, K): softmax over the classes, or the sigmoid of each."""
    return logits.softmax(dim=1) if output == "softmax" else logits.sigmoid()


def checked(classifier: Classifier) -> Classifier:
    """Try the classifier on two blank (white) patches and return it if it gives one finite logit per class.

    Attributions explain the logit, never the probability. So a softmax or sigmoid that is the last module, or
    the last function called, is taken off, of a copy of the network, and a note says so.

    Raises
    ------
    ModelError
        If it does not take the patch, would take more memory for it than there is, gives anything but logits
        (N, K), gives NaN, or ends in a softmax or sigmoid in another way.
    """
    if classifier.patch > _SMALL_PATCH:
        _check_memory(classifier)
    logits, squashed_by = _watched(classifier)
    if squashed_by is not None and (shortened := _without_squashing(classifier)) is not None:
        classifier = shortened
        logits, squashed_by = _watched(classifier)
    _check_logits(classifier, logits)
    if squashed_by is not None:
        raise ModelError(
            f"{classifier.uri} ends in a {squashed_by}; saliency needs logits, not probabilities: "
            "remove that last step and pass the same weights with --model timm:NAME --weights FILE"
        )
    return classifier


def _watched(classifier: Classifier) -> tuple[Tensor, str | None]:
    """Logits (2, K) of two white patches, and what they were squashed by, if they are none."""
    with torch.no_grad(), SquashWatch() as watch:
        return _dry_run(classifier), watch.squashed_by


def _without_squashing(classifier: Classifier) -> Classifier | None:
    with torch.no_grad():
        found = without_squashing(classifier.module, _white(classifier))
    if found is None:
        return None
    module, taken_off, output = found
    note = f"the {taken_off} at its end is taken off, so that logits are explained"
    notes = (*classifier.notes, note)
    return replace(classifier, module=module, output=output, notes=notes, taken_off=taken_off)


def _check_logits(classifier: Classifier, logits: Tensor) -> None:
    if logits.shape != (2, len(classifier.class_names)):
        raise ModelError(
            f"{classifier.uri} gives {tuple(logits.shape)} for 2 patches and {len(classifier.class_names)} "
            f"classes ({_shortened(classifier.class_names)}); it has to give one logit per class and patch"
        )
    if not logits.isfinite().all():
        raise ModelError(
            f"{classifier.uri} gives NaN or infinite logits for a blank patch; its weights are broken"
        )


def _dry_run(classifier: Classifier) -> Tensor:
    """Logits (2, K) of two white patches."""
    try:
        out = classifier.module(_white(classifier))
    except Exception as error:  # networks say in their own ways what they do not take
        raise _does_not_take(classifier, error) from error
    try:
        return standard_logits(out)
    except ModelError as error:
        raise ModelError(f"{classifier.uri}: {error}") from error


def _white(classifier: Classifier) -> Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (classifier.mean, classifier.std))
    return ((1 - mean) / std).expand(2, 3, classifier.patch, classifier.patch).contiguous()


def _does_not_take(classifier: Classifier, error: Exception) -> ModelError:
    return ModelError(
        f"{classifier.uri} does not take a patch of {classifier.patch} px ({_first_line(error)}); "
        "give its size with --patch"
    )


def _check_memory(classifier: Classifier) -> None:
    """Make sure that one patch can be explained in this machine's memory, without taking any."""
    patch, memory = classifier.patch, bytes_of_memory()
    side = min(patch, _LARGEST_PATCH)  # the number of bytes of a larger one would overflow
    try:
        needed = int(_GRADIENTS * pass_bytes(classifier.module, side) * (patch / side) ** 2)
    except Exception as error:  # networks say in their own ways what they do not take
        raise _does_not_take(classifier, error) from error
    if needed > memory:
        fits = int(patch * (memory / needed) ** 0.5) // 32 * 32
        raise ModelError(
            f"{classifier.uri}: to explain a patch of {patch} px would take about {bytes_in_words(needed)}, "
            f"and this machine has {bytes_in_words(memory)}; choose --patch {fits} or smaller"
        )


def _shortened(names: Sequence[str], shown: int = 4) -> str:
    return ", ".join(names[:shown]) + (", …" if len(names) > shown else "")


def _first_line(error: Exception) -> str:
    return one_line((str(error).strip() or type(error).__name__).splitlines()[0])
