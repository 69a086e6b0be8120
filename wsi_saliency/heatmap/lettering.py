"""Text in pictures: fonts, what they cannot draw, what is too long."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from wsi_saliency.messages import storable

INK, FAINT_INK = "#1c1c22", "#6b6b75"
_NO_CHARACTER = "\uffff"
_BOX = "□"


@cache
def font(px: float, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which knows µ, · and the letters of most alphabets, at a height of ``px``.

    The font comes with matplotlib, which is not imported for it: that takes longer than the drawing.
    """
    package = find_spec("matplotlib")
    folder = Path(package.origin or "").parent if package else Path()
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(folder / "mpl-data" / "fonts" / "ttf" / name), px)


def drawable(text: str, face: ImageFont.FreeTypeFont) -> str:
    """Put a box for each character that the font cannot draw."""
    unknown = bytes(face.getmask(_NO_CHARACTER))
    known = {c: c.isspace() or bytes(face.getmask(c)) != unknown for c in set(storable(text))}
    return "".join(c if known[c] else _BOX for c in storable(text))


def shortened(text: str, face: ImageFont.FreeTypeFont, width: float) -> str:
    """Leave out the middle of a text that is longer than ``width`` pixels."""
    if face.getlength(text) <= width:
        return text
    fits, too_many = 0, len(text) // 2
    while too_many - fits > 1:
        half = (fits + too_many) // 2
        if face.getlength(_ends(text, half)) <= width:
            fits = half
        else:
            too_many = half
    return _ends(text, fits)


def _ends(text: str, half: int) -> str:
    return f"{text[:half]}…{text[len(text) - half :]}"


def lettered(text: str, face: ImageFont.FreeTypeFont, width: float) -> str:
    """Make a text one that can be drawn within ``width`` pixels."""
    return shortened(drawable(text, face), face, width)


def upright(text: str, face: ImageFont.FreeTypeFont) -> Image.Image:
    """Draw a text that is read from below upwards, as a mask (mode L)."""
    left, top, right, bottom = face.getbbox(text)
    mask = Image.new("L", (max(1, round(right - left)), max(1, round(bottom - top))))
    ImageDraw.Draw(mask).text((-left, -top), text, fill=255, font=face)
    return mask.transpose(Image.Transpose.ROTATE_90)
