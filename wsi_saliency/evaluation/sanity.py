"""Sanity: whether a map changes when the classifier forgets what it has learnt.

Cascading randomisation (Adebayo et al. 2018, "Sanity Checks for Saliency Maps"): the classifier is
initialised anew from its head downwards, part by part, and explained again each time. A map that looks as
before when half of the weights are random says nothing about the weights.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wsi_saliency.errors import ModelError
from wsi_saliency.evaluation.correlation import spearman
from wsi_saliency.saliency.layers import feature_stages
from wsi_saliency.saliency.network import eval_mode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    _Floats = NDArray[np.float64]
    _Maps = NDArray[np.float32]

HEAD = "head"
_BATCH = 16  # images per pass where statistics are taken


@dataclass(frozen=True)
class Part:
    """A part of a network that is initialised anew at a time.

    Parameters
    ----------
    name
        The feature stage that it ends with, or ``"head"``.
    modules
        Names of the modules with weights of their own that run in it, in the order in which they end.
    """

    name: str
    modules: tuple[str, ...]


def parts_of(model: nn.Module, sample: Tensor) -> list[Part]:
    """Divide all modules with weights into the head and the feature stages, from the head downwards.

    The network is cut where its feature stages end: what ends after the last of them is the head, what ends
    before the first, the stem, belongs to that one. A module that is called several times belongs where it
    is called last; one that is never called, but whose weights may be used, to what it is a part of. So each
    module with weights is in exactly one part.

    Parameters
    ----------
    model
        A convolutional network; it stays as it is.
    sample
        Float tensor (N, 3, H, W) to call it with.
    """
    with eval_mode(model):
        cuts = {stage.name for stage in feature_stages(model, sample)}
        ended = _ended(model, sample)
    last = {name: i for i, name in enumerate(ended)}
    ending = defaultdict(list)  # by the place in `ended`
    for name, module in model.named_modules():
        if _has_weights(module):
            ending[last[_called(name, last)]].append(name)
    found, modules = [], list[str]()
    for i, name in enumerate(ended):
        modules += ending[i]
        if name in cuts:
            found.append(Part(name, tuple(modules)))
            modules = []
    found.append(Part(HEAD, tuple(modules)))
    return [part for part in reversed(found) if part.modules]


def _ended(model: nn.Module, sample: Tensor) -> list[str]:
    """Names of all modules in the order in which their calls end; the network itself, ``""``, is the last."""
    ended: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda module, args, output: ended.append(name)

    handles = [module.register_forward_hook(note(name)) for name, module in model.named_modules()]
    try:
        with torch.no_grad():
            model(sample)
    finally:
        for handle in handles:
            handle.remove()
    return ended


def _called(name: str, calls: dict[str, int]) -> str:
    """Return the innermost module around ``name``, itself included, that is called."""
    while name not in calls:
        name = name.rpartition(".")[0]
    return name


def _has_weights(module: nn.Module) -> bool:
    """Whether a module has parameters of its own, or statistics that depend on those before it."""
    return isinstance(module, _BatchNorm) or any(True for _ in module.parameters(recurse=False))


def randomised(
    model: nn.Module, parts: Sequence[Part], images: Tensor, seed: int = 0
) -> Iterator[tuple[str, nn.Module]]:
    """Yield, for each part, its name and a copy of the network that is random from the first part to it.

    A module is initialised by its own ``reset_parameters``. A parameter that this leaves as it was, or of a
    module without one, gets a random permutation of its values; so a learnt scale of single channels keeps
    its size, and a single number its value. A part that is random stays the same further on.

    Batch normalisation gets weight 1, bias 0 and the statistics that its input has on ``images``. With mean
    0 and variance 1 in their place it would not normalise at all, and what comes out of the network would
    shrink or grow with its depth until all images gave one logit. Statistics are taken again with every
    part, for all that is above it gets another input; below, they stay as they were trained.

    Parameters
    ----------
    model
        The network; it stays as it is, and so does PyTorch's random state.
    parts
        As `parts_of` returns them.
    images
        (N, 3, H, W) normalised floats on the model's device.
    seed
        Decides the weights, which are drawn on the CPU and so the same on every device.

    Raises
    ------
    ModelError
        If the network cannot be copied.
    """
    current, names = model, list[str]()
    for i, part in enumerate(parts):
        current = _copied(current).eval()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(_seed(seed, i))
            for name in part.modules:
                _initialise(current.get_submodule(name))
        names += part.modules
        _take_statistics(current, names, images)
        yield part.name, current


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:  # weights that are computed (weight norm), locks, open files
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"the classifier's network cannot be copied to be randomised ({reason}); leave --sanity out"
        ) from error


def _seed(seed: int, part: int) -> int:
    """One seed a part, unlike those of all other parts and seeds."""
    return int(np.random.SeedSequence([seed, part]).generate_state(1, np.uint64)[0]) >> 1


def _initialise(module: nn.Module) -> None:
    """Give a module new weights, drawn on the CPU."""
    parameters = list(module.parameters(recurse=False))
    devices = [parameter.device for parameter in parameters]
    before = [parameter.detach().cpu() for parameter in parameters]
    for parameter, values in zip(parameters, before, strict=True):
        parameter.data = values.clone()
    reset: Any = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()
    for parameter, values, device in zip(parameters, before, devices, strict=True):
        if torch.equal(parameter, values):
            order = torch.randperm(values.numel())
            parameter.copy_(values.flatten()[order].view_as(values))
        parameter.data = parameter.data.to(device)


def _take_statistics(model: nn.Module, names: Sequence[str], images: Tensor) -> None:
    """Give the batch normalisations among ``names`` the mean statistics of their inputs."""
    modules = [model.get_submodule(name) for name in names]
    norms = [m for m in modules if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum, norm.training = None, True  # the mean over all passes
    with torch.no_grad():
        for some in images.tensor_split(math.ceil(len(images) / _BATCH)):
            model(some)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum, norm.training = momentum, False


class CascadeStep(NamedTuple):
    """One step of a cascade: the last fields of a `SanityStage`, in their order; all (N,), by patch."""

    module: str | None
    spearman: _Floats
    insertion: _Floats
    deletion: _Floats


def cascade(
    model: nn.Module,
    images: Tensor,
    explain: Callable[[nn.Module], _Maps],
    score: Callable[[_Maps], tuple[_Floats, _Floats]],
    *,
    seed: int = 0,
) -> list[CascadeStep]:
    """Explain a network that forgets more and more, and compare the maps with those it gave at first.

    Not for the method ``surrogate``: a surrogate imitates the trained network's layers and would have to be
    trained again for each random one. Refusing it is up to the caller.

    Parameters
    ----------
    model
        The intact network; it stays as it is.
    images
        (N, 3, H, W) normalised floats on the model's device, those that are explained.
    explain
        Gives the maps (N, h, w) of the images by a network. Where the sign of a map is that of a layer's
        channels, as with the plain gradient, it should give magnitudes.
    score
        Gives the insertion and deletion areas (N,) of maps, judged by the intact network.
    seed
        Decides the random weights.

    Returns
    -------
    The intact network, whose rank correlation is 1 by definition, and then a step for each of `parts_of`.

    Raises
    ------
    ModelError
        If the network cannot be copied.
    """
    original = explain(model)
    steps = [CascadeStep(None, np.ones(len(original)), *score(original))]
    for name, network in randomised(model, parts_of(model, images[:1]), images, seed):
        maps = explain(network)
        steps.append(CascadeStep(name, spearman(original, maps), *score(maps)))
    return steps
