// The filters beside the images: text search, split and labels, each with its number of images.

import { basename, count, h, modeKind, modeName, plural, splitName } from "../dom.js";
import { fieldSorts, OTHER_SORTS, rangeChips, Ranges, sortTitle } from "./ranges.js";
import { changed, go, labelsIn, leaveHealth, onLink, toggled } from "../state.js";

const WIDE = matchMedia("(min-width: 56rem)");
const CLASSES = 8; // classes listed at once; the others are found by name
const MANY = 12; // categories; from here on there is a box to find one

export class Filters {
  constructor(session) {
    this.ranges = new Ranges(session, choice);
    this.body = h("div", { class: "filters-body" });
    this.element = h("details", { class: "filters", open: WIDE.matches },
      h("summary", {}, "Search and filters"), this.body);
    WIDE.addEventListener("change", () => { this.element.open = WIDE.matches; });
    this.find = "";
    this.findClass = "";
    this.key = null;
  }

  show(info, state) {
    const { image, color, method, view, ...rest } = state;
    const key = JSON.stringify([info, rest, state.view]);
    if (key === this.key) return;
    this.key = key;
    const focused = this.body.contains(document.activeElement) ? document.activeElement.id : null;
    const scroll = this.element.scrollTop;
    this.body.replaceChildren(
      search(info, state),
      sorting(info, state),
      naming(state),
      split(info, state),
      this.labels(info, state),
      this.classes(info, state),
      this.ranges.element,
    );
    this.ranges.show(info, state);
    this.element.scrollTop = scroll;
    if (focused) document.getElementById(focused)?.focus();
  }

  classes(info, state) {
    if (!info.classes.length) return null;
    const list = h("ul", { class: "choices", role: "list" });
    const fill = () => {
      const wanted = this.findClass.toLowerCase();
      const found = info.classes.filter(({ imagenet_class: number, name }) =>
        String(number) === state.class || (wanted ? name.toLowerCase().includes(wanted) : true));
      const shown = found.slice(0, CLASSES);
      list.replaceChildren(...shown.map(({ imagenet_class: number, name, count: images }) => {
        const on = state.class === String(number);
        return choice(`class-${number}`, name, images, on,
          { ...leaveHealth(state), class: on ? null : number, set: null, image: null });
      }), ...(found.length > shown.length ? [h("li", { class: "quiet" },
        `and ${plural(found.length - shown.length, "other class", "other classes")}`)] : []));
    };
    fill();
    return h("section", { "aria-labelledby": "classes-title" },
      h("h2", { id: "classes-title" }, "ImageNet class"),
      info.classes.length > CLASSES ? h("input", {
        type: "search", placeholder: "Find a class", "aria-label": "Find a class", id: "find-class",
        value: this.findClass,
        oninput: (event) => { this.findClass = event.currentTarget.value; fill(); },
      }) : null, list);
  }

  labels(info, state) {
    const list = h("ul", { class: "choices", role: "list" });
    const fill = () => {
      const wanted = this.find.toLowerCase();
      const found = info.categories.filter(({ category }) => category.toLowerCase().includes(wanted));
      list.replaceChildren(...found.map((category) => categoryChoice(category, state)),
        ...(found.length ? [] : [h("li", { class: "quiet" }, "No such label.")]));
    };
    fill();
    const box = info.categories.length < MANY ? null : h("input", {
      type: "search", placeholder: "Find a label", "aria-label": "Find a label", id: "find-label",
      value: this.find, oninput: (event) => { this.find = event.currentTarget.value; fill(); },
    });
    const unlabelled = info.rows - info.labelled;
    const none = { ...leaveHealth(state), category: null, mode: null, set: null, image: null };
    return h("section", { "aria-labelledby": "labels-title" },
      h("h2", { id: "labels-title" }, "Labels"),
      info.categories.length ? null : h("p", { class: "quiet" },
        "None yet. Labels written by ingest_labels.py appear here by themselves."),
      box,
      info.categories.length ? list : null,
      info.categories.length ? h("ul", { class: "choices", role: "list" },
        choice("label-any", "Any label", info.labelled, state.labelled === "yes",
          { ...none, labelled: state.labelled === "yes" ? null : "yes" }),
        choice("label-none", "No label", unlabelled, state.labelled === "no",
          { ...none, labelled: state.labelled === "no" ? null : "no" })) : null,
    );
  }
}

function search(info, state) {
  const { available, reason } = info.text_search;
  const input = h("input", {
    type: "search", id: "search-text", name: "text", value: state.text ?? "", disabled: !available,
    placeholder: available ? "a dog in the snow" : "not available", autocomplete: "off",
    maxlength: "1000", "aria-describedby": "search-about",
  });
  return h("form", {
    role: "search",
    onsubmit: (event) => {
      event.preventDefault();
      go({ text: input.value.trim() || null, like: null, set: null, image: null, view: null });
    },
  },
  h("label", { for: "search-text", class: "heading" }, "Search by text"),
  input,
  h("p", { class: "quiet", id: "search-about" },
    available ? "Sorts the images by CLIP, best first." : withOptions(reason)));
}

