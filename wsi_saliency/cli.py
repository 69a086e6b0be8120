"""The command line: options, messages and exit codes; everything else is imported when a command needs it."""

from __future__ import annotations

import logging
import math
import re
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from wsi_saliency.errors import SettingsError, WsiSaliencyError
from wsi_saliency.evaluation_settings import MAX_STABILITY_MPX, SCORE_ON, SUBSTRATES, EvaluationSettings
from wsi_saliency.interruption import interruptible
from wsi_saliency.messages import PrintableFormatter, printable
from wsi_saliency.settings import (
    ATTRIBUTIONS,
    DEFAULT_ATTRIBUTION,
    DEFAULT_LAYER,
    DEFAULT_METHOD,
    DEFAULT_MODEL,
    DEFAULT_OVERLAP,
    MAX_OVERLAP,
    MAX_PATCH,
    METHODS,
    OME_ZARR_VERSIONS,
    PRECISIONS,
    RunSettings,
    check_range,
)
from wsi_saliency.training_settings import TrainingSettings

if TYPE_CHECKING:
    from collections.abc import Callable

SOME_FAILED, INTERRUPTED = 1, 130
_Settings = TypeVar("_Settings", RunSettings, TrainingSettings, EvaluationSettings)


class _Command(click.Command):
    """A command that knows a long option with a single dash, which click takes for short ones.

    ``-model demo`` would be an unknown ``-m``, and ``-overlap 0.5`` an output folder ``verlap``.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        names = {name for option in self.get_params(ctx) for name in option.opts if name.startswith("--")}
        for arg in takewhile(lambda arg: arg != "--", args):
            if f"-{arg.partition('=')[0]}" in names:
                raise click.UsageError(f"No such option {arg!r}; did you mean -{arg}?", ctx)
        return super().parse_args(ctx, args)


class _Commands(click.Group):
    """A group whose commands end with one line instead of a traceback when a user error comes up."""

    command_class = _Command

    def invoke(self, ctx: click.Context) -> Any:
        _speak()
        with interruptible():
            try:
                return super().invoke(ctx)
            except WsiSaliencyError as e:
                raise click.ClickException(printable(str(e))) from e
            except KeyboardInterrupt as e:
                raise _interrupted(e, "nothing unfinished was left behind") from None


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 all done, 1 something failed (each failure is named), 2 wrong usage; "
    "interrupted: 130 by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.",
)
@click.version_option(package_name="wsi-saliency")
def cli() -> None:
    """Smooth hidden-layer saliency heatmaps of tumour classifiers over whole-slide images."""


class _Number(click.FloatRange):
    """A finite number in a range, with a decimal point."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse what float() takes and no range excludes (nan, inf), and a comma, which could mean 1000."""
        if isinstance(value, str) and re.fullmatch(r"[+-]?\d*,\d+", value.strip()):
            self.fail(f"{value!r} has a comma; write {value.strip().replace(',', '.')}", param, ctx)
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


class _Range(click.ParamType):  # type: ignore[type-arg]
    """Two numbers with a comma between them, the first below the second."""

    name = "range"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, float]:
        """Split the numbers and check them."""
        if isinstance(value, tuple):
            return value
        try:
            low, high = map(float, value.split(","))
            check_range(low, high)
        except (ValueError, SettingsError):
            self.fail(f"{value!r} is not LOW,HIGH with LOW below HIGH, such as 0,0.001", param, ctx)
        return low, high


def _examples(*lines: str) -> str:
    """Lines of a command's epilog that click must not join."""
    return "\n".join(["\b", "Examples:", *(f"  wsi-saliency {line}" for line in lines)])


