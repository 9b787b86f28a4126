// Colours of the map's points by split, label, ImageNet class or the modes of one label; its legend.

import { count, h, own, plural, splitName } from "../dom.js";
import { changed, onLink } from "../state.js";

const COLUMNS = { split: "split", label: "label", class: "ImageNet class" };
const CATEGORY = "category:"; // before a label in the address: colours by the modes of that label
const MODES = ["positive", "negative", "hard negative", "unsure", "another mode"];
const LIGHT = ["#2f6f4f", "#d1603d", "#3f6fc4", "#c29211", "#8b53ad", "#1f9aa0", "#b53b74", "#6f7f1f",
  "#8f5a34", "#50607f"];
const DARK = ["#6fcf9b", "#f08b68", "#7fa8f5", "#e6bd4f", "#c092e0", "#5ccfd3", "#ee7fae", "#b6c95a",
  "#cf9a72", "#9fb0d4"];
export const dark = matchMedia("(prefers-color-scheme: dark)");

// What the points can be coloured by: { value in the address: title }.
export function colorChoices(categories) {
  const labels = categories.map(({ category }) => [CATEGORY + category, `label ${category}`]);
  return { ...COLUMNS, ...Object.fromEntries(labels) };
}

// The choice in the address, the column of the page's API to ask for, and its label if any.
export function chosenColor(color, categories) {
  const category = color?.startsWith(CATEGORY) ? color.slice(CATEGORY.length) : null;
  if (categories.some((one) => one.category === category)) return { color, kind: "category", category };
  return own(COLUMNS, color) ? { color, kind: color } : { color: "split", kind: "split" };
}

// The colour of each value of a column, as a pixel, and the values without a colour of their own.
// The commonest labels and classes have colours of their own, whatever the filters; the others share
// one, and images without label or class have another.
export function columnColors(column, kind) {
  const palette = dark.matches ? DARK : LIGHT;
  const counts = new Map();
  for (const value of column) counts.set(value, (counts.get(value) ?? 0) + 1);
  const values = [...counts.keys()].filter((value) => value >= 0);
  const byNumber = kind === "label" || kind === "class";
  if (byNumber) values.sort((one, other) => counts.get(other) - counts.get(one) || one - other);
  const colors = new Map([[-1, pixel(dark.matches ? "#77817a" : "#a3a69e")]]);
  values.forEach((value, rank) => {
    const color = palette[byNumber ? rank : value] ?? (dark.matches ? "#ffffff" : "#1d2320");
    colors.set(value, pixel(color));
  });
  return { colors, others: new Set(byNumber ? values.slice(palette.length) : []) };
}

// What a value of a column means.
export function valueName(kind, { categories, classes }, value) {
  return {
    split: () => splitName(value ? "val" : "train"),
    label: () => (value < 0 ? "no positive label" : categories[value]?.category ?? ""),
    class: () => (value < 0 ? "no class"
      : classes.find((one) => one.imagenet_class === value)?.name ?? `class ${value}`),
    category: () => (value < 0 ? "no such label" : MODES[value]),
  }[kind]();
}

// The entries of the legend. counts: value -> images that are shown.
export function legend(kind, info, counts, colors, others) {
  const { categories } = info;
  const filter = (value) => (value < 0 ? null : {
    split: () => ({ split: value ? "val" : "train" }),
    label: () => ({ category: categories[value]?.category ?? null, mode: "POSITIVE" }),
    class: () => ({ class: value }),
    category: () => null,
  }[kind]());
  const entry = (value, text, number, filters = filter(value)) => {
    const swatch = h("span", { class: "swatch" });
    swatch.style.background = css(colors.get(value));
    const title = filters ? h("a", { href: changed(filters), onclick: onLink }, h("bdi", {}, text))
      : h("bdi", {}, text);
    return h("li", {}, swatch, title, h("span", { class: "number" }, count(number)));
  };
  const ordered = [...counts].sort((one, other) => other[1] - one[1]);
  const items = ordered.filter(([value]) => !others.has(value))
    .map(([value, number]) => entry(value, valueName(kind, info, value), number));
  const rest = ordered.filter(([value]) => others.has(value));
  if (rest.length) {
    const text = kind === "class" ? plural(rest.length, "other class", "other classes")
      : plural(rest.length, "other label");
    items.push(entry(rest[0][0], text, rest.reduce((sum, [, number]) => sum + number, 0), null));
  }
  if (kind === "label" && categories.length > 1) {
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
