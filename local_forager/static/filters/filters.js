// The filters beside the images: text search, split and labels, each with its number of images.

import { choice, finder, form, link, number } from "../base/controls.js";
import { basename, count, fill, h, keep, keepFocus, kept, labelText, plural, splitName } from "../base/dom.js";
import { rove } from "../base/rove.js";
import {
  filtersIn, go, labelOf, labelsIn, leaveHealth, noFilters, ofField, toggled,
} from "../base/state.js";
import { LabelList } from "./labels.js";
import { isPicture, PictureSearch } from "./picture.js";
import { fieldSorts, OTHER_SORTS, rangeChips, Ranges, sortTitle } from "./ranges.js";

const WIDE = matchMedia("(min-width: 56rem)");
const CLASSES = 8; // classes listed at once; the others are found by name
const ORDERS = ["text", "like", "sort"]; // of FILTERS: they order the images only
const MORE = "forager-more-filters"; // the browser keeps "yes" if the person opened them

export class Filters {
  constructor(session) {
    this.session = session;
    this.ranges = new Ranges(session);
    this.labels = new LabelList();
    this.picture = new PictureSearch(session);
    this.body = h("div", { class: "filters-body" });
    this.element = h("details", { class: "filters", open: WIDE.matches },
      h("summary", {}, "Search and filters"), this.body);
    WIDE.addEventListener("change", () => { this.element.open = WIDE.matches; });
    this.classList = h("ul", { class: "choices", role: "list" });
    this.splits = h("ul", { class: "choices", role: "list" });
    this.rest = h("div", { class: "filters-body" });
    this.more = h("details", { class: "more-filters", open: kept(MORE) === "yes" },
      h("summary"), this.rest);
    this.more.addEventListener("toggle", () => this.showRanges());
    this.more.firstChild.addEventListener("click", () => keep(MORE, this.more.open ? "no" : "yes"));
    this.findClass = "";
    this.key = null; // of what is shown; the key of what the ranges show
    this.rangesOf = null;
    this.turn = 0;
  }

  show(info, state) {
    const { image, color, method, view, ...rest } = state;
    const key = JSON.stringify([info, rest, state.view]);
    if (key === this.key) return;
    this.key = key;
    Object.assign(this, { info, state });
    this.facets = this.counted && this.filtered() ? this.counted : everything(info);
    const scroll = this.element.scrollTop;
    keepFocus(this.body, () => this.draw());
    this.element.scrollTop = scroll;
    this.recount();
  }

  draw() {
    const { info, state } = this;
    fill(this.rest, this.classes(), this.ranges.element);
    const own = info.fields.some(({ group }) => group === "column") || info.columns.length > 0;
    this.more.firstChild.textContent = `ImageNet class, sizes, quality${own ? ", columns" : ""}`;
    if (["class", ...ofField(state)].some((field) => state[field] !== null)) this.more.open = true;
    fill(this.body,
      search(info, state),
      this.picture.element,
      sorting(info, state),
      naming(state),
      h("section", { "aria-labelledby": "split-title" }, h("h2", { id: "split-title" }, "Split"), this.splits),
      this.labels.show(info, state, this.facets),
      this.more,
    );
    this.picture.show(info, withOptions);
    this.fillSplits();
    this.showRanges();
  }

  // Histograms are asked for only while they are seen.
  showRanges() {
    if (!this.more.open || this.rangesOf === this.key) return;
    this.rangesOf = this.key;
    this.ranges.show(this.info, this.state);
  }

  filtered() {
    return filtersIn(this.state).some((field) => this.state[field] !== null && !ORDERS.includes(field));
  }

  // Counts the images that pass the other filters; the earlier counts are shown until then.
  async recount() {
    const turn = (this.turn += 1);
    const counted = this.filtered() ? await this.session.counts("counts", this.state) : null;
    if (turn !== this.turn) return;
    this.counted = counted;
    if (!counted) return;
    this.facets = counted;
    this.fillSplits();
    this.fillClasses();
    this.labels.facets = counted;
    this.labels.fill();
  }

  fillSplits() {
    const { state, facets: { train, val } } = this;
    const lines = [[null, "All", train + val], ["train", "Train", train], ["val", "Validation", val]];
    fill(this.splits, lines.map(([value, text, images]) => choice(`split-${value}`, text,
      number(images), state.split === value, { ...leaveHealth(state), split: value })));
    rove(this.splits);
  }

  classes() {
    const { info } = this;
    if (!info.classes.length) return null;
    this.fillClasses();
    return h("section", { "aria-labelledby": "classes-title" },
      h("h2", { id: "classes-title" }, "ImageNet class"),
      info.classes.length > CLASSES && finder("find-class", "Find a class", this.findClass, (text) => {
        this.findClass = text;
        this.fillClasses();
      }), this.classList);
  }

  fillClasses() {
    const { info, state, facets } = this;
    const wanted = this.findClass.toLowerCase();
    const counts = new Map(facets.classes.map((one) => [one.imagenet_class, one.count]));
    const found = info.classes.filter(({ imagenet_class: place, name }) =>
      String(place) === state.class || name.toLowerCase().includes(wanted));
    const shown = found.slice(0, CLASSES);
    fill(this.classList, shown.map(({ imagenet_class: place, name }) => {
      const on = state.class === String(place);
      return choice(`class-${place}`, name, number(counts.get(place) ?? 0), on,
        { ...leaveHealth(state), class: on ? null : place });
    }), found.length > shown.length && h("li", { class: "quiet" },
      `and ${plural(found.length - shown.length, "other class", "other classes")}`));
    rove(this.classList);
  }
}