def _model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that name a classifier, shared by all commands that load one."""
    for option in reversed(
        [
            click.option(
                "--weights",
                type=click.Path(path_type=Path),
                metavar="FILE",
                help="Weights for --model timm:NAME (safetensors or a PyTorch state dict).",
            ),
            click.option(
                "--model-mpp",
                type=_Number(min=0, min_open=True),
                metavar="UM",
                help="µm per pixel the classifier was trained at, where its file does not say.",
            ),
            click.option(
                "--patch",
                type=click.IntRange(8, MAX_PATCH),
                metavar="PX",
                help="Side of a patch in pixels at the classifier's resolution.  [default: the classifier's]",
            ),
        ]
    ):
        command = option(command)
    return command


_MODEL_HELP = "Classifier: demo, camelyon16, timm:NAME (with --weights) or a weights file."
_model = click.option("--model", default=DEFAULT_MODEL, show_default=True, metavar="URI", help=_MODEL_HELP)
_mpp = click.option(
    "--mpp",
    type=_Number(min=0, min_open=True),
    metavar="UM",
    help="µm per pixel of the slide, in place of what its file says.",
)
_overlap = click.option(
    "--overlap",
    type=_Number(0, MAX_OVERLAP),
    default=DEFAULT_OVERLAP,
    show_default=True,
    help="Share of a patch in common with the next, rounded so that patches lie differently on the network's "
    "strides; 0 for a quick preview.",
)
_tissue_threshold = click.option(
    "--tissue-threshold",
    type=_Number(0, 1),
    default=0.1,
    show_default=True,
    metavar="F",
    help="Explain patches of which at least this share is tissue.",
)
_batch = click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="Patches per pass; halved when they do not fit.  [default: by device]",
)
_workers = click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    metavar="N",
    help="Threads that read the slide.",
)
_device = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda[:i]|mps",
    help="Where the classifier runs; auto is a GPU where there is one.",
)
_precision = click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="auto",
    show_default=True,
    help="Number format of the classifier's arithmetic; auto is fp32.",
)
_target = click.option(
    "--target",
    metavar="NAME|INDEX",
    help="Class to explain.  [default: the single logit, or the one class called tumour]",
)


@cli.command(
    epilog=_examples(
        "run slide.svs --model demo",
        "run slides/ -o maps --layer layer3 --overlap 0.75",
        "run slide.tif --mpp 0.5 --model timm:resnet18 --weights weights.safetensors",
    )
)
@click.argument("slides", nargs=-1, required=True, metavar="SLIDE...")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("saliency"),
    show_default=True,
    help="Output folder; each slide gets a folder of its own in it.",
)
@_model
@_model_options
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default=DEFAULT_METHOD,
    show_default=True,
    help="How the checkerboard of strided convolutions is removed. centred-hook averages the gradient at "
    "every strided convolution, to all sides alike; predictions stay as they are. backward-hook, "
    "forward-hook and surrogate are those of the paper.",
)
@click.option(
    "--attribution",
    type=click.Choice(ATTRIBUTIONS),
    default=DEFAULT_ATTRIBUTION,
    show_default=True,
    help="What is computed from the layer's activation A and the logit y: gradient ∂y/∂A; "
    "gradient-x-activation A · ∂y/∂A; deeplift and integrated-gradients, the layer's share of y − y′ against "
    "a grey baseline; gradcam A · mean ∂y/∂A. Then the mean over channels.",
)
@click.option(
    "--signed",
    is_flag=True,
    default=False,
    help="Keep the sign of --attribution gradient, which is that of the layer's channels and cancels in "
    "coarser levels; else its magnitude is stored. The other attributions are always signed evidence.",
)
@click.option(
    "--layer",
    metavar="NAME|REDUCTION|last|input",
    help="Layer to explain: a module name (layer2), a reduction (8: the last stage at 1/8 of the patch's "
    f"resolution), the last stage, or the input.  [default: {DEFAULT_LAYER}; last for gradcam]",
)
@click.option(
    "--surrogate",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What train-surrogate has written, for --method surrogate.  [default: the one bundled for demo]",
)
@_target
@_overlap
@_mpp
@_tissue_threshold
@_batch
@_workers
@_device
@_precision
@click.option("--overwrite", is_flag=True, help="Replace complete results; otherwise they are kept.")
@click.option(
    "--ome-zarr",
    type=click.Choice(OME_ZARR_VERSIONS),
    default="0.4",
    show_default=True,
    help="OME-Zarr version; QuPath reads 0.4 only.",
)
@click.option(
    "--range",
    type=_Range(),
    metavar="LOW,HIGH",
    help="Values of the first and the last colour, so that slides can be compared.  "
    "[default: each slide's percentiles 1 and 99]",
)
@click.option("--quiet", is_flag=True, help="Say nothing but errors.")
@click.option("-v", "--verbose", is_flag=True, help="Say more, with tracebacks.")
def run(
    slides: tuple[str, ...], out: Path, overwrite: bool, quiet: bool, verbose: bool, **options: Any
) -> None:
    """Lay a hidden-layer saliency heatmap over each SLIDE (files, folders or patterns).

    Method, attribution, layer and overlap are by default those that were most faithful of all that are
    steady, on two real tumour classifiers: insertion − deletion 0.49, where a random map has 0.21.
    """
    _speak(quiet=quiet, verbose=verbose)
    settings = _settings(RunSettings, options)
    from wsi_saliency.workflows.batch import explain_slides
    from wsi_saliency.workflows.discovery import find_slides

    jobs = find_slides(slides)
    failures = []
    for outcome in explain_slides(jobs, out, settings, overwrite=overwrite, progress=not quiet):
        if outcome.failure is not None:
            failures.append(outcome.failure)
            if len(jobs) > 1:
                _echo(f"failed: {outcome.failure}", err=True)
        elif not quiet:
            _echo(_summary(outcome.job.slide, outcome.result))
    if failures:
        _report(failures, len(jobs))
        raise click.exceptions.Exit(SOME_FAILED)


@cli.command(epilog=_examples("inspect slide.svs --model demo"))
@click.argument("slide", type=click.Path(path_type=Path))
@click.option("--model", metavar="URI", help=f"{_MODEL_HELP}  [default: the figures of {DEFAULT_MODEL}]")
@_model_options
@_overlap
@_mpp
@_tissue_threshold
def inspect(slide: Path, model: str | None, **options: Any) -> None:
    """Say what a SLIDE is: format, size, levels, mpp and where it came from, tissue, patches of a run."""
    settings = _settings(RunSettings, options)
    from wsi_saliency.workflows.describe_slide import describe_slide

    _print(describe_slide(slide, settings, model))


@cli.command(
    "check-model",
    epilog=_examples("check-model demo", "check-model timm:resnet18 --weights weights.safetensors"),
)
@click.argument("uri", metavar="URI")
@_model_options
def check_model(uri: str, **options: Any) -> None:
    """Say what a classifier is: architecture, input, mpp, classes, strided convolutions, layers, hash."""
    settings = _settings(RunSettings, options)
    from wsi_saliency.workflows.describe_model import describe_model

    _print(describe_model(uri, settings))


@cli.command(
    "train-surrogate",
    epilog=_examples(
        "train-surrogate slides/ --model camelyon16 --balance metastasis -o surrogate.safetensors",
        "train-surrogate slide.svs --model timm:resnet18 --weights weights.safetensors --patches 4000",
    ),
)
@click.argument("slides", nargs=-1, required=True, metavar="SLIDE...")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("surrogate.safetensors"),
    show_default=True,
    metavar="FILE",
    help="File to write. FILE.checkpoint beside it lets an interrupted training continue.",
)
@_model
@_model_options
@click.option(
    "--patches",
    type=click.IntRange(min=2),
    default=TrainingSettings.patches,
    show_default=True,
    metavar="N",
    help="Patches to sample from tissue, evenly over the slides; a tenth of them is held out.",
)
@click.option(
    "--balance",
    metavar="NAME|INDEX",
    help="Class as which half of the patches shall be predicted.  [default: patches as they come]",
)
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    default=TrainingSettings.epochs,
    show_default=True,
    metavar="N",
    help="Passes over the patches.",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=TrainingSettings.batch,
    show_default=True,
    metavar="N",
    help="Patches per step.",
)
@click.option(
    "--lr",
    type=_Number(min=0, min_open=True),
    default=TrainingSettings.lr,
    show_default=True,
    metavar="F",
    help="Step size of Adam.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=TrainingSettings.seed,
    show_default=True,
    metavar="N",
    help="Decides which patches are taken, and their order.",
)
@_mpp
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=TrainingSettings.workers,
    show_default=True,
    metavar="N",
    help="Threads that read the slides.",
)
@click.option(
    "--device",
    default=TrainingSettings.device,
    show_default=True,
    metavar="auto|cpu|cuda[:i]|mps",
    help="Where the surrogate is trained; auto is a GPU where there is one.",
)
@click.option("--quiet", is_flag=True, help="Say nothing but errors.")
def train_surrogate(slides: tuple[str, ...], out: Path, quiet: bool, **options: Any) -> None:
    """Train the surrogate of a classifier, for run --method surrogate, on tissue of SLIDEs.

    Each strided convolution but the first gets a stand-in that learns its answers and looks at all pixels
    alike. Ends with how well predictions and layers are kept on patches held out.
    """
    _speak(quiet=quiet)
    settings = _settings(TrainingSettings, options)
    from wsi_saliency.workflows.discovery import find_slides
    from wsi_saliency.workflows.train import checkpoint_of, report, train_surrogate_on_slides

    paths = [job.slide for job in find_slides(slides)]
    try:
        surrogate = train_surrogate_on_slides(paths, out, settings, progress=not quiet)
    except KeyboardInterrupt as e:
        if checkpoint_of(out).exists():
            raise _interrupted(e, f"the same command continues from {checkpoint_of(out)}") from None
        raise
    if not quiet:
        _print([*report(surrogate), ("written", str(out))])


class _Names(click.ParamType):  # type: ignore[type-arg]
    """Several names, with commas between them; ``all`` is ``everything``, if not given the whole table."""

    name = "names"

    def __init__(self, table: tuple[str, ...] = (), everything: tuple[str, ...] | None = None) -> None:
        self.table = table
        self.everything = table if everything is None else everything

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Split the names and check them against the table, where there is one."""
        if isinstance(value, tuple):
            return value
        names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
        if self.table and names == ("all",):
            return self.everything
        for name in names:
            if self.table and name not in self.table:
                self.fail(f"{name!r} is not one of {', '.join(self.table)}", param, ctx)
        return names


