"""The paper's claims, the symmetric hook and the controls on real H&E patches and a real tumour classifier.

    python benchmarks/real_tissue.py ../shared/real -o out    # one file of scores a map; out/*/tables.md

The folder has ``patches/test/<class>``, ``patches/train/<class>`` and the classifiers. A broken-off run goes
on where it was. Patches are held out from the classifier's training, and are those that it takes for tumour.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from real_tables import read, tables
from scipy.fft import dctn, idctn
from torch import Tensor
from tqdm import tqdm

from wsi_saliency import Surrogate, load_classifier, train_surrogate
from wsi_saliency.evaluation.causal import CausalScorer
from wsi_saliency.evaluation.controls import blurred_to, centred_gaussian, random_maps
from wsi_saliency.evaluation.maps import compared_maps
from wsi_saliency.evaluation.metrics import total_variation
from wsi_saliency.mapspec import PLAIN, MapSpec
from wsi_saliency.models.classifier import Classifier
from wsi_saliency.saliency.drift import DRIFT_PATCHES, measure_drift
from wsi_saliency.saliency.layers import find_layer
from wsi_saliency.saliency.network import Network, Noise
from wsi_saliency.saliency.smoothing import SMOOTHING
from wsi_saliency.settings import Attribution, Method

CLASSIFIERS = {"resnet18": 0, "densenet121": 8}  # index of the tumour's logit
TUMOUR = "tumour"  # folder of its patches
EPOCHS = 10  # of the surrogate
STEP_ROWS = 28  # an eighth of a patch a step
BATCH = 20
IG_NODES = 8
NOISE = Noise(n=8, sigma=0.3)  # SmoothGrad: 15 % of the range of a normalised pixel
CUTOFFS = (1.0, 0.75, 0.5, 0.375, 0.25, 0.125)  # of the map's highest frequency
CHOSEN_ON = 24  # patches of the training part, for the low-pass' cut-off
MAIN: tuple[Attribution, ...] = ("gradient", "gradient-x-activation", "deeplift")
MAIN_LAYERS = ("8", "16")
HOOKS: tuple[Method, ...] = ("none", "backward-hook", "centred-hook", "forward-hook")
SUBSTRATES = ("blur", "white")

Place = tuple[float, float, float]


class Study(NamedTuple):
    """A classifier, patches (N, 3, H, W) that it takes for its target, and patches to choose a cut-off on.

    ``strided`` says whether strided convolutions lie above its hidden layers.
    """

    name: str
    strided: bool
    classifier: Classifier
    target: int
    images: Tensor
    others: Tensor
    surrogate: Path | None


@dataclass(frozen=True)
class Wanted:
    """Maps of an attribution at a layer: the methods, and the controls made of them."""

    layer: str
    attribution: Attribution
    methods: tuple[Method, ...]
    blurs: tuple[Method, ...] = ()  # methods with a blur of none as smooth as they are
    low_pass: bool = False
    smoothgrad: bool = False


def wanted(strided: bool) -> Iterator[Wanted]:
    """List the maps, what decides first."""
    if not strided:
        for layer in ("8", "16", "4", "input"):
            yield from (Wanted(layer, attribution, ("none",)) for attribution in MAIN)
        yield Wanted("last", "gradcam", ("none",))
        return
    for layer in ("8", "16"):
        yield from (Wanted(layer, attribution, HOOKS) for attribution in MAIN)
    yield Wanted("last", "gradcam", ("none", "forward-hook"))
    yield from (Wanted("input", attribution, ("none",)) for attribution in MAIN)
    for layer in ("8", "16"):
        for attribution in MAIN:
            yield Wanted(layer, attribution, ("none",), ("centred-hook",), low_pass=True)
        yield Wanted(layer, "gradient", ("none",), ("backward-hook",), smoothgrad=True)
    yield from (Wanted("4", attribution, HOOKS[:3]) for attribution in MAIN)
    for layer in ("8", "16"):
        yield from (Wanted(layer, attribution, ("surrogate",)) for attribution in ("gradient", "deeplift"))
        yield Wanted(layer, "integrated-gradients", ("none", "centred-hook"))


def read_patches(folder: Path, classes: list[str], seed: int = 0) -> NDArray[np.uint8]:
    """Read all patches of some classes, (N, P, P, 3), in a seeded order."""
    files = sorted(file for name in classes for file in (folder / name).glob("*.jpg"))
    random.Random(seed).shuffle(files)
    return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])


def load_study(folder: Path, n: int, name: str, surrogate: Path | None) -> Study:
    """Load a classifier, and held-out tumour patches that it takes for tumour."""
    classifier = load_classifier(str(folder / f"{name}_colon.safetensors"), mpp=0.5)
    target = CLASSIFIERS[name]
    found = []
    for part, most in (("test", n), ("train", CHOSEN_ON)):
        images = classifier.normalised(read_patches(folder / "patches" / part, [TUMOUR]), torch.device("cpu"))
        with torch.no_grad():
            p = torch.cat([classifier.module(some).softmax(1)[:, target] for some in images.split(BATCH)])
        found.append(images[p > 0.5][:most])
    return Study(name, name == "resnet18", classifier, target, *found, surrogate)


def train(folder: Path, classifier: Classifier, file: Path, epochs: int) -> None:
    """Train the classifier's surrogate on the training part, a tenth of it held out."""
    classes = sorted(path.name for path in (folder / "patches/train").iterdir())
    rgb = read_patches(folder / "patches/train", classes)
    batches = list(classifier.normalised(rgb, torch.device("cpu")).split(BATCH))
    with tqdm(total=epochs * len(batches), desc="surrogate") as bar:
        trained = train_surrogate(classifier.module, batches, epochs, on_step=lambda step: bar.update())
    print(trained.scores)
    trained.save(file)


