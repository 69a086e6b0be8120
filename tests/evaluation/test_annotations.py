from __future__ import annotations

import contextlib
import json
import logging
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.harmful_xml import BOMB, EXTERNAL
from tests.helpers.paths import ROOT
from wsi_saliency.errors import SettingsError
from wsi_saliency.evaluation import annotations as module
from wsi_saliency.evaluation.annotation_files import annotations_for, read_annotations
from wsi_saliency.evaluation.annotations import Annotations, Polygon
from wsi_saliency.geometry import Size

REAL = ROOT.parent / "shared" / "slides" / "Tumor_001.json"

SQUARE = [[10, 20], [30, 20], [30, 40], [10, 40], [10, 20]]
HOLE = [[15, 25], [20, 25], [20, 30], [15, 30], [15, 25]]
FAR = [[100, 100], [110, 100], [110, 120]]


def box(x, y, w, h):
    return np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]], float)


def annotations(*polygons, cut_outs=()):
    return Annotations(Path("slide.geojson"), tuple(polygons), tuple(cut_outs))


def written(folder, content, name="slide.json"):
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def feature(geometry_type, coordinates, identifier="1", **properties):
    geometry = {"type": geometry_type, "coordinates": coordinates}
    return {"type": "Feature", "id": identifier, "geometry": geometry, "properties": properties}


def collection(*features):
    return {"type": "FeatureCollection", "features": list(features)}


def asap(*annotations):
    """An ASAP file of (type, group, name, vertices), the vertices written in reverse, as Order says."""
    parts = []
    for kind, group, name, vertices in annotations:
        coordinates = [
            f'<Coordinate Order="{i}" X="{x}" Y="{y}" />' for i, (x, y) in reversed(list(enumerate(vertices)))
        ]
        parts.append(
            f'<Annotation Name="{name}" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58">'
            f"<Coordinates>{''.join(coordinates)}</Coordinates></Annotation>"
        )
    return (
        f'<?xml version="1.0"?><ASAP_Annotations><Annotations>{"".join(parts)}</Annotations>'
        '<AnnotationGroups><Group Name="Tumor" PartOfGroup="None" /></AnnotationGroups></ASAP_Annotations>'
    )


# --- files


def shapes(found):
    return [[ring.tolist() for ring in polygon.rings] for polygon in found.polygons]


@pytest.mark.parametrize(
    "wrapped",
    [
        collection,
        lambda f: [f],
        lambda f: f,
        lambda f: f["geometry"],
        lambda f: collection(f | {"geometry": {"type": "GeometryCollection", "geometries": [f["geometry"]]}}),
        lambda f: collection(feature("MultiPolygon", [f["geometry"]["coordinates"]])),
    ],
    ids=["collection", "bare list", "feature", "geometry", "geometry collection", "multipolygon"],
)
def test_geojson_comes_in_many_wrappings(tmp_path, wrapped):
    path = written(tmp_path, wrapped(feature("Polygon", [SQUARE, HOLE])))
    found = read_annotations(path)
    assert shapes(found) == [[SQUARE[:-1], HOLE[:-1]]]
    assert found.path == path
    assert found.polygons[0].rings[0].dtype == np.float64


def test_a_multipolygon_is_several_areas_of_one_class(tmp_path):
    multi = feature("MultiPolygon", [[SQUARE, HOLE], [FAR]], classification={"name": "Tumor"})
    found = read_annotations(written(tmp_path, collection(multi)))
    assert shapes(found) == [[SQUARE[:-1], HOLE[:-1]], [FAR]]
    assert [p.name for p in found.polygons] == ["Tumor", "Tumor"]


@pytest.mark.parametrize(
    ("properties", "name"),
    [
        ({"classification": {"name": "Tumor", "color": [200, 0, 0]}, "name": "nest 1"}, "Tumor"),
        ({"classification": {"name": "Tumor", "colorRGB": -3670016}}, "Tumor"),
        ({"classification": {"names": ["Tumor", "Positive"]}}, "Tumor: Positive"),
        ({"classification": "Tumor"}, "Tumor"),
        ({"classification": None, "name": "nest 1"}, "nest 1"),
        ({"classification": {"name": None}, "name": "nest 1"}, "nest 1"),
        ({"name": "nest 1"}, "nest 1"),
        ({}, None),
    ],
)
def test_the_class_of_a_qupath_object(tmp_path, properties, name):
    found = read_annotations(written(tmp_path, collection(feature("Polygon", [SQUARE], **properties))))
    assert found.polygons[0].name == name
    assert found.names == ((name,) if name else ())