@cli.command(
    epilog=_examples(
        "evaluate slide.svs --model demo --attributions gradient --layers 8 --patches 20",
        "evaluate slides/ --predicted-positive --annotations annotations/ --sanity -o evaluation",
    )
)
@click.argument("slides", nargs=-1, required=True, metavar="SLIDE...")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("evaluation"),
    show_default=True,
    help="Output folder; look at its index.html.",
)
@_model
@_model_options
@click.option(
    "--methods",
    type=_Names(METHODS, everything=()),
    default=(),
    metavar="all|LIST",
    help=f"Of {', '.join(METHODS)}; none is always among them. all: those there are for the classifier.  "
    "[default: all]",
)
@click.option(
    "--attributions",
    type=_Names(ATTRIBUTIONS),
    default=(),
    metavar="LIST",
    help=f"Of {', '.join(ATTRIBUTIONS)}.  [default: gradient,deeplift]",
)
@click.option(
    "--layers",
    type=_Names(),
    default=(),
    metavar="LIST",
    help="Module names, reductions, last, input.  [default: input,4,8,16,last]",
)
@click.option(
    "--surrogate",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What train-surrogate has written.  [default: the one bundled for demo]",
)
@_target
@click.option(
    "--patches",
    type=click.IntRange(min=1),
    default=EvaluationSettings.patches,
    show_default=True,
    metavar="N",
    help="Patches to sample from the tissue, evenly over the slides.",
)
@click.option(
    "--predicted-positive",
    is_flag=True,
    help="Sample only patches whose target probability is over one half.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=EvaluationSettings.seed,
    show_default=True,
    metavar="N",
    help="Decides which patches are taken, the random maps, and the random networks of --sanity.",
)
@click.option(
    "--annotations",
    type=click.Path(path_type=Path),
    metavar="FILE|FOLDER",
    help="What was drawn on the slide, or a folder with a file for each slide's name: QuPath GeoJSON, "
    "ASAP XML or Camelyon JSON. The slides' whole maps are compared with it.",
)
@click.option(
    "--annotation-class",
    "annotation_classes",
    multiple=True,
    metavar="NAME",
    help="Annotations that count; may be repeated.  [default: all]",
)
@click.option(
    "--annotation-scale",
    type=_Number(min=0, min_open=True),
    default=EvaluationSettings.annotation_scale,
    show_default=True,
    metavar="F",
    help="Pixels of the slide per pixel of the annotations.",
)
@click.option(
    "--sanity",
    is_flag=True,
    help="Randomise the classifier stage by stage; maps that do not change are flagged.",
)
@click.option(
    "--phase-moves",
    type=click.IntRange(min=0),
    default=EvaluationSettings.phase_moves,
    show_default=True,
    metavar="N",
    help="Moves of each patch by less than the network's total stride, after which its map should be the "
    "same; 0 for none.",
)
@click.option(
    "--stability-mpx",
    type=_Number(0, MAX_STABILITY_MPX),
    default=EvaluationSettings.stability_mpx,
    show_default=True,
    metavar="MPX",
    help="Size of the region of each slide that is mapped on two grids, at the classifier's resolution; "
    "0 for none.",
)
@click.option(
    "--score-on",
    type=click.Choice(SCORE_ON),
    default=EvaluationSettings.score_on,
    show_default=True,
    help="Score on the classifier as it is, or as each method changes it.",
)
@click.option(
    "--deletion-to",
    type=click.Choice(SUBSTRATES),
    default=EvaluationSettings.deletion_to,
    show_default=True,
    help="What deleted pixels become.",
)
@click.option(
    "--insertion-from",
    type=click.Choice(SUBSTRATES),
    default=EvaluationSettings.insertion_from,
    show_default=True,
    help="What pixels are inserted into.",
)
@click.option(
    "--step",
    type=click.IntRange(min=1),
    metavar="PIXELS",
    help="Pixels changed at a time.  [default: 8 × the patch's width]",
)
@_mpp
@_tissue_threshold
@_batch
@_workers
@_device
@_precision
@click.option("--overwrite", is_flag=True, help="Replace an evaluation that is there.")
@click.option("--quiet", is_flag=True, help="Say nothing but errors.")
def evaluate(slides: tuple[str, ...], out: Path, overwrite: bool, quiet: bool, **options: Any) -> None:
    """Say which maps of SLIDEs explain the classifier: faithful, smooth, stable, in the right place.

    Patches are sampled from the tissue and explained by every method × attribution × layer; pixels are then
    inserted and deleted in the order of each map. Maps that know nothing of the classifier are the controls.
    """
    _speak(quiet=quiet)
    settings = _settings(EvaluationSettings, options)
    from wsi_saliency.report.writing import findings
    from wsi_saliency.workflows.discovery import find_slides
    from wsi_saliency.workflows.evaluate import evaluate_slides

    paths = [job.slide for job in find_slides(slides)]
    evaluation = evaluate_slides(paths, out, settings, overwrite=overwrite, progress=not quiet)
    if not quiet:
        for sentence in findings(evaluation):
            _echo(f"- {sentence}")
        _echo(f"→ {out / 'index.html'}")


