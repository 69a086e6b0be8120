"use strict";

const byId = (name) => document.getElementById(name);
const STEPS = 1000; // of the sliders of values
const state = { map: 0, target: 0, scale: "", low: 0, high: 1, threshold: 0, opacity: 1, visible: true, pale: false };
let facts, viewer, layer, tables, writing;

// Texts come from files of others: they are only ever set as text.
function element(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

const figure = (value) => value.toPrecision(3).replace("-", "−");

function notice(text) {
  byId("notices").hidden = false;
  byId("notices").append(element("li", text));
}

// ------------------------------------------------------------------------------------------ what is shown

function decoded(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Uint32Array(bytes.buffer);
}

const map = () => facts.maps[state.map];

// The values between which the sliders move.
function bounds() {
  const [lowest, highest, start, end] = map().windows[state.target];
  return [Math.min(lowest, start), Math.max(highest, end)];
}

// Colours, low and high as they are used: those of signed values reach as far on both sides of 0.
function scale() {
  const limit = Math.max(Math.abs(state.low), Math.abs(state.high)) || 1e-30;
  if (state.scale === "diverging") return [-limit, limit];
  return state.low < state.high ? [state.low, state.high] : [state.low, state.low + 1e-30];
}

function chooseMap(number, target) {
  state.map = number;
  state.target = target;
  state.scale = map().signed ? "diverging" : "magnitudes";
  const [, , start, end] = map().windows[target];
  Object.assign(state, { low: start, high: end, threshold: 0, visible: !facts.targets[target].dark });
  applyMap();
}

function applyMap() {
  layer.show(map(), state.map, state.target);
  const said = facts.targets[state.target];
  byId("said").textContent = said.summary + (said.dark ? " · the map is off at first: no patch is positive" : "");
  listStrongest();
  apply();
}

function apply() {
  const [low, high] = scale();
  layer.colour(tables[state.scale], low, high, state.threshold);
  showControls(low, high);
  draw();
  remember();
}

function draw() {
  if (!viewer.world.getItemCount()) return;
  const box = viewer.viewport.getBounds(true);
  const w = facts.slide.w;
  layer.draw({ x: box.x * w, y: box.y * w, w: box.width * w, h: box.height * w }, state.visible ? state.opacity : 0);
  showScale();
}

function resize() {
  const canvas = byId("layer");
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(canvas.clientWidth * ratio);
  canvas.height = Math.round(canvas.clientHeight * ratio);
  draw();
}

// Level-0 pixels per pixel of the page.
const magnification = () => (viewer.viewport.getBounds(true).width * facts.slide.w) / byId("layer").clientWidth;

// ------------------------------------------------------------------------------------------- the controls

function showControls(low, high) {
  const [lowest, highest] = bounds();
  const position = (value) => Math.round((STEPS * (value - lowest)) / (highest - lowest));
  byId("map").value = state.map;
  byId("target").value = state.target;
  byId("colours").value = state.scale;
  byId("low").value = position(state.low);
  byId("high").value = position(state.high);
  byId("low").disabled = state.scale === "diverging";
  byId("low-value").textContent = figure(low);
  byId("high-value").textContent = figure(high);
  byId("threshold").value = Math.round((STEPS * state.threshold) / Math.max(Math.abs(lowest), Math.abs(highest)));
  byId("threshold-value").textContent = state.threshold ? figure(state.threshold) : "nothing";
  byId("opacity").value = Math.round(100 * state.opacity);
  byId("opacity-value").textContent = `${Math.round(100 * state.opacity)} %`;
  byId("visible").checked = state.visible;
  byId("pale").checked = state.pale;
  byId("slide").classList.toggle("pale", state.pale);
  const table = tables[state.scale];
  const strip = new ImageData(256, 1);
  const pixels = new Uint32Array(strip.data.buffer);
  for (let i = 0; i < 256; i++) pixels[i] = table[Math.round((i * (table.length - 1)) / 255)];
  byId("bar").getContext("2d").putImageData(strip, 0, 0);
}

function listenToControls() {
  const on = (name, event, act) => byId(name).addEventListener(event, (e) => act(e.target));
  on("map", "change", (select) => chooseMap(Number(select.value), state.target));
  on("target", "change", (select) => chooseMap(state.map, Number(select.value)));
  on("visible", "change", (box) => { state.visible = box.checked; apply(); });
  on("pale", "change", (box) => { state.pale = box.checked; apply(); });
  on("colours", "change", (select) => { state.scale = select.value; apply(); });
  on("opacity", "input", (slider) => { state.opacity = slider.value / 100; apply(); });
  for (const name of ["low", "high"]) {
    on(name, "input", (slider) => {
      const [lowest, highest] = bounds();
      state[name] = lowest + (slider.value / STEPS) * (highest - lowest);
      apply();
    });
  }
  on("threshold", "input", (slider) => {
    state.threshold = (slider.value / STEPS) * Math.max(...bounds().map(Math.abs));
    apply();
  });
}

function fillControls() {
  document.title = facts.name;
  byId("name").textContent = facts.name;
  byId("back").hidden = facts.alone;
  for (const text of facts.notices) notice(text);
  const option = (text, value) => Object.assign(element("option", text), { value });
  byId("map").append(...facts.maps.map((one, i) => option(one.name, i)));
  byId("target").append(...facts.targets.map((one, i) => option(one.name, i)));
  byId("colours").append(option("violet to yellow", "magnitudes"), option("blue to red", "diverging"));
}

function listStrongest() {
  const rows = map().strongest[state.target].map((patch) => {
    const button = element("button", `${figure(patch.value)} · probability ${patch.probability.toPrecision(3)}`);
    button.addEventListener("click", () => goTo(patch.x + patch.w / 2, patch.y + patch.h / 2, (2.5 * patch.w) / byId("layer").clientWidth));
    const item = document.createElement("li");
    item.append(button);
    return item;
  });
  byId("strongest").replaceChildren(...rows);
  byId("strongest-title").hidden = !rows.length;
}

// Puts a position, level-0 pixels, into the middle, with so many level-0 pixels in a pixel of the page.
function goTo(x, y, perPixel, immediately = false) {
  const { w } = facts.slide;
  const wide = (perPixel * byId("layer").clientWidth) / w;
  const high = (perPixel * byId("layer").clientHeight) / w;
  viewer.viewport.fitBounds(new OpenSeadragon.Rect(x / w - wide / 2, y / w - high / 2, wide, high), immediately);
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=range], select, summary")) return;
  const port = viewer.viewport;
  const pan = (x, y) => port.panBy(new OpenSeadragon.Point(x, y).times(0.2 * port.getBounds().width));
  const keys = {
    ArrowLeft: () => pan(-1, 0), ArrowRight: () => pan(1, 0), ArrowUp: () => pan(0, -1), ArrowDown: () => pan(0, 1),
    "+": () => port.zoomBy(1.5), "=": () => port.zoomBy(1.5), "-": () => port.zoomBy(1 / 1.5), 0: () => port.goHome(),
    o: () => { state.visible = !state.visible; apply(); },
    p: () => { state.pale = !state.pale; apply(); },
  };
  const number = Number(event.key);
  if (number >= 1 && number <= facts.maps.length) chooseMap(number - 1, state.target);
  else if (keys[event.key]) keys[event.key]();
  else return;
  port.applyConstraints();
  event.preventDefault();
}

