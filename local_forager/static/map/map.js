// The map: a point per image; similar images are close together.

import { link } from "../base/controls.js";
import { button, count, embeddingOf, fill, h } from "../base/dom.js";
import { go, note } from "../base/state.js";
import { summary } from "../filters/filters.js";
import { tile } from "../images/picture.js";
import { Density } from "../points/density.js";
import { FEW, Pictures } from "../points/pictures.js";
import { pointIndex } from "../points/points.js";
import { disc, drawingOrder, scatter } from "../points/scatter.js";
import { askColumn, chosenColor, columnColors, css, dark, legend, pixel } from "./colors.js";
import { drawControls } from "./controls.js";
import { listenTo, ZOOM_STEP } from "./map_input.js";
import { Names } from "./names.js";
import { drawShape, limits, rectangle, rowsWithin } from "./shapes.js";
import { Tip } from "./tip.js";

const NOTE_AFTER = 300; // milliseconds after the last move until the address has the place
const STRIP = 24; // selected images shown below the map
const NEAR = 14; // CSS pixels; a point within this distance counts as under the pointer
const LEAST_ZOOM = 0.5;
const MAX_ZOOM = 400;
const DENSE = 60_000; // points; more are drawn as density
const SMOOTH = 6000; // points; up to here they have smooth edges and are slightly transparent
const FILLS = 0.7; // of the box, that a cluster takes when one zooms to it

export class PointMap {
  constructor(session) {
    this.session = session;
    this.canvas = h("canvas", {
      class: "canvas", tabIndex: 0, role: "img",
      "aria-label": "Map of the images. Arrow keys move it, plus and minus zoom, 0 shows all, "
        + "n shows or hides names, Enter opens the image nearest to the middle.",
    });
    this.context = this.canvas.getContext("2d");
    this.tip = new Tip(session);
    this.names = new Names(this);
    this.box = h("div", { class: "map-box" }, this.canvas, this.names.element, this.tip.ring, this.tip.element, h("span", { class: "zoom" },
      button("+", () => this.zoomBy(ZOOM_STEP), { "aria-label": "Zoom in" }),
      button("−", () => this.zoomBy(1 / ZOOM_STEP), { "aria-label": "Zoom out" }),
      button("⤢", () => this.all(), { "aria-label": "Show all" })));
    this.head = h("div", { class: "head" });
    this.controls = h("div", { class: "map-controls" });
    this.legend = h("ul", { class: "legend", role: "list" });
    this.strip = h("section", { "aria-label": "Selected images", hidden: true });
    this.element = h("div", { class: "map" }, this.head, this.controls, this.box,
      h("div", { class: "map-side" }, this.legend, this.strip));
    this.tool = "move";
    this.removes = false; // whether shapes take images from the selection
    this.shape = null; // while one is drawn: { kind, path, removes }
    this.center = [0, 0];
    this.zoom = 1;
    this.movingUntil = 0; // time at which the map counts as still
    this.pointer = null; // where the mouse is, for the tooltip
    this.pointers = new Map();
    this.hovered = -1;
    this.pictures = new Pictures((row) => session.rows.address("thumbnail", row), () => this.request());
    this.stop = listenTo(this);
  }

  close() {
    this.stop();
    this.names.close();
    cancelAnimationFrame(this.frame);
    clearTimeout(this.noting);
    this.session.mapPlace = this.place();
  }

  // Centre and zoom as the address has them: "x,y,zoom"; null for the whole map.
  place() {
    if (this.zoom === 1 && this.center[0] === 0 && this.center[1] === 0) return null;
    return [...this.center, this.zoom].map((number) => Number(number.toFixed(5))).join(",");
  }

  goTo(place) {
    const [x, y, zoom] = (place ?? "").split(",").map(Number);
    const valid = Number.isFinite(x) && Number.isFinite(y) && zoom > 0;
    this.center = valid ? [x, y] : [0, 0];
    this.zoom = valid ? Math.max(LEAST_ZOOM, Math.min(MAX_ZOOM, zoom)) : 1;
    this.request();
  }

  moved() {
    this.names.rest();
    this.hover(this.pointer ? this.under(...this.pointer) : -1);
    this.movingUntil = performance.now() + NOTE_AFTER / 2;
    this.request();
    clearTimeout(this.noting);
    this.noting = setTimeout(() => {
      this.goTo(this.place()); // rounded as in the address, so that both show the same
      note({ at: this.place() });
    }, NOTE_AFTER);
  }

