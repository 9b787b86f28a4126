// Colours of the map's points by split, label, ImageNet class, the modes of one label, or a field or
// column of texts; its legend.

import { link } from "../base/controls.js";
import { count, h, own, plural, splitName } from "../base/dom.js";
import { toggled } from "../base/state.js";
import { written } from "../filters/ranges.js";

const COLUMNS = { split: "split", label: "label", class: "ImageNet class" };
const CATEGORY = "category:"; // before a label in the address: colours by the modes of that label
const FIELD = "field:"; // before a field or a column of texts
const SHADES = 8; // of a number or a date, each for about as many images
const MODES = ["positive", "negative", "hard negative", "unsure", "another mode"];
const LIGHT = ["#2f6f4f", "#d1603d", "#3f6fc4", "#c29211", "#8b53ad", "#1f9aa0", "#b53b74", "#6f7f1f",
  "#8f5a34", "#50607f"];
const DARK = ["#6fcf9b", "#f08b68", "#7fa8f5", "#e6bd4f", "#c092e0", "#5ccfd3", "#ee7fae", "#b6c95a",
  "#cf9a72", "#9fb0d4"];
// From low to high values, of even steps in lightness; the low ones are near the paper.
const LIGHT_SHADES = ["#f2d58a", "#e3b55c", "#d08f4c", "#b86b55", "#974d66", "#6f3a72", "#472f70", "#211f57"];
const DARK_SHADES = ["#3b3a80", "#5a4a96", "#7d5aa0", "#a36a9c", "#c57f8d", "#de9c7c", "#eebf79", "#f8e7a0"];
export const dark = matchMedia("(prefers-color-scheme: dark)");

// What the points can be coloured by: { value in the address: title }.
export function colorChoices({ categories, fields, columns }) {
  const labels = categories.map(({ category }) => [CATEGORY + category, `label ${category}`]);
  const texts = columns.filter(({ values }) => values.length)
    .map(({ column }) => [FIELD + column, column]);
  const numbers = fields.map(({ field, title }) => [FIELD + field, title]);
  return { ...COLUMNS, ...Object.fromEntries([...labels, ...texts, ...numbers]) };
}

// The choice in the address: { value in the address, kind, and what the page's API needs to know }.
export function chosenColor(value, info) {
  const after = (start) => (value?.startsWith(start) ? value.slice(start.length) : null);
  const category = after(CATEGORY);
  if (info.categories.some((one) => one.category === category)) return { value, kind: "category", category };
  const name = after(FIELD);
  const field = info.fields.find((one) => one.field === name);
  if (field) return { value, kind: "shade", name, field };
  const text = info.columns.find(({ column, values }) => column === name && values.length);
  if (text) return { value, kind: "text", name, values: text.values };
  return own(COLUMNS, value) ? { value, kind: value } : { value: "split", kind: "split" };
}

// The value of each point, -1 where there is none; of numbers and dates, the number of its shade, and
// the colour gets the `edges` of the shades.
export async function askColumn(session, color) {
  const { name, kind, category } = color;
  if (!name) return session.askArray(Int32Array, `column/${kind}`, { category });
  const values = await session.askArray(Float64Array, "column/field", { field: name });
  if (kind === "text") return Int32Array.from(values, (value) => (Number.isNaN(value) ? -1 : value));
  const known = values.filter((value) => !Number.isNaN(value)).sort();
  const edges = Array.from({ length: SHADES },
    (_, shade) => known[Math.floor((shade * known.length) / SHADES)]);
  color.edges = [...new Set(edges)];
  color.last = known.at(-1);
  return Int32Array.from(values, (value) => color.edges.findLastIndex((edge) => edge <= value));
}