// -------------------------------------------------------------------------------- what is said of the place

function point(event) {
  const frame = byId("layer").getBoundingClientRect();
  const at = viewer.viewport.pointFromPixel(new OpenSeadragon.Point(event.clientX - frame.left, event.clientY - frame.top), true);
  const [x, y] = [at.x * facts.slide.w, at.y * facts.slide.w];
  const inside = x >= 0 && y >= 0 && x < facts.slide.w && y < facts.slide.h;
  const found = layer.valueAt(x, y, magnification() / (window.devicePixelRatio || 1));
  const value = !found ? "" : found.value === 0 ? " · not computed" : ` · ${found.level ? "about " : ""}${figure(found.value)}`;
  byId("pointer").textContent = inside ? `x ${Math.floor(x)}, y ${Math.floor(y)}${value}` : "";
}

function showScale() {
  const umPerPixel = magnification() * facts.slide.mpp_x;
  const power = 10 ** Math.floor(Math.log10(140 * umPerPixel));
  const length = Math.max(...[1, 2, 5].map((n) => n * power).filter((um) => um <= 140 * umPerPixel));
  byId("scale").style.width = `${length / umPerPixel}px`;
  byId("scale-length").textContent = length >= 1000 ? `${length / 1000} mm` : `${Number(length.toPrecision(3))} µm`;
}

