"""The paper's findings, on what can be had: which hold, which do not, and which these patches cannot tell.

    python benchmarks/paper.py -o results --only real   # tissue in ../shared/real: tables of docs/results.md
    python benchmarks/paper.py -o results               # docs/results-elsewhere.md, reports into results/
    python benchmarks/paper.py -o results --model camelyon16 --surrogate FILE slides/*.tif

The second takes EfficientNet-Lite0 on crops of photographs and the demo classifier on drawn tumour, of which
the nuclei are known; the third any classifier and slides, on patches that it takes for tumour, as the paper
did.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))

from real_tissue import on_real_tissue
from subjects import ROOT, drawn_tumour, lite0

from wsi_saliency import EvaluationSettings, Surrogate, load_classifier
from wsi_saliency.evaluation.localisation import pixel_scores
from wsi_saliency.evaluation.map_comparison import MapComparison, MapScores
from wsi_saliency.evaluation.maps import comparable_layers, compared_maps, kind_of
from wsi_saliency.evaluation.measured import Control, Evaluation, Example, KindScores, MapKind
from wsi_saliency.evaluation.metrics import upsampled
from wsi_saliency.evaluation.statistics import Summary, paired, summary, verdict
from wsi_saliency.models.classifier import Output, probabilities, standard_logits
from wsi_saliency.report.outputs import write_report
from wsi_saliency.saliency.batches import Batch
from wsi_saliency.saliency.network import Network
from wsi_saliency.saliency.surrogate import surrogate_for
from wsi_saliency.settings import METHODS, Attribution, Method
from wsi_saliency.workflows.evaluated import EvaluatedClassifier

PAGE = ROOT / "docs/results-elsewhere.md"
REAL = ROOT.parent / "shared/real"
COMPARED: tuple[Attribution, ...] = ("gradient", "deeplift")
SMOOTHING: tuple[Method, ...] = ("backward-hook", "forward-hook", "surrogate")
BLUR: Control = "blurred-none"
LITTLE = 0.05  # a change of the probability that costs little accuracy

Values = NDArray[np.float64]


class Study(NamedTuple):
    """A classifier, patches (N, 3, H, W), targets (N,); patches as RGB, and nuclei (N, H, W) if known."""

    name: str
    about: str
    net: nn.Module
    images: Tensor
    target: Tensor
    output: Output
    surrogate: Surrogate
    rgb: NDArray[np.uint8]
    nuclei: NDArray[np.bool_] | None = None


class Found(NamedTuple):
    """What a study gives: scores, area under the ROC curve of the nuclei by map, agreement of the class."""

    study: Study
    evaluation: Evaluation
    nuclei: dict[MapKind, Values]
    agreement: Values


# ------------------------------------------------------------------------------------------ studies


def on_photographs(n: int, surrogate: Path | None) -> Study:
    """Take EfficientNet-Lite0, and crops of photographs."""
    s = lite0(surrogate, epochs=50, n=n)
    rgb = ((s.images * 0.5 + 0.5) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    about = f"ImageNet weights, {n} crops of photographs, target: the class found most likely"
    return Study(s.name, about, s.net, s.images, s.target, "softmax", s.surrogate, rgb)


def on_drawn_tumour(n: int) -> Study:
    """Take the demo classifier, and drawn tumour from fresh seeds with the places of its nuclei."""
    classifier = load_classifier("demo")
    rgb, nuclei = drawn_tumour(classifier, n)
    about = f"{n} drawn patches from fresh seeds that it takes for tumour; nuclei of tumour cells known"
    images, target = classifier.normalised(rgb, torch.device("cpu")), torch.zeros(n, dtype=torch.long)
    net = classifier.module
    return Study("demo", about, net, images, target, classifier.output, surrogate_for(net), rgb, nuclei)


def on_slides(model: str, weights: Path | None, surrogate: Path | None, slides: list[Path], n: int) -> Study:
    """Take any classifier, and patches of slides that it takes for its target."""
    settings = EvaluationSettings(
        model=model, weights=weights, surrogate=surrogate, patches=n, predicted_positive=True
    )
    evaluated = EvaluatedClassifier.of(settings)
    patches = evaluated.sample(slides, progress=True)
    images = evaluated.classifier.normalised(patches.patches, evaluated.device)
    target = torch.full((len(images),), evaluated.target, device=evaluated.device)
    net = evaluated.classifier.module
    about = f"{len(images)} patches of {len(slides)} slides that it takes for its target"
    stand_in = surrogate_for(net, surrogate)
    return Study(model, about, net, images, target, evaluated.classifier.output, stand_in, patches.patches)


def measure(study: Study, step_rows: int = 8, batch: int = 8) -> Found:
    """Explain and score all maps: gradient and DeepLift at each layer but the last, Grad-CAM there.

    Behind the last layer nothing is smoothed, and after global pooling its gradient is one constant.
    """
    sample = study.images[:1]
    layers = comparable_layers(study.net, sample, ())
    maps = compared_maps(METHODS, COMPARED, layers[:-1]) + compared_maps(METHODS, ("gradcam",), layers[-1:])
    network = Network.of(study.net, maps, sample, surrogate=study.surrogate)
    step = step_rows * study.images.shape[-1]
    comparison = MapComparison(
        study.net, network, study.images, study.target, study.output, Batch(batch), step
    )
    with tqdm(total=comparison.cost, desc=study.name, unit="image") as bar:
        scores = comparison.run(bar.update)
    rows = [{"slide": study.name, "probability": float(p)} for p in comparison.probabilities]
    main = [kind_of(network, spec) for spec in maps if spec.layer == layers[len(layers) // 2]]
    examples = [
        Example(study.rgb[i], rows[i]["probability"], {k: scores.explained[k].maps[i].numpy() for k in main})
        for i in comparison.probabilities.argsort(descending=True)[:4].tolist()
    ]
    facts = {"model": {"uri": study.name}, "study": study.about, "patches": len(rows), "step": step}
    evaluation = Evaluation(facts, rows, scores.scored, scores.prediction_difference, examples=examples)
    return Found(study, evaluation, _on_nuclei(study, scores), _agreement(study, batch))


def _on_nuclei(study: Study, scores: MapScores) -> dict[MapKind, Values]:
    """How well each map tells the tumour's nuclei from the rest of its patch."""
    if study.nuclei is None:
        return {}
    found = {}
    for kind, explained in scores.explained.items():
        values = upsampled(explained.maps, study.nuclei.shape[1:], explained.placement).numpy()
        pairs = zip(values, study.nuclei, strict=True)
        found[kind] = np.array([pixel_scores(v.ravel(), known.ravel())[0] for v, known in pairs])
    return found


