"""The surrogate: trained stand-ins for strided convolutions that touch every input pixel alike.

A surrogate convolution looks at every pixel, resizes bilinearly to the size the strided convolution would
give, and looks again. It is trained to give what the original gives, so that the network keeps saying nearly
the same while its gradient loses the checkerboard. How it is trained stands in `surrogate_training`.

Source: "Smooth Deep Saliency", arXiv 2404.02282.
"""

from __future__ import annotations

import copy
import hashlib
import json
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from wsi_saliency.errors import ModelError, OutputError
from wsi_saliency.files import replacing
from wsi_saliency.messages import one_line
from wsi_saliency.saliency.layers import strided_behind_stem, strided_convolutions
from wsi_saliency.saliency.surrogate_conv import SurrogateConv, output_size, shape_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

FORMAT = "wsi-saliency surrogate 1"
DEMO = "demo_surrogate.safetensors"
_SHOWN = 12  # hexadecimal digits of a hash in messages


def hash_of(model: nn.Module) -> str:
    """Return the SHA-256 of a network's weights, hexadecimal.

    Names, shapes and values of the state dict's tensors go into it, floats as float32: it does not depend on
    device, memory format or on whether the weights were widened to float64.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(_tensors(model).items()):
        values = tensor.float() if tensor.is_floating_point() else tensor
        digest.update(f"{name}{tuple(values.shape)}{values.dtype}\n".encode())
        digest.update(values.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def replaceable(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Return the convolutions a surrogate stands for: all strided ones but the stem.

    Raises
    ------
    ModelError
        If there are none.
    """
    others = strided_behind_stem(model)
    if not others:
        raise ModelError(
            "the model has no strided convolution behind its first, so there is nothing for a surrogate to "
            "replace; use --method shift-average"
        )
    return others


@dataclass(frozen=True)
class Scores:
    """How well a surrogate keeps to the original, on images it was not trained on.

    Parameters
    ----------
    images
        How many.
    prediction_difference
        Mean |σ(f_surrogate) − σ(f)|, of the class where it is largest.
    class_agreement
        Share of images with the same predicted class.
    layer_errors
        Per layer, Σ|surrogate − original| / Σ|original| on the original's inputs.
    """

    images: int
    prediction_difference: float
    class_agreement: float
    layer_errors: Mapping[str, float]


@dataclass(frozen=True)
class Surrogate:
    """Trained stand-ins for all strided convolutions of one network but its stem.

    Parameters
    ----------
    model_hash
        `hash_of` the network it was trained for.
    layers
        By the name of the convolution, in module order; not changed once a surrogate is in use.
    settings
        How it was trained, JSON-ready.
    scores
        On held-out images; None where none were held out.
    """

    model_hash: str
    layers: Mapping[str, SurrogateConv]
    settings: Mapping[str, Any] = field(default_factory=dict)
    scores: Scores | None = None
    _placed: dict[tuple[str, torch.device, torch.dtype], SurrogateConv] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _checked: WeakKeyDictionary[nn.Module, object] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False, compare=False
    )

    def __reduce__(self) -> tuple[type[Surrogate], tuple[object, ...]]:
        return Surrogate, (self.model_hash, dict(self.layers), dict(self.settings), self.scores)

    @cached_property
    def sha256(self) -> str:
        """Hash of its weights, as `hash_of` makes them of a network's."""
        return hash_of(nn.ModuleList(self.layers.values()))

    def save(self, path: Path | str) -> None:
        """Write a safetensors file, whole or not at all.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        tensors = {
            f"{name}.{key}": value.detach().cpu().contiguous()
            for name, layer in self.layers.items()
            for key, value in layer.state_dict().items()
        }
        shapes = {name: layer.shape for name, layer in self.layers.items()}
        metadata = {
            "format": FORMAT,
            "model_hash": self.model_hash,
            "layers": json.dumps(shapes),
            "settings": json.dumps(dict(self.settings)),
            "scores": json.dumps(self.scores and asdict(self.scores), allow_nan=False),
        }
        path = Path(path)
        try:
            with replacing(path) as part:
                save_file(tensors, part, metadata)
                part.chmod(0o644)
        except SafetensorError as error:
            raise OutputError(f"{path}: cannot be written ({error}); choose another file with -o") from error

    @classmethod
    def load(cls, path: Path | str) -> Surrogate:
        """Read a file that `save` has written.

        Raises
        ------
        ModelError
            If there is no such file, or it is damaged or no surrogate.
        """
        if not Path(path).is_file():
            raise ModelError(f"{path}: no such file; train one with wsi-saliency train-surrogate")
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path} is damaged or no surrogate ({error}); train it again") from error
        if metadata.get("format") != FORMAT:
            raise ModelError(f"{path} is no surrogate; train one with wsi-saliency train-surrogate")
        try:
            scores, shapes = json.loads(metadata["scores"]), json.loads(metadata["layers"])
            return cls(
                metadata["model_hash"],
                {name: _layer(name, tensors, shape) for name, shape in shapes.items()},
                json.loads(metadata["settings"]),
                Scores(**scores) if scores else None,
            )
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ModelError(f"{path} is damaged ({one_line(error)}); train it again") from error

    @contextmanager
    def installed(self, model: nn.Module) -> Iterator[nn.Module]:
        """Let the surrogate answer for the strided convolutions of ``model`` inside a ``with`` block.

        The convolutions themselves are not run. The network is as before when the block is left.

        Raises
        ------
        ModelError
            If the surrogate was made for another network, or one is installed already.
        """
        if is_installed(model):
            raise ModelError("a surrogate is active on this model already; leave it before entering another")
        self.check(model)
        with ExitStack() as replaced:
            for name, convolution in replaceable(model).items():
                layer = self.beside(name, convolution.weight)
                replaced.enter_context(_replaced(convolution, layer))
            yield model

    def check(self, model: nn.Module) -> None:
        """Make sure that the surrogate was made for this network.

        Raises
        ------
        ModelError
            If its weights or its strided convolutions are others.
        """
        if self._checked.get(model) == _marks(model):
            return  # hashing the weights takes longer than explaining a batch
        if (found := hash_of(model)) != self.model_hash:
            raise ModelError(
                f"the surrogate was made for a model with hash {self.model_hash[:_SHOWN]}…, and this one has "
                f"{found[:_SHOWN]}…; train one for it with wsi-saliency train-surrogate"
            )
        wanted = {name: shape_of(convolution) for name, convolution in replaceable(model).items()}
        own = {name: layer.shape for name, layer in self.layers.items()}
        if wanted != own:
            raise ModelError(
                f"the surrogate stands for the convolutions {', '.join(own)}, and the model's are "
                f"{', '.join(wanted)}; train one for it with wsi-saliency train-surrogate"
            )
        self.accept(model)

    def accept(self, model: nn.Module) -> None:
        """Take a network as checked: a copy, in another form, of the one that it was made for."""
        self._checked[model] = _marks(model)

    def beside(self, name: str, tensor: Tensor) -> SurrogateConv:
        """Return a layer on the device and in the number format of a tensor; one copy of each is kept."""
        key = (name, tensor.device, tensor.dtype)
        if key not in self._placed:
            self._placed[key] = copy.deepcopy(self.layers[name]).to(tensor.device, tensor.dtype)
        return self._placed[key]


def _marks(model: nn.Module) -> list[tuple[int, int]]:
    """Tell two states of a network's weights apart without reading them."""
    return [(value.data_ptr(), value._version) for value in _tensors(model).values()]


