// Filters and orders by the fields of the images: sizes, quality, columns of one's own. A number or a
// date has a histogram to brush and two boxes for exact limits, a column of texts a list of them.

import { choice, form, number } from "../base/controls.js";
import { bytes, count, fill, h, own } from "../base/dom.js";
import { go, labelsIn, leaveHealth, ofField, toggled } from "../base/state.js";
import { Histogram } from "./histogram.js";

const KILO = 1000;
const DAY = 86400; // seconds
const SORTS = { // of the fields that an index has: the greatest first, then the least first
  size: {
    bytes: { largest: "largest file first", smallest: "smallest file first" },
    width: { widest: "widest first", narrowest: "narrowest first" },
    height: { tallest: "tallest first", lowest: "lowest first" },
    aspect: { landscape: "landscape first", portrait: "portrait first" },
  },
  quality: {
    brightness: { "-brightness": "brightest first", brightness: "darkest first" },
    contrast: { "-contrast": "most contrast first", contrast: "least contrast first" },
    sharpness: { "-sharpness": "sharpest first", sharpness: "most blurred first" },
    colourfulness: {
      "-colourfulness": "most colourful first", colourfulness: "least colourful first",
    },
  },
};
export const OTHER_SORTS = {
  "": "as in the index", name: "name", "name-backwards": "name, backwards",
  outliers: "outliers first", typical: "most typical first",
};
const DETAILS = { quality: "Quality", column: "Columns" }; // groups of fields that are closed at first

const limits = (field) => [`min_${field}`, `max_${field}`];
const texts = (column) => `is_${column}`;
const digits = (step) => Math.max(0, Math.round(-Math.log10(step)));

function sortsOf({ field, title, group, kind }) {
  const known = own(SORTS[group] ?? {}, field);
  const [most, least] = kind === "date" ? ["latest", "earliest"] : ["largest", "smallest"];
  return known ?? { [`-${field}`]: `${title}, ${most} first`, [field]: `${title}, ${least} first` };
}

const ofGroup = (info, group) => info.fields.filter((one) => one.group === group);
const sortsIn = (info, group) => Object.assign({}, ...ofGroup(info, group).map(sortsOf));

// The orders by fields as [title, { value in the address: title }], and those that are not possible.
export function fieldSorts(info) {
  const all = Object.assign({}, ...Object.values(SORTS.size));
  return [["Size", all], ["Quality", sortsIn(info, "quality")], ["Columns", sortsIn(info, "column")]]
    .filter(([, sorts]) => Object.keys(sorts).length);
}

export const sortTitle = (info, sort) => own(OTHER_SORTS, sort)
  ?? info.fields.map((field) => own(sortsOf(field), sort)).find(Boolean);

// How the value that a view is sorted by is written on a tile; null if it is not sorted by a field.
export function sizeText(info, state) {
  const sorted = !state.set && !state.text && state.like === null;
  const field = sorted && info.fields.find((one) => own(sortsOf(one), state.sort));
  if (!field) return null;
  const [text, after] = written(field).shown;
  const side = { width: " px wide", height: " px high" }[field.field];
  return (value) => text(value) + (side ?? after);
}

// How the numbers of a field are written: unit of the boxes, what a number in a box stands for in the
// address, a number as text, and what follows one or two of them. A date in an address is a text.
export function written({ field, unit, kind, step }) {
  if (field === "bytes") return { unit: "kB", scale: KILO, shown: [bytes, ""] };
  if (kind === "date") return { unit: "", shown: [(seconds) => dateOf(seconds, step).replace("T", " "), ""] };
  if (kind === "whole") return { unit, scale: 1, shown: [count, unit && ` ${unit}`] };
  return { unit, scale: 1, shown: [(number) => String(Number(number.toFixed(digits(step)))), ""] };
}

function dateOf(seconds, step) {
  const text = new Date(1000 * seconds).toISOString();
  return text.slice(0, step === DAY ? 10 : step === 1 ? 19 : 16);
}

