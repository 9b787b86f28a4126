// The map: a point per image; similar images are close together.

import { askArray, count, embeddingOf, h } from "../dom.js";
import { summary } from "../filters/filters.js";
import {
  askColumn, chosenColor, colorChoices, columnColors, css, dark, legend, pixel, valueName,
} from "./colors.js";
import { Density } from "../points/density.js";
import { FEW, Pictures } from "../points/pictures.js";
import { pointIndex } from "../points/points.js";
import { disc, drawingOrder, scatter, scatterSmooth } from "../points/scatter.js";
import { densestPlaces, drawNames } from "./places.js";
import { listenTo } from "./map_input.js";
import { drawCross, drawRing, drawShape } from "./shapes.js";
import { Tip } from "./tip.js";
import { changed, go, note, onLink } from "../state.js";

const NOTE_AFTER = 300; // milliseconds after the last move until the address has the place
const TOOLS = { move: "Move", rectangle: "Rectangle", lasso: "Lasso" };
const STRIP = 24; // selected images shown below the map
const NEAR = 14; // CSS pixels; a point within this distance counts as under the pointer
const LEAST_ZOOM = 0.5;
const MAX_ZOOM = 400;
const DENSE = 60_000; // points; more are drawn as density
const SMOOTH = 6000; // points; up to here they have smooth edges and are slightly transparent
export class PointMap {
  constructor(session) {
    this.session = session;
    this.canvas = h("canvas", {
      class: "canvas", tabIndex: 0, role: "img",
      "aria-label": "Map of the images. Arrow keys move it, plus and minus zoom, 0 shows all, "
        + "Enter opens the image nearest to the middle.",
    });
    this.context = this.canvas.getContext("2d");
    this.tip = new Tip(session);
    const button = (text, name, act) => h("button", { type: "button", "aria-label": name, onclick: act }, text);
    this.box = h("div", { class: "map-box" }, this.canvas, this.tip.element, h("span", { class: "zoom" },
      button("+", "Zoom in", () => this.zoomBy(1.6)),
      button("−", "Zoom out", () => this.zoomBy(1 / 1.6)),
      button("⤢", "Show all", () => this.all())));
    this.head = h("div", { class: "head" });
    this.controls = h("div", { class: "map-controls" });
    this.legend = h("ul", { class: "legend", role: "list" });
    this.strip = h("section", { "aria-label": "Selected images", hidden: true });
    this.element = h("div", { class: "map" }, this.head, this.controls, this.box, this.legend, this.strip);
    this.tool = "move";
    this.removes = false; // whether shapes take images from the selection
    this.shape = null; // while one is drawn: { kind, path, removes }
    this.center = [0, 0];
    this.zoom = 1;
    this.movingUntil = 0; // time at which the map counts as still
    this.pointer = null; // where the mouse is, for the tooltip
    this.pointers = new Map();
    this.hovered = -1;
    this.pictures = new Pictures((row) => session.rows.thumbnail(row), () => this.request());
    this.stop = listenTo(this);
  }

  close() {
    this.stop();
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
    this.hover(this.pointer ? this.nearest(...this.pointer) : -1);
    this.movingUntil = performance.now() + NOTE_AFTER / 2;
    this.request();
    clearTimeout(this.noting);
    this.noting = setTimeout(() => {
      this.goTo(this.place()); // rounded as in the address, so that both show the same
      note({ at: this.place() });
    }, NOTE_AFTER);
  }

