// Controls that several parts of the page have: links, choices, forms.

import { count, h } from "./dom.js";
import { changed, go, onLink } from "./state.js";

// A link to this view with these changes.
export const link = (changes, properties, ...children) =>
  h("a", { href: changed(changes), onclick: onLink, ...properties }, ...children);

// A line that chooses a filter, or takes it back; `numbers` is one or several elements.
export const choice = (id, text, numbers, on, changes) =>
  h("li", {}, link({ ...changes, image: null },
    { id, class: "choice", "aria-current": on ? "true" : null, title: text },
    h("bdi", { class: "choice-text" }, text), numbers));

export const number = (images) => h("span", { class: "number" }, count(images));

export const form = (act, properties, ...children) => h("form", {
  ...properties,
  onsubmit: (event) => {
    event.preventDefault();
    act();
  },
}, ...children);

// A row of radio buttons; options: [value, text, what a pointer over it shows].
export function segments(name, title, options, chosen, choose) {
  return h("fieldset", { class: "segments" },
    h("legend", { class: "hidden" }, title),
    options.map(([value, text = value, about = null]) => h("label", { title: about },
      h("input", {
        type: "radio", name, value, id: `${name}-${value}`, checked: value === chosen,
        onchange: () => choose(value),
      }),
      h("span", {}, text))));
}

// A box in which the input of a list is typed; typed(text) is called at each key.
export const finder = (id, title, value, typed) => h("input", {
  type: "search", id, placeholder: title, "aria-label": title, value,
  oninput: (event) => typed(event.currentTarget.value),
});

// Chooses the embedding by which images are compared, and makes these changes too.
export const compareBy = (name, embeddings, by, changes = {}) =>
  segments(`${name}-by`, "Compare by", embeddings.map((one) => [one.by, one.by, one.about]), by,
    (chosen) => go({ by: chosen === "clip" ? null : chosen, ...changes }, { replace: true }));