def _layer(name: str, tensors: Mapping[str, Tensor], shape: Sequence[int]) -> SurrogateConv:
    with torch.device("meta"):  # the file may claim any shape; memory is taken for what it holds
        layer = SurrogateConv(*shape)
    layer.load_state_dict({key: tensors[f"{name}.{key}"] for key in layer.state_dict()}, assign=True)
    return layer.requires_grad_(False).eval()


class _Answers:
    """The ``forward`` of a convolution that a surrogate stands for."""

    def __init__(self, convolution: nn.Conv2d, layer: SurrogateConv) -> None:
        self.convolution, self.layer = convolution, layer
        self.sizes: dict[torch.Size, tuple[int, int]] = {}

    def __call__(self, input: Tensor) -> Tensor:  # noqa: A002 - the name it has in nn.Conv2d
        extent = input.shape[-2:]
        if extent not in self.sizes:
            self.sizes[extent] = output_size(self.convolution, extent[0], extent[1])
        answer: Tensor = self.layer(input, self.sizes[extent])
        return answer


@contextmanager
def _replaced(convolution: nn.Conv2d, layer: SurrogateConv) -> Iterator[None]:
    """Put a ``forward`` into the convolution's own attributes, in front of its class's."""
    attributes = vars(convolution)
    before = {"forward": attributes["forward"]} if "forward" in attributes else {}
    attributes["forward"] = _Answers(convolution, layer)
    try:
        yield
    finally:
        del attributes["forward"]
        attributes.update(before)


def is_installed(model: nn.Module) -> bool:
    """Tell whether a surrogate is active on a network."""
    return any(answered_for(convolution) for convolution in strided_convolutions(model).values())


def answered_for(convolution: nn.Conv2d) -> bool:
    """Tell whether a surrogate answers for a convolution."""
    return isinstance(vars(convolution).get("forward"), _Answers)


def surrogate_for(model: nn.Module, file: Path | None = None) -> Surrogate:
    """Load the surrogate of a network: from a file, or the bundled one of the ``demo`` classifier.

    Raises
    ------
    ModelError
        If the file cannot be read or is for another network, or there is neither file nor bundled surrogate.
    """
    if file is None:
        with resources.as_file(resources.files("wsi_saliency.models") / DEMO) as bundled:
            surrogate = Surrogate.load(bundled)
        if surrogate.model_hash != hash_of(model):
            raise ModelError(
                "no surrogate comes with this model; train one with wsi-saliency train-surrogate and give it "
                "with --surrogate FILE"
            )
    else:
        surrogate = Surrogate.load(file)
    try:
        surrogate.check(model)
    except ModelError as error:
        raise ModelError(f"{file or DEMO}: {error}") from error
    return surrogate