# ------------------------------------------------------------------------------------------- measuring


class Judge:
    """Scores maps of the study's patches by insertion and deletion, and keeps each result in a file."""

    def __init__(self, study: Study, out: Path, bf16: bool) -> None:
        self._study, self._out, self._bf16 = study, out, bf16
        self._scorers = {name: self._scorer(study.images, name) for name in SUBSTRATES}
        self._chooser = self._scorer(study.others, "blur")

    def _scorer(self, images: Tensor, substrate: str) -> CausalScorer:
        c = self._study.classifier
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (c.mean, c.std))
        how = {"deletion_to": (1 - mean) / std, "insertion_from": (1 - mean) / std}
        with self._arithmetic():
            return CausalScorer(
                c.module,
                images,
                self._study.target,
                STEP_ROWS * images.shape[-1],
                batch_size=BATCH,
                output=c.output,
                **(how if substrate == "white" else {}),
            )

    def _arithmetic(self) -> AbstractContextManager[object]:
        return torch.autocast("cpu", torch.bfloat16) if self._bf16 else nullcontext()

    def done(self, name: str) -> bool:
        """Whether a map has its scores."""
        return (self._out / f"{name}.npz").exists()

    def score(self, name: str, maps: Tensor, place: Place | None, rough: Tensor, both: bool = False) -> None:
        """Score maps (N, h, w), larger is more important; with both substrates if wanted."""
        if self.done(name):
            return
        found: dict[str, NDArray[np.float64]] = {"total_variation": rough.double().numpy()}
        for substrate in SUBSTRATES if both else SUBSTRATES[:1]:
            with self._arithmetic():
                curves = self._scorers[substrate](maps, placement=place)
            found[f"insertion_{substrate}"] = curves.insertion_auc.numpy()
            found[f"deletion_{substrate}"] = curves.deletion_auc.numpy()
        np.savez(self._out / f"{name}.npz", **found)

    def faithfulness(self, maps: Tensor, place: Place) -> float:
        """Mean insertion − deletion of maps of the patches to choose on."""
        with self._arithmetic():
            curves = self._chooser(maps, placement=place)
        return float((curves.insertion_auc - curves.deletion_auc).mean())