// ------------------------------------------------------------------------------------------ the address

function remember() {
  clearTimeout(writing);
  writing = setTimeout(() => {
    const centre = viewer.viewport.getCenter();
    const shown = {
      x: Math.round(centre.x * facts.slide.w), y: Math.round(centre.y * facts.slide.w), z: magnification().toPrecision(4),
      map: state.map, target: state.target, colours: state.scale, low: state.low.toPrecision(4), high: state.high.toPrecision(4),
      below: state.threshold.toPrecision(4), opacity: state.opacity, on: Number(state.visible), pale: Number(state.pale),
    };
    history.replaceState(null, "", `#${new URLSearchParams(shown)}`);
  }, 250);
}

function recall() {
  const shown = new URLSearchParams(location.hash.slice(1));
  const number = (name, otherwise) => (shown.has(name) && Number.isFinite(Number(shown.get(name))) ? Number(shown.get(name)) : otherwise);
  const among = (name, count) => Math.min(Math.max(0, Math.floor(number(name, 0))), count - 1);
  chooseMap(among("map", facts.maps.length), among("target", facts.targets.length));
  if (shown.get("colours") in tables) state.scale = shown.get("colours");
  Object.assign(state, {
    low: number("low", state.low), high: number("high", state.high), threshold: number("below", 0),
    opacity: Math.min(Math.max(0, number("opacity", 1)), 1), visible: Boolean(number("on", state.visible)), pale: Boolean(number("pale", 0)),
  });
  apply();
  if (shown.has("x") && shown.has("y") && number("z", 0) > 0) goTo(number("x", 0), number("y", 0), number("z", 1), true);
}

// ------------------------------------------------------------------------------------------------ start

function source() {
  const { w, h } = facts.slide;
  if (!facts.tiles) return { type: "image", url: "slide.jpg" };
  const { size, min_level: minLevel, max_level: maxLevel } = facts.tiles;
  const getTileUrl = (level, x, y) => `slide/${level}/${x}_${y}.jpg`;
  return { width: w, height: h, tileSize: size, minLevel, maxLevel, getTileUrl };
}

function start(found) {
  facts = found;
  tables = { magnitudes: decoded(facts.scales.magnitudes), diverging: decoded(facts.scales.diverging) };
  fillControls();
  layer = new MapLayer(byId("layer"), facts.map_tile, draw);
  viewer = OpenSeadragon({
    element: byId("slide"), tileSources: source(), drawer: "canvas", showNavigationControl: false, showNavigator: true,
    navigatorPosition: "TOP_RIGHT", navigatorSizeRatio: 0.16, animationTime: 0.5, maxZoomPixelRatio: 8,
    visibilityRatio: 0.3, gestureSettingsMouse: { clickToZoom: false }, crossOriginPolicy: false,
  });
  viewer.addHandler("canvas-key", (event) => { event.preventDefaultAction = true; });
  viewer.addHandler("open", () => { resize(); recall(); });
  viewer.addHandler("open-failed", () => notice("The slide cannot be shown."));
  viewer.addHandler("update-viewport", draw);
  viewer.addHandler("animation-finish", remember);
  viewer.addOnceHandler("tile-load-failed", () => notice("A part of the slide cannot be read."));
  listenToControls();
  new ResizeObserver(resize).observe(byId("layer"));
  document.addEventListener("keydown", press);
  byId("slide").addEventListener("pointermove", point, true); // before OpenSeadragon takes it
  window.addEventListener("hashchange", recall);
}

fetch("facts.json")
  .then((reply) => (reply.ok ? reply.json() : reply.text().then((text) => Promise.reject(new Error(text)))))
  .then(start)
  .catch((error) => notice(String(error.message)));
