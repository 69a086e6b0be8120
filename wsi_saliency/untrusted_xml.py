"""XML that others have written: the only place that parses it, for it can be made to harm."""

from __future__ import annotations

from typing import NoReturn
from xml.etree import ElementTree

MAX_BYTES = 2**28
"""Of a document; its tree takes about ten times as much memory."""

MAX_DEPTH = 200
"""Elements inside one another; OME-XML, ASAP and scanners write ten at most."""


class XmlError(ValueError):
    """XML is damaged, or such as no slide and no annotation needs; says so in words that follow "it"."""


def parse_xml(document: str | bytes) -> ElementTree.Element:
    """Parse a document of a file that somebody else has written.

    A document type is refused before its entities are declared, so that none can stand for more text than
    fits the memory, or for another file.

    Raises
    ------
    XmlError
        If it is no XML, has a document type, or is larger than `MAX_BYTES` or deeper than `MAX_DEPTH`.
    """
    if len(document) > MAX_BYTES:
        raise XmlError(f"is larger than {MAX_BYTES >> 20} MiB and is not read")
    try:
        root: ElementTree.Element = ElementTree.fromstring(
            document, parser=ElementTree.XMLParser(target=_GuardedBuilder())
        )
    except XmlError:
        raise
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # LookupError: an unknown encoding
        raise XmlError(f"is damaged ({error})") from error
    return root


class _GuardedBuilder(ElementTree.TreeBuilder):
    """Builds the tree of a document without a document type that is not too deep."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0

    def doctype(self, *_: str | None) -> NoReturn:
        raise XmlError("has a document type (DOCTYPE), which may declare harmful entities, and is not read")

    def start(self, tag: str, attrs: dict[str, str]) -> ElementTree.Element:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise XmlError(f"has elements more than {MAX_DEPTH} deep in one another and is not read")
        return super().start(tag, attrs)

    def end(self, tag: str) -> ElementTree.Element:
        self._depth -= 1
        return super().end(tag)
