// The names of the clusters of points in view: labels, or else ImageNet classes, that are commoner
// there than in the whole dataset. Each is a button that zooms to its cluster.

import { button, count, h } from "../base/dom.js";
import { findClusters } from "../points/clusters.js";
import { limits } from "./shapes.js";

const REST = 200; // milliseconds after the last move until the names are found anew
const CELL = 10; // CSS pixels, the side of the cells in which points are counted
const LABELLED = 0.2; // of the images of a cluster; with fewer labelled ones, classes name it
const LEAST = 3; // images that a name stands for
const SURE = 3; // standard deviations above what the whole dataset lets one expect
const SECOND = 0.5; // of the best score, from which on a second name is written too
const ROOM = 30; // characters of two names
const ALIKE = 160; // CSS pixels within which a name is written once
const GAP = 4; // CSS pixels between two names
const LINE = 20; // CSS pixels
const SMALL = 40; // CSS pixels, the height of a cluster that a name would hide; it stands above that
const BUTTONS = [52, 132]; // CSS pixels in the upper right corner, which the zoom buttons take
export const MEASURE = "Labels, or else ImageNet classes, with the highest share × ln(share ÷ share in "
  + `the whole dataset). Only what is ${SURE} standard deviations above what is expected counts.`;

export class Names {
  constructor(map) {
    this.map = map;
    this.element = h("ul", { class: "names", role: "list", "aria-label": "On the map" });
    this.names = [];
    this.waiting = 0; // the timer until the map counts as still
  }

  close() {
    clearTimeout(this.waiting);
  }

  // Requests the columns of names where they are new, and finds the names.
  async show(on) {
    const { session } = this.map;
    const { info } = session;
    this.on = on;
    if (on && this.version !== info.version) {
      const [labels, classes] = await Promise.all(
        ["column/label", "column/class"].map((path) => session.askArray(Int32Array, path)));
      const places = new Map(info.classes.map((one, place) => [one.imagenet_class, place]));
      const known = Int32Array.from(classes, (value) => places.get(value) ?? -1);
      this.labels = tally(labels, info.categories.map(({ category }) => category));
      this.classes = tally(known, info.classes.map((one) => one.name));
      this.version = info.version;
    }
    this.find();
  }