@torch.no_grad()
def _agreement(study: Study, batch: int) -> Values:
    """Whether the surrogate's network finds the same class, (N,)."""
    same = []
    for images in torch.split(study.images, batch):
        p = probabilities(standard_logits(study.net(images)), study.output)
        with study.surrogate.installed(study.net):
            q = probabilities(standard_logits(study.net(images)), study.output)
        one = p.shape[1] == 1
        same.append((p > 0.5) == (q > 0.5) if one else (p.argmax(1) == q.argmax(1))[:, None])
    return torch.cat(same)[:, 0].double().cpu().numpy()


# ------------------------------------------------------------------------------------------- claims


@dataclass(frozen=True)
class Claim:
    """What the paper says, what was found (by measure), and whether that confirms it."""

    text: str
    where: str
    differences: dict[str, Summary]
    higher_is_better: dict[str, bool]

    @property
    def verdict(self) -> str:
        """``confirmed`` if all measures say so; ``not confirmed`` if one says the contrary."""
        better = self.higher_is_better
        words = [verdict(d, higher_is_better=better[name]) for name, d in self.differences.items()]
        if "worse" in words:
            return "not confirmed: they disagree" if "better" in words else "not confirmed"
        return "confirmed" if set(words) == {"better"} else "undecided"


FAITHFUL = {"insertion": True, "deletion": False}


def claims(found: Found) -> list[Claim]:
    """Put the paper's findings to the test."""
    scored = {s.kind: s for s in found.evaluation.scored}
    return [
        *(claim for attribution in COMPARED for claim in _claims_on(scored, attribution)),
        *(
            claim
            for attribution in COMPARED
            if found.nuclei
            for claim in _on_known(found.nuclei, attribution)
        ),
        Claim(
            "the surrogate costs little accuracy",
            f"of {LITTLE} allowed change in probability",
            {"change": _less(summary(found.evaluation.prediction_difference["surrogate"]), LITTLE)},
            {"change": False},
        ),
    ]


def _on_known(nuclei: dict[MapKind, Values], attribution: Attribution) -> list[Claim]:
    """Whether the backward hook's maps are better at the nuclei than the plain ones, and than their blur."""
    of = [k for k in nuclei if k.attribution == attribution and k.layer != "input"]
    smooth, blur = ([k for k in of if k.method == "backward-hook" and k.control == c] for c in (None, BLUR))
    plain = [k for k in of if k.method == "none"]

    def mean(kinds: Sequence[MapKind]) -> Values:
        return np.mean([nuclei[k] for k in kinds], axis=0)

    return [
        Claim(f"(not in the paper) the backward hook finds tumour nuclei better than {than}", attribution,
              {"AUROC": paired(mean(smooth), mean(other))}, {"AUROC": True})
        for than, other in (("none", plain), ("a blur that is as smooth", blur))
    ]  # fmt: skip


def _less(found: Summary, amount: float) -> Summary:
    return replace(found, mean=found.mean - amount, low=found.low - amount, high=found.high - amount)