// A limit in the address as a number, and a number as a limit in the address.
const read = ({ kind }, text) => (text === null ? null : kind !== "date" ? Number(text)
  : Date.parse(text.includes("T") ? `${text}Z` : text) / 1000);
const limit = ({ kind, step }, number) =>
  (number === null || kind !== "date" ? number : dateOf(number, step));

// The filters and the order in an address that these images cannot have, as { field: null }, and notes
// about them.
export function impossible(info, state) {
  const fields = new Set(info.fields.flatMap(({ field }) => limits(field)));
  for (const { column, values } of info.columns) if (values.length) fields.add(texts(column));
  const filters = ofField(state).filter((name) => state[name] !== null && !fields.has(name));
  const names = new Set(filters.map((name) => name.slice(name.indexOf("_") + 1)));
  const left = Object.fromEntries(filters.map((name) => [name, null]));
  const words = names.size ? [`filtered by ${[...names].join(", ")}`] : [];
  if (state.sort && !sortTitle(info, state.sort)) {
    left.sort = null;
    const [field] = Object.entries({ ...SORTS.size, ...SORTS.quality })
      .find(([, sorts]) => own(sorts, state.sort)) ?? [state.sort.replace(/^-/, "")];
    names.add(field);
    words.push(`sorted by ${field}`);
  }
  if (!words.length) return { left, notes: [] };
  const why = (name) => (own(SORTS.size, name) ? info.sizes.reason
    : own(SORTS.quality, name) ? info.quality.reason : `The dataset has no column ${name}.`);
  const reasons = [...new Set([...names].map(why))];
  return { left, notes: [[`They are not ${words.join(" and not ")}.`, ...reasons].join(" ")] };
}

// The ranges of the panel: those that are known of these images, or the reason why not.
export class Ranges {
  constructor(session) {
    this.session = session;
    this.sizes = h("section", { class: "ranges", "aria-label": "Sizes" });
    this.groups = Object.fromEntries(Object.entries(DETAILS).map(([group, title]) =>
      [group, h("details", { class: "group" }, h("summary", { id: `group-${group}` }, title),
        h("div", { class: "ranges" }))]));
    this.element = h("div", { class: "groups" }, this.sizes, Object.values(this.groups));
    this.histograms = new Map();
    this.counts = new Map(); // of the texts of each column
    this.turn = 0;
  }

  show(info, state) {
    this.state = state;
    this.info = info;
    const fields = JSON.stringify(info.fields);
    if (this.fields !== fields) {
      this.fields = fields;
      const histogram = (field) => new Histogram(idOf(field), field.title, written(field).shown,
        (...ends) => this.apply(field, ...ends.map((end) => limit(field, end))));
      this.histograms = new Map(info.fields.map((field) => [field.field, histogram(field)]));
    }
    const draw = (group) => ofGroup(info, group).map((field) => this.range(field));
    const lack = ({ available, reason }) => !available && h("p", { class: "quiet" }, reason);
    fill(this.sizes, draw("size"), lack(info.sizes));
    this.fill("quality", draw("quality"), lack(info.quality));
    this.lists = info.columns.map((column) => this.list(column));
    this.fill("column", draw("column"), this.lists.map(({ element }) => element));
    for (const field of info.fields) {
      this.histograms.get(field.field).limit(...this.limitsOf(field));
    }
    this.refresh();
  }

  // Shows what is in a group; a group whose images are limited opens.
  fill(group, ...content) {
    const element = this.groups[group];
    fill(element.lastChild, content);
    element.hidden = !element.lastChild.childElementCount;
    if (element.querySelector("[data-on]")) element.open = true;
  }

