"use strict";

const byId = (name) => document.getElementById(name);
const STEPS = 1000; // of the sliders of values
const state = { opacity: 1, visible: true, pale: false }; // of all views; each has its map and colours in `shown`
const panes = []; // one view, or two side by side
let facts, tables, writing;
let active; // the view that the controls are of
let leader; // the view that the other follows

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

const mapOf = ({ shown }) => facts.maps[shown.map];

// The values between which the sliders move.
function bounds(pane) {
  const [lowest, highest, start, end] = mapOf(pane).windows[pane.shown.target];
  return [Math.min(lowest, start), Math.max(highest, end)];
}

// Colours, low and high as they are used: those of signed values reach as far on both sides of 0.
function scale({ shown }) {
  const limit = Math.max(Math.abs(shown.low), Math.abs(shown.high)) || 1e-30;
  if (shown.scale === "diverging") return [-limit, limit];
  return shown.low < shown.high ? [shown.low, shown.high] : [shown.low, shown.low + 1e-30];
}

// A map and a target, in the colours and the range that the record has for them.
function begin(pane, map, target) {
  const { signed, windows } = facts.maps[map];
  const [, , low, high] = windows[target];
  pane.shown = { map, target, scale: signed ? "diverging" : "magnitudes", low, high, threshold: 0 };
}

function chooseMap(map, target) {
  begin(active, map, target);
  if (panes.length === 1) state.visible = !facts.targets[target].dark;
  applyMap();
}

function applyMap() {
  for (const pane of panes) pane.layer.show(mapOf(pane), pane.shown.map, pane.shown.target);
  const said = facts.targets[active.shown.target];
  byId("said").textContent = said.summary + (said.dark ? " · the map is off at first: no patch is positive" : "");
  listStrongest();
  apply();
}

function apply() {
  for (const pane of panes) {
    pane.layer.colour(tables[pane.shown.scale], ...scale(pane), pane.shown.threshold);
    pane.opacity = state.visible ? state.opacity : 0;
    pane.slide.classList.toggle("pale", state.pale);
    pane.caption.textContent = called(pane);
    pane.caption.hidden = panes.length === 1;
    pane.frame.classList.toggle("active", panes.length > 1 && pane === active);
    pane.draw();
  }
  showControls();
  remember();
}

function called({ shown }) {
  const { name } = facts.maps[shown.map];
  return facts.targets.length > 1 ? `${name} · ${facts.targets[shown.target].name}` : name;
}

// ---------------------------------------------------------------------------------------- one view or two

function open(navigator) {
  const frame = byId("pane").content.firstElementChild.cloneNode(true);
  byId("panes").append(frame);
  const pane = new Pane(frame, facts, { navigator, drawn: showScale, moved, entered: lead, chosen: activate, pointed, failed: notice });
  panes.push(pane);
  return pane;
}

// Opens a second view beside the first, or closes it.
function split(isWanted) {
  if (isWanted && panes.length === 1) {
    const second = open(false);
    begin(second, panes[0].shown.map, panes[0].shown.target);
    second.opened.then(() => { second.resize(); second.follow(panes[0]); });
  }
  if (!isWanted && panes.length === 2) {
    const second = panes.pop();
    second.close();
    second.frame.remove();
    active = leader = panes[0];
  }
  byId("panes").classList.toggle("two", panes.length === 2);
  for (const pane of panes) pane.resize();
}

// Shows a map beside the first one; without a number, none.
function showBeside(map) {
  split(map !== null);
  if (map !== null) begin(panes[1], map, panes[1].shown.target);
  applyMap();
}

function lead(pane) {
  if (leader === pane) return;
  const before = leader;
  leader = pane;
  before.follow(before); // it stops where it is, and what is shown goes on from there
}

function activate(pane) {
  if (active === pane) return;
  active = pane;
  applyMap();
}

function moved(pane) {
  if (pane !== leader) return;
  for (const other of panes) if (other !== pane) other.follow(pane);
  remember();
}

// ------------------------------------------------------------------------------------------- the controls

