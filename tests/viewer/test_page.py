"""The pages in a headless Chromium: what is drawn where, and what the controls change; skips without one."""

from __future__ import annotations

import json
import subprocess
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
const layerCanvas = () => document.getElementById("layer");
function pixels() {
  const { width, height } = layerCanvas();
  return layerCanvas().getContext("2d").getImageData(0, 0, width, height);
}
// Opacity that lies on the slide in all, and where its middle is, level-0 pixels.
function ink() {
  const { data, width, height } = pixels();
  let sum = 0, atX = 0, atY = 0;
  for (let i = 3, n = 0; i < data.length; i += 4, n++) {
    sum += data[i]; atX += data[i] * ((n % width) + 0.5); atY += data[i] * (Math.floor(n / width) + 0.5);
  }
  const box = viewer.viewport.getBounds(true), w = facts.slide.w;
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
const drawn = () => facts && viewer && viewer.world.getItemCount() && ink().sum;
async function settled() {
  for (let i = 0; i < 60 && !drawn(); i++) await pause(50);
}
"""

VIEW = """
addEventListener("load", async () => {
  const found = {};
  try {
    await settled();
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
    goTo(SPOT_X, SPOT_Y, 0.1, true);
    draw();
    found.colour = middle();
    document.getElementById("slide").dispatchEvent(new PointerEvent("pointermove", {
      clientX: layerCanvas().getBoundingClientRect().left + layerCanvas().clientWidth / 2,
      clientY: layerCanvas().getBoundingClientRect().top + layerCanvas().clientHeight / 2, bubbles: true }));
    found.pointer = document.getElementById("pointer").textContent;
    document.querySelector("#strongest button").click();
    await pause(1200);
    const centre = viewer.viewport.getCenter();
    found.jumped = [centre.x * facts.slide.w, centre.y * facts.slide.w];
    found.listed = document.querySelectorAll("#strongest li").length;
    key("2");
    found.second = document.getElementById("map").value;
    await pause(400);
    found.hash = location.hash;
    found.scale = document.getElementById("scale").textContent;
    const bar = document.getElementById("scale").getBoundingClientRect().width;
    found.um = (bar * magnification() * facts.slide.mpp_x);
    location.hash = "#map=0&opacity=0.25&x=300&y=200&z=1&colours=magnitudes";
    await pause(100);
    const back = viewer.viewport.getCenter();
    found.recalled = [state.map, state.opacity, state.scale, back.x * facts.slide.w, back.y * facts.slide.w];
    found.name = document.getElementById("name").textContent;
    found.asked = performance.getEntriesByType("resource").map((one) => new URL(one.name).origin);
    found.origin = location.origin;
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


def browse(url, folder, *options):
    """Open an address; other hosts than this machine are not found."""
    command = browser(folder / "profile")
    command += ["--hide-scrollbars", "--virtual-time-budget=15000", *options, url]
    subprocess.run(command, capture_output=True, timeout=240, check=True)


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
        browse(server.url, tmp_path_factory.mktemp("browser"), "--window-size=1280,800", "--dump-dom")
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


NAMED = """
addEventListener("load", async () => {
  const count = () => document.querySelectorAll("#results li").length;
  for (let i = 0; i < 60 && !count(); i++) await pause(50);
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
        browse(server.url, tmp_path, "--dump-dom")
    found = site.outcome
    assert found is not None
    assert [f for f in found["failures"] if "thumbnail.jpg" not in f] == []  # nobody has drawn an overview
    assert (found["all"], found["named"], found["none"]) == (2, 2, [0, "0 of 2"])
    assert "<img src=x onerror=alert(1)>" in found["texts"]
    assert found["images"] == 2