def test_features_may_lack_almost_everything(tmp_path):
    bare = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [SQUARE]}, "properties": None}
    empty = {"type": "Feature", "geometry": None}
    found = read_annotations(written(tmp_path, collection(empty, bare, feature("MultiPolygon", []))))
    assert shapes(found) == [[SQUARE[:-1]]]


def test_what_is_no_drawn_area_is_skipped_in_one_line(tmp_path, caplog):
    path = written(
        tmp_path,
        collection(
            feature("Polygon", [SQUARE], objectType="annotation"),
            feature("Polygon", [SQUARE, HOLE], objectType="detection"),
            feature("Point", [1, 2]),
            feature("Point", [3, 4]),
            feature("LineString", [[1, 2], [3, 4]]),
            feature("Polygon", [FAR], objectType="tile"),
            feature("Polygon", [FAR], object_type="tma_core"),
            feature("Polygon", [FAR], identifier="PathTileObject"),
            feature("Polygon", []),
            feature("Polygon", [[[1, 2], [3, 4], [1, 2]]]),
        ),
    )
    with caplog.at_level(logging.WARNING):
        found = read_annotations(path)
    assert len(found.polygons) == 2
    skipped = "1 LineString, 2 Point, 2 empty, 1 pathtileobject, 1 tile, 1 tma_core"
    assert [r.getMessage() for r in caplog.records] == [
        f"{path}: skipped what is not a drawn area: {skipped}"
    ]


def test_rings_may_be_open_closed_and_three_dimensional(tmp_path):
    deep = [[x, y, 7] for x, y in SQUARE]
    found = read_annotations(
        written(tmp_path, [feature("Polygon", [r]) for r in (SQUARE, SQUARE[:-1], deep)])
    )
    assert shapes(found) == [[SQUARE[:-1]]] * 3


def test_camelyon_negatives_are_cut_out(tmp_path):
    content = {
        "positive": [{"name": "_0", "vertices": SQUARE[:-1]}, {"name": "_1", "vertices": FAR}],
        "negative": [{"name": "_2", "vertices": HOLE}],
    }
    found = read_annotations(written(tmp_path, content))
    assert shapes(found) == [[SQUARE[:-1]], [FAR]]
    assert [p.rings[0].tolist() for p in found.cut_outs] == [HOLE[:-1]]
    assert found.names == ("negative", "positive")
    mask = found.mask(40, 50, 0, 0, 1, 1)
    assert mask.sum() == 20 * 20 - 5 * 5
    assert not mask[27, 17]
    assert (found.only(["positive"]).mask(40, 50, 0, 0, 1, 1) == mask).all()
    assert found.only(["negative"]).mask(40, 50, 0, 0, 1, 1).sum() == 5 * 5


def test_asap_areas_and_their_classes(tmp_path, caplog):
    path = written(
        tmp_path,
        asap(
            ("Polygon", "Tumor", "Annotation 0", FAR),
            ("Spline", "None", "by hand", FAR),
            ("Rectangle", "", "", SQUARE[:-1]),
            ("Dot", "Tumor", "dot", FAR[:1]),
            ("PointSet", "Tumor", "points", FAR),
            ("Polygon", "Tumor", "slip", FAR[:2]),
        ),
        "slide.xml",
    )
    found = read_annotations(path)
    assert [p.name for p in found.polygons] == ["Tumor", "by hand", None]
    assert shapes(found) == [[FAR], [FAR], [SQUARE[:-1]]]
    assert caplog.messages == [f"{path}: skipped what is not a drawn area: 1 Dot, 1 PointSet, 1 empty"]


