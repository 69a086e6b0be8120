"""Round numbers for scale bars and colour bars."""

from __future__ import annotations

import math
from dataclasses import dataclass

_PLAIN_POWERS = range(-2, 4)  # of ten: numbers of this size are written out
_ROUNDING = 1e-9


def nice_number(largest: float) -> float:
    """Return the largest of 1, 2, 5, 10, 20, 50 … (or 0.5, 0.2 …) that is at most ``largest``."""
    power = 10.0 ** math.floor(math.log10(largest))
    # The logarithm of a number just below a power of ten is rounded up to it: the half of that is tried too.
    return max(step * power for step in (0.5, 1, 2, 5) if step * power <= largest)


def length_label(length_um: float) -> str:
    """Write a length in mm from 1 mm on, in µm below."""
    return f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"


def short_number(value: float) -> str:
    """Write a number with two digits in at most seven characters: ``−1.2e−4``."""
    text = f"{value:.1e}" if value and not 1e-3 <= abs(value) < 1e4 else f"{float(f'{value:.2g}'):g}"
    digits, _, power = text.partition("e")
    short = f"{digits.removesuffix('.0')}e{int(power)}" if power else digits
    return short.replace("-", "−")


@dataclass(frozen=True)
class Ticks:
    """Round values on an axis; the labels are to be multiplied with ``10**power``."""

    values: tuple[float, ...]
    labels: tuple[str, ...]
    power: int

    @classmethod
    def between(cls, low: float, high: float, most: int) -> Ticks:
        """Choose at most ``most`` (2 or more) in equal steps of 1, 2 or 5 times a power of ten."""
        shortest = (high - low) / (most - 1) * (1 - _ROUNDING)
        power_of_step = 10.0 ** math.floor(math.log10(shortest))
        step = min(n * power_of_step for n in (1, 2, 5, 10) if n * power_of_step >= shortest)
        numbers = range(math.ceil(low / step - _ROUNDING), math.floor(high / step + _ROUNDING) + 1)
        power = math.floor(math.log10(max(abs(low), abs(high))))
        power = 0 if power in _PLAIN_POWERS else power
        decimals = max(0, power - math.floor(math.log10(step * (1 + _ROUNDING))))
        labels = (f"{n * step / 10.0**power:.{decimals}f}".replace("-", "−") for n in numbers)
        return cls(tuple(n * step for n in numbers), tuple(labels), power)
