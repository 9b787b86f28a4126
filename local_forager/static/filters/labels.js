// The list of labels: each category with the counts of its modes, and what filters by them.

import { choice, finder, link, number } from "../base/controls.js";
import { button, count, dot, fill, h, modeName } from "../base/dom.js";
import { rove } from "../base/rove.js";
import { labelOf, labelsIn, LABEL_LISTS, leaveHealth, termOf, toggled } from "../base/state.js";

const SHOWN = 12; // categories listed at once, the commonest; the others are found by name
const MORE = 100; // that a press on "more" adds
const MODES_ON_LINE = 3; // counts beside that of the positive label
const SIGNS = {
  or: ["or", "Or with this label"], with: ["+", "And with this label"], without: ["−", "Without this label"],
};

export class LabelList {
  constructor() {
    this.find = "";
    this.shown = SHOWN;
    this.unfolded = new Set(); // categories whose modes are listed
    this.list = h("ul", { class: "choices", role: "list" });
    this.rest = h("ul", { class: "choices", role: "list" });
    this.all = h("div", {}, this.list, this.rest); // one stop of Tab
  }

  // facets: the counts of all images, or of those that pass the other filters.
  show(info, state, facets) {
    Object.assign(this, { info, state, facets });
    this.fill();
    return h("section", { "aria-labelledby": "labels-title" },
      h("h2", { id: "labels-title" }, "Labels"),
      info.categories.length > SHOWN && finder("find-label", "Find a label", this.find, (text) => {
        this.find = text;
        this.shown = SHOWN;
        this.fill();
      }),
      info.categories.length ? this.all : h("p", { class: "quiet" },
        "None yet. Labels written by ingest_labels.py appear here by themselves."));
  }

  fill() {
    const { info, state, facets } = this;
    const wanted = this.find.toLowerCase();
    const named = new Set([state.category, ...LABEL_LISTS.flatMap((field) =>
      labelsIn(state, field).map((term) => labelOf(term).category))]);
    const found = info.categories.filter(({ category }) => category.toLowerCase().includes(wanted))
      .sort((one, other) => other.count - one.count);
    const listed = found.filter(({ category }, place) => place < this.shown || named.has(category));
    const counts = new Map(facets.categories.map((one) => [one.category, one]));
    fill(this.list,
      listed.map((one) => this.line(one, counts.get(one.category), named.has(one.category))),
      !found.length && h("li", { class: "quiet" }, "No such label."),
      found.length > listed.length && h("li", {}, button(`${count(found.length - listed.length)} more`, () => {
        this.shown += MORE;
        this.fill();
      }, { class: "plain", id: "more-labels" })));
    const none = { ...leaveHealth(state), category: null, mode: null };
    const any = (value, text, images) => choice(`label-${value}`, text, number(images),
      state.labelled === value, { ...none, labelled: state.labelled === value ? null : value });
    fill(this.rest, any("yes", "Any label", facets.labelled), any("no", "No label", facets.unlabelled));
    rove(this.all, ".choice, .plain");
  }

  // The line of a category is its positive label; its other modes have lines below it.
  line({ category, modes }, counted, named) {
    const images = (mode) => counted?.modes.find((one) => one.mode === mode)?.count ?? 0;
    const positive = modes.some(({ mode }) => mode === "POSITIVE");
    const others = modes.filter(({ mode }) => mode !== "POSITIVE");
    const main = positive ? "POSITIVE" : null;
    const numbers = [positive && number(images("POSITIVE")),
      others.slice(0, MODES_ON_LINE).map(({ mode }) => h("span", { class: "number", title: modeName(mode) },
        dot(mode), h("span", { class: "hidden" }, `, ${modeName(mode)} `), count(images(mode)))),
      others.length > MODES_ON_LINE && h("span", { class: "number" }, "…")];
    const item = this.mode(`category-${category}`, category, category, main, numbers, positive || !others.length);
    if (!others.length) return item;
    const open = named || this.unfolded.has(category);
    item.prepend(button(open ? "▾" : "▸", () => {
      if (!this.unfolded.delete(category)) this.unfolded.add(category);
      this.fill();
    }, {
      class: "unfold", id: `unfold-${category}`, "aria-expanded": String(open),
      "aria-label": `Modes of ${category}`, disabled: named,
    }));
    const modeLine = (mode, text, shown) =>
      this.mode(`mode-${category}-${mode ?? ""}`, text, category, mode, shown, true);
    if (open) {
      item.append(h("ul", { class: "modes", role: "list" },
        others.map(({ mode }) => modeLine(mode, modeName(mode), [dot(mode), number(images(mode))])),
        positive && modeLine(null, "any mode", number(counted?.count ?? 0))));
    }
    return item;
  }

  // A label in one mode, null for any, with the signs that combine it with other filters.
  mode(id, text, category, mode, numbers, signs) {
    const { state } = this;
    const base = { ...leaveHealth(state), labelled: null };
    const on = state.category === category && state.mode === mode;
    const item = choice(id, text, numbers, on,
      on ? { ...base, category: null, mode: null } : { ...base, category, mode });
    if (!signs) return item;
    const term = termOf(category, mode);
    const about = mode === "POSITIVE" ? category : `${category}: ${mode === null ? "any mode" : modeName(mode)}`;
    item.append(h("span", { class: "mores" }, LABEL_LISTS.map((field) => {
      const [sign, title] = SIGNS[field];
      return link({ ...base, image: null, [field]: toggled(state, field, term) }, {
        class: "more", id: `${field}-${id}`, title, "aria-label": `${title}: ${about}`,
        "aria-current": labelsIn(state, field).includes(term) ? "true" : null,
      }, sign);
    })));
    return item;
  }
}
