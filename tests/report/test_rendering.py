from __future__ import annotations

from importlib import resources

import pytest
from jinja2 import ChoiceLoader, DictLoader, UndefinedError

from wsi_saliency.report.parts import Cell, Column, Group, Mark, Row, Table
from wsi_saliency.report.rendering import TEMPLATES, rendered

PAGE = """{% extends "base.html" %}
{% from "parts.html" import section %}
{% set sections = {"one": "First & only", "two": ""} %}
{% block title %}A slide{% endblock %}
{% block main %}
{% call section("one", sections) %}<p>{{ said }}</p>{% endcall %}
{% call section("two", sections) %}<p>{{ nothing_of_this_name }}</p>{% endcall %}
{% endblock %}"""


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the templates one more, ``made.html``."""
    assert TEMPLATES.loader is not None
    both = ChoiceLoader([DictLoader({"made.html": PAGE}), TEMPLATES.loader])
    monkeypatch.setattr(TEMPLATES, "loader", both)


def table(shown: Table) -> str:
    return str(TEMPLATES.get_template("parts.html").module.table(shown))


def page(said: object, subject: object = "slide.svs") -> str:
    return rendered("made.html", subject=subject, said=said)


@pytest.mark.usefixtures("made")
def test_another_page_has_only_to_say_what_is_its_own() -> None:
    shown = page("text")
    assert shown.startswith("<!DOCTYPE html>\n<html lang=")
    assert "<title>A slide slide.svs</title>" in shown
    assert "<h1>A slide</h1>" in shown
    assert shown.count("<a href=") == 1
    assert '<a href="#one">First &amp; only</a>' in shown
    assert (
        '<section aria-labelledby="one"><h2 id="one">First &amp; only</h2>\n<p>text</p>\n</section>' in shown
    )
    assert "default-src 'none'" in shown
    assert shown.endswith("</html>\n")


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize("name", ["page.css", "page.js"])
def test_style_and_script_are_in_the_page_as_they_are(name: str) -> None:
    """Braces of theirs would be taken for those of a template."""
    source = (resources.files("wsi_saliency.report") / "templates" / name).read_text(encoding="utf-8")
    assert len(source) > 1000
    assert source in page("text")


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("<a b='c'>", "&lt;a b=&#39;c&#39;&gt;"),
        ('"&', "&#34;&amp;"),
        ("\x00\udfff\x1b", "\ufffd" * 3),
        ("\r\x7f\x85\ufdd0\ufffe", "\ufffd" * 5),
        (0.5, "0.5"),
        ("a\tb\nc", "a\tb\nc"),
        ("{{ 7 * 7 }}", "{{ 7 * 7 }}"),
        ("\U0001f600ä", "\U0001f600ä"),
    ],
)
def test_any_text_is_escaped(value: object, expected: str) -> None:
    shown = page(value, subject=value)
    assert f"<p>{expected}</p>" in shown
    assert f'<p class="subject">{expected}</p>' in shown
    assert f"<title>A slide {expected}</title>" in shown


@pytest.mark.usefixtures("made")
def test_no_character_that_html_forbids_is_left() -> None:
    """As the standard defines text: no controls but white space, no noncharacters, no surrogates."""
    everything = "".join(map(chr, [*range(0x3000), *range(0xD800, 0xE000), *range(0xFD00, 0x10000)]))
    shown = set(page(everything))
    controls = {*range(0x20), *range(0x7F, 0xA0)} - {ord("\t"), ord("\n")}
    forbidden = controls | {*range(0xD800, 0xE000), *range(0xFDD0, 0xFDF0), 0xFFFE, 0xFFFF}
    assert not shown & set(map(chr, forbidden))
    assert shown >= set(everything) - set(map(chr, forbidden)) - set("\"&'<>")


@pytest.mark.usefixtures("made")
def test_what_is_not_given_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="said"):
        rendered("made.html", subject="slide.svs")


def test_a_table_shows_headings_groups_and_cells() -> None:
    columns = [Column("a & b"), Column("n", numeric=True, first=True, order="descending")]
    cell = Cell("–", float("nan"), "[low]", Mark("✗", "worse", "worse than <that>"))
    shown = table(
        Table(
            "t", columns, [Row([Cell("<x>", "x"), cell], '"<', "control")], [Group("", 1), Group("Group", 1)]
        )
    )
    head, body = shown.split("</thead>")
    assert '<div class="scroll" role="region" tabindex="0" aria-label="t table">\n<table id="t">' in head
    assert '<td colspan="1"></td>\n<th scope="colgroup" colspan="1">Group</th>' in head
    assert '<th scope="col" data-column="0"><button type="button">a &amp; b</button></th>' in head
    assert '<th scope="col" data-column="1" class="number first" aria-sort="descending">' in head
    assert '<tr class="control" data-names="&#34;&lt;">' in body
    assert '<th scope="row" data-value="x">&lt;x&gt;</th>' in body
    assert (
        '<td class="number first worse" data-value=""><span class="mark" aria-hidden="true">✗</span>–'
        '<span class="hidden-text"> worse than &lt;that&gt;</span><small>[low]</small></td>'
    ) in body


def test_a_table_without_groups_has_one_row_of_headings() -> None:
    shown = table(Table("t", [Column("a")], [Row([Cell("x", "x")])]))
    assert shown.count("<tr>") == 1
    assert '<tr data-names="">\n<th scope="row" data-value="x">x</th>\n</tr>' in shown
    assert "aria-sort" not in shown