  async show(state, { back, late }) {
    const { info, rows } = this.session;
    if (!this.state) this.goTo(state.at ?? this.session.mapPlace);
    else if (back) this.goTo(state.at);
    this.state = state;
    const by = embeddingOf(info, state);
    const method = info.umap.available && ["pca", "umap"].includes(state.method) ? state.method : info.layout;
    const color = chosenColor(state.color, info);
    this.withPictures = state.pictures !== "no";
    this.withNames = state.names !== "no";
    drawControls(this, by, method, color.value);
    if (this.key !== `${by} ${method}`) {
      fill(this.legend, h("li", { class: "quiet", role: "status" }, "Laying out the map…"));
      const points = await this.session.askArray(Float32Array, "map", { by, method });
      if (late()) return;
      this.key = `${by} ${method}`;
      this.points = points;
      this.extent = extentOf(points); // more than 1 where the dataset has grown
      this.index = pointIndex(points);
      this.density = new Density(points, this.index.rows);
    }
    const [column, selected] = await Promise.all([
      askColumn(this.session, color),
      rows.select(state),
    ]);
    if (late()) return;
    fill(this.head, summary(this.session, state, selected.rows.length));
    this.color = color;
    this.column = column;
    this.chosen = new Uint8Array(column.length);
    for (const row of selected.rows) this.chosen[row] = 1;
    this.paint();
    await this.names.show(this.withNames);
  }

  // Computes a 32-bit pixel per point, and the drawing order: chosen images last.
  paint() {
    if (!this.column) return;
    this.paper = pixel(getComputedStyle(this.box).backgroundColor);
    this.inks = new Uint32Array(this.column.length).fill(pixel(getComputedStyle(this.canvas).color));
    this.papers = new Uint32Array(this.column.length).fill(this.paper);
    this.faint = pixel(dark.matches ? "#39413c" : "#d9d8d0");
    const { colors, others } = columnColors(this.column, this.color);
    const counts = new Map();
    const total = this.column.length;
    this.pixels = new Uint32Array(total);
    for (let row = 0; row < total; row += 1) {
      const value = this.column[row];
      this.pixels[row] = this.chosen[row] ? colors.get(value) : this.faint;
      if (this.chosen[row] && !Number.isNaN(this.points[2 * row])) {
        counts.set(value, (counts.get(value) ?? 0) + 1);
      }
    }
    this.density.color(this.pixels, this.chosen);
    this.order = drawingOrder(this.points, this.chosen);
    this.showSelection();
    fill(this.legend, legend(this.color, this.session.info, counts, colors, others));
    this.request();
  }

  // Shows or hides the pictures or the names.
  toggle(field) {
    const on = field === "names" ? this.withNames : this.withPictures;
    go({ [field]: on ? "no" : null }, { replace: true });
  }

  // Marks the selected points, and shows the first of them below the map.
  showSelection() {
    if (!this.order) return;
    const { selection } = this.session;
    this.selected = this.order.filter((row) => selection.has(row));
    const first = selection.rows().subarray(0, STRIP);
    this.strip.hidden = !selection.count;
    fill(this.strip,
      h("h2", {}, "Selected"),
      h("ul", { class: "strip", role: "list" },
        [...first].map((row) => h("li", {}, tile(this.session, row, `Image ${row}`)))),
      selection.count > STRIP && h("p", {}, link({ selected: "yes", view: null, image: null }, {},
        `Show all ${count(selection.count)}`)));
    this.request();
  }

  resize() {
    const ratio = devicePixelRatio;
    this.width = this.box.clientWidth;
    this.height = this.box.clientHeight;
    this.ratio = ratio;
    this.canvas.width = Math.max(1, Math.round(this.width * ratio));
    this.canvas.height = Math.max(1, Math.round(this.height * ratio));
    this.image = this.context.createImageData(this.canvas.width, this.canvas.height);
    this.buffer = new Uint32Array(this.image.data.buffer);
    this.names.rest();
    this.request();
  }

  // Device pixels per unit of the map.
  scale() {
    return (0.46 * Math.min(this.canvas.width, this.canvas.height) * this.zoom) / (this.extent ?? 1);
  }

  all() {
    this.goTo(null);
    this.moved();
  }