// The colour of each value of a column, as a pixel, and the values without a colour of their own.
// The commonest labels and classes have colours of their own, whatever the filters; the others share
// one, and images without label or class have another.
export function columnColors(column, { kind, edges }) {
  const shades = dark.matches ? DARK_SHADES : LIGHT_SHADES;
  const palette = kind !== "shade" ? (dark.matches ? DARK : LIGHT)
    : edges.map((_, place) => shades[Math.round((place * (SHADES - 1)) / Math.max(1, edges.length - 1))]);
  const counts = new Map();
  for (const value of column) counts.set(value, (counts.get(value) ?? 0) + 1);
  const values = [...counts.keys()].filter((value) => value >= 0);
  const byNumber = ["label", "class", "text"].includes(kind);
  if (byNumber) values.sort((one, other) => counts.get(other) - counts.get(one) || one - other);
  const colors = new Map([[-1, pixel(dark.matches ? "#77817a" : "#a3a69e")]]);
  values.forEach((value, rank) => {
    const color = palette[byNumber ? rank : value] ?? (dark.matches ? "#ffffff" : "#1d2320");
    colors.set(value, pixel(color));
  });
  return { colors, others: new Set(byNumber ? values.slice(palette.length) : []) };
}

// Of a kind of colour: the text where there is no value, that of a value, and the filter that shows the
// images with a value, if there is one.
const meaning = (color, { categories, classes }) => ({
  split: {
    text: (value) => splitName(value ? "val" : "train"),
    filter: (value) => ({ split: value ? "val" : "train" }),
  },
  label: {
    none: "no positive label", text: (value) => categories[value]?.category ?? "",
    filter: (value) => ({ category: categories[value]?.category ?? null, mode: "POSITIVE" }),
  },
  class: {
    none: "no class", filter: (value) => ({ class: value }),
    text: (value) => classes.find((one) => one.imagenet_class === value)?.name ?? `class ${value}`,
  },
  category: { none: "no such label", text: (value) => MODES[value] },
  text: {
    none: `no ${color.name}`, text: (value) => color.values[value],
    filter: (value) => ({ [`is_${color.name}`]: toggled({}, `is_${color.name}`, color.values[value]) }),
  },
  shade: { none: "not known", text: (value) => shadeText(color, value) },
}[color.kind]);

function shadeText({ field, edges, last }, shade) {
  const [text, after] = written(field).shown;
  const low = text(edges[shade]);
  const high = text(edges[shade + 1] ?? last);
  return (low === high ? low : `${low} to ${high}`) + after;
}

// The entries of the legend. counts: value -> images that are shown.
export function legend(color, info, counts, colors, others) {
  const { kind } = color;
  const { none, text: textOf, filter = () => null } = meaning(color, info);
  const entry = (value, text, number, filters) => {
    const swatch = h("span", { class: "swatch" });
    swatch.style.background = css(colors.get(value));
    const title = h("bdi", {}, text);
    return h("li", {}, swatch, filters ? link(filters, {}, title) : title,
      h("span", { class: "number" }, count(number)));
  };
  const ordered = [...counts].sort((one, other) => (kind === "shade" && Math.min(one[0], other[0]) >= 0
    ? one[0] - other[0] : other[1] - one[1]));
  const items = ordered.filter(([value]) => !others.has(value))
    .map(([value, number]) => (value < 0 ? entry(value, none, number)
      : entry(value, textOf(value), number, filter(value))));
  const rest = ordered.filter(([value]) => others.has(value));
  if (rest.length) {
    const text = kind === "class" ? plural(rest.length, "other class", "other classes")
      : plural(rest.length, kind === "text" ? "other text" : "other label");
    items.push(entry(rest[0][0], text, rest.reduce((sum, [, number]) => sum + number, 0)));
  }
  if (kind === "label" && info.categories.length > 1) {
    items.push(h("li", { class: "quiet" }, "An image with several labels has the colour of its rarest one."));
  }
  return items;
}

const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true });

// A CSS colour as a pixel of a canvas.
export function pixel(color) {
  probe.fillStyle = color;
  probe.fillRect(0, 0, 1, 1);
  return new Uint32Array(probe.getImageData(0, 0, 1, 1).data.buffer)[0];
}

export function css(value) {
  const [red, green, blue] = new Uint8Array(new Uint32Array([value]).buffer);
  return `rgb(${red}, ${green}, ${blue})`;
}