function sorting(info, state) {
  return h("section", {}, h("label", { for: "sort", class: "heading" }, "Sort"),
    h("select", {
      id: "sort", class: "wide",
      onchange: (event) => go({
        ...leaveHealth(state), sort: event.currentTarget.value || null, text: null, like: null, set: null,
        image: null,
      }),
    }, sortOptions(OTHER_SORTS, info, state), fieldSorts(info).map(([label, sorts]) =>
      h("optgroup", { label }, sortOptions(sorts, info, state)))));
}

const sortOptions = (sorts, info, state) => Object.entries(sorts).map(([value, title]) => h("option", {
  value, selected: value === (state.sort ?? ""), disabled: !sortTitle(info, value),
}, title));

function naming(state) {
  const input = h("input", {
    type: "search", id: "name", value: state.name_part ?? "", autocomplete: "off", maxlength: "600",
  });
  return h("form", {
    onsubmit: (event) => {
      event.preventDefault();
      go({ ...leaveHealth(state), name_part: input.value || null, image: null });
    },
  }, h("label", { for: "name", class: "heading" }, "Object name contains"), input);
}

function choice(id, text, number, on, changes, extra = null) {
  return h("li", {}, h("a", {
    id, class: "choice", href: changed(changes), "aria-current": on ? "true" : null, onclick: onLink,
  }, extra, h("bdi", { class: "choice-text" }, text), h("span", { class: "number" }, count(number))));
}

function split(info, state) {
  const counts = [
    [null, "All", info.rows],
    ["train", "Train", info.rows_train],
    ["val", "Validation", info.rows - info.rows_train],
  ];
  return h("section", { "aria-labelledby": "split-title" },
    h("h2", { id: "split-title" }, "Split"),
    h("ul", { class: "choices", role: "list" }, counts.map(([value, text, number]) =>
      choice(`split-${value}`, text, number, state.split === value, { ...leaveHealth(state), split: value, image: null }))));
}

function categoryChoice({ category, count: number, modes }, state) {
  const on = state.category === category;
  const base = { ...leaveHealth(state), labelled: null, set: null, image: null };
  const item = choice(`category-${category}`, category, number, on && state.mode === null,
    on && state.mode === null ? { ...base, category: null, mode: null } : { ...base, category, mode: null });
  const more = (field, sign, title) => h("a", {
    class: "more", href: changed({ ...base, [field]: toggled(state, field, category) }), title,
    "aria-label": `${title}: ${category}`, onclick: onLink,
    "aria-current": labelsIn(state, field).includes(category) ? "true" : null,
  }, sign);
  item.style.setProperty("--digits", count(number).length); // the buttons leave the number free
  item.append(h("span", { class: "mores" }, more("or", "or", "Or with this label"),
    more("with", "+", "And with this label"), more("without", "−", "Without this label")));
  if (modes.length > 1 || modes[0].mode !== "POSITIVE") {
    item.append(h("ul", { class: "modes", role: "list" }, modes.map(({ mode, count: images }) => {
      const chosen = on && state.mode === mode;
      return choice(`mode-${category}-${mode}`, modeName(mode), images, chosen,
        chosen ? { ...base, category, mode: null } : { ...base, category, mode },
        h("span", { class: `dot ${modeKind(mode)}` }));
    })));
  }
  return item;
}

// A sentence of the server, in which an option to type is never broken across lines.
const withOptions = (text) => text.split(/(--\w+)/).map((part) =>
  (part.startsWith("--") ? h("code", { class: "whole" }, part) : part));

// How many images are shown, and each filter with a link that removes it.
export function summary(session, state, shown) {
  const { info } = session;
  const chips = [];
  const chip = (text, changes) => chips.push(h("a", {
    class: "chip", href: changed({ image: null, ...changes }), onclick: onLink,
    "aria-label": `Remove the filter: ${text}`,
  }, h("bdi", {}, text), h("span", { "aria-hidden": "true" }, "×")));
  if (state.split) chip(splitName(state.split), { split: null });
  if (state.category !== null) {
    chip(state.mode ? `${state.category}: ${modeName(state.mode)}` : state.category,
      { category: null, mode: null });
  }
  for (const label of labelsIn(state, "or")) {
    const alone = state.category === null && labelsIn(state, "or").length === 1;
    chip(alone ? label : `or ${label}`, { or: toggled(state, "or", label) });
  }
  if (state.labelled) chip(state.labelled === "no" ? "no label" : "any label", { labelled: null });
  for (const label of labelsIn(state, "with")) {
    chip(`and ${label}`, { with: toggled(state, "with", label) });
  }
  for (const label of labelsIn(state, "without")) {
    chip(`not ${label}`, { without: toggled(state, "without", label) });
  }
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
    chip(info.sets.find(({ set }) => set === state.set)?.title ?? state.set, { set: null });
  }
  if (state.text) chip(`by text: ${state.text}`, { text: null });
  if (state.like !== null) {
    const known = session.rows.known(Number(state.like));
    chip(`by similarity to ${known ? basename(known.name) : state.like}`, { like: null });
  }
  return h("div", { class: "summary" },
    h("p", { role: "status", class: "total" }, shown === info.rows ? plural(shown, "image")
      : `${count(shown)} of ${plural(info.rows, "image")}`),
    ...chips,
    ...[...info.warnings, ...state.notes].map((warning) =>
      h("p", { class: "warning", role: "alert" }, withOptions(warning))));
}
