// A small histogram with two handles: brushing it, with mouse, touch or keyboard, chooses a range.

import { h, own, plural, svg } from "../base/dom.js";

const HEIGHT = 36; // units of the drawing; its width is one unit per bar
const GRAB = 10; // CSS pixels around a handle that move it
const PAUSE = 600; // milliseconds after the last key until the range is applied
const KEYS = {
  ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -5, PageUp: 5, Home: -Infinity,
  End: Infinity,
};

export class Histogram {
  // shown: a function from a value to its text, and what follows one or two values; chosen(low, high)
  // is called with the new limits, null for none.
  constructor(field, title, shown, chosen) {
    Object.assign(this, { title, shown, chosen });
    this.all = svg("path", { class: "bars-all" });
    this.part = svg("path", { class: "bars" });
    this.brush = svg("rect", { class: "brush", y: 0, height: HEIGHT });
    this.drawing = svg("svg", { preserveAspectRatio: "none", "aria-hidden": "true" },
      this.brush, this.all, this.part);
    this.handles = ["from", "to"].map((end, place) => h("span", {
      class: "handle", role: "slider", tabIndex: 0, id: `${field}-${end}`, "aria-label": `${title}: ${place ? "upper" : "lower"} end`,
      onkeydown: (event) => this.onKey(event, place),
      onblur: () => this.settle(),
    }));
    this.plot = h("div", { class: "plot" }, this.drawing, this.handles);
    this.text = h("p", { class: "axis", role: "status" });
    this.element = h("div", { class: "histogram", hidden: true }, this.plot, this.text);
    this.range = [0, 0]; // the first bar, and the one after the last
    this.drag = null; // while brushing: the end that stays where it is
    this.listen();
  }

  // histogram: an answer of the page's API, undefined if there is none; low and high: the limits.
  show(histogram, low, high) {
    this.element.hidden = !histogram;
    if (!histogram) return;
    this.histogram = histogram;
    const { images, chosen } = histogram;
    this.bars = images.length;
    this.drawing.setAttribute("viewBox", `0 0 ${this.bars} ${HEIGHT}`);
    // Square roots, so that few images can be seen beside many.
    const top = Math.sqrt(Math.max(1, ...images));
    const path = (numbers) => numbers.map((number, place) => {
      const height = (HEIGHT * Math.sqrt(number)) / top;
      return number ? `M${place + 0.06} ${HEIGHT}v${-height}h0.88v${height}z` : "";
    }).join("");
    this.all.setAttribute("d", path(images));
    this.part.setAttribute("d", path(chosen));
    this.limit(low, high);
  }

  // The limits that the address has now: what a brush is compared with.
  limit(low, high) {
    if (!this.histogram) return;
    const { edges } = this.histogram;
    const bar = (value) => Math.min(this.bars - 1, Math.max(0, edges.findLastIndex((edge) => edge <= value)));
    this.givenLimits = [low ?? edges[0], high ?? this.last(this.bars)];
    this.given = [low === null ? 0 : bar(low), high === null ? this.bars : bar(high) + 1];
    if (!this.drag && !this.waiting) this.move(this.given);
  }

  // The limits of a range, as the address has them; null at an end of all bars.
  limits([first, after]) {
    return [first > 0 ? this.histogram.edges[first] : null, after < this.bars ? this.last(after) : null];
  }

  // The last value before an edge.
  last(after) {
    const { edges, step } = this.histogram;
    return Number((edges[after] - step).toFixed(Math.max(0, Math.round(-Math.log10(step)))));
  }

  move(range) {
    this.range = range;
    const { edges, chosen } = this.histogram;
    const [first, after] = range;
    const [text, unit] = this.shown;
    const brushed = range.join() !== this.given.join();
    const values = brushed ? [edges[first], this.last(after)] : this.givenLimits;
    this.brush.setAttribute("x", first);
    this.brush.setAttribute("width", after - first);
    this.handles.forEach((handle, place) => {
      handle.style.left = `${(100 * range[place]) / this.bars}%`;
      handle.ariaValueMin = edges[0];
      handle.ariaValueMax = this.last(this.bars);
      handle.ariaValueNow = values[place];
      handle.ariaValueText = `${text(values[place])}${unit}`;
    });
    const images = chosen.slice(first, after).reduce((sum, number) => sum + number, 0);
    this.text.replaceChildren(h("span", {}, `${values.map(text).join(" to ")}${unit}`),
      h("span", { class: "number" }, brushed ? plural(images, "image") : ""));
  }

  apply() {
    clearTimeout(this.waiting);
    this.waiting = null;
    if (this.range.join() !== this.given.join()) this.chosen(...this.limits(this.range));
  }

  settle() {
    if (this.waiting) this.apply();
  }

  onKey(event, place) {
    if (event.key === "Enter" || event.key === "Escape") {
      event.preventDefault();
      if (event.key === "Escape") this.move(this.given);
      this.apply();
      return;
    }
    const step = own(KEYS, event.key);
    if (step === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const range = [...this.range];
    const [least, most] = place ? [range[0] + 1, this.bars] : [0, range[1] - 1];
    range[place] = Math.max(least, Math.min(most, range[place] + step));
    this.move(range);
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.apply(), PAUSE);
  }

  listen() {
    const at = (event) => {
      const { left, width } = this.plot.getBoundingClientRect();
      return { x: event.clientX - left, bar: ((event.clientX - left) / width) * this.bars, width };
    };
    const inside = (bar) => Math.max(0, Math.min(this.bars - 1, Math.floor(bar)));
    this.plot.addEventListener("pointerdown", (event) => {
      if (event.button || !this.histogram) return;
      event.preventDefault();
      this.plot.setPointerCapture(event.pointerId);
      const { x, bar, width } = at(event);
      const away = this.range.map((one) => Math.abs((one / this.bars) * width - x));
      const near = away[0] <= away[1] ? 0 : 1;
      const end = away[near] <= GRAB ? near : null;
      // A handle moves against the bar at the other end; elsewhere a new range begins.
      const fixed = end === null ? inside(bar) : end ? this.range[0] : this.range[1] - 1;
      this.drag = { fixed, moved: end === null };
      if (end !== null) this.handles[end].focus({ preventScroll: true });
      else this.move([fixed, fixed + 1]);
    });
    this.plot.addEventListener("pointermove", (event) => {
      if (!this.drag) return;
      const bar = inside(at(event).bar);
      const { fixed } = this.drag;
      this.drag.moved = true;
      this.move([Math.min(fixed, bar), Math.max(fixed, bar) + 1]);
    });
    this.plot.addEventListener("pointerup", () => {
      const moved = this.drag?.moved;
      this.drag = null;
      if (moved) this.apply();
    });
    this.plot.addEventListener("pointercancel", () => { // the browser scrolls instead
      this.drag = null;
      this.move(this.given);
    });
  }
}