def _claims_on(scored: dict[MapKind, KindScores], attribution: Attribution) -> list[Claim]:
    of = [k for k in scored if k.attribution == attribution and not k.control]
    hidden = [k for k in of if k.layer != "input"]

    def mean(kinds: Sequence[MapKind], metric: str) -> Values:
        return np.mean([getattr(scored[k], metric) for k in kinds], axis=0)

    def against(a: Sequence[MapKind], b: Sequence[MapKind], *metrics: str) -> dict[str, Summary]:
        return {metric: paired(mean(a, metric), mean(b, metric)) for metric in metrics}

    def by(method: Method) -> list[MapKind]:
        return [k for k in hidden if k.method == method]

    cam = [k for k in scored if k.attribution == "gradcam" and not k.control and k.method == "none"]
    blurs = [replace(k, control=BLUR) for k in by("backward-hook")]
    rough = {"total_variation": False}
    return [
        Claim(
            "hidden layers score better than the input",
            f"{attribution}, mean of all methods",
            against(hidden, [k for k in of if k.layer == "input"], *FAITHFUL),
            FAITHFUL,
        ),
        Claim(
            "hidden layers score better than Grad-CAM",
            f"{attribution}, mean of all methods",
            against(hidden, cam, *FAITHFUL),
            FAITHFUL,
        ),
        *(
            Claim(
                f"the {method.replace('-', ' ')} lowers total variation",
                attribution,
                against(by(method), by("none"), "total_variation"),
                rough,
            )
            for method in SMOOTHING
        ),
        Claim(
            "the backward hook scores well: better than none",
            attribution,
            against(by("backward-hook"), by("none"), *FAITHFUL),
            FAITHFUL,
        ),
        Claim(
            "the forward hook is less faithful than the backward hook",
            attribution,
            against(by("backward-hook"), by("forward-hook"), *FAITHFUL),
            FAITHFUL,
        ),
        Claim(
            "(not in the paper) the backward hook is better than a blur that is as smooth",
            attribution,
            against(by("backward-hook"), blurs, *FAITHFUL),
            FAITHFUL,
        ),
    ]


# --------------------------------------------------------------------------------------------- page


def section(found: Found, pictures: str) -> str:
    """Write one study: claims, pictures and scores, as Markdown."""
    study = found.study
    p = summary(found.evaluation.prediction_difference["surrogate"])
    controls = [
        f"{s.kind.label} {_cell(found, s)}"
        for s in found.evaluation.scored
        if s.kind.control in ("random", "centred-gaussian")
    ]
    lines = [
        f"## {study.name}",
        "",
        f"{study.about[0].upper()}{study.about[1:]}. {found.evaluation.facts['step']} pixels a step.",
        "",
        f"The surrogate keeps the class on {found.agreement.mean():.1%} of the patches and changes the "
        f"target's probability by {p.mean:.3f} in the mean [{p.low:.3f}, {p.high:.3f}].",
        "",
        "| the paper says | measured on | difference [95 % interval] | |",
        "|---|---|---|---|",
        *(_claim_row(claim) for claim in claims(found)),
        "",
        *(f"![{title}]({pictures}{name}.png)\n" for name, title in PICTURES.items()),
        *(line for attribution in COMPARED for line in _table(found, attribution)),
        "",
        f"Controls: {', '.join(controls)} (insertion / deletion).",
    ]
    return "\n".join(lines)


PICTURES = {
    "scores": "Insertion and deletion by layer and method",
    "total-variation": "Total variation by layer",
}


def _claim_row(claim: Claim) -> str:
    shown = ", ".join(
        f"{name.replace('_', ' ')} {d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]".replace("-", "−")
        for name, d in claim.differences.items()
    )
    return f"| {claim.text} | {claim.where} | {shown} | **{claim.verdict}** |"


def _table(found: Found, attribution: Attribution) -> list[str]:
    """Scores of an attribution, a row for each layer: insertion / deletion, and the nuclei where known."""
    scored = {s.kind: s for s in found.evaluation.scored}
    kinds = [k for k in scored if k.attribution in (attribution, "gradcam") and not k.control]
    places = list(dict.fromkeys((k.attribution, k.layer, k.reduction) for k in kinds))
    what = "insertion / deletion" + (" / AUROC of the tumour's nuclei" if found.nuclei else "")
    rows = [
        f"\n{attribution}: {what}\n",
        f"| layer | {' | '.join(METHODS)} |",
        f"|---|{'---|' * len(METHODS)}",
    ]
    for a, layer, reduction in places:
        cells = [_cell(found, scored[MapKind(method, a, layer, reduction)]) for method in METHODS]
        name = f"{layer} (1/{reduction})" if a == attribution else f"Grad-CAM, {layer}"
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def _cell(found: Found, scored: KindScores) -> str:
    numbers = [scored.insertion.mean(), scored.deletion.mean()]
    if scored.kind in found.nuclei:
        numbers.append(np.nanmean(found.nuclei[scored.kind]))
    return " / ".join(f"{number:.3f}" for number in numbers)


