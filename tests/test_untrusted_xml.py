from __future__ import annotations

import pytest

from tests.helpers.harmful_xml import BOMB, EXTERNAL, EXTERNAL_SUBSET, PARAMETER
from wsi_saliency import untrusted_xml
from wsi_saliency.untrusted_xml import MAX_DEPTH, XmlError, parse_xml


@pytest.mark.parametrize("harmful", [BOMB, EXTERNAL, EXTERNAL_SUBSET, PARAMETER])
@pytest.mark.parametrize("encoding", [None, "utf-8", "utf-16", "latin-1"])
def test_a_document_type_is_refused_before_anything_is_declared(harmful, encoding):
    document = harmful.format(root="a")
    if encoding:
        document = document.replace("?>", f' encoding="{encoding}"?>', 1).encode(encoding)
    with pytest.raises(XmlError, match=r"^has a document type \(DOCTYPE\)"):
        parse_xml(document)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("", "no element found"),
        ("<a><b></a>", "mismatched tag"),
        ("<a>&b;</a>", "undefined entity"),
        ("<a>\ud800</a>", "surrogates not allowed"),
        (b"<?xml version='1.0' encoding='nonsense'?><a/>", "unknown encoding"),
        (b"<?xml version='1.0' encoding='rot13'?><a/>", "encoding"),
        ("<a>\x1b</a>", "invalid token"),
    ],
)
def test_what_is_damaged_is_said_in_one_printable_line(document, words):
    with pytest.raises(XmlError, match=f"^is damaged .*{words}") as raised:
        parse_xml(document)
    assert str(raised.value).isprintable()


def test_depth_is_bounded():
    def nested(n):
        return "<a>" * n + "</a>" * n

    beside = "<b>" + "<a/>" * (2 * MAX_DEPTH) + "</b>"
    assert len(parse_xml(beside)) == 2 * MAX_DEPTH
    assert sum(1 for _ in parse_xml(nested(MAX_DEPTH)).iter()) == MAX_DEPTH
    with pytest.raises(XmlError, match=f"more than {MAX_DEPTH} deep"):
        parse_xml(nested(MAX_DEPTH + 1))


def test_size_is_bounded(monkeypatch):
    monkeypatch.setattr(untrusted_xml, "MAX_BYTES", 2**20)
    document = "<a>" + "x" * (2**20 - 7) + "</a>"
    assert len(parse_xml(document).text) == 2**20 - 7
    with pytest.raises(XmlError, match="larger than 1 MiB"):
        parse_xml(f"{document} ")


def test_a_tree_is_that_of_the_document():
    root = parse_xml('<?xml version="1.0"?><a xmlns="n"><b x="&lt;&#181;">t</b>u<b/><!-- c --></a>')
    assert [element.tag for element in root.iter()] == ["{n}a", "{n}b", "{n}b"]
    assert (root[0].get("x"), root[0].text, root[0].tail) == ("<µ", "t", "u")