  async show(state, { back, late }) {
    const { name, ended, info, rows } = this.session;
    if (!this.state) this.goTo(state.at ?? this.session.mapPlace);
    else if (back) this.goTo(state.at);
    this.state = state;
    const by = embeddingOf(info, state);
    const method = state.method === "umap" && info.umap.available ? "umap" : "pca";
    const color = chosenColor(state.color, info);
    this.by = by;
    this.withPictures = state.pictures !== "no";
    this.drawControls(by, method, color.value);
    if (this.key !== `${by} ${method}`) {
      this.legend.replaceChildren(h("li", { class: "quiet", role: "status" }, "Laying out the map…"));
      const points = await askArray(Float32Array, `/page/${name}/map`, { by, method }, ended.signal);
      if (late()) return;
      this.key = `${by} ${method}`;
      this.points = points;
      this.index = pointIndex(points);
      this.density = new Density(points, this.index.rows);
    }
    const [column, selected] = await Promise.all([
      askColumn(this.session, color),
      rows.select(state),
    ]);
    if (late()) return;
    this.head.replaceChildren(summary(this.session, state, selected.rows.length));
    this.color = color;
    this.column = column;
    this.chosen = new Uint8Array(column.length);
    for (const row of selected.rows) this.chosen[row] = 1;
    this.paint();
  }

  drawControls(by, method, color) {
    const { umap } = this.session.info;
    const select = (id, text, options, value, change) => h("label", { for: id }, text, h("select", {
      id, onchange: (event) => change(event.currentTarget.value),
    }, Object.entries(options).map(([key, title]) => h("option", {
      value: key, selected: key === value, disabled: key === "umap" && !umap.available,
    }, title))));
    const segments = (name, title, options, value, change) => h("fieldset", { class: "segments" },
      h("legend", { class: "hidden" }, title),
      Object.entries(options).map(([key, text]) => h("label", {},
        h("input", {
          type: "radio", name, value: key, id: `${name}-${key}`, checked: key === value,
          onchange: () => change(key),
        }), h("span", {}, text))));
    const focused = this.controls.contains(document.activeElement) ? document.activeElement.id : null;
    this.controls.replaceChildren(
      select("map-color", "Colour by", colorChoices(this.session.info), color, (value) =>
        go({ color: value === "split" ? null : value }, { replace: true })),
      select("map-by", "Embedding", Object.fromEntries(this.session.info.embeddings.map((one) => [one.by, one.by])), by,
        (value) => go({ by: value === "clip" ? null : value }, { replace: true })),
      select("map-method", "Layout", { pca: "PCA", umap: umap.available ? "UMAP" : "UMAP: needs umap-learn" },
        method, (value) => go({ method: value === "pca" ? null : value }, { replace: true })),
      h("label", { for: "map-pictures", title: `When up to ${FEW} images are in view` },
        h("input", {
          type: "checkbox", id: "map-pictures", checked: this.withPictures,
          onchange: (event) =>
            go({ pictures: event.currentTarget.checked ? null : "no" }, { replace: true }),
        }), "Pictures"),
      segments("map-tool", "What dragging does", TOOLS, this.tool, (tool) => {
        this.tool = tool;
        this.canvas.classList.toggle("drawing", tool !== "move");
      }),
      segments("map-removes", "What shapes do", { add: "Add", remove: "Remove" },
        this.removes ? "remove" : "add", (value) => { this.removes = value === "remove"; }));
    document.getElementById("map-method").title = umap.reason;
    if (focused) document.getElementById(focused)?.focus();
  }

  // Computes a 32-bit pixel per point, and the drawing order: chosen images last.
  paint() {
    if (!this.column) return;
    this.paper = pixel(getComputedStyle(this.box).backgroundColor);
    this.inks = new Uint32Array(this.column.length).fill(pixel(getComputedStyle(this.canvas).color));
    const faint = pixel(dark.matches ? "#39413c" : "#d9d8d0");
    const { colors, others } = columnColors(this.column, this.color);
    const counts = new Map();
    const total = this.column.length;
    this.pixels = new Uint32Array(total);
    for (let row = 0; row < total; row += 1) {
      const value = this.column[row];
      this.pixels[row] = this.chosen[row] ? colors.get(value) : faint;
      if (this.chosen[row] && !Number.isNaN(this.points[2 * row])) {
        counts.set(value, (counts.get(value) ?? 0) + 1);
      }
    }
    this.faint = faint;
    this.density.color(this.pixels, this.chosen);
    this.order = drawingOrder(this.points, this.chosen);
    this.names = this.namesOf(counts, others);
    this.showSelection();
    this.legend.replaceChildren(...legend(this.color, this.session.info, counts, colors, others));
    this.request();
  }

