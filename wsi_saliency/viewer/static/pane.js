"use strict";

// A view of the slide with one map over it. Views are linked: they show the same place at the same size.
// Positions are level-0 pixels; OpenSeadragon's own unit is the width of the slide.

class Pane {
  constructor(frame, facts, { navigator, drawn, moved, entered, chosen, pointed, failed }) {
    this.frame = frame;
    this.facts = facts;
    this.canvas = frame.querySelector(".layer");
    this.slide = frame.querySelector(".slide");
    this.caption = frame.querySelector(".caption");
    this.cross = frame.querySelector(".cross");
    this.opacity = 1;
    this.drawn = drawn;
    this.layer = new MapLayer(this.canvas, facts.map_tile, () => this.draw());
    this.viewer = OpenSeadragon({
      element: this.slide, tileSources: Pane.source(facts), drawer: "canvas", showNavigationControl: false,
      showNavigator: navigator, navigatorPosition: "TOP_RIGHT", navigatorSizeRatio: 0.16, animationTime: 0.5,
      maxZoomPixelRatio: 8, visibilityRatio: 0.3, gestureSettingsMouse: { clickToZoom: false }, crossOriginPolicy: false,
      autoResize: false, // `resize` keeps what was shown
    });
    this.opened = new Promise((done) => this.viewer.addHandler("open", done));
    this.viewer.addHandler("canvas-key", (event) => { event.preventDefaultAction = true; });
    this.viewer.addHandler("open-failed", () => failed("The slide cannot be shown."));
    this.viewer.addOnceHandler("tile-load-failed", () => failed("A part of the slide cannot be read."));
    this.viewer.addHandler("update-viewport", () => { moved(this); this.draw(); });
    for (const name of ["canvas-enter", "canvas-press", "canvas-scroll"]) this.viewer.addHandler(name, () => entered(this));
    this.viewer.addHandler("canvas-press", () => chosen(this));
    this.slide.addEventListener("pointermove", (event) => pointed(this, event), true); // before OpenSeadragon takes it
    new ResizeObserver(() => this.resize()).observe(this.canvas);
  }

  static source({ slide, tiles }) {
    if (!tiles) return { type: "image", url: "slide.jpg" };
    const getTileUrl = (level, x, y) => `slide/${level}/${x}_${y}.jpg`;
    return { width: slide.w, height: slide.h, tileSize: tiles.size, minLevel: tiles.min_level, maxLevel: tiles.max_level, getTileUrl };
  }

  get isOpen() { return this.viewer.world.getItemCount() > 0; }

  // Level-0 pixels per pixel of the page.
  get magnification() { return (this.viewer.viewport.getBounds(true).width * this.facts.slide.w) / this.canvas.clientWidth; }

  get centre() {
    const { x, y } = this.viewer.viewport.getCenter();
    return { x: x * this.facts.slide.w, y: y * this.facts.slide.w };
  }

  draw() {
    if (!this.isOpen) return;
    const box = this.viewer.viewport.getBounds(true);
    const { w } = this.facts.slide;
    this.layer.draw({ x: box.x * w, y: box.y * w, w: box.width * w, h: box.height * w }, this.opacity);
    this.drawn(this);
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(this.canvas.clientWidth * ratio);
    this.canvas.height = Math.round(this.canvas.clientHeight * ratio);
    if (!this.isOpen) return;
    const { viewport } = this.viewer;
    const isWhole = viewport.getZoom() <= viewport.getHomeZoom() * 1.001;
    viewport.resize(new OpenSeadragon.Point(this.canvas.clientWidth, this.canvas.clientHeight));
    if (isWhole) viewport.goHome(true);
    this.viewer.world.update(true); // where neither centre nor zoom changes, tiles would stay where they were
    this.viewer.forceRedraw();
    this.draw();
  }

  // Puts a position into the middle, with so many level-0 pixels in a pixel of the page.
  goTo(x, y, perPixel, immediately = false) {
    const { w } = this.facts.slide;
    const wide = (perPixel * this.canvas.clientWidth) / w;
    const high = (perPixel * this.canvas.clientHeight) / w;
    this.viewer.viewport.fitBounds(new OpenSeadragon.Rect(x / w - wide / 2, y / w - high / 2, wide, high), immediately);
  }

  // Shows at once what another view shows.
  follow(other) {
    if (this.isOpen && other.isOpen) this.viewer.viewport.fitBounds(other.viewer.viewport.getBounds(true), true);
  }

  // The position under the pointer, and where it is on the page within this view.
  at(event) {
    const frame = this.canvas.getBoundingClientRect();
    const [left, top] = [event.clientX - frame.left, event.clientY - frame.top];
    const at = this.viewer.viewport.pointFromPixel(new OpenSeadragon.Point(left, top), true);
    return { x: at.x * this.facts.slide.w, y: at.y * this.facts.slide.w, left, top };
  }

  // The map's value at a position, in words; empty where it has none.
  valueAt(x, y) {
    const found = this.layer.valueAt(x, y, this.magnification / (window.devicePixelRatio || 1));
    if (!found) return "";
    return found.value === 0 ? "not computed" : `${found.level ? "about " : ""}${figure(found.value)}`;
  }

  close() { this.viewer.destroy(); }
}