@pytest.mark.parametrize(
    ("tumour", "cut_out"), [("_0", "_2"), ("Tumor", "_2"), ("Tumor", "Exclusion"), ("metastases", "normal")]
)
def test_camelyons_groups_of_cut_outs(tmp_path, tumour, cut_out):
    areas = ("Polygon", tumour, "a", SQUARE), ("Polygon", cut_out, "b", HOLE)
    found = read_annotations(written(tmp_path, asap(*areas)))
    assert [p.name for p in found.polygons] == [tumour]
    assert [p.name for p in found.cut_outs] == [cut_out]
    assert found.mask(40, 50, 0, 0, 1, 1).sum() == 20 * 20 - 5 * 5


@pytest.mark.parametrize("group", ["_2", "normal", "Exclusion"])
def test_what_is_cut_out_of_nothing_is_an_area(tmp_path, group):
    areas = ("Polygon", group, "a", SQUARE), ("Polygon", "Stroma", "b", HOLE)
    found = read_annotations(written(tmp_path, asap(*areas)))
    assert len(found.polygons) == 2
    assert not found.cut_outs


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_and_suffixes_do_not_matter(tmp_path, encoding):
    tumour = json.dumps(collection(feature("Polygon", [SQUARE], name="Tumör")), ensure_ascii=False)
    xml = asap(("Polygon", "Tumör", "a", SQUARE)).replace(
        '"1.0"', f'"1.0" encoding="{encoding[:6].strip("-")}"'
    )
    for content in (" \n" * (encoding == "utf-8") + tumour, xml):
        path = written(tmp_path, content.encode(encoding), "slide.txt")
        assert read_annotations(path).names == ("Tumör",)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "neither JSON nor XML"),
        (b"\x1f\x8b\x08", "neither JSON nor XML"),
        (b"x,y\n1,2\n", "neither JSON nor XML"),
        (b'{"type": "FeatureCollection", "features": [', "Expecting"),
        (b'{"a": "\xff"}', "codec"),
        (b"[" * 100_000, "recursion"),
        ({"shapes": []}, "JSON of an unknown format"),
        ([{"label": "x", "coordinates": SQUARE}], "JSON of an unknown format"),
        ("<ASAP_Annotations><Annotations>", "no element found"),
        ("<Annotations MicronsPerPixel='0.5'></Annotations>", "XML of an unknown format (Annotations)"),
        ("<?xml version='1.0' encoding='nonsense'?><a/>", "encoding"),
        (feature("Polygon", [[[1, 2], [3, None], [5, 6]]]), "not finite numbers"),
        (feature("Polygon", [[[1, 2], [3], [5, 6]]]), "not pairs of numbers"),
        (feature("Polygon", [[1, 2, 3]]), "not pairs of numbers"),
        (feature("Polygon", [[[1, 2], [10**400, 4], [5, 6]]]), "not pairs of numbers"),
        (feature("Polygon", [[[1, 2], [float("nan"), 4], [5, 6]]]), "not finite numbers"),
        (feature("MultiPolygon", 5), "'5' stands where a list should be"),
        ({"positive": [{"name": "_0", "vertices": {"x": 1}}]}, "not pairs of numbers"),
        (asap(("Polygon", "a", "slip", [(1, "two")] * 3)), "annotation 'slip' has a Coordinate"),
    ],
)
def test_a_damaged_or_unknown_file_gets_one_line(tmp_path, content, says):
    path = written(tmp_path, content)
    with pytest.raises(SettingsError) as raised:
        read_annotations(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: ")
    assert says in message
    assert message.endswith("--annotations takes QuPath GeoJSON, ASAP XML and Camelyon JSON")
    assert "\n" not in message


@pytest.mark.parametrize(
    "content",
    [collection(), [], {"positive": [], "negative": []}, collection(feature("Point", [1, 2])), asap()],
)
def test_a_file_without_areas_says_so(tmp_path, content):
    with pytest.raises(SettingsError, match="no annotated area in it; --annotations needs polygons"):
        read_annotations(written(tmp_path, content))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(SettingsError, match=r"No such file or directory.*--annotations takes"):
        read_annotations(tmp_path / "none.json")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("harmful", [BOMB, EXTERNAL])
def test_entities_are_refused_before_they_are_declared(tmp_path, harmful, encoding):
    path = written(tmp_path, harmful.format(root="ASAP_Annotations").encode(encoding))
    with pytest.raises(SettingsError, match=r": its XML has a document type .* is not read; --annotations"):
        read_annotations(path)


words = ["Feature", "FeatureCollection", "GeometryCollection", "Polygon", "MultiPolygon", "Point", "x"]
keys = st.sampled_from(["type", "features", "geometry", "geometries", "coordinates", "positive", "vertices"])
values = st.none() | st.integers() | st.floats() | st.sampled_from(words)
documents = st.recursive(values, lambda inner: st.lists(inner) | st.dictionaries(keys, inner))


@given(documents, documents, st.sampled_from(words))
def test_any_json_is_refused_in_our_words_if_at_all(tmp_path_factory, one, other, kind):
    geometry = {"type": kind, "coordinates": one, "geometries": one}
    for document in (
        one,
        {"type": kind, "features": one},
        {"type": "Feature", "geometry": geometry, "properties": {"classification": other, "name": one}},
        {"positive": one, "negative": [{"vertices": other}]},
    ):
        path = written(tmp_path_factory.getbasetemp(), document, "any.json")
        with contextlib.suppress(SettingsError):
            assert read_annotations(path).polygons


# --- choosing, scaling, checking


def test_classes_are_chosen_whatever_their_case():
    found = annotations(Polygon((box(0, 0, 4, 4),), "Tumor"), Polygon((box(4, 0, 4, 4),), "Stroma"))
    assert [p.name for p in found.only([" tumor"]).polygons] == ["Tumor"]
    assert [p.name for p in found.only({"STROMA", "tumor"}).polygons] == ["Tumor", "Stroma"]
    assert found.only([]) is found


def test_an_unknown_class_lists_those_there_are():
    found = annotations(Polygon((box(0, 0, 4, 4),), "Tumor"), Polygon((box(4, 0, 4, 4),), "Stroma"))
    with pytest.raises(SettingsError) as raised:
        found.only(["Tumor", "Tumour"])
    assert str(raised.value) == (
        "slide.geojson: no area is of --annotation-class 'Tumour'; it has 'Stroma', 'Tumor'"
    )
    with pytest.raises(SettingsError, match="no names at all: leave --annotation-class out"):
        annotations(Polygon((box(0, 0, 4, 4),))).only(["Tumor"])


def test_scaling_moves_outlines_holes_and_cut_outs():
    found = annotations(
        Polygon((box(8, 8, 32, 32), box(16, 16, 8, 8)), "a"), cut_outs=[Polygon((box(32, 32, 8, 8),), "b")]
    )
    scaled = found.scaled(0.25)
    assert (scaled.mask(12, 12, 0, 0, 1, 1) == found.mask(12, 12, 0, 0, 4, 4)).all()
    assert scaled.mask(12, 12, 0, 0, 1, 1).sum() == 64 - 4 - 4
    assert scaled.names == ("a", "b")


@pytest.mark.parametrize("factor", [0, -1, float("nan"), float("inf")])
def test_a_scale_is_a_positive_number(factor):
    with pytest.raises(SettingsError, match="--annotation-scale"):
        annotations(Polygon((box(0, 0, 4, 4),))).scaled(factor)


@pytest.mark.parametrize(
    "outline", [box(-10, 0, 5, 5), box(0, -10, 5, 5), box(300, 995, 5, 15), box(595, 3, 15, 5)]
)
def test_outlines_may_reach_a_little_beyond_the_slide(outline):
    annotations(Polygon((outline,))).check_on(Size(600, 1000))


@pytest.mark.parametrize(
    "outline", [box(-11, 0, 5, 5), box(0, -11, 5, 5), box(300, 995, 5, 16), box(595, 3, 16, 5)]
)
@pytest.mark.parametrize("cut_out", [False, True])
def test_annotations_of_another_slide_are_refused(outline, cut_out):
    fits, stray = Polygon((box(5, 5, 9, 9),)), Polygon((outline,))
    found = annotations(fits, cut_outs=[stray]) if cut_out else annotations(fits, stray)
    with pytest.raises(
        SettingsError, match=r"^slide.geojson: .* 600 × 1000 px; .* --annotation-scale [^\n]*$"
    ):
        found.check_on(Size(600, 1000))


# --- the mask


def crossings(ring, x, y):
    """Edges of a closed ring that a ray from (x, y) to the left crosses, in exact arithmetic."""
    count = 0
    for (ax, ay), (bx, by) in zip(ring, [*ring[1:], ring[0]], strict=True):
        if (ay <= y) != (by <= y):
            count += (
                Fraction(ax) + (y - Fraction(ay)) * (Fraction(bx) - Fraction(ax)) / (by - Fraction(ay)) <= x
            )
    return count


def is_inside(polygon, x, y):
    outline, *holes = (ring.tolist() for ring in polygon.rings)
    return crossings(outline, x, y) % 2 == 1 and sum(crossings(hole, x, y) for hole in holes) % 2 == 0


def reference(found, width, height, x0, y0, fx, fy):
    """Test every centre against every polygon."""
    mask = np.zeros((height, width), bool)
    for j in range(height):
        for i in range(width):
            x, y = (
                Fraction(o) + (k + Fraction(1, 2)) * Fraction(f) for o, k, f in ((x0, i, fx), (y0, j, fy))
            )
            annotated = any(is_inside(p, x, y) for p in found.polygons)
            mask[j, i] = annotated and not any(is_inside(p, x, y) for p in found.cut_outs)
    return mask


quarters = st.integers(-20, 60).map(lambda n: n / 4)
rings = st.lists(st.tuples(quarters, quarters), min_size=3, max_size=9).map(lambda r: np.array(r, float))
polygons = st.lists(rings, min_size=1, max_size=3).map(lambda r: Polygon(tuple(r)))
several = st.lists(polygons, min_size=1, max_size=3)
origins = st.sampled_from([0, -1.5, 3.25])
cell_sizes = st.sampled_from([0.25, 0.5, 1, 2.5, 8])


@given(several, st.lists(polygons, max_size=1), origins, origins, cell_sizes, cell_sizes)
@settings(max_examples=150)
def test_the_mask_is_that_of_the_definition(areas, cut_outs, x0, y0, fx, fy):
    found = annotations(*areas, cut_outs=cut_outs)
    lattice = 13, 11, x0, y0, fx, fy
    assert (found.mask(*lattice) == reference(found, *lattice)).all()


@pytest.mark.parametrize("band", [1, 7, 100])
def test_bands_leave_no_seams(monkeypatch, band):
    rng = np.random.default_rng(band)
    found = annotations(Polygon((rng.uniform(-5, 45, (40, 2)), box(10, 10, 9, 9))))
    whole = found.mask(40, 40, 0, 0, 1, 1)
    monkeypatch.setattr(module, "_BAND_CELLS", band)
    assert (found.mask(40, 40, 0, 0, 1, 1) == whole).all()
    assert (whole == reference(found, 40, 40, 0, 0, 1, 1)).all()


@given(st.integers(0, 1000), st.integers(2, 6))
@settings(max_examples=60)
def test_areas_that_share_edges_share_out_the_cells(seed, n):
    """A crooked mesh covers each cell once, whichever way round its meshes go, at any coordinates."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(-1e5, 1e5, n), np.linspace(-1e5, 1e5, n))
    crooked = np.stack([x, y], axis=-1)
    crooked[1:-1, 1:-1] += rng.uniform(-2e4, 2e4, (n - 2, n - 2, 2))
    covered = np.zeros((30, 30), int)
    for i in range(n - 1):
        for j in range(n - 1):
            ring = crooked[[i, i, i + 1, i + 1], [j, j + 1, j + 1, j]][:: rng.choice([-1, 1])]
            covered += annotations(Polygon((ring,))).mask(30, 30, -9e4, -9e4, 6e3, 6e3)
    assert (covered == 1).all()


@pytest.mark.parametrize("n", [47, 49, 98, 99])
@pytest.mark.parametrize("step", [1, 3])
def test_centres_exactly_on_a_slope_are_on_its_right(n, step):
    """Row y of the triangle left of x = y · step has the cells 0 to y · step − 1: no rounding adds one."""
    triangle = np.array([[0, 0], [n * step, n], [0, n]], float)
    mask = annotations(Polygon((triangle,))).mask(n * step, n, -0.5, -0.5, 1, 1)
    assert (mask == (np.arange(n * step) < step * np.arange(n)[:, None])).all()


@pytest.mark.parametrize("turns", [255, 256, 257, 258])
def test_hundreds_of_crossings_in_one_place_do_not_overflow(turns):
    """An outline drawn over and over encloses its inside an odd or an even number of times."""
    once = annotations(Polygon((box(2, 2, 5, 5),))).mask(10, 10, 0, 0, 1, 1)
    mask = annotations(Polygon((np.tile(box(2, 2, 5, 5), (turns, 1)),))).mask(10, 10, 0, 0, 1, 1)
    assert (mask == (once if turns % 2 else False)).all()


def test_what_lies_off_the_lattice_is_left_out():
    around = [box(-9, 2, 5, 5), box(20, 2, 5, 5), box(2, -9, 5, 5), box(2, 20, 5, 5), box(4.6, 4.6, 0.8, 0.8)]
    assert not annotations(*(Polygon((b,)) for b in around)).mask(10, 10, 0, 0, 1, 1).any()
    assert annotations(Polygon((box(-99, -99, 999, 999),))).mask(10, 10, 0, 0, 1, 1).all()
    assert annotations(Polygon((box(0, 0, 5, 5),))).mask(0, 3, 0, 0, 1, 1).shape == (3, 0)


# --- files of slides


def test_a_folder_holds_one_file_of_a_slide(tmp_path):
    for name in ("one.geojson", "Two.JSON", "three.xml", "one.csv", "one_old.json"):
        (tmp_path / name).touch()
    (tmp_path / "one.json").mkdir()
    where = {"one": "one.geojson", "two": "Two.JSON", "Three": "three.xml"}
    for stem, name in where.items():
        assert annotations_for(Path("slides") / f"{stem}.svs", tmp_path) == tmp_path / name


def test_the_same_case_goes_first(tmp_path):
    for name in ("One.json", "one.xml"):
        (tmp_path / name).touch()
    if len(list(tmp_path.iterdir())) == 2:
        assert annotations_for(Path("one.svs"), tmp_path).name == "one.xml"


def test_a_file_is_taken_as_it_is(tmp_path):
    assert annotations_for(Path("one.svs"), tmp_path / "other.txt") == tmp_path / "other.txt"


def test_none_and_several_get_one_line(tmp_path):
    with pytest.raises(
        SettingsError, match=r"no annotations of one\.svs; --annotations .*\.geojson,\.json,\.xml"
    ):
        annotations_for(Path("one.svs"), tmp_path)
    for name in ("one.json", "one.geojson"):
        (tmp_path / name).touch()
    with pytest.raises(SettingsError, match=r"one\.geojson and one\.json are both of one\.svs"):
        annotations_for(Path("one.svs"), tmp_path)


# --- real files


def shoelace(ring):
    x, y = ring.T
    return abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2


def test_the_sample_slides_nests():
    found = read_annotations(ROOT / "sample_data" / "tumour_nests.geojson").only(["tumor"])
    found.check_on(Size(4608, 4096))
    area = sum(shoelace(p.rings[0]) for p in found.polygons)
    assert found.mask(1152, 1024, 0, 0, 4, 4).sum() * 16 == pytest.approx(area, rel=2e-3)


@pytest.mark.skipif(not REAL.exists(), reason="the file of Camelyon16's Tumor_001 is not here")
def test_camelyons_first_tumour():
    found = read_annotations(REAL)
    assert [len(p.rings[0]) for p in found.polygons] == [855, 1657]
    with pytest.raises(SettingsError, match="--annotation-scale"):
        found.check_on(Size(3072, 7168))
    scaled = found.scaled(1 / 32)
    scaled.check_on(Size(3072, 7168))
    area = sum(shoelace(p.rings[0]) for p in scaled.polygons)
    assert scaled.mask(3072, 7168, 0, 0, 1, 1).sum() == pytest.approx(area, rel=5e-3)
