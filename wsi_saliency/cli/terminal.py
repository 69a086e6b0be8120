"""What the program says, and how it ends when it is interrupted."""

from __future__ import annotations

import logging
from contextlib import suppress

import click

from wsi_saliency.messages import PrintableFormatter, printable

SOME_FAILED, INTERRUPTED = 1, 130  # exit codes


def echo(text: str, *, err: bool = False) -> None:
    """Print one line that cannot steer the terminal."""
    click.echo(printable(text), err=err)


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
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(levelname)s: %(message)s"))
    logger = logging.getLogger("wsi_saliency")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    # What tifffile logs about a damaged file, the program's own line says.
    logging.getLogger("tifffile").handlers[:] = [handler if verbose else logging.NullHandler()]
