"""The pages in a headless Chromium: what is drawn where, and what the controls change; skips without one."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import replace
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from tests.helpers.pages import HOSTILE, WATCH, browser
from tests.helpers.results import PLACEMENT, SIZE
from tests.helpers.viewed import planted, served, spot
from wsi_saliency.heatmap.colours import ColourScale
from wsi_saliency.viewer.site import Answer, Site

SPOT = 73, 47  # the strong cell
MARKS = [(200, 200), (1000, 600)]  # middles of black squares on the slide
SIDE = 60
TILES = [((64 * k, 128, 64, 64), (0.25,), (0, 0.1 * k)) for k in range(8)]

HEAD = WATCH.removeprefix("<script>").removesuffix("</script>")

ACT = """
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const encoded = (found) => encodeURIComponent(JSON.stringify({ ...found, failures }));
const report = (found) => fetch(`/TOKEN/outcome?${encoded(found)}`);
addEventListener("unhandledrejection", (event) => failures.push(String(event.reason)));
const layerCanvas = (pane = panes[0]) => pane.canvas;
function pixels(pane) {
  const { width, height } = layerCanvas(pane);
  return layerCanvas(pane).getContext("2d").getImageData(0, 0, width, height);
}
// Opacity that lies on the slide in all, and where its middle is, level-0 pixels.
function ink(pane = panes[0]) {
  const { data, width, height } = pixels(pane);
  let sum = 0, atX = 0, atY = 0;
  for (let i = 3, n = 0; i < data.length; i += 4, n++) {
    sum += data[i]; atX += data[i] * ((n % width) + 0.5); atY += data[i] * (Math.floor(n / width) + 0.5);
  }
  const box = pane.viewer.viewport.getBounds(true), w = facts.slide.w;
  const x = (box.x + (atX / sum / width) * box.width) * w;
  return { sum, x, y: (box.y + (atY / sum / height) * box.height) * w };
}
function middle() {
  const { data, width, height } = pixels();
  return [...data.slice(4 * (Math.floor(height / 2) * width + Math.floor(width / 2))).slice(0, 4)];
}
function set(id, value, event) {
  const control = document.getElementById(id);
  if (control.type === "checkbox") control.checked = value; else control.value = value;
  control.dispatchEvent(new Event(event));
}
const key = (name) => document.body.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
// Where the middle of what is black is drawn, level-0 pixels, in the left half of the slide and in the right.
function blackness(pane) {
  const { canvas } = pane.viewer.drawer, { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  const box = pane.viewer.viewport.getBounds(true), w = facts.slide.w;
  const sums = [[0, 0, 0], [0, 0, 0]];
  for (let i = 0, n = 0; i < data.length; i += 4, n++) {
    const black = data[i + 3] === 255 ? Math.max(0, 230 - data[i]) : 0;
    const x = (box.x + (((n % width) + 0.5) / width) * box.width) * w;
    const y = (box.y + ((Math.floor(n / width) + 0.5) / height) * box.height) * w;
    const half = sums[Number(x > w / 2)];
    half[0] += black; half[1] += black * x; half[2] += black * y;
  }
  return sums.map(([sum, x, y]) => [x / sum, y / sum]);
}
const held = (name) => new URLSearchParams(location.hash.slice(1)).get(name);
// How long something takes is a matter of the machine; what has not come after a minute is not to come.
async function until(what) {
  for (let i = 0; i < 6000; i++, await pause(10)) if (what()) return;
  throw new Error(`in vain: ${what}`);
}
// Whether all of the slide and of the map is here, and nothing moves.
function rests({ isOpen, layer, viewer }) {
  if (!isOpen || !viewer.world.getItemAt(0).getFullyLoaded()) return false;
  const [now, soon] = [true, false].map((current) => viewer.viewport.getBounds(current));
  return [...layer.tiles.values()].every((tile) => tile.values) && String(now) === String(soon);
}
const near = (a, b, by) => Math.abs(a - b) <= by;
function agree(one, other) {
  const far = centre(one).some((at, i) => !near(at, centre(other)[i], 1));
  return !far && near(one.magnification / other.magnification, 1, 0.001);
}
async function frames() {
  for (let i = 0; i < 4; i++) await new Promise(requestAnimationFrame);
}
// What was asked for is begun with the next frame, and drawn with one after it has come.
async function rested() {
  await frames();
  await until(() => panes.length && panes.every(rests) && panes.every((pane) => agree(pane, panes[0])));
  await frames();
}
function centre(pane = panes[0]) {
  const { x, y } = pane.viewer.viewport.getCenter(true);
  return [x * facts.slide.w, y * facts.slide.w];
}
function point(pane, shareX = 0.5, shareY = 0.5) {
  const { left, top, width, height } = layerCanvas(pane).getBoundingClientRect();
  const at = { clientX: left + shareX * width, clientY: top + shareY * height };
  pane.slide.dispatchEvent(new PointerEvent("pointermove", { ...at, bubbles: true }));
  return document.getElementById("pointer").textContent;
}
"""

VIEW = """
addEventListener("load", async () => {
  const found = {};
  try {
    await rested();
    found.whole = ink();
    set("opacity", 50, "input");
    found.half = ink().sum;
    set("opacity", 100, "input");
    set("threshold", 1000, "input");
    found.most = ink().sum;
    set("threshold", 500, "input");
    found.over = ink();
    set("threshold", 0, "input");
    set("high", 500, "input");
    found.steeper = ink().sum;
    set("high", 1000, "input");
    key("o");
    found.off = ink().sum;
    key("o");
    found.on = ink().sum;
    panes[0].goTo(SPOT_X, SPOT_Y, 0.1, true);
    await rested();
    found.colour = middle();
    found.pointer = point(panes[0]);
    const before = String(centre());
    document.querySelector("#strongest button").click();
    await until(() => String(centre()) !== before);
    await rested();
    found.jumped = centre();
    found.listed = document.querySelectorAll("#strongest li").length;
    key("2");
    found.second = document.getElementById("map").value;
    await until(() => held("map") === "1");
    found.hash = location.hash;
    found.scale = document.getElementById("scale").textContent;
    const bar = document.getElementById("scale").getBoundingClientRect().width;
    found.um = (bar * panes[0].magnification * facts.slide.mpp_x);
    location.hash = "#map=0&opacity=0.25&x=300&y=200&z=1&colours=magnitudes";
    await until(() => state.opacity === 0.25);
    await rested();
    found.recalled = [panes[0].shown.map, state.opacity, panes[0].shown.scale, ...centre()];
    found.name = document.getElementById("name").textContent;
    found.asked = performance.getEntriesByType("resource").map((one) => new URL(one.name).origin);
    found.origin = location.origin;
    found.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  } catch (error) { failures.push(String(error.stack)); }
  await report(found);
});
"""


BESIDE = """
addEventListener("load", async () => {
  const found = {};
  try {
    await rested();
    key("b");
    await rested();
    found.inks = panes.map((pane) => ink(pane));
    found.marks = panes.map(blackness);
    found.maps = panes.map((pane) => pane.shown.map);
    found.captions = panes.map((pane) => pane.caption.textContent);
    panes[0].goTo(300, 200, 0.5, true);
    await rested();
    found.led = panes.map((pane) => [...centre(pane), pane.magnification]);
    lead(panes[1]);
    panes[1].goTo(500, 250, 1, true);
    await rested();
    found.back = panes.map((pane) => [...centre(pane), pane.magnification]);
    panes[1].goTo(SPOT_X, SPOT_Y, 0.1, true);
    await rested();
    found.pointer = point(panes[1]);
    const at = (one) => one.getBoundingClientRect();
    const [from, cross] = [at(panes[0].canvas), at(panes[0].cross)];
    const [x, y] = [cross.left + cross.width / 2 - from.left, cross.top + cross.height / 2 - from.top];
    found.cross = [x / from.width, y / from.height];
    found.crossed = panes.map((pane) => !pane.cross.hidden);
    document.getElementById("second").click();
    const before = panes.map((pane) => JSON.stringify(pane.shown));
    set("threshold", 500, "input");
    set("colours", "magnitudes", "change");
    found.changed = panes.map((pane, i) => JSON.stringify(pane.shown) !== before[i]);
    panes[1].goTo(300, 200, 0.5, true);
    await until(() => held("below2") > 0 && near(held("x"), 300, 1));
    found.hash = location.hash;
    key("b");
    found.alone = [panes.length, document.querySelectorAll(".pane").length];
    location.hash = found.hash + "&x=300";
    await until(() => panes.length === 2);
    await rested();
    found.recalled = panes.map((pane) => [pane.shown.map, pane.shown.scale, pane.shown.threshold > 0]);
    set("beside", "", "change");
    found.closed = panes.length;
    set("beside", "0", "change");
    await rested();
    found.same = panes.map((pane) => pane.shown.map);
    found.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  } catch (error) { failures.push(String(error.stack)); }
  await report(found);
});
"""


class Watched(Site):
    """A site whose pages run scripts of a test, and tell it what they found."""

    outcome: dict | None = None

    def __init__(self, results, act):
        super().__init__(results)
        self._act = act.replace("TOKEN", self.token)

    def answer(self, address):
        path = urlsplit(address).path.removeprefix(f"/{self.token}/")
        if path in ("head.js", "act.js"):
            return Answer(200, "js", (HEAD if path == "head.js" else self._act).encode())
        if path == "outcome":
            self.outcome = json.loads(next(iter(parse_qs("x=" + urlsplit(address).query)["x"])))
            return Answer(200)
        answer = super().answer(address)
        if answer.kind != "html":
            return answer
        head, act = (f'<script src="/{self.token}/{name}.js"></script>' for name in ("head", "act"))
        page = answer.body.decode().replace("<head>", f"<head>{head}").replace("</body>", f"{act}</body>")
        return replace(answer, body=page.encode())


def browse(site, url, folder):
    """Open an address until the page's scripts have told the site what they found.

    In real time: in virtual time a browser may draw no frame at all, however long a script waits for one, and
    ends when the time is used up, at once.
    """
    command = [*browser(folder / "profile"), "--hide-scrollbars", "--remote-debugging-port=0"]
    with subprocess.Popen([*command, "--window-size=1280,800", url], stderr=subprocess.DEVNULL) as running:
        try:
            for _ in range(2400):
                if site.outcome is not None:
                    break
                time.sleep(0.1)
        finally:
            running.terminate()


def slide():
    rgb = np.full((SIZE.h, SIZE.w, 3), 245, np.uint8)
    for x, y in MARKS:
        rgb[y - SIDE // 2 : y + SIDE // 2, x - SIDE // 2 : x + SIDE // 2] = 0
    return rgb


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    maps = [spot(*SPOT), spot(10, 10)]
    folder = tmp_path_factory.mktemp("slides")
    return planted(folder, slide(), maps, [(box, p, (*s, *s)) for box, p, s in TILES])


@pytest.fixture(scope="module")
def found(result, tmp_path_factory):
    """What the page's own scripts, driven by the test's, have come to."""
    x, y = PLACEMENT.centre(*SPOT)
    act = ACT + VIEW.replace("SPOT_X", str(x)).replace("SPOT_Y", str(y))
    with Watched([result], act) as site, served(site) as server:
        browse(site, server.url, tmp_path_factory.mktemp("browser"))
    assert site.outcome is not None, "the page's scripts did not run to their end"
    return site.outcome


def test_nothing_fails_and_nobody_else_is_asked(found):
    assert found["failures"] == []
    assert set(found["asked"]) == {found["origin"]}
    assert found["wide"] <= 0


def test_a_spot_is_drawn_at_its_place(found):
    x, y = PLACEMENT.centre(*SPOT)
    assert abs(found["whole"]["x"] - x) < PLACEMENT.fx / 2
    assert abs(found["whole"]["y"] - y) < PLACEMENT.fy / 2


def test_the_sliders_change_pixels_at_once(found):
    whole = found["whole"]["sum"]
    assert found["half"] == pytest.approx(whole / 2, rel=0.05)
    assert 0 < found["most"] <= whole  # the largest value is not below itself
    assert found["over"]["sum"] == whole  # of a single cell
    assert found["steeper"] >= whole
    assert (found["off"], found["on"]) == (0, whole)


def test_a_cell_has_the_colour_of_the_scale(found):
    expected = ColourScale.diverging(1)(np.array([1.0], np.float32))[0]
    np.testing.assert_allclose(found["colour"], expected, atol=2)


def test_the_pointer_tells_position_and_value(found):
    x, y = (int(at) for at in PLACEMENT.centre(*SPOT))
    assert found["pointer"] == f"x {x}, y {y} · 1.00"


def test_the_strongest_patches_can_be_jumped_to(found):
    assert found["listed"] == len(TILES)
    assert found["jumped"] == pytest.approx([64 * 7 + 32, 128 + 32], abs=2)


def test_the_address_holds_what_is_shown(found):
    shown = {name: values[0] for name, values in parse_qs(found["hash"].removeprefix("#")).items()}
    assert (found["second"], shown["map"]) == ("1", "1")
    assert (float(shown["x"]), float(shown["y"])) == pytest.approx((64 * 7 + 32, 128 + 32), abs=2)


def test_an_address_brings_back_what_it_holds(found):
    assert found["recalled"][:3] == [0, 0.25, "magnitudes"]
    assert found["recalled"][3:] == pytest.approx([300, 200], abs=2)


def test_the_scale_bar_is_as_long_as_it_says(found):
    number, unit = found["scale"].split()
    assert float(number) * {"µm": 1, "mm": 1000}[unit] == pytest.approx(found["um"], rel=0.05)


@pytest.fixture(scope="module")
def beside(result, tmp_path_factory):
    """What the page comes to with two maps side by side."""
    x, y = PLACEMENT.centre(*SPOT)
    act = ACT + BESIDE.replace("SPOT_X", str(x)).replace("SPOT_Y", str(y))
    with Watched([result], act) as site, served(site) as server:
        browse(site, server.url, tmp_path_factory.mktemp("browser"))
    assert site.outcome is not None, "the page's scripts did not run to their end"
    return site.outcome


def test_two_maps_lie_side_by_side_each_over_the_slide(beside):
    assert beside["failures"] == []
    assert beside["maps"] == [0, 1]
    for ink, spot_of in zip(beside["inks"], [SPOT, (10, 10)], strict=True):
        assert (ink["x"], ink["y"]) == pytest.approx(PLACEMENT.centre(*spot_of), abs=PLACEMENT.fx / 2)
    for black in beside["marks"]:
        np.testing.assert_allclose(black, MARKS, atol=2)
    assert beside["captions"] == ["layer2.centred-hook.deeplift", "layer3.centred-hook.deeplift"]
    assert beside["wide"] <= 0


def test_two_views_show_the_same_place_whichever_is_moved(beside):
    for name, place in (("led", [300, 200, 0.5]), ("back", [500, 250, 1])):
        for shown in beside[name]:
            assert shown == pytest.approx(place, rel=0.01), name


def test_the_pointer_is_shown_in_the_other_view_with_both_values(beside):
    assert beside["pointer"].endswith(" · 1.00 · not computed")
    assert beside["crossed"] == [True, False]
    assert beside["cross"] == pytest.approx([0.5, 0.5], abs=0.01)


def test_controls_are_those_of_one_view_and_the_address_holds_both(beside):
    assert beside["changed"] == [False, True]
    assert beside["alone"] == [1, 1]
    assert beside["recalled"] == [[0, "diverging", False], [1, "magnitudes", True]]
    assert (beside["closed"], beside["same"]) == (1, [0, 0])


NAMED = """
addEventListener("load", async () => {
  const count = () => document.querySelectorAll("#results li").length;
  await until(count);
  const box = document.getElementById("words");
  const seen = () => [...document.querySelectorAll("#results li")].filter((item) => !item.hidden).length;
  const texts = document.getElementById("results").textContent;
  const found = { all: seen(), texts, images: document.images.length };
  box.value = "RESULT";
  box.dispatchEvent(new Event("input"));
  found.named = seen();
  box.value = "nothing of that";
  box.dispatchEvent(new Event("input"));
  found.none = [seen(), document.getElementById("shown").textContent];
  await report(found);
});
"""


def test_several_results_are_listed_and_found_whatever_they_are_called(result, tmp_path):
    hostile = replace(result, record=result.record | {"slide": result.record["slide"] | {"name": HOSTILE}})
    with Watched([result, hostile], ACT + NAMED) as site, served(site) as server:
        browse(site, server.url, tmp_path)
    found = site.outcome
    assert found is not None
    assert [f for f in found["failures"] if "thumbnail.jpg" not in f] == []  # nobody has drawn an overview
    assert (found["all"], found["named"], found["none"]) == (2, 2, [0, "0 of 2"])
    assert "<img src=x onerror=alert(1)>" in found["texts"]
    assert found["images"] == 2
