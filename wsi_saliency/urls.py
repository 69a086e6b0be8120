"""Places in the file system and at URLs: what a text names, and what is said when a URL cannot be reached."""

from __future__ import annotations

import importlib.util
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import unquote, urlsplit
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
_SECRET = re.compile(r"(https?://[^\s?#'\"]*)[?#][^\s'\")]*", re.IGNORECASE)
_SIGNATURE = re.compile(
    r"(?<=[?&])(?:x-(?:amz|goog)-[^=&]*|sig|s[eprtv]|spr|expires|signature|key-pair-id|policy)=[^&#]*&?",
    re.IGNORECASE,
)
_BUSY = frozenset({408, 425, 429})  # answers of a server that may be others the next time
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


def unsigned(url: object) -> str:
    """Return what stays the same of a URL when it is signed anew: all but login and signature."""
    return _SIGNATURE.sub("", _USER.sub("", str(url))).rstrip("?&")


def name_of(place: object) -> str:
    """Return the last name of a path or a URL: of ``https://host/a%20b.svs?signature`` it is ``a b.svs``."""
    text = str(place)
    if not is_url(text):
        return Path(text).name
    if not text.lower().startswith("http"):
        return text.rstrip("/").rpartition("/")[2]
    last = re.split(r"[?#]", text, maxsplit=1)[0].rstrip("/").rpartition("/")[2]
    name = unquote(last)
    return last if name in ("", ".", "..") or re.search(r"[/\\\x00-\x1f]", name) else name


def home_of(place: Location) -> str:
    """Return where something is, for others who look for it: an absolute path, or a URL as `shown`."""
    return str(place.resolve()) if isinstance(place, Path) else shown(place)


def is_final(error: Exception) -> bool:
    """Whether a store would say the same again: there is no such thing, or it may not be read."""
    cause = _cause(error)
    status = getattr(cause, "status", None)
    if isinstance(status, int):
        return 400 <= status < 500 and status not in _BUSY
    kinds = (WsiSaliencyError, FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)
    return isinstance(cause, kinds) or "credentials" in str(cause).lower()


def _cause(error: BaseException) -> BaseException:
    """Return what is behind an error: fsspec says of all that HTTP cannot get that there is no such file."""
    behind = error.__cause__
    if not isinstance(error, FileNotFoundError) or behind is None:
        return error
    of_http = type(behind).__module__.partition(".")[0] == "aiohttp" or isinstance(behind, TimeoutError)
    return behind if of_http and getattr(behind, "status", None) != 404 else error


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
        # A traceback would show what libraries say of a URL, with its signature.
        raise error(f"{shown(place)}: {what} ({_reason(e)})") from (e if str(place) == shown(place) else None)


def _reason(error: BaseException) -> str:
    """Say why in one line; where a login is missing, what helps."""
    error = _cause(error)
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError):
        return "there is nothing of that name"
    if isinstance(error, PermissionError) or status in (401, 403):
        return "you may not; check the login, such as AWS_PROFILE or AWS_ACCESS_KEY_ID, and its rights"
    if isinstance(status, int):
        return one_line(f"the server answers {status} {getattr(error, 'message', '')}")
    if isinstance(error, TimeoutError):
        return "there is no answer"
    text = one_line(_SECRET.sub(r"\1", str(error))) or type(error).__name__
    if "credentials" in text.lower():
        return f"{text}; name a login, such as AWS_PROFILE or AWS_ACCESS_KEY_ID"
    return text
