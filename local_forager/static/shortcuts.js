// The list of keyboard shortcuts, opened by the question mark or the button in the header.

import { makeDialog, openDialog } from "./base/dialogs.js";
import { h } from "./base/dom.js";

const SHORTCUTS = {
  "Everywhere": [["?", "this list"], ["/", "search"], ["← → ↑ ↓ in a list", "move within it; Tab leaves it"]],
  "Images": [
    ["← → ↑ ↓", "move to another image"], ["Page up, Page down", "move by a screen"],
    ["Home, End", "move to the first or last image"], ["Enter", "open the image"],
    ["Space", "select the image, or take it away"], ["Shift + ← → ↑ ↓", "select on the way"],
    ["Ctrl + A", "select all images of the view"],
    ["Shift or Ctrl + click", "select a range or a single image"],
    ["Ctrl + V", "search by the picture in the clipboard"],
  ],
  "Histograms": [
    ["← → Home End", "move the handle that has the focus"], ["Enter", "apply at once"],
    ["Esc", "undo the move"],
  ],
  "Distance of near duplicates": [["← →", "a smaller or larger distance"], ["Home, End", "the smallest or largest"]],
  "One image": [
    ["← →", "previous or next image of the view"], ["Space", "select the image, or take it away"],
    ["c", "show it side by side with the nearest image"], ["Esc", "close"],
  ],
  "Map": [
    ["← → ↑ ↓", "move the map"], ["+ −", "zoom in or out"], ["0", "show all"],
    ["n", "show or hide the names of clusters"],
    ["Enter", "open the image nearest to the middle"],
    ["Shift + drag", "select with a rectangle"], ["Alt", "take images away instead"],
  ],
};
const dialog = makeDialog("shortcuts");

// The search by text, or by name where there is no search by text.
function focusSearch(event) {
  const input = document.querySelector("#search-text:enabled") ?? document.getElementById("name");
  if (!input) return;
  event.preventDefault();
  input.closest("details").open = true;
  input.focus();
}

const list = () => Object.entries(SHORTCUTS).map(([place, keys]) => h("section", {}, h("h3", {}, place),
  h("dl", {}, keys.map(([key, what]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, what)]))));

export function watchShortcuts() {
  const open = () => openDialog(dialog, "Keyboard shortcuts", list());
  document.getElementById("show-shortcuts").addEventListener("click", open);
  addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input:not([type=checkbox], [type=radio]), textarea, select");
    if (typing || event.ctrlKey || event.metaKey) return;
    if (event.key === "/" && !document.querySelector("dialog[open]")) focusSearch(event);
    if (event.key === "?") open();
  });
}
