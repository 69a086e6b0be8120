"""What workers say, shown in the one console: how far slides are, and log records."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wsi_saliency.engines.bars import NoBars
from wsi_saliency.engines.messages import Advanced, Begun, Logged, Unable

if TYPE_CHECKING:
    from wsi_saliency.engines.bars import Bars
    from wsi_saliency.engines.messages import Message


@dataclass
class Console:
    """Shows what workers say.

    Parameters
    ----------
    bars
        Shows how far slides are.
    """

    bars: Bars = field(default_factory=NoBars)
    _said: set[str] = field(default_factory=set, init=False)

    def show(self, place: str, message: Message) -> None:
        """Show what the worker of a place says.

        Raises
        ------
        ModelError, SettingsError, OutputError
            If it says that no slide can be done.
        """
        match message:
            case Begun(name, count, unit):
                self.bars.begin(place, name, count, unit)
            case Advanced(count):
                self.bars.advance(place, count)
            case Logged(record):
                self._log(record)
            case Unable(error):
                raise error

    def end(self, place: str) -> None:
        """Show that the slide of a place is done."""
        self.bars.end(place)

    def _log(self, record: logging.LogRecord) -> None:
        """Show a record as one of this process; what the classifier notes in each worker is said once."""
        text = f"{record.levelname} {record.getMessage()}"
        if record.levelno < logging.WARNING or text not in self._said:
            self._said.add(text)
            logging.getLogger(record.name).handle(record)
