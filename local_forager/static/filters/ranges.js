// Filters by what an image measures: its width, height, aspect and file size. Each has a histogram to
// brush and two boxes for exact limits.

import { bytes, count, h, pause, Problem } from "../dom.js";
import { Histogram } from "./histogram.js";
import { go, leaveHealth } from "../state.js";

const POLL = 700; // milliseconds until histograms are asked for again while the server computes
const KILO = 1000;
// shown: a value of the address as text, and what follows one or two of them; scale: what a number in
// a box stands for in the address.
export const RANGES = {
  width: { title: "Width", unit: "pixels", scale: 1, shown: [count, " pixels"] },
  height: { title: "Height", unit: "pixels", scale: 1, shown: [count, " pixels"] },
  aspect: { title: "Aspect", unit: "width / height", scale: 1, shown: [String, ""] },
  bytes: { title: "File size", unit: "kB", scale: KILO, shown: [bytes, ""] },
};
export const SIZE_SORTS = {
  largest: "largest file first", smallest: "smallest file first", widest: "widest first",
  narrowest: "narrowest first", tallest: "tallest first", lowest: "lowest first",
  landscape: "landscape first", portrait: "portrait first",
};
const OF_FILES = ["largest", "smallest"]; // known without a manifest, from a listing of the bucket
export const needsManifest = (sort) => Object.hasOwn(SIZE_SORTS, sort ?? "") && !OF_FILES.includes(sort);

const FIELD_OF = {
  largest: "bytes", smallest: "bytes", widest: "width", narrowest: "width", tallest: "height", lowest: "height",
  landscape: "aspect", portrait: "aspect",
};

// How the size that a view is sorted by is written on a tile; null if it is not sorted by one.
export function sizeText(state) {
  const field = state.set || state.text || state.like !== null ? null : FIELD_OF[state.sort ?? ""];
  if (!field) return null;
  const [text] = RANGES[field].shown;
  return field === "bytes" || field === "aspect" ? (value) => text(Number(value.toFixed(3)))
    : (value) => `${text(value)} px ${field === "width" ? "wide" : "high"}`;
}

const limits = (field) => [`min_${field}`, `max_${field}`];

// The filters and the order in an address that a dataset without known sizes cannot have, as
// { field: null }, and a sentence about them; null if there are none.
export function impossible(state) {
  const fields = Object.keys(RANGES).filter((field) =>
    field !== "bytes" && limits(field).some((name) => state[name] !== null));
  const left = Object.fromEntries(fields.flatMap(limits).map((name) => [name, null]));
  const words = fields.length ? [`filtered by ${fields.join(", ")}`] : [];
  if (needsManifest(state.sort)) {
    left.sort = null;
    words.push("sorted by size");
  }
  return words.length ? { left, note: `They are not ${words.join(" and not ")}.` } : null;
}

// The ranges of the panel: those of a dataset whose sizes are known, or the reason why not.
export class Ranges {
  constructor(session) {
    this.session = session;
    this.element = h("section", { class: "ranges", "aria-label": "Sizes" });
    this.histograms = Object.fromEntries(Object.entries(RANGES).map(([field, { title, shown }]) =>
      [field, new Histogram(field, title, shown, (low, high) => this.apply(field, low, high))]));
    this.turn = 0;
  }

  show(info, state) {
    const { available, reason } = info.sizes;
    this.state = state;
    const fields = Object.keys(RANGES).filter((field) => available || field === "bytes");
    this.element.replaceChildren(...fields.map((field) => this.range(field)),
      ...(available ? [] : [h("p", { class: "quiet" }, reason)]));
    for (const field of fields) this.histograms[field].limit(...this.limitsOf(field));
    this.refresh();
  }

  // The same distributions are shown until those of the new filters are there.
  async refresh() {
    const turn = (this.turn += 1);
    const { rows, ended } = this.session;
    const { state } = this;
    try {
      let answer;
      for (;;) {
        answer = await this.session.ask("histograms", rows.parameters(state));
        if (turn !== this.turn || ended.signal.aborted) return;
        if (!answer.working) break;
        await pause(POLL);
      }
      for (const [field, histogram] of Object.entries(this.histograms)) {
        histogram.show(answer.histograms.find((one) => one.field === field), ...this.limitsOf(field));
      }
    } catch (error) { // the view itself says what is wrong
      if (error.name !== "AbortError" && !(error instanceof Problem)) throw error;
    }
  }

  limitsOf(field) {
    return limits(field).map((name) => (this.state[name] === null ? null : Number(this.state[name])));
  }

  apply(field, least, most) {
    const [low, high] = limits(field);
    go({ ...leaveHealth(this.state), [low]: least, [high]: most, image: null });
  }

  // One range: its histogram, [from] to [to].
  range(field) {
    const { title, unit, scale } = RANGES[field];
    const [low, high] = limits(field);
    const box = (name, text) => h("label", { for: name }, h("span", { class: "hidden" }, `${title} `),
      text, h("input", {
        type: "number", id: name, min: "0", step: "any",
        value: this.state[name] === null ? "" : String(Number(this.state[name]) / scale),
      }));
    const value = (name) => {
      const text = document.getElementById(name).value;
      return text === "" ? null : Number((Number(text) * scale).toFixed(field === "aspect" ? 3 : 0));
    };
    return h("form", {
      class: "range", "data-field": field,
      onsubmit: (event) => {
        event.preventDefault();
        this.apply(field, value(low), value(high));
      },
    },
    h("h2", {}, title, h("span", { class: "quiet unit" }, unit)),
    this.histograms[field].element,
    h("div", { class: "inline sizes" }, box(low, "from "), box(high, "to "),
      h("button", { type: "submit" }, "Apply")));
  }
}

// A chip's text and what removes it, for each range in the address.
export function rangeChips(state) {
  return Object.entries(RANGES).flatMap(([field, { title, shown: [text, after] }]) => {
    const names = limits(field);
    const [low, high] = names.map((name) => (state[name] === null ? null : text(Number(state[name]))));
    if (low === null && high === null) return [];
    const range = low === null ? `up to ${high}` : high === null ? `from ${low}` : `${low} to ${high}`;
    return [[`${title.toLowerCase()} ${range}${after}`, Object.fromEntries(names.map((name) => [name, null]))]];
  });
}