class PatchMaps:
    """A classifier's maps of one attribution at one layer, each method explained when it is asked for."""

    def __init__(self, study: Study, judge: Judge, what: Wanted) -> None:
        self._study, self._judge, self._what = study, judge, what
        module, sample = study.classifier.module, study.images[:1]
        methods = [*what.methods, *what.blurs]
        imitated = any(SMOOTHING[method].imitates for method in methods)
        maps = compared_maps(methods, [what.attribution], [find_layer(module, what.layer, sample)])
        stand_in = Surrogate.load(study.surrogate) if study.surrogate and imitated else None
        self._network = Network.of(module, maps, sample, surrogate=stand_in)
        self._network.steps = IG_NODES
        self._by = {spec.method: spec for spec in maps}
        self._kept: Tensor | None = None
        self.name = f"{what.layer}.{what.attribution}"

    def values(self, method: Method) -> Tensor:
        """Return all channels (N, C, h, w) of the study's patches; those of ``none`` are kept."""
        if method != PLAIN:
            return self._explain(self._by[method], self._study.images)
        if self._kept is None:
            self._kept = self._explain(self._by[PLAIN], self._study.images)
        return self._kept

    def measure_method(self, method: Method) -> None:
        """Score the maps of a method, and the backward hook's where its measured drift is taken out, too."""
        name = f"{self.name}.{method}"
        if self._judge.done(name):
            return
        values, place = self.values(method), self._place(method)
        maps, rough = self._map_of(values), total_variation(values)
        if SMOOTHING[method].moves_gradient and self._what.layer in MAIN_LAYERS:
            drift = self._drift(method, maps)
            print(name, "drift (x, y) in pixels", drift, flush=True)
            self._judge.score(f"{name}.drift-taken-out", maps, self._place(method, drift), rough)
        both = self._what.layer in MAIN_LAYERS and self._what.attribution in MAIN
        self._judge.score(name, maps, place, rough, both)

    def measure_blur(self, method: Method) -> None:
        """Score the plain maps, blurred until they are as smooth as a method's."""
        if not self._judge.done(f"{self.name}.blurred-to-{method}"):
            self._control(
                f"blurred-to-{method}", blurred_to(self.values(PLAIN), total_variation(self.values(method)))
            )

    def measure_low_pass(self) -> None:
        """Score the plain maps, low-passed as is best for other patches (FORGrad, arXiv 2307.09591)."""
        if self._judge.done(f"{self.name}.low-pass"):
            return
        place = self._place(PLAIN)
        others = self._map_of(self._explain(self._by[PLAIN], self._study.others))
        best = max(CUTOFFS, key=lambda cutoff: self._judge.faithfulness(low_pass(others, cutoff), place))
        print(self.name, "low-pass cut-off", best, flush=True)
        maps = low_pass(self._map_of(self.values(PLAIN)), best)
        self._judge.score(f"{self.name}.low-pass", maps, place, total_variation(maps))

    def measure_smoothgrad(self) -> None:
        """Score the mean over noisy copies."""
        if not self._judge.done(f"{self.name}.smoothgrad"):
            noisy = replace(self._network, noise=NOISE)
            self._control("smoothgrad", self._explain(self._by[PLAIN], self._study.images, noisy))

    def _control(self, name: str, values: Tensor) -> None:
        maps = self._map_of(values)
        self._judge.score(f"{self.name}.{name}", maps, self._place(PLAIN), total_variation(values))

    def _explain(self, spec: MapSpec, images: Tensor, network: Network | None = None) -> Tensor:
        parts: list[Tensor] = []
        for some in images.split(BATCH):
            target = torch.full((len(some),), self._study.target)
            (network or self._network).explain(
                some, [target], lambda _, __, values: parts.append(values.detach()), [spec]
            )
        return torch.cat(parts)

    def _map_of(self, values: Tensor) -> Tensor:
        """Turn values into maps, which is alike for all methods."""
        return self._network.map_of(self._by[PLAIN], values)

    def _drift(self, method: Method, maps: Tensor) -> tuple[float, float]:
        """Measure how far maps lie to the lower right of the plain ones, (x, y) in pixels."""
        g, some = self._network.geometry[self._by[method]], slice(None, None, -(-len(maps) // DRIFT_PATCHES))
        plain = self._map_of(self.values(PLAIN))
        most = g.drift_y / g.reduction, g.drift_x / g.reduction
        y, x = measure_drift(plain[some].numpy(), maps[some].numpy(), most)
        return x * g.reduction, y * g.reduction

    def _place(self, method: Method, drift: tuple[float, float] = (0.0, 0.0)) -> Place:
        """Where the cells of a method's maps lie, a drift (x, y) taken out."""
        g = self._network.geometry[self._by[method]]
        return float(g.reduction), g.centre_x - drift[0], g.centre_y - drift[1]


def measure(study: Study, judge: Judge, what: Wanted) -> None:
    """Score the maps of an attribution at a layer, and the controls made of them."""
    explained = PatchMaps(study, judge, what)
    for method in what.methods:
        explained.measure_method(method)
    for method in what.blurs:
        explained.measure_blur(method)
    if what.low_pass:
        explained.measure_low_pass()
    if what.smoothgrad:
        explained.measure_smoothgrad()


def low_pass(maps: Tensor, cutoff: float) -> Tensor:
    """Keep the modes of maps (N, h, w) up to a share of the highest frequency, edges reflected."""
    modes = dctn(maps.numpy().astype(np.float64), axes=(1, 2), norm="ortho")
    rows, columns = (np.arange(n) / n for n in maps.shape[1:])
    kept = np.hypot(rows[:, None], columns[None, :]) <= cutoff * np.sqrt(2)
    return torch.from_numpy(idctn(modes * kept, axes=(1, 2), norm="ortho")).float()


def controls(study: Study, judge: Judge) -> None:
    """Score a random map and a Gaussian in the middle."""
    side = study.images.shape[-1]
    noise = random_maps(len(study.images), side // 8, side // 8, 0)
    centre = centred_gaussian(side, side).expand(len(study.images), -1, -1)
    for name, maps in (("random", noise), ("centred-gaussian", centre)):
        judge.score(name, maps, None, total_variation(maps), both=True)


def on_real_tissue(folder: Path, out: Path, n: int, surrogate: Path | None, *, bf16: bool = False) -> None:
    """Measure both classifiers, and write their tables.

    Raises
    ------
    click.ClickException
        If there is no such folder.
    """
    if not folder.is_dir():
        raise click.ClickException(
            f"{folder}: not there; real patches and classifiers do not come with this project"
        )
    for name in CLASSIFIERS:
        own = out / f"real-{name}"
        measure_all(load_study(folder, n, name, surrogate if name == "resnet18" else None), folder, own, bf16)
        (own / "tables.md").write_text("\n".join(tables(read(own))) + "\n")


def measure_all(study: Study, folder: Path, out: Path, bf16: bool) -> None:
    """Score all maps of a study that have no scores in ``out`` yet."""
    out.mkdir(parents=True, exist_ok=True)
    judge = Judge(study, out, bf16)
    controls(study, judge)
    for what in tqdm(list(wanted(strided=study.strided)), desc=study.name):
        if "surrogate" in what.methods:
            if study.surrogate is None:
                continue
            if not study.surrogate.exists():
                train(folder, study.classifier, study.surrogate, EPOCHS)
        measure(study, judge, what)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder of the scores.")
@click.option("--patches", "n", default=200, show_default=True)
@click.option("--surrogate", type=click.Path(path_type=Path), help="Trained, and written there, if missing.")
@click.option("--bf16", is_flag=True, help="Score (not explain) in bfloat16; areas differ by about 0.001.")
def main(folder: Path, out: Path, n: int, surrogate: Path | None, bf16: bool) -> None:
    """Measure all maps on the patches of FOLDER."""
    on_real_tissue(folder, out, n, surrogate, bf16=bf16)


if __name__ == "__main__":
    main()
