"""Training a surrogate: each layer learns, on the original's own activations, what the original answers.

    loss = Σ over layers of mean |surrogate(input) − output|        Adam, the network itself frozen

One forward pass of the original per batch serves all layers, and no activation is kept beyond its layer.

Source: "Smooth Deep Saliency", arXiv 2404.02282.
"""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from wsi_saliency.errors import OutputError, SettingsError
from wsi_saliency.files import replacing
from wsi_saliency.models.classifier import probabilities, standard_logits
from wsi_saliency.saliency.network import eval_mode
from wsi_saliency.saliency.surrogate import Scores, Surrogate, hash_of, replaceable
from wsi_saliency.saliency.surrogate_conv import SurrogateConv

if TYPE_CHECKING:
    from wsi_saliency.models.classifier import Output

Batches = Iterable[Tensor] | Callable[[int], Iterable[Tensor]]
_Visit = Callable[[str, Tensor, Tensor], None]


class TrainingStep(NamedTuple):
    """Where a training is: epoch and step in it, both from 0, and the loss of each layer in this step."""

    epoch: int
    step: int
    losses: Mapping[str, float]


def train_surrogate(
    model: nn.Module,
    batches: Batches,
    epochs: int = 10,
    lr: float = 1e-3,
    *,
    held_out: float | Iterable[Tensor] = 0.1,
    output: Output | None = None,
    settings: Mapping[str, Any] | None = None,
    checkpoint: Path | str | None = None,
    on_step: Callable[[TrainingStep], None] | None = None,
) -> Surrogate:
    """Train stand-ins for all strided convolutions of a classifier but its stem.

    The classifier is in eval mode meanwhile and comes back as it was, to the bit. Nothing here is random.

    Parameters
    ----------
    model
        The classifier; its output is (N, K), (N,), (N, 1) or (N, K, 1, 1) logits.
    batches
        Normalised float images (N, 3, H, W): anything that can be iterated once per epoch, such as a list,
        or a function of the epoch (from 0) that gives its batches, say in another order each time.
    epochs, lr
        Passes over the images, and Adam's step size.
    held_out
        Batches to score the surrogate on; or the share of the images in ``batches`` to leave out of the
        training for that (0: none), evenly taken, for which each pass has to have them in the same order.
    output
        What turns logits into probabilities; by default the sigmoid for one logit, softmax for several.
    settings
        Further facts about the training, JSON-ready; kept in the surrogate and compared on resuming.
    checkpoint
        File to write after each epoch, and to continue from where it exists.
    on_step
        Called after each step.

    Raises
    ------
    ModelError
        If the classifier has no strided convolution behind its first.
    SettingsError
        If a setting makes no sense, there are no images, or the checkpoint is of another training.
    OutputError
        If the checkpoint cannot be written.
    """
    images = _Images.of(batches, held_out)
    if epochs < 1 or not (lr > 0 and math.isfinite(lr)):
        raise SettingsError(f"cannot train {epochs} epochs at a rate of {lr:g}; both have to be positive")
    facts = {"lr": lr, **({} if images.share is None else {"held_out": images.share}), **(settings or {})}
    with eval_mode(model):
        training = _Training.of(model, lr, facts)
        if checkpoint is not None:
            training.resume(Path(checkpoint))
        for epoch in range(training.epochs_done, epochs):
            training.run_epoch(images.trained_on(epoch), on_step)
            if checkpoint is not None:
                training.keep(Path(checkpoint))
        surrogate = training.surrogate()
        return replace(surrogate, scores=score_surrogate(surrogate, model, images.held_out(), output))


@dataclass(frozen=True)
class _Images:
    """Which images are trained on and which are held out."""

    batches: Batches
    scored: Iterable[Tensor] | None
    share: float | None

    @classmethod
    def of(cls, batches: Batches, held_out: float | Iterable[Tensor]) -> _Images:
        if isinstance(batches, Iterator):
            raise SettingsError(
                "the batches can be iterated only once; pass a list, or a function of the epoch"
            )
        if not isinstance(held_out, float | int):
            return cls(batches, held_out, None)
        if not 0 <= held_out < 1:
            raise SettingsError(
                f"a share of {held_out:g} cannot be held out; choose 0 or more and less than 1"
            )
        if held_out and callable(batches):
            raise SettingsError(
                "batches that may differ by epoch need held-out batches of their own: held_out=[…], or 0"
            )
        return cls(batches, None, float(held_out))

    def trained_on(self, epoch: int) -> Iterator[Tensor]:
        batches = self.batches(epoch) if callable(self.batches) else self.batches
        return _part(batches, self.share or 0.0, held=False)

    def held_out(self) -> Iterable[Tensor]:
        if self.scored is not None:
            return self.scored
        return () if callable(self.batches) else _part(self.batches, self.share or 0.0, held=True)


def _part(batches: Iterable[Tensor], share: float, *, held: bool) -> Iterator[Tensor]:
    """Yield of each batch the images that are held out, the first of every ``1 / share``, or the others."""
    seen = 0
    for batch in batches:
        ranks = torch.arange(seen, seen + len(batch), dtype=torch.float64)
        chosen = (((ranks + 1) * share).ceil() > (ranks * share).ceil()) == held
        seen += len(batch)
        if chosen.any():
            yield batch if chosen.all() else batch[chosen.to(batch.device)]