function showControls() {
  const { shown } = active;
  const [lowest, highest] = bounds(active);
  const [low, high] = scale(active);
  const position = (value) => Math.round((STEPS * (value - lowest)) / (highest - lowest || 1));
  byId("map").value = shown.map;
  byId("target").value = shown.target;
  byId("beside").value = panes.length === 2 ? panes[1].shown.map : "";
  byId("sides").hidden = panes.length === 1;
  byId(active === panes[0] ? "first" : "second").checked = true;
  byId("colours").value = shown.scale;
  byId("low").value = position(shown.low);
  byId("high").value = position(shown.high);
  byId("low").disabled = shown.scale === "diverging";
  byId("low-value").textContent = figure(low);
  byId("high-value").textContent = figure(high);
  byId("threshold").value = Math.round((STEPS * shown.threshold) / (Math.max(Math.abs(lowest), Math.abs(highest)) || 1));
  byId("threshold-value").textContent = shown.threshold ? figure(shown.threshold) : "nothing";
  byId("opacity").value = Math.round(100 * state.opacity);
  byId("opacity-value").textContent = `${Math.round(100 * state.opacity)} %`;
  byId("visible").checked = state.visible;
  byId("pale").checked = state.pale;
  const table = tables[shown.scale];
  const strip = new ImageData(256, 1);
  const pixels = new Uint32Array(strip.data.buffer);
  for (let i = 0; i < 256; i++) pixels[i] = table[Math.round((i * (table.length - 1)) / 255)];
  byId("bar").getContext("2d").putImageData(strip, 0, 0);
}

function listenToControls() {
  const on = (name, event, act) => byId(name).addEventListener(event, (e) => act(e.target));
  on("map", "change", (select) => chooseMap(Number(select.value), active.shown.target));
  on("target", "change", (select) => chooseMap(active.shown.map, Number(select.value)));
  on("beside", "change", (select) => showBeside(select.value === "" ? null : Number(select.value)));
  on("first", "change", () => activate(panes[0]));
  on("second", "change", () => activate(panes[1]));
  on("visible", "change", (box) => { state.visible = box.checked; apply(); });
  on("pale", "change", (box) => { state.pale = box.checked; apply(); });
  on("colours", "change", (select) => { active.shown.scale = select.value; apply(); });
  on("opacity", "input", (slider) => { state.opacity = slider.value / 100; apply(); });
  for (const name of ["low", "high"]) {
    on(name, "input", (slider) => {
      const [lowest, highest] = bounds(active);
      active.shown[name] = lowest + (slider.value / STEPS) * (highest - lowest);
      apply();
    });
  }
  on("threshold", "input", (slider) => {
    active.shown.threshold = (slider.value / STEPS) * Math.max(...bounds(active).map(Math.abs));
    apply();
  });
}

function fillControls() {
  document.title = facts.name;
  byId("name").textContent = facts.name;
  byId("back").hidden = facts.alone;
  for (const text of facts.notices) notice(text);
  const option = (text, value) => Object.assign(element("option", text), { value });
  const maps = () => facts.maps.map((one, i) => option(one.name, i));
  byId("map").append(...maps());
  byId("beside").append(option("none", ""), ...maps());
  byId("target").append(...facts.targets.map((one, i) => option(one.name, i)));
  byId("colours").append(option("violet to yellow", "magnitudes"), option("blue to red", "diverging"));
}

function listStrongest() {
  const rows = mapOf(active).strongest[active.shown.target].map((patch) => {
    const button = element("button", `${figure(patch.value)} · probability ${patch.probability.toPrecision(3)}`);
    button.addEventListener("click", () => leader.goTo(patch.x + patch.w / 2, patch.y + patch.h / 2, (2.5 * patch.w) / leader.canvas.clientWidth));
    const item = document.createElement("li");
    item.append(button);
    return item;
  });
  byId("strongest").replaceChildren(...rows);
  byId("strongest-title").hidden = !rows.length;
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=range], input[type=radio], select, summary")) return;
  const port = leader.viewer.viewport;
  const pan = (x, y) => port.panBy(new OpenSeadragon.Point(x, y).times(0.2 * port.getBounds().width));
  const keys = {
    ArrowLeft: () => pan(-1, 0), ArrowRight: () => pan(1, 0), ArrowUp: () => pan(0, -1), ArrowDown: () => pan(0, 1),
    "+": () => port.zoomBy(1.5), "=": () => port.zoomBy(1.5), "-": () => port.zoomBy(1 / 1.5), 0: () => port.goHome(),
    o: () => { state.visible = !state.visible; apply(); },
    p: () => { state.pale = !state.pale; apply(); },
    b: () => showBeside(panes.length === 2 ? null : (panes[0].shown.map + 1) % facts.maps.length),
  };
  const number = Number(event.key);
  if (number >= 1 && number <= facts.maps.length) chooseMap(number - 1, active.shown.target);
  else if (keys[event.key]) keys[event.key]();
  else return;
  port.applyConstraints();
  event.preventDefault();
}

