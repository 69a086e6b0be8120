"""What the program says, and how it ends when it is interrupted."""

from __future__ import annotations

import logging
import sys
from contextlib import AbstractContextManager, nullcontext, suppress

import click

from wsi_saliency.messages import PrintableFormatter, printable

SOME_FAILED, INTERRUPTED = 1, 130  # exit codes


def echo(text: str, *, err: bool = False) -> None:
    """Print one line that cannot steer the terminal."""
    with _between_bars():
        click.echo(printable(text), err=err)


def _between_bars() -> AbstractContextManager[object]:
    """Let lines be written above the bars that are shown, if any are."""
    tqdm = sys.modules.get("tqdm")  # whoever shows a bar has imported it
    return tqdm.tqdm.external_write_mode() if tqdm else nullcontext()


class _AboveBars(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes records to stderr, above the bars."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        with _between_bars():
            super().emit(record)


def echo_table(lines: list[tuple[str, str]]) -> None:
    """Print labels with their texts beside them."""
    for label, text in lines:
        echo(f"{label:<14}{text}")


def interrupted(signal: KeyboardInterrupt, what: str) -> click.exceptions.Exit:
    """Say that the program was interrupted; return what ends it."""
    with suppress(OSError):  # the terminal may be gone
        echo(f"Interrupted; {what}.", err=True)
    return click.exceptions.Exit(getattr(signal, "exit_code", INTERRUPTED))


def speak(*, quiet: bool = False, verbose: bool = False) -> None:
    """Send the program's warnings to stderr, in the words in which they were logged."""
    level = logging.ERROR if quiet else logging.DEBUG if verbose else logging.WARNING
    handler = _AboveBars()
    handler.setFormatter(PrintableFormatter("%(levelname)s: %(message)s"))
    logger = logging.getLogger("wsi_saliency")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    # What tifffile logs about a damaged file, the program's own line says.
    logging.getLogger("tifffile").handlers[:] = [handler if verbose else logging.NullHandler()]