def _settings(kind: type[_Settings], options: dict[str, Any]) -> _Settings:
    """Put options together; those that do not go together are wrong usage."""
    try:
        return kind(**options)
    except SettingsError as e:
        raise click.UsageError(printable(str(e))) from e


def _interrupted(signal: KeyboardInterrupt, what: str) -> click.exceptions.Exit:
    """Say that the program was interrupted; return what ends it."""
    with suppress(OSError):  # the terminal may be gone
        _echo(f"Interrupted; {what}.", err=True)
    return click.exceptions.Exit(getattr(signal, "exit_code", INTERRUPTED))


def _echo(text: str, *, err: bool = False) -> None:
    click.echo(printable(text), err=err)


def _print(lines: list[tuple[str, str]]) -> None:
    for label, text in lines:
        _echo(f"{label:<14}{text}")


def _summary(slide: Path, result: Any) -> str:
    """One line on a slide that is done."""
    if result.kept:
        made = f", made with {', '.join(result.differences)}" if result.differences else ""
        return f"{slide}: complete result kept in {result.folder}{made}; --overwrite replaces it"
    patches, seconds = result.record["patches"], result.record["seconds"]["total"]
    counts = f"{patches['tissue']} of {patches['grid']} patches explained in {seconds:.0f} s"
    return f"{slide}: {counts} → {result.folder}"


def _report(failures: list[str], total: int) -> None:
    if total == 1:
        _echo(f"Error: {failures[0]}", err=True)
        return
    _echo(f"Error: {len(failures)} of {total} slides failed:", err=True)
    for failure in failures:
        _echo(f"  {failure}", err=True)


def _speak(*, quiet: bool = False, verbose: bool = False) -> None:
    """Send the program's warnings to stderr, in the words in which they were logged."""
    level = logging.ERROR if quiet else logging.DEBUG if verbose else logging.WARNING
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(levelname)s: %(message)s"))
    logger = logging.getLogger("wsi_saliency")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    # What tifffile logs about a damaged file, the program's own line says.
    logging.getLogger("tifffile").handlers[:] = [handler if verbose else logging.NullHandler()]


def main() -> None:
    """Run the command line."""
    cli(prog_name="wsi-saliency")


if __name__ == "__main__":
    main()
