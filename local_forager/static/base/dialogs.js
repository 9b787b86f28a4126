// Dialogs: Esc, a click beside one and the button in its corner close it.

import { button, fill, h } from "./dom.js";

export function makeDialog(id, kind = "plain-dialog", close = null) {
  const dialog = h("dialog", { id, class: kind, "aria-labelledby": `${id}-title` });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) (close ?? (() => dialog.close()))();
  });
  document.body.append(dialog);
  return dialog;
}

// The first line of a dialog: its title, and the button that closes it.
export const dialogHead = ({ id }, title, close, ...more) => h("div", { class: "dialog-head" },
  h("div", {}, h("h2", { id: `${id}-title` }, h("bdi", {}, title)), ...more),
  button("×", close, { id: `${id}-close`, class: "round", "aria-label": "Close" }));

export function openDialog(dialog, title, ...content) {
  fill(dialog, dialogHead(dialog, title, () => dialog.close()), ...content);
  if (!dialog.open) dialog.showModal();
  if (!dialog.contains(document.activeElement)) dialog.querySelector("button").focus();
}

// A list to choose one of; all: { value: [title, what it is] }. The first is chosen.
export const radioList = (name, legend, all) => h("fieldset", { class: "radio-list" },
  h("legend", {}, legend),
  Object.entries(all).map(([value, [title, about]], place) => h("label", {},
    h("input", { type: "radio", name, value, checked: place === 0 }),
    title, h("span", { class: "quiet" }, `: ${about}`))));

export const field = (title, input, ...more) =>
  h("p", { class: "field" }, h("label", { for: input.id }, title), input, ...more);