// -------------------------------------------------------------------------------- what is said of the place

function pointed(pane, event) {
  const { x, y, left, top } = pane.at(event);
  const inside = x >= 0 && y >= 0 && x < facts.slide.w && y < facts.slide.h;
  const values = panes.map((one) => one.valueAt(x, y)).filter(Boolean);
  const said = [`x ${Math.floor(x)}, y ${Math.floor(y)}`, ...(values.every((one) => one === values[0]) ? values.slice(0, 1) : values)];
  byId("pointer").textContent = inside ? said.join(" · ") : "";
  for (const one of panes) {
    one.cross.hidden = one === pane;
    one.cross.style.transform = `translate(${left}px, ${top}px)`;
  }
}

function showScale(pane) {
  if (pane !== panes[0]) return;
  const umPerPixel = pane.magnification * facts.slide.mpp_x;
  const power = 10 ** Math.floor(Math.log10(140 * umPerPixel));
  const length = Math.max(...[1, 2, 5].map((n) => n * power).filter((um) => um <= 140 * umPerPixel));
  byId("scale").style.width = `${length / umPerPixel}px`;
  byId("scale-length").textContent = length >= 1000 ? `${length / 1000} mm` : `${Number(length.toPrecision(3))} µm`;
}

// ------------------------------------------------------------------------------------------ the address

// Names in the address of what is of one view; those of the second end in 2.
const ofView = ({ map, target, scale: colours, low, high, threshold }, ending) =>
  Object.entries({ map, target, colours, low: low.toPrecision(4), high: high.toPrecision(4), below: threshold.toPrecision(4) })
    .map(([name, value]) => [name + ending, value]);

function remember() {
  clearTimeout(writing);
  writing = setTimeout(() => {
    const { x, y } = leader.centre;
    const place = { x: Math.round(x), y: Math.round(y), z: leader.magnification.toPrecision(4) };
    const shared = { opacity: state.opacity, on: Number(state.visible), pale: Number(state.pale) };
    const views = panes.flatMap((pane, i) => ofView(pane.shown, i ? "2" : ""));
    history.replaceState(null, "", `#${new URLSearchParams([...Object.entries(place), ...views, ...Object.entries(shared)])}`);
  }, 250);
}

function recall() {
  const shown = new URLSearchParams(location.hash.slice(1));
  const number = (name, otherwise) => (shown.get(name) && Number.isFinite(Number(shown.get(name))) ? Number(shown.get(name)) : otherwise);
  const among = (name, count) => Math.min(Math.max(0, Math.floor(number(name, 0))), count - 1);
  split(shown.has("map2"));
  for (const [i, pane] of panes.entries()) {
    const of = (name) => name + (i ? "2" : "");
    begin(pane, among(of("map"), facts.maps.length), among(of("target"), facts.targets.length));
    const [low, high] = [number(of("low"), pane.shown.low), number(of("high"), pane.shown.high)];
    Object.assign(pane.shown, { low, high, threshold: number(of("below"), 0) });
    if (Object.hasOwn(tables, shown.get(of("colours")) ?? "")) pane.shown.scale = shown.get(of("colours"));
  }
  const { dark } = facts.targets[panes[0].shown.target];
  const opacity = Math.min(Math.max(0, number("opacity", 1)), 1);
  Object.assign(state, { opacity, visible: Boolean(number("on", Number(!dark))), pale: Boolean(number("pale", 0)) });
  applyMap();
  if (shown.has("x") && shown.has("y") && number("z", 0) > 0) leader.goTo(number("x", 0), number("y", 0), number("z", 1), true);
}

// ------------------------------------------------------------------------------------------------ start

function start(found) {
  facts = found;
  tables = { magnitudes: decoded(facts.scales.magnitudes), diverging: decoded(facts.scales.diverging) };
  fillControls();
  active = leader = open(true);
  begin(active, 0, 0);
  active.opened.then(() => { panes[0].resize(); recall(); });
  listenToControls();
  document.addEventListener("keydown", press);
  window.addEventListener("hashchange", recall);
}

fetch("facts.json")
  .then((reply) => (reply.ok ? reply.json() : reply.text().then((text) => Promise.reject(new Error(text)))))
  .then(start)
  .catch((error) => notice(String(error.message)));
