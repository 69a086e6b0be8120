"""Pictures of a folder as patches for a classifier; what does not fit it is said. Free of torch."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from wsi_saliency.errors import SettingsError
from wsi_saliency.messages import one_line

if TYPE_CHECKING:
    from pathlib import Path, PurePath

    from numpy.typing import NDArray

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_LARGEST_SIDE = 8192  # pixels; what is larger is a slide, and would only fill memory
_UM_PER_INCH = 25_400
_COARSEST_MPP = 20  # what is coarser says how large it is to be printed, not what it was taken with
_DEEP = ("I", "F")  # modes of pictures of more than eight bits, which no classifier of bytes has seen


class Picture(NamedTuple):
    """A picture that was read: its patch (P, P, 3), RGB, its own size, and its mpp if it says one."""

    patch: NDArray[np.uint8]
    size: tuple[int, int]
    mpp: float | None


@dataclass(frozen=True)
class Pictures:
    """Patches (N, P, P, 3), RGB, from pictures of a folder.

    Parameters
    ----------
    patches
        The middle of each picture.
    folders
        Folder of each, below the one that was asked for.
    found
        Pictures that there are, of which some may not have been looked at.
    sizes
        How many pictures have which width and height.
    mpps
        µm per pixel of those that say it.
    left_out
        What was looked at and not taken: name and reason.
    """

    patches: NDArray[np.uint8]
    folders: list[PurePath]
    found: int
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    mpps: tuple[float, ...] = ()
    left_out: tuple[str, ...] = ()


def read_pictures(folder: Path, patch: int, most: int, seed: int = 0) -> Pictures:
    """Read pictures of a folder and of those below it, ``most`` of them, by chance.

    Of larger pictures the middle is taken: pixels keep their size. Smaller ones are left out.

    Parameters
    ----------
    folder
        Where PNG, JPEG and TIFF files are.
    patch
        Side of a patch in pixels.
    most, seed
        How many are taken if there are more, and what decides which.

    Raises
    ------
    SettingsError
        If there is no such folder, or no picture in it that can be used.
    """
    if not folder.is_dir():
        raise SettingsError(f"--patches {folder} is no folder; name one with PNG, JPEG or TIFF pictures")
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
    order = np.random.default_rng(seed).permutation(len(files))[:most]
    taken: list[tuple[Picture, PurePath]] = []
    left_out: list[str] = []
    for file in (files[i] for i in sorted(order.tolist())):
        try:
            taken.append((read_picture(file, patch), file.relative_to(folder).parent))
        except (OSError, ValueError, SyntaxError) as error:  # Pillow's ways to say that a file is damaged
            left_out.append(f"{one_line(file.name)} ({one_line(error)})")
    if not taken:
        reason = f"; {left_out[0]}" if left_out else f" among its files ({', '.join(SUFFIXES)})"
        raise SettingsError(f"--patches {folder} has no picture that can be used{reason}")
    pictures = [picture for picture, _ in taken]
    return Pictures(
        np.stack([picture.patch for picture in pictures]),
        [below for _, below in taken],
        len(files),
        Counter(picture.size for picture in pictures),
        tuple(picture.mpp for picture in pictures if picture.mpp is not None),
        tuple(left_out),
    )


def read_picture(file: Path, patch: int) -> Picture:
    """Read the middle ``patch`` × ``patch`` pixels of a picture.

    Raises
    ------
    OSError, ValueError, SyntaxError
        If it is damaged, smaller, far larger, or has more than eight bits.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged metadata, and of sizes, which are checked here
        try:
            return _opened(file, patch)
        except UnidentifiedImageError as error:
            raise ValueError("not a picture, or damaged") from error
        except Image.DecompressionBombError as error:
            raise ValueError("a slide rather than a patch: see --slide") from error


def _opened(file: Path, patch: int) -> Picture:
    with Image.open(file) as image:
        w, h = image.size
        if max(w, h) > _LARGEST_SIDE:
            raise ValueError(f"{w} × {h} px is a slide rather than a patch: see --slide")
        if min(w, h) < patch:
            raise ValueError(f"{w} × {h} px is smaller than a patch of {patch} px")
        if image.mode.startswith(_DEEP):
            raise ValueError("more than eight bits a colour")
        left, top = (w - patch) // 2, (h - patch) // 2
        pixels = np.asarray(image.convert("RGB").crop((left, top, left + patch, top + patch)))
        return Picture(pixels, (w, h), _mpp_of(image))


def _mpp_of(image: Image.Image) -> float | None:
    """µm per pixel, if the resolution of the file is a microscope's and not a printer's."""
    dots: Any = image.info.get("dpi")
    try:
        per_inch = float(dots[0] if isinstance(dots, tuple) else dots)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    mpp = _UM_PER_INCH / per_inch if per_inch > 0 else _COARSEST_MPP
    return mpp if mpp < _COARSEST_MPP else None