  request() {
    this.box.ariaBusy = "true";
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.draw();
      if (!this.pictures.loading && !this.names.waiting) this.box.ariaBusy = "false";
    });
  }

  draw() {
    if (!this.order || !this.image) return;
    const { width, height } = this.canvas;
    const view = this.onCanvas();
    const order = this.visible();
    const smooth = order.length <= SMOOTH;
    if (order.length > DENSE) {
      const { paper, faint } = this;
      const moving = performance.now() < this.movingUntil;
      this.density.draw(this.buffer, width, height, { ...view, paper, faint, moving });
    } else {
      this.buffer.fill(this.paper);
      const size = disc(this.radius(order.length), width, smooth);
      scatter(this.buffer, width, height, this.points, order, this.pixels, size, view);
    }
    this.drawSelected(smooth, view);
    this.context.putImageData(this.image, 0, 0);
    const { color: ink } = getComputedStyle(this.canvas);
    if (this.withPictures) this.drawPictures();
    this.names.draw();
    if (this.shape) {
      const corners = this.shape.path.map((point) => this.toCanvas(...point));
      drawShape(this.context, corners, ink, this.ratio);
    }
  }

  // The rows to draw: all, or when many points are zoomed in on, those near the screen.
  visible() {
    if (this.zoom === 1 || this.order.length < DENSE) return this.order;
    const rows = this.index.within(limits(this.corners()));
    if (rows.length > DENSE) return rows;
    const part = (chosen) => rows.filter((row) => this.chosen[row] === chosen);
    return Int32Array.from([...part(0), ...part(1)]);
  }

  // The selected points once more, over the others and with two edges around them. Few are large.
  drawSelected(smooth, view) {
    if (!this.selected.length) return;
    const { width, height } = this.canvas;
    const radius = Math.max(this.radius(), (this.selected.length > FEW ? 1 : 3) * this.ratio);
    for (const [pixels, edge] of [[this.papers, 2.5], [this.inks, 1.5], [this.pixels, 0]]) {
      const size = disc(radius + edge * this.ratio, width, smooth);
      scatter(this.buffer, width, height, this.points, this.selected, pixels, size, view);
    }
  }

  drawPictures() {
    const rows = rowsWithin(this, this.visible(), rectangle(...this.corners()), FEW);
    if (rows.length > FEW) return;
    const { selection } = this.session;
    const place = (row) => this.toScreen(row).map((one) => one * this.ratio);
    rows.sort((one, other) => selection.has(other) - selection.has(one));
    this.pictures.draw(this.context, rows, place, (row) => [
      ...(selection.has(row) ? [[css(this.paper), 6], [css(this.inks[row]), 5]] : []),
      [css(this.pixels[row]), 2.5],
    ], this.ratio);
  }

  radius(number = this.order.length) {
    const base = Math.max(1.2, 8.2 - 1.4 * Math.log10(Math.max(30, number)));
    const room = Math.max(0.75, Math.min(1.2, Math.sqrt(Math.min(this.width, this.height) / 650)));
    return base * room * this.ratio * Math.min(2.2, this.zoom ** 0.25);
  }

  // The scale of the map, and where its middle is on the canvas, in pixels of it.
  onCanvas() {
    const scale = this.scale();
    const { width, height } = this.canvas;
    return { scale, left: width / 2 - this.center[0] * scale, top: height / 2 + this.center[1] * scale };
  }

  // Pixels of the canvas of a place on the map.
  toCanvas(x, y) {
    const { scale, left, top } = this.onCanvas();
    return [left + x * scale, top - y * scale];
  }

  // CSS pixels of the box of a place on the map.
  onScreen(x, y) {
    return this.toCanvas(x, y).map((one) => one / this.ratio);
  }

  toScreen(row) {
    return this.onScreen(this.points[2 * row], this.points[2 * row + 1]);
  }

  toMap(x, y) {
    const scale = this.scale() / this.ratio;
    return [this.center[0] + (x - this.width / 2) / scale, this.center[1] - (y - this.height / 2) / scale];
  }

  // The upper left and lower right corners of what is seen, on the map.
  corners() {
    return [this.toMap(0, 0), this.toMap(this.width, this.height)];
  }

  zoomBy(factor, x = this.width / 2, y = this.height / 2) {
    const before = this.toMap(x, y);
    this.zoom = Math.max(LEAST_ZOOM, Math.min(MAX_ZOOM, this.zoom * factor));
    const after = this.toMap(x, y);
    this.center = [this.center[0] + before[0] - after[0], this.center[1] + before[1] - after[1]];
    this.moved();
  }

  // Shows a part of the map as large as the box allows, and larger than it is.
  zoomTo({ left, right, bottom, top }) {
    const scale = this.scale() / this.ratio / this.zoom;
    const fits = FILLS * Math.min(this.width / (right - left), this.height / (top - bottom)) / scale;
    this.zoom = Math.min(MAX_ZOOM, Math.max(fits, 1.3 * this.zoom));
    this.center = [(left + right) / 2, (bottom + top) / 2];
    this.canvas.focus();
    this.moved();
  }

  panBy(x, y) {
    const scale = this.scale() / this.ratio;
    this.center = [this.center[0] - x / scale, this.center[1] + y / scale];
    this.moved();
  }

  // The chosen row at a place of the box, -1 where there is none or a name covers it.
  under(x, y) {
    return this.names.at(x, y) ? -1 : this.nearest(x, y);
  }

  nearest(x, y) {
    if (!this.index || !this.chosen) return -1;
    return this.index.nearest(...this.toMap(x, y), (NEAR * this.ratio) / this.scale(), this.chosen);
  }

  hover(row) {
    if (row !== this.hovered) {
      this.hovered = row;
      this.canvas.classList.toggle("over", row >= 0);
      this.tip.show(row);
    }
    if (row >= 0) this.tip.place(...this.toScreen(row), this.radius() / this.ratio, this.box);
  }
}

// The largest distance of a point from the middle along an axis, at least 1.
function extentOf(points) {
  let most = 1;
  for (const place of points) if (Math.abs(place) > most) most = Math.abs(place);
  return most;
}