  // The commonest labels or classes with their places.
  namesOf(counts, others) {
    if (this.color.kind !== "label" && this.color.kind !== "class") return [];
    const values = [...counts.keys()].filter((value) => value >= 0 && !others.has(value))
      .sort((one, other) => counts.get(other) - counts.get(one));
    return densestPlaces(this.points, this.column, this.chosen, values).map((one) =>
      ({ ...one, text: valueName(this.color, this.session.info, one.value) }));
  }

  // Marks the selected points, and shows the first of them below the map.
  showSelection() {
    if (!this.order) return;
    const { rows, selection } = this.session;
    this.selected = this.order.filter((row) => selection.has(row));
    const first = selection.rows().subarray(0, STRIP);
    this.strip.hidden = !selection.count;
    this.strip.replaceChildren(
      h("h2", {}, "Selected"),
      h("ul", { class: "strip", role: "list" }, [...first].map((row) => h("li", {}, h("a", {
        class: "tile here", href: changed({ image: row }), onclick: onLink, "aria-label": `Image ${row}`,
      }, h("img", {
        src: rows.thumbnail(row), alt: "", decoding: "async",
        onerror: (event) => event.currentTarget.remove(),
      }))))),
      selection.count > STRIP ? h("p", {}, h("a", {
        href: changed({ selected: "yes", view: null, image: null }), onclick: onLink,
      }, `Show all ${count(selection.count)}`)) : "");
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
    this.request();
  }