INTRODUCTION = """# What the paper found, on photographs and drawn tissue

On real tissue: [results.md](results.md).

[Smooth Deep Saliency](https://arxiv.org/abs/2404.02282) says that maps of hidden layers score better than
those of the input and than Grad-CAM; that all three methods lower total variation; that the surrogate costs
little accuracy; that the backward hook scores well without training; and that the forward hook is smooth
but less faithful. Its networks and slides are not here; this is the same experiment on others, by `python
benchmarks/paper.py -o results --only photographs --patches 36` and `… --only drawn --step-rows 16`.

Differences are of the same patches, the means over the hidden layers but the last, behind which nothing is
smoothed. *Confirmed*: the 95 % interval of each difference named lies on the paper's side of 0. *Not
confirmed*: one lies wholly on the other side. Insertion is better high, deletion low. How the scores are
made: [evaluation.md](evaluation.md); all curves are those of the unmodified classifier.

With slides of Camelyon16, one command repeats the paper's experiment on MONAI's classifier (its surrogate
comes from `wsi-saliency train-surrogate SLIDES --model camelyon16 --balance metastasis`):

<!-- not run: needs the slides of Camelyon16 -->
```console
$ python benchmarks/paper.py -o results --model camelyon16 --surrogate surrogate.safetensors camelyon16/*.tif
```
"""


@click.command()
@click.argument("slides", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder of the full reports."
)
@click.option("--model", metavar="URI", help="Classifier for SLIDES.")
@click.option("--weights", type=click.Path(path_type=Path), help="Its weights, for timm:NAME.")
@click.option("--surrogate", type=click.Path(path_type=Path), help="Its surrogate; of Lite0 without SLIDES.")
@click.option("--patches", "n", type=int, help="Patches a study.  [default: 300; 48 of photographs]")
@click.option("--step-rows", default=8, show_default=True, help="Rows of a patch that make a step.")
@click.option("--only", type=click.Choice(["real", "photographs", "drawn"]), help="One of the studies.")
def main(
    slides: tuple[Path, ...],
    out: Path,
    model: str | None,
    weights: Path | None,
    surrogate: Path | None,
    n: int | None,
    step_rows: int,
    only: str | None,
) -> None:
    """Measure, and write docs/results-elsewhere.md, or results.md in the output folder for SLIDES."""
    if only == "real":
        on_real_tissue(REAL, out, n or 200, surrogate)
        return
    studies: dict[str, Callable[[], Study]]
    if slides:
        studies = {
            "slides": lambda: on_slides(model or "camelyon16", weights, surrogate, list(slides), n or 300)
        }
    else:
        studies = {
            "photographs": lambda: on_photographs(n or 48, surrogate),
            "drawn": lambda: on_drawn_tumour(n or 300),
        }
    for name, study in studies.items():
        if only in (None, name):
            write(measure(study(), step_rows), name, out)
    assemble(out, list(studies), out / "results.md" if slides else PAGE)


def assemble(out: Path, names: Sequence[str], page: Path) -> None:
    """Write the page from all studies, once all of them are there."""
    sections = [out / name / "section.md" for name in names]
    if not all(path.exists() for path in sections):
        return
    texts = [path.read_text() for path in sections]
    page.write_text("\n".join([INTRODUCTION, overview(out, names), *texts]))
    for name in names:
        for picture in PICTURES:
            target = page.with_name(f"results-{name}-{picture}.png")
            target.write_bytes((out / name / f"{picture}.png").read_bytes())


def write(found: Found, name: str, out: Path) -> None:
    """Write a study's full report, and its part of the page."""
    write_report(found.evaluation, out / name)
    (out / name / "section.md").write_text(section(found, f"results-{name}-") + "\n")
    verdicts = [[claim.text, claim.where, claim.verdict] for claim in claims(found)]
    (out / name / "claims.json").write_text(json.dumps(verdicts))


def overview(out: Path, names: Sequence[str]) -> str:
    """Put the verdicts of all studies side by side, as Markdown."""
    found: dict[tuple[str, str], list[str]] = {}
    for i, name in enumerate(names):
        for text, where, word in json.loads((out / name / "claims.json").read_text()):
            found.setdefault((text, where), ["–"] * len(names))[i] = word
    rows = [f"| {text} | {where} | {' | '.join(words)} |" for (text, where), words in found.items()]
    head = f"| | measured on | {' | '.join(names)} |\n|---|---|{'---|' * len(names)}"
    return "\n".join(["## In short", "", head, *rows, ""])


if __name__ == "__main__":
    main()
