"""Errors a user can cause; every message is one line that names what is wrong and the option that helps."""

from __future__ import annotations


class WsiSaliencyError(Exception):
    """Base of all errors that the command line shows without a traceback."""


class SlideError(WsiSaliencyError):
    """A slide cannot be found, opened or read, or does not say how large its pixels are."""


class NoRoomForSlideError(SlideError):
    """A slide does not fit into the cache beside those that this process reads."""


class ModelError(WsiSaliencyError):
    """A classifier cannot be found, loaded or explained."""


class SettingsError(WsiSaliencyError):
    """A setting does not fit the slide or the classifier."""


class OutputError(WsiSaliencyError):
    """A result cannot be written."""


class NoRoomError(OutputError):
    """Nothing can be written where results go: it is full, a quota is used up, it is read-only or gone."""


class BusyError(OutputError):
    """Another run works on a result, and nobody wants to wait for it."""