  // Device pixels per unit of the map.
  scale() {
    return 0.46 * Math.min(this.canvas.width, this.canvas.height) * this.zoom;
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
      if (!this.pictures.loading) this.box.ariaBusy = "false";
    });
  }

  draw() {
    if (!this.order || !this.image) return;
    const { width, height } = this.canvas;
    const scale = this.scale();
    const left = width / 2 - this.center[0] * scale;
    const top = height / 2 + this.center[1] * scale;
    const order = this.visible();
    const draw = order.length > SMOOTH ? scatter : scatterSmooth;
    if (order.length > DENSE) {
      const { paper, faint } = this;
      const moving = performance.now() < this.movingUntil;
      this.density.draw(this.buffer, width, height, { scale, left, top, paper, faint, moving });
    } else {
      this.buffer.fill(this.paper);
      const size = disc(this.radius(order.length), width);
      draw(this.buffer, width, height, this.points, order, this.pixels, size, scale, left, top);
    }
    this.drawSelected(draw, scale);
    this.context.putImageData(this.image, 0, 0);
    const colors = { ink: getComputedStyle(this.canvas).color, paper: css(this.paper) };
    if (!this.withPictures || order.length > FEW) {
      drawNames(this.context, this.names, (x, y) => this.toCanvas(x, y), { ...colors, ratio: this.ratio });
    }
    if (this.withPictures) this.drawPictures();
    if (this.hovered >= 0) {
      const place = this.toScreen(this.hovered).map((one) => one * this.ratio);
      drawRing(this.context, place, this.radius() + 4 * this.ratio, colors.ink, this.ratio);
    }
    if (document.activeElement === this.canvas) drawCross(this.context, colors.ink, this.ratio);
    if (this.shape) {
      const corners = this.shape.path.map((point) => this.toCanvas(...point));
      drawShape(this.context, this.shape.kind, corners, colors.ink, this.ratio);
    }
  }

  // The rows to draw: all, or when many points are zoomed in on, those near the screen.
  visible() {
    if (this.zoom === 1 || this.order.length < DENSE) return this.order;
    const [left, top] = this.toMap(0, 0);
    const [right, bottom] = this.toMap(this.width, this.height);
    const rows = this.index.within(left, right, bottom, top);
    if (rows.length > DENSE) return rows;
    const part = (chosen) => rows.filter((row) => this.chosen[row] === chosen);
    return Int32Array.from([...part(0), ...part(1)]);
  }

  // The selected points once more, over the others and with an edge around them.
  drawSelected(draw, scale) {
    if (!this.selected.length) return;
    const { width, height } = this.canvas;
    const edge = disc(this.radius() + 1.5 * this.ratio, width);
    const left = width / 2 - this.center[0] * scale;
    const top = height / 2 + this.center[1] * scale;
    draw(this.buffer, width, height, this.points, this.selected, this.inks, edge, scale, left, top);
    draw(this.buffer, width, height, this.points, this.selected, this.pixels,
      disc(this.radius(), width), scale, left, top);
  }

  drawPictures() {
    const rows = this.inView(this.visible());
    if (rows === null) return;
    const place = (row) => this.toScreen(row).map((one) => one * this.ratio);
    this.pictures.draw(this.context, rows, place, (row) => css(this.pixels[row]), this.ratio);
  }

  // The chosen rows on the screen; null if they are too many for pictures.
  inView(candidates) {
    const [left, top] = this.toMap(0, 0);
    const [right, bottom] = this.toMap(this.width, this.height);
    const rows = [];
    for (const row of candidates) {
      const x = this.points[2 * row];
      const y = this.points[2 * row + 1];
      if (!this.chosen[row] || x < left || x > right || y < bottom || y > top) continue;
      if (rows.length === FEW) return null;
      rows.push(row);
    }
    return rows;
  }

  radius(number = this.order.length) {
    const base = Math.max(1.2, 8.2 - 1.4 * Math.log10(Math.max(30, number)));
    const room = Math.max(0.75, Math.min(1.2, Math.sqrt(Math.min(this.width, this.height) / 650)));
    return base * room * this.ratio * Math.min(2.2, this.zoom ** 0.25);
  }

  // Pixels of the canvas of a place on the map.
  toCanvas(x, y) {
    const scale = this.scale();
    return [
      this.canvas.width / 2 + (x - this.center[0]) * scale,
      this.canvas.height / 2 - (y - this.center[1]) * scale,
    ];
  }

  toScreen(row) {
    const [x, y] = this.toCanvas(this.points[2 * row], this.points[2 * row + 1]);
    return [x / this.ratio, y / this.ratio];
  }

  toMap(x, y) {
    const scale = this.scale() / this.ratio;
    return [this.center[0] + (x - this.width / 2) / scale, this.center[1] - (y - this.height / 2) / scale];
  }

  zoomBy(factor, x = this.width / 2, y = this.height / 2) {
    const before = this.toMap(x, y);
    this.zoom = Math.max(LEAST_ZOOM, Math.min(MAX_ZOOM, this.zoom * factor));
    const after = this.toMap(x, y);
    this.center = [this.center[0] + before[0] - after[0], this.center[1] + before[1] - after[1]];
    this.moved();
  }

  panBy(x, y) {
    const scale = this.scale() / this.ratio;
    this.center = [this.center[0] - x / scale, this.center[1] + y / scale];
    this.moved();
  }

  nearest(x, y) {
    if (!this.index || !this.chosen) return -1;
    return this.index.nearest(...this.toMap(x, y), (NEAR * this.ratio) / this.scale(), this.chosen);
  }

  hover(row) {
    if (row === this.hovered) {
      if (row >= 0) this.tip.place(...this.toScreen(row), this.width, this.height);
      return;
    }
    this.hovered = row;
    this.canvas.classList.toggle("over", row >= 0);
    this.request();
    this.tip.show(row);
    if (row >= 0) this.tip.place(...this.toScreen(row), this.width, this.height);
  }
}
