"""Places in the file system and at URLs: what a text names, and what is said when a URL cannot be reached."""

from __future__ import annotations

import importlib.util
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urlsplit
from urllib.request import url2pathname

from wsi_saliency.errors import SettingsError, WsiSaliencyError
from wsi_saliency.interruption import reraise_interruption
from wsi_saliency.messages import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upath import UPath

    Location: TypeAlias = Path | UPath

INSTALL = "pip install wsi-saliency[cloud]"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")  # one letter is a drive
_USER = re.compile(r"(?<=://)[^/@]*@")
_QUERY = re.compile(r"(?<=^http)(s?://[^?#]*)[?#].*", re.DOTALL | re.IGNORECASE)


def is_url(text: object) -> bool:
    """Whether a text names a place by a URL, such as ``s3://bucket/slides``."""
    return _SCHEME.match(str(text)) is not None


def located(text: str | Location) -> Location:
    """Return the place that a text names: a path, or where it is a URL, one that behaves like a path.

    Parameters
    ----------
    text
        A path or a URL; ``file://`` URLs become paths. Any kind of URL that fsspec knows is possible, where
        the package that it needs is installed.

    Raises
    ------
    SettingsError
        If nobody knows this kind of URL, a package for it is missing, or it leads upwards with ``..``.
    """
    if not isinstance(text, str):
        return text
    if not is_url(text):
        return Path(text)
    if ".." in text.split("/"):
        raise SettingsError(f"{shown(text)}: '..' cannot stand in a URL; name the folder itself")
    return _of_file_url(text) if text.lower().startswith("file:") else _reachable(text)


def shown(url: object) -> str:
    """Return a URL as it is shown and recorded: without a login before the host or a signature behind it."""
    return _QUERY.sub(r"\1", _USER.sub("", str(url)))


def _of_file_url(url: str) -> Path:
    parts = urlsplit(url, allow_fragments=False)
    if parts.netloc not in ("", "localhost"):
        raise SettingsError(f"{url}: names the computer {parts.netloc!r}; a file:// URL begins with file:///")
    return Path(url2pathname(parts.path))


def _reachable(url: str) -> Location:
    """Return the place at a URL; nothing is asked of it yet."""
    scheme = url.split("://", 1)[0].lower()
    if importlib.util.find_spec("upath") is None:
        raise SettingsError(f"{shown(url)}: what lies at URLs needs more packages: {INSTALL}")
    import fsspec
    from upath import UPath

    try:
        fsspec.get_filesystem_class(scheme)
        return UPath(scheme + url[len(scheme) :])
    except ImportError as error:  # whose message names the package
        raise SettingsError(
            f"{shown(url)}: {one_line(error)} ({INSTALL} has what s3:// and https:// need)"
        ) from None
    except ValueError:
        known = "s3://, gs://, az:// and https:// are some that can be reached"
        raise SettingsError(f"{shown(url)}: nobody knows {scheme}:// URLs here; {known}") from None


@contextmanager
def reaching(place: object, error: type[WsiSaliencyError], what: str) -> Iterator[None]:
    """Turn what goes wrong at a URL while the block runs into an error of one line.

    Parameters
    ----------
    place
        The URL, named by the error.
    error
        Of which kind it is.
    what
        What cannot be done there: ``"cannot be read"``.
    """
    try:
        yield
    except WsiSaliencyError:
        raise
    except Exception as e:  # each store has errors of its own
        reraise_interruption()
        raise error(f"{shown(place)}: {what} ({_reason(e)})") from e


def _reason(error: Exception) -> str:
    """Say why in one line; where a login is missing, what helps."""
    if isinstance(error, FileNotFoundError):
        return "there is nothing of that name"
    if isinstance(error, PermissionError):
        return "you may not; check the login, such as AWS_PROFILE or AWS_ACCESS_KEY_ID, and its rights"
    text = one_line(error) or type(error).__name__
    if "credentials" in text.lower():
        return f"{text}; name a login, such as AWS_PROFILE or AWS_ACCESS_KEY_ID"
    return text
