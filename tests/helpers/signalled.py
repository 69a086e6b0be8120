"""Grow a result that fails, again and again, each time with a signal at another moment.

``python -m tests.helpers.signalled FOLDER`` has a process of its own: a signal in the middle of a library may
leave that in a state in which nobody should go on.
"""

from __future__ import annotations

import itertools
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_saliency.errors import OutputError
from wsi_saliency.files import growing, locked
from wsi_saliency.interruption import Interruption, interruptible

if TYPE_CHECKING:
    from types import FrameType

WHERE = ("wsi_saliency", "filelock", "contextlib")
EVERY = 13  # lines of these
AT_LEAST = 500


def signalled(place: Path, moment: int) -> bool:
    """Send a signal at one of the lines that are executed; tell whether there were so many."""
    seen = itertools.count(1)
    sent = False

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal sent
        if not any(part in frame.f_code.co_filename for part in WHERE):
            return None
        if event == "line" and next(seen) == moment:
            sent = True
            sys.settrace(None)
            signal.raise_signal(signal.SIGTERM)
        return trace

    try:
        with interruptible():
            sys.settrace(trace)
            with locked(place / "new" / "out"), growing(place / "new" / "out") as work:
                (work / "map").write_text("half")
                raise OutputError("failed")
    except (OutputError, Interruption):
        return sent
    finally:
        sys.settrace(None)


def main(place: Path) -> None:
    """Try moments until there are no more; end at the first that leaves something."""
    for moment in itertools.count(1, EVERY):
        sent = signalled(place, moment)
        if left := sorted(place.rglob("*")):
            sys.exit(f"a signal at line {moment} leaves {left}")
        if not sent:
            break
    if moment < AT_LEAST:
        sys.exit(f"only {moment} lines were executed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