// The counts without filters.
const everything = (info) => ({
  train: info.rows_train, val: info.rows - info.rows_train, labelled: info.labelled,
  unlabelled: info.rows - info.labelled, categories: info.categories, classes: info.classes,
});

function search(info, state) {
  const { available, reason } = info.text_search;
  const input = h("input", {
    type: "search", id: "search-text", name: "text", value: state.text ?? "", disabled: !available,
    placeholder: available ? "a dog in the snow" : "not available", autocomplete: "off",
    maxlength: "800", // each may take 9 of the 8,190 bytes of an address
    "aria-describedby": "search-about",
  });
  const act = () => go({ text: input.value.trim() || null, like: null, set: null, image: null, view: null });
  return form(act, { role: "search" },
    h("label", { for: "search-text", class: "heading" }, "Search by text"), input,
    h("p", { class: "quiet", id: "search-about" },
      available ? "Sorts the images by CLIP, best first." : withOptions(reason)));
}

export const byNeighbours = (sort) => ["outliers", "typical"].includes(sort);

function sorting(info, state) {
  const refused = (sort) => (!sortTitle(info, sort) ? info.sizes.reason
    : byNeighbours(sort) && !info.neighbour_sorts.available ? info.neighbour_sorts.reason : null);
  const all = Object.keys(Object.assign({}, OTHER_SORTS, ...fieldSorts(info).map(([, sorts]) => sorts)));
  const reasons = [...new Set(all.map(refused).filter(Boolean))];
  const options = (sorts) => Object.entries(sorts).map(([value, title]) => h("option", {
    value, selected: value === (state.sort ?? ""), disabled: refused(value) !== null,
    title: refused(value) ?? "",
  }, title));
  return h("section", {}, h("label", { for: "sort", class: "heading" }, "Sort"),
    h("select", {
      id: "sort",
      onchange: (event) => go({
        ...leaveHealth(state), sort: event.currentTarget.value || null, text: null, like: null, set: null,
        image: null,
      }),
    }, options(OTHER_SORTS), fieldSorts(info).map(([label, sorts]) =>
      h("optgroup", { label }, options(sorts)))),
    reasons.map((reason) => h("p", { class: "quiet small" }, reason)));
}

function naming(state) {
  const input = h("input", {
    type: "search", id: "name", value: state.name_part ?? "", autocomplete: "off", maxlength: "600",
  });
  return form(() => go({ ...leaveHealth(state), name_part: input.value || null, image: null }), {},
    h("label", { for: "name", class: "heading" }, "Object name contains"), input);
}

// A sentence of the server, in which an option to type is never broken across lines.
const withOptions = (text) => text.split(/(--\w+)/).map((part) =>
  (part.startsWith("--") ? h("code", { class: "whole" }, part) : part));

// How many images are shown, and each filter with a link that removes it.
export function summary(session, state, shown) {
  const { info } = session;
  const chips = [];
  // Each is named by its place: where one is removed, the next one has the focus.
  const chip = (text, changes) => chips.push(link({ image: null, ...changes },
    { id: `chip-${chips.length}`, class: "chip", title: text, "aria-label": `Remove the filter: ${text}` },
    h("bdi", {}, text), h("span", { "aria-hidden": "true" }, "×")));
  if (state.split) chip(splitName(state.split), { split: null });
  // A category without other modes than POSITIVE needs no mention of it.
  const text = (category, mode) => (mode !== null ? labelText({ category, mode })
    : info.categories.find((one) => one.category === category)?.modes.some((one) => one.mode !== "POSITIVE")
      ? `${category}: any mode` : category);
  if (state.category !== null) chip(text(state.category, state.mode), { category: null, mode: null });
  for (const [field, word] of [["or", "or "], ["with", "and "], ["without", "not "]]) {
    const terms = labelsIn(state, field);
    for (const term of terms) {
      const { category, mode } = labelOf(term);
      const alone = field === "or" && state.category === null && terms.length === 1;
      chip(`${alone ? "" : word}${text(category, mode)}`, { [field]: toggled(state, field, term) });
    }
  }
  if (state.labelled) chip(state.labelled === "no" ? "no label" : "any label", { labelled: null });
  if (state.class !== null) {
    const known = info.classes.find((one) => String(one.imagenet_class) === state.class);
    chip(`ImageNet class: ${known?.name ?? state.class}`, { class: null });
  }
  if (state.name_part) chip(`name contains ${state.name_part}`, { name_part: null });
  if (state.failed) chip(state.failed === "no" ? "not failed" : "failed", { failed: null });
  for (const [text, changes] of rangeChips(info, state)) chip(text, changes);
  if (state.sort) {
    chip(`sorted: ${sortTitle(info, state.sort) ?? state.sort}`, { sort: null });
  }
  if (state.selected === "yes") chip("selected", { selected: null });
  if (state.set) {
    const title = info.sets.find(({ set }) => set === state.set)?.title ?? state.set;
    chip(state.distance === null ? title : `${title}, distance up to ${state.distance}`, { set: null });
  }
  if (state.text) chip(`by text: ${state.text}`, { text: null });
  if (state.like !== null) {
    const known = session.rows.known(Number(state.like));
    const what = isPicture(state.like) ? "your picture" : known ? basename(known.name) : state.like;
    chip(`by similarity to ${what}`, { like: null });
  }
  return h("div", { class: "summary" },
    h("p", { role: "status", class: "total" }, shown === info.rows ? plural(shown, "image")
      : `${count(shown)} of ${plural(info.rows, "image")}`),
    chips,
    chips.length > 1 && link({ ...noFilters(state), selected: null, image: null }, { class: "clear-all" },
      "Clear all"),
    [...info.warnings, ...state.notes].map((warning) =>
      h("p", { class: "warning", role: "alert" }, withOptions(warning))));
}