  // Finds the names again when the map has come to rest.
  rest() {
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.find(), REST);
  }

  find() {
    const begin = performance.now();
    clearTimeout(this.waiting);
    this.waiting = 0;
    const { map } = this;
    this.names = this.on && this.labels && map.index ? this.written() : [];
    this.element.replaceChildren(...this.names.map(({ item }) => item));
    this.leaveOut();
    map.request();
    performance.measure("names", { start: begin }); // for bench/page/names.py
  }

  // The named clusters in view, the largest first.
  written() {
    const { map } = this;
    const area = limits(map.corners());
    const side = CELL / (map.scale() / map.ratio);
    const found = findClusters(map.points, map.index.within(area), map.chosen, area, side);
    const counts = [this.labels, this.classes].map((one) => countIn(found, one));
    return found.clusters.map((cluster, place) => {
      const size = counts[0].sizes[place];
      const labelled = counts[0].known[place] >= LABELLED * size;
      const best = (kind, which) => bestOf(kind, counts[which].of(place), size);
      const labels = labelled ? best(this.labels, 0) : [];
      return { ...cluster, found: labels.length ? labels : best(this.classes, 1) };
    }).filter((one) => one.found.length).map((one) => {
      const about = one.found.map(({ text: name, share, whole }) =>
        `${name}: ${shareText(share)} here, ${shareText(whole)} of all`).join("; ");
      const title = `${about}. About ${count(one.count)} images: click to zoom in.`;
      const control = button("", () => map.zoomTo(one), { title });
      return { ...one, title, control, item: h("li", {}, control) };
    });
  }

  // Writes the names that fit, those of larger clusters first: where a name would overlap another
  // one, a little higher or lower. Second names follow where there is room for them.
  leaveOut() {
    const kept = [];
    for (const name of this.names) {
      const height = ((name.top - name.bottom) * this.map.scale()) / this.map.ratio;
      const beside = (height + LINE) / 2;
      const places = height < SMALL ? [-beside, beside, 0] : [0, -LINE, LINE];
      const fits = places.some((lower) => {
        this.write(name, 1, lower);
        return !kept.some((other) => this.clash(name, other));
      });
      if (fits) kept.push(name);
      else name.item.remove();
    }
    for (const name of kept) {
      const { found, lower } = name;
      if (found.length < 2) continue;
      this.write(name, 2, lower);
      if (kept.some((other) => other !== name && this.clash(name, other))) this.write(name, 1, lower);
    }
    this.names = kept;
  }

  // Writes the first names of a cluster, so many CSS pixels lower than its middle.
  write(name, number, lower) {
    const text = name.found.slice(0, number).map((one) => one.text).join(", ");
    if (text !== name.text) {
      name.control.textContent = name.text = text;
      name.size = [name.item.offsetWidth, name.item.offsetHeight];
    }
    name.lower = lower;
    name.shift = this.inward(name);
  }

  clash(name, other) {
    const [x, y] = this.placeOf(name);
    const [left, top] = this.placeOf(other);
    const overlap = Math.abs(left - x) < (other.size[0] + name.size[0]) / 2 + GAP
      && Math.abs(top - y) < (other.size[1] + name.size[1]) / 2 + GAP;
    return overlap || (other.text === name.text && Math.hypot(left - x, top - y) < ALIKE);
  }

  // How far a name is moved so that the edge of the map does not cut it, nor its buttons cover it.
  inward(name) {
    const [x, middle] = this.map.onScreen(name.x, name.y);
    const y = middle + name.lower;
    const within = (at, size, most) => Math.max(size / 2, Math.min(most - size / 2, at)) - at;
    const right = this.map.width - (y < BUTTONS[1] ? BUTTONS[0] : 0);
    return [within(x, name.size[0], right), name.lower + within(y, name.size[1], this.map.height)];
  }

  placeOf(name) {
    const [x, y] = this.map.onScreen(name.x, name.y);
    return [x + name.shift[0], y + name.shift[1]];
  }

  // Moves the names along with the map.
  draw() {
    for (const name of this.names) {
      const [x, y] = this.placeOf(name);
      name.item.style.transform = `translate(${x.toFixed(1)}px, ${y.toFixed(1)}px) translate(-50%, -50%)`;
    }
  }

  // The name that a click at a place of the box is for; undefined if there is none.
  at(x, y) {
    if (this.map.tool !== "move") return undefined;
    return this.names.find((name) => this.placeOf(name)
      .every((middle, axis) => Math.abs([x, y][axis] - middle) <= name.size[axis] / 2));
  }
}

// A column with the names of its values, and how many images of the dataset have each.
function tally(column, texts) {
  const totals = new Float64Array(texts.length);
  for (let row = 0; row < column.length; row += 1) if (column[row] >= 0) totals[column[row]] += 1;
  return { column, texts, totals };
}

// How many points of each cluster there are, have a value, and have each value.
function countIn({ clusters, rows, of }, { column, texts }) {
  const counts = new Int32Array(clusters.length * texts.length);
  const sizes = new Int32Array(clusters.length);
  const known = new Int32Array(clusters.length);
  for (let at = 0; at < rows.length; at += 1) {
    const cluster = of[at];
    if (cluster < 0) continue;
    sizes[cluster] += 1;
    const value = column[rows[at]];
    if (value < 0) continue;
    known[cluster] += 1;
    counts[cluster * texts.length + value] += 1;
  }
  const ofCluster = (place) => counts.subarray(place * texts.length, (place + 1) * texts.length);
  return { sizes, known, of: ofCluster };
}

// Up to two values that are over-represented among `size` images: [{ text, share, whole }].
function bestOf({ column, texts, totals }, counts, size) {
  const found = [];
  for (let value = 0; value < texts.length; value += 1) {
    const share = counts[value] / size;
    const whole = totals[value] / column.length;
    const expected = whole * size;
    if (counts[value] < LEAST) continue;
    if (counts[value] - expected <= SURE * Math.sqrt(expected * (1 - whole))) continue;
    found.push({ text: texts[value], share, whole, score: share * Math.log(share / whole) });
  }
  found.sort((one, other) => other.score - one.score);
  const [first, second] = found;
  const both = second && second.score >= SECOND * first.score
    && first.text.length + second.text.length <= ROOM;
  return found.slice(0, both ? 2 : 1);
}

const shareText = (share) => `${share < 0.0995 ? Number((100 * share).toPrecision(2)) : Math.round(100 * share)}%`;
