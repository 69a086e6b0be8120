from __future__ import annotations

import logging
import unicodedata
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_saliency.messages import PrintableFormatter, one_line, printable, storable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]0;title\x07.svs", r"\x1b[2J\x1b]0;title\x07.svs"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x9b31m", r"\x9b31m"),
        ("gnp.\u202esvs", r"gnp.\u202esvs"),
        ("\u2028\udcff", r"\u2028\udcff"),
        ("Ünïcödé µm × 切片 ❤ → a\u00a0b", "Ünïcödé µm × 切片 ❤ → a\u00a0b"),
    ],
)
def test_controls_are_shown_and_all_else_stays(text, shown):
    assert printable(text) == shown


@given(st.text(st.characters()))
def test_nothing_that_steers_a_terminal_remains(text):
    shown = printable(text)
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cs", "Zl", "Zp"}
    assert not {unicodedata.bidirectional(c) for c in shown} & {
        "RLO",
        "LRO",
        "RLE",
        "LRE",
        "RLI",
        "LRI",
        "FSI",
    }
    shown.encode()
    assert printable(shown) == shown


def test_log_records_are_one_line_and_tracebacks_several():
    formatter = PrintableFormatter("%(levelname)s: %(message)s")
    record = logging.LogRecord("x", logging.WARNING, "", 0, "%s: bad", ("a\x1b\nb",), None)
    assert formatter.format(record) == r"WARNING: a\x1b\nb: bad"
    try:
        raise ValueError("\x1b[2J")
    except ValueError as error:
        record.exc_info = (type(error), error, error.__traceback__)
    lines = formatter.format(record).splitlines()
    assert lines[1].startswith("Traceback")
    assert lines[-1] == r"ValueError: \x1b[2J"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (" a\n\tb  c\r\n", "a b c"),
        ("\x1b[31mred\x07\n\u202eline", r"\x1b[31mred\x07 \u202eline"),
        ("", ""),
        (ValueError("no\nway"), "no way"),
        ("x" * 300, "x" * 300),
        ("x" * 301, "x" * 299 + "…"),
        ("\x1b" * 10**7, "\\x1b" * 74 + "\\x1…"),
    ],
)
def test_words_of_others_are_one_short_line(text, line):
    assert one_line(text) == line


def test_files_hold_no_controls_and_no_halves_of_characters():
    assert storable("a\x01\tb\n\x7f\x85\udcff\ufffe") == "a" + "\ufffd" * 2 + "b" + "\ufffd" * 5
    assert storable("Ünï\u202e µ 切片 \U0001f9ec <&>") == "Ünï\u202e µ 切片 \U0001f9ec <&>"


@given(st.text(st.characters()))
def test_what_is_storable_is_text_that_xml_holds(text):
    stored = storable(text)
    assert len(stored) == len(text)
    assert storable(stored) == stored
    assert ElementTree.fromstring(f"<a>{escape(stored)}</a>").text == (stored or None)
