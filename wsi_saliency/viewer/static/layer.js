"use strict";

// The map over the slide: values come as tiles of float32, colours are made here, so that sliders act at once.
// A position in the slide is in level-0 pixels; cell i of a level covers [x0 + i*f, x0 + (i+1)*f), f = fx * 2**level.

const SLACK = 64; // cells that are coloured beyond the window, so that small moves need no new colours
const KEPT = 96; // tiles of 1 MB

class MapLayer {
  constructor(canvas, tile, changed) {
    this.canvas = canvas;
    this.tile = tile;
    this.changed = changed; // called when something new can be drawn
    this.tiles = new Map();
    this.picture = document.createElement("canvas");
    this.drawn = "";
    this.colouring = null;
  }

  show(map, mapNumber, channel) {
    Object.assign(this, { map, mapNumber, channel, drawn: "" });
  }

  colour(table, low, high, threshold) {
    this.colouring = { table, low, high, threshold };
    this.drawn = "";
  }

  // Values of a tile, or undefined while they are on their way.
  values(level, column, row) {
    const key = `${this.mapNumber}/${this.channel}/${level}/${column}_${row}`;
    const known = this.tiles.get(key);
    if (known) {
      this.tiles.delete(key);
      this.tiles.set(key, known); // the one used last is the last to go
      return known.values;
    }
    const entry = {};
    this.tiles.set(key, entry);
    fetch(`map/${key}.f32`)
      .then((reply) => (reply.ok ? reply.arrayBuffer() : Promise.reject(new Error(reply.statusText))))
      .then((bytes) => {
        entry.values = new Float32Array(bytes);
        this.drawn = "";
        this.changed();
      })
      .catch(() => setTimeout(() => this.tiles.delete(key), 2000)); // it is asked for again
    while (this.tiles.size > KEPT) this.tiles.delete(this.tiles.keys().next().value);
    return undefined;
  }

  // The finest level whose cells are not smaller than a pixel of the screen.
  level(levelZeroPerPixel) {
    const finer = levelZeroPerPixel / Math.min(this.map.fx, this.map.fy);
    return Math.min(Math.max(0, Math.ceil(Math.log2(finer))), this.map.levels.length - 1);
  }

  // The values around a cell: of its tile, or of a coarser one that is here already.
  source(level, cellX, cellY) {
    for (let l = level; l < this.map.levels.length; l++) {
      const column = Math.floor(cellX / this.tile) >> (l - level);
      const row = Math.floor(cellY / this.tile) >> (l - level);
      const values = this.values(l, column, row);
      if (values) {
        const width = Math.min(this.tile, this.map.levels[l][0] - column * this.tile);
        return { values, width, shift: l - level, left: column * this.tile, top: row * this.tile };
      }
    }
    return null;
  }

  // The value at a position, and the level that it is of; null where there is none, or not yet.
  valueAt(x, y, levelZeroPerPixel) {
    const level = this.level(levelZeroPerPixel);
    const cellX = Math.floor((x - this.map.x0) / (this.map.fx * 2 ** level));
    const cellY = Math.floor((y - this.map.y0) / (this.map.fy * 2 ** level));
    const [w, h] = this.map.levels[level];
    if (cellX < 0 || cellY < 0 || cellX >= w || cellY >= h) return null;
    const found = this.source(level, cellX, cellY);
    if (!found) return null;
    const i = ((cellY >> found.shift) - found.top) * found.width + (cellX >> found.shift) - found.left;
    return { value: found.values[i], level: level + found.shift };
  }

  // Draws what lies in a window of level-0 pixels, which fills the canvas.
  draw(window, opacity) {
    const { width, height } = this.canvas;
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    if (!this.map || !this.colouring || opacity === 0) return;
    const level = this.level(window.w / width);
    const fx = this.map.fx * 2 ** level;
    const fy = this.map.fy * 2 ** level;
    const cells = this.cells(level, window, fx, fy);
    if (cells.w <= 0 || cells.h <= 0) return;
    const key = [this.mapNumber, this.channel, level, cells.x, cells.y, cells.w, cells.h].join();
    if (key !== this.drawn) this.paint(level, cells);
    this.drawn = key;
    context.globalAlpha = opacity;
    context.imageSmoothingEnabled = true;
    const scaleX = width / window.w;
    const scaleY = height / window.h;
    const left = (this.map.x0 + cells.x * fx - window.x) * scaleX;
    const top = (this.map.y0 + cells.y * fy - window.y) * scaleY;
    context.drawImage(this.picture, left, top, cells.w * fx * scaleX, cells.h * fy * scaleY);
  }

  // Which cells are coloured for a window: those in it and some around, in steps.
  cells(level, window, fx, fy) {
    const [w, h] = this.map.levels[level];
    const below = (value) => Math.max(0, Math.floor(value / SLACK) * SLACK);
    const x = below((window.x - this.map.x0) / fx - 1);
    const y = below((window.y - this.map.y0) / fy - 1);
    const above = (value) => Math.ceil(value / SLACK) * SLACK;
    const right = Math.min(w, above((window.x + window.w - this.map.x0) / fx + 1));
    const bottom = Math.min(h, above((window.y + window.h - this.map.y0) / fy + 1));
    return { x, y, w: right - x, h: bottom - y };
  }

  paint(level, cells) {
    this.picture.width = cells.w;
    this.picture.height = cells.h;
    const image = new ImageData(cells.w, cells.h);
    const pixels = new Uint32Array(image.data.buffer);
    const step = this.tile;
    for (let y = cells.y; y < cells.y + cells.h; y = (Math.floor(y / step) + 1) * step) {
      for (let x = cells.x; x < cells.x + cells.w; x = (Math.floor(x / step) + 1) * step) {
        const right = Math.min(cells.x + cells.w, (Math.floor(x / step) + 1) * step);
        const bottom = Math.min(cells.y + cells.h, (Math.floor(y / step) + 1) * step);
        const found = this.source(level, x, y);
        if (found) this.paintTile(pixels, cells, found, x, y, right, bottom);
      }
    }
    this.picture.getContext("2d").putImageData(image, 0, 0);
  }

  paintTile(pixels, cells, found, left, top, right, bottom) {
    const { table, low, high, threshold } = this.colouring;
    const last = table.length - 1;
    const factor = last / (high - low);
    const { values, width, shift } = found;
    for (let y = top; y < bottom; y++) {
      const from = ((y >> shift) - found.top) * width - found.left;
      const to = (y - cells.y) * cells.w - cells.x;
      for (let x = left; x < right; x++) {
        const value = values[from + (x >> shift)];
        if (value === 0 || Math.abs(value) < threshold) continue; // 0 was not computed
        const index = (Math.min(Math.max(value, low), high) - low) * factor;
        pixels[to + x] = table[Math.round(index)];
      }
    }
  }
}
