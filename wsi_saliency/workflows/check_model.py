"""Whether a classifier can be trusted with maps: all that can be said of it, as facts."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from wsi_saliency.errors import SettingsError
from wsi_saliency.files import check_file, replacing
from wsi_saliency.models.loading import load_chosen
from wsi_saliency.report.patch_sheet import patch_sheet
from wsi_saliency.saliency.engine import choose_device
from wsi_saliency.urls import shown
from wsi_saliency.workflows.canvas import wanted_mpp
from wsi_saliency.workflows.describe_model import describe_model
from wsi_saliency.workflows.facts import Fact, note, warning
from wsi_saliency.workflows.pictures import read_pictures
from wsi_saliency.workflows.sampling import sample_located
from wsi_saliency.workflows.scores import score_facts, scored
from wsi_saliency.workflows.trust import batch_facts, drawn, precision_fact

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path, PurePath

    import torch
    from numpy.typing import NDArray

    from wsi_saliency.models.classifier import Classifier
    from wsi_saliency.settings import ModelCheckSettings
    from wsi_saliency.workflows.pictures import Pictures
    from wsi_saliency.workflows.scores import Scored

    Patches = NDArray[np.uint8]

_MPP_TOLERANCE = 0.1
_LISTED = 5


def check_model(settings: ModelCheckSettings, sheet: Path | None = None) -> list[Fact]:
    """Load a classifier, describe it and try it out, on patches if the settings name some.

    Parameters
    ----------
    settings
        The classifier, and where patches are.
    sheet
        File to which a picture of the patches by score is written, PNG.

    Raises
    ------
    ModelError
        If the classifier cannot be loaded, does not give logits, or lacks the class that is asked for.
    SettingsError, SlideError, OutputError
        If there are no such patches, the slide cannot be read, or the sheet not be written as PNG.
    """
    has_patches = settings.pictures is not None or settings.slide is not None
    if sheet is not None:
        if not has_patches:
            raise SettingsError(f"a sheet ({sheet}) needs patches; give --patches FOLDER or --slide SLIDE")
        if sheet.suffix.lower() != ".png":
            raise SettingsError(f"out (-o) is {sheet}; it has to end in .png")
        check_file(sheet)
    device = choose_device(settings.device)
    classifier = load_chosen(settings)
    facts = describe_model(classifier, settings.model, settings.target)
    if has_patches:
        return facts + _on_patches(classifier, settings, device, sheet)
    with _moved(classifier, device):
        facts += batch_facts(classifier, drawn(classifier.patch), device)
    text = "fp32; other formats are compared on patches of yours (--patches, --slide)"
    return [*facts, Fact("precision", text, {"recommended": "fp32", "formats": {}})]


def _on_patches(
    classifier: Classifier, settings: ModelCheckSettings, device: torch.device, sheet: Path | None
) -> list[Fact]:
    """Try a classifier on patches of a folder or of a slide."""
    target = classifier.target_index(settings.target)
    patches, folders, facts = _patches(classifier, settings)
    with _moved(classifier, device):
        found, speed = scored(classifier, patches, target, folders, device, settings.batch)
        facts += [*score_facts(found, classifier.class_names[target]), speed]
        facts += batch_facts(classifier, patches, device)
    targets = () if settings.target is None else (settings.target,)
    facts.append(precision_fact(classifier, patches, targets, device))
    if sheet is not None:
        title = f"{settings.model}: patches by score of {classifier.class_names[target]}"
        _write_sheet(sheet, patches, found, title)
        facts.append(Fact("sheet", str(sheet), str(sheet)))
    return facts


@contextmanager
def _moved(classifier: Classifier, device: torch.device) -> Iterator[None]:
    """Have a network on a device for a while."""
    try:
        classifier.module.to(device)
        yield
    finally:
        classifier.module.cpu()


def _patches(
    classifier: Classifier, settings: ModelCheckSettings
) -> tuple[Patches, Sequence[PurePath], list[Fact]]:
    """Return patches, the folder of each if they are pictures, and what is to be said of them."""
    if settings.pictures is not None:
        read = read_pictures(settings.pictures, classifier.patch, settings.sample, settings.seed)
        return read.patches, read.folders, picture_facts(classifier, settings.pictures, read)
    assert settings.slide is not None
    located = sample_located(
        [settings.slide],
        classifier,
        settings.sample,
        seed=settings.seed,
        mpp=settings.mpp,
        workers=settings.workers,
        cache=settings,
    )
    n, mpp = len(located.patches), wanted_mpp(classifier)
    value = {"source": shown(settings.slide), "taken": n, "found": n, "sizes": [], "mpp": [mpp, mpp]}
    text = f"{n} from the tissue of {shown(settings.slide)}, at {mpp:g} µm/px"
    return located.patches, [], [Fact("patches", text, value)]


def picture_facts(classifier: Classifier, folder: Path, read: Pictures) -> list[Fact]:
    """Say which pictures were taken, and what is wrong with their size or their µm per pixel."""
    sizes = [{"width": w, "height": h, "pictures": n} for (w, h), n in read.sizes.most_common()]
    mpps = [min(read.mpps), max(read.mpps)] if read.mpps else None
    n = len(read.patches)
    shown = ", ".join(f"{w} × {h} px ({k})" for (w, h), k in read.sizes.most_common(_LISTED))
    value = {"source": str(folder), "taken": n, "found": read.found, "sizes": sizes, "mpp": mpps}
    facts = [Fact("patches", f"{n} of {read.found} pictures of {folder}: {shown}", value)]
    side = classifier.patch
    larger = n - read.sizes[side, side]
    if larger:
        facts.append(
            warning(f"{larger} of {n} pictures are larger than a patch of {side} px; their middle is taken")
        )
    if read.left_out:
        names = "; ".join(read.left_out[:_LISTED]) + ("; …" if len(read.left_out) > _LISTED else "")
        facts.append(warning(f"{len(read.left_out)} pictures are left out: {names}"))
    return facts + _mpp_facts(classifier, read)


def _mpp_facts(classifier: Classifier, read: Pictures) -> list[Fact]:
    wanted = wanted_mpp(classifier)
    if not read.mpps:
        return [note(f"the pictures do not say their µm per pixel; the classifier wants {wanted:g}")]
    off = [mpp for mpp in read.mpps if abs(mpp / wanted - 1) > _MPP_TOLERANCE]
    if not off:
        return []
    return [
        warning(
            f"{len(off)} of {len(read.patches)} pictures say {np.median(off):.3g} µm per pixel, and the "
            f"classifier wants {wanted:g}: what it says of them means little"
        )
    ]


def _write_sheet(file: Path, patches: Patches, found: Scored, title: str) -> None:
    captions = [folder.name for folder in found.folders] or [""] * len(patches)
    drawing = patch_sheet(patches, found.of_target, captions, found.wrong, title)
    with replacing(file) as work:
        drawing.save(work, "PNG")