@dataclass
class _Training:
    """A training under way: what is trained, how far it is."""

    model: nn.Module
    model_hash: str
    layers: dict[str, SurrogateConv]
    optimiser: torch.optim.Adam
    facts: dict[str, Any]
    epochs_done: int = 0

    @classmethod
    def of(cls, model: nn.Module, lr: float, facts: dict[str, Any]) -> _Training:
        layers = {name: SurrogateConv.like(c) for name, c in replaceable(model).items()}
        weights = [weight for layer in layers.values() for weight in layer.parameters()]
        return cls(model, hash_of(model), layers, torch.optim.Adam(weights, lr), facts)

    def run_epoch(self, batches: Iterable[Tensor], on_step: Callable[[TrainingStep], None] | None) -> None:
        step = -1
        for step, images in enumerate(batches):
            losses = self._step(images)
            if on_step is not None:
                values = torch.stack(list(losses.values())).tolist() if losses else []
                on_step(TrainingStep(self.epochs_done, step, dict(zip(losses, values, strict=True))))
        if step < 0:
            raise SettingsError(
                f"epoch {self.epochs_done + 1} has no images to train on besides those held out"
            )
        self.epochs_done += 1

    def _step(self, images: Tensor) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}

        def learn(name: str, x: Tensor, y: Tensor) -> None:
            with torch.enable_grad():
                loss = (self.layers[name](x, (y.shape[2], y.shape[3])) - y).abs().mean()
                loss.backward()
            losses[name] = loss.detach() + losses.get(name, 0)

        self.optimiser.zero_grad()
        _run(self.model, images, learn)
        self.optimiser.step()
        return losses

    def surrogate(self) -> Surrogate:
        layers = {n: copy.deepcopy(x).cpu().requires_grad_(False).eval() for n, x in self.layers.items()}
        return Surrogate(self.model_hash, layers, self.facts | {"epochs": self.epochs_done})

    def keep(self, path: Path) -> None:
        """Write everything that continuing needs."""
        state = {
            "model_hash": self.model_hash,
            "facts": json.dumps(self.facts),
            "epochs_done": self.epochs_done,
            "layers": {name: layer.state_dict() for name, layer in self.layers.items()},
            "optimiser": self.optimiser.state_dict(),
        }
        try:
            with replacing(path) as part:
                torch.save(state, part)
        except RuntimeError as error:  # torch's own writer
            raise OutputError(f"{path}: the checkpoint cannot be written ({error})") from error

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint, where there is one."""
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            facts = json.loads(state["facts"])
            other = [key for key in {**facts, **self.facts} if facts.get(key) != self.facts.get(key)]
        except (OSError, RuntimeError, pickle.UnpicklingError, KeyError, ValueError, TypeError) as error:
            raise SettingsError(f"{path} is no checkpoint of a training or damaged; delete it") from error
        if state["model_hash"] != self.model_hash:
            other.insert(0, "model")
        if other:
            raise SettingsError(
                f"{path} is of a training with another {', '.join(other)}; finish that one, or delete it"
            )
        for name, layer in self.layers.items():
            layer.load_state_dict(state["layers"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        self.epochs_done = state["epochs_done"]


@torch.no_grad()
def score_surrogate(
    surrogate: Surrogate, model: nn.Module, batches: Iterable[Tensor], output: Output | None = None
) -> Scores | None:
    """Compare a surrogate with the original, on images that it was not trained on; None without images.

    Parameters
    ----------
    surrogate, model
        The surrogate, and the classifier it was trained for.
    batches
        Normalised float images (N, 3, H, W).
    output
        What turns logits into probabilities; by default the sigmoid for one logit, softmax for several.

    Raises
    ------
    ModelError
        If the surrogate is for another classifier.
    """
    errors: dict[str, Tensor] = {}
    differences: list[Tensor] = []
    agreements: list[Tensor] = []

    def compare(name: str, x: Tensor, y: Tensor) -> None:
        difference = surrogate.beside(name, x)(x, (y.shape[2], y.shape[3])) - y
        sums = torch.stack([difference.abs().sum(dtype=torch.float64), y.abs().sum(dtype=torch.float64)])
        errors[name] = errors.get(name, 0) + sums.cpu()

    with eval_mode(model):
        for images in batches:
            plain = _run(model, images, compare)
            with surrogate.installed(model):
                smooth = _run(model, images)
            kind = output or ("sigmoid" if plain.shape[1] == 1 else "softmax")
            p, q = probabilities(plain, kind), probabilities(smooth, kind)
            differences.append((q - p).abs().amax(1))
            agreements.append(_same_class(p, q, kind))
    if not differences:
        return None
    return Scores(
        images=sum(map(len, differences)),
        prediction_difference=torch.cat(differences).mean().item(),
        class_agreement=torch.cat(agreements).mean().item(),
        layer_errors={name: (wrong / max(right, 1e-30)).item() for name, (wrong, right) in errors.items()},
    )


def _same_class(p: Tensor, q: Tensor, output: Output) -> Tensor:
    """Whether two predictions agree, (N,) in 0 to 1; the share of classes that do where each stands alone."""
    if output == "softmax":
        return (p.argmax(1) == q.argmax(1)).float()
    return ((p >= 0.5) == (q >= 0.5)).float().mean(1)


def _run(model: nn.Module, images: Tensor, visit: _Visit | None = None) -> Tensor:
    """Logits (N, K) in float32; ``visit`` sees input and output of each replaceable convolution as it is run.

    It sees them at once and not after the pass, when an in-place operation may have changed either.
    """
    convolutions = replaceable(model)
    some = next(iter(convolutions.values())).weight
    with ExitStack() as hooks, torch.no_grad():
        if visit is not None:
            for name, convolution in convolutions.items():
                hooks.enter_context(convolution.register_forward_hook(_watch(name, visit)))
        logits: Tensor = standard_logits(model(images.to(some.device, some.dtype)))
        return logits.float()


def _watch(name: str, visit: _Visit) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
    """Return a forward hook that shows a convolution's input and output, in float32 at least."""

    def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        dtype = torch.promote_types(output.dtype, torch.float32)
        visit(name, args[0].detach().to(dtype), output.detach().to(dtype))

    return hook