  // The same distributions are shown until those of the new filters are there.
  async refresh() {
    const turn = (this.turn += 1);
    const answer = await this.session.counts("histograms", this.state);
    if (!answer || turn !== this.turn) return;
    for (const field of this.info.fields) {
      const found = answer.histograms.find((one) => one.field === field.field);
      this.histograms.get(field.field).show(found, ...this.limitsOf(field));
    }
    this.counts = new Map(answer.texts.map(({ column, chosen }) => [column, chosen]));
    for (const { column, numbers } of this.lists) {
      numbers.forEach((element, place) => {
        element.textContent = count(this.counts.get(column)?.[place] ?? 0);
      });
    }
  }

  limitsOf(field) {
    return limits(field.field).map((name) => read(field, this.state[name] ?? null));
  }

  apply({ field }, least, most) {
    const [low, high] = limits(field);
    go({ ...leaveHealth(this.state), [low]: least, [high]: most, image: null });
  }

  // One range: its histogram, [from] to [to].
  range(about) {
    const { field, title, kind, step } = about;
    const { unit, scale } = written(about);
    const given = limits(field).map((name) => this.state[name] ?? null);
    const box = kind === "date"
      ? { type: step === DAY ? "date" : "datetime-local", step: step === 1 ? "1" : null }
      : { type: "number", min: about.group === "size" ? "0" : null, step: "any" };
    const boxes = given.map((text, place) => h("input", {
      ...box, id: `${idOf(about)}-${place ? "max" : "min"}`,
      value: text === null || kind === "date" ? text ?? "" : String(Number(text) / scale),
    }));
    const value = (text) => (text === "" ? null : kind === "date" ? text
      : Number((Number(text) * scale).toFixed(digits(step))));
    return form(() => this.apply(about, ...boxes.map((box) => value(box.value))), {
      class: "range", "data-field": field, "data-on": given.some((one) => one !== null),
    },
    h("h2", {}, h("bdi", {}, title), h("span", { class: "quiet unit" }, unit)),
    this.histograms.get(field).element,
    h("div", { class: kind === "date" ? "inline sizes dates" : "inline sizes" },
      boxes.map((box, place) => h("label", { for: box.id },
        h("span", { class: "hidden" }, `${title} `), place ? "to " : "from ", box)),
      h("button", { type: "submit" }, "Apply")));
  }

  // A column of texts: { element, column, numbers: the elements with the counts }.
  list({ column, values }) {
    const name = texts(column);
    const chosen = labelsIn(this.state, name);
    const known = this.counts.get(column) ?? [];
    const entries = values.map((text, place) => choice(`${name}-${place}`, text, number(known[place] ?? 0),
      chosen.includes(text), {
        ...leaveHealth(this.state), [name]: toggled(this.state, name, text), set: null,
      }));
    const title = h("h2", {}, h("bdi", {}, column));
    const element = h("section", { "aria-label": column, "data-on": chosen.length > 0 }, title,
      values.length ? h("ul", { class: "choices texts", role: "list" }, entries)
        : h("p", { class: "quiet small" }, "Too many texts to choose from; a CSV export has them."));
    return { element, column, numbers: entries.map((entry) => entry.querySelector(".number")) };
  }
}

const idOf = ({ field, group }) => `${group}-${encodeURIComponent(field)}`;

// A chip's text and what removes it, for each range in the address, and each text of a column.
export function rangeChips(info, state) {
  const ranges = info.fields.flatMap((field) => {
    const names = limits(field.field);
    const [text, after] = written(field).shown;
    const [low, high] = names.map((name) => {
      const number = read(field, state[name] ?? null);
      return number === null ? null : Number.isFinite(number) ? text(number) : state[name];
    });
    if (low === null && high === null) return [];
    const range = low === null ? `up to ${high}` : high === null ? `from ${low}` : `${low} to ${high}`;
    const title = field.group === "column" ? field.title : field.title.toLowerCase();
    return [[`${title} ${range}${after}`, Object.fromEntries(names.map((name) => [name, null]))]];
  });
  const chosen = info.columns.flatMap(({ column }) => labelsIn(state, texts(column)).map((text) =>
    [`${column}: ${text}`, { [texts(column)]: toggled(state, texts(column), text) }]));
  return [...ranges, ...chosen];
}
