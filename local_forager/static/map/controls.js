// The toolbar of the map: what the points show, where they are, and what dragging does.

import { segments } from "../base/controls.js";
import { fill, h } from "../base/dom.js";
import { go } from "../base/state.js";
import { FEW } from "../points/pictures.js";
import { colorChoices } from "./colors.js";
import { MEASURE } from "./names.js";

const TOOLS = [["move", "Move"], ["rectangle", "Rectangle"], ["lasso", "Lasso"]];

// Draws the toolbar anew, with these choices.
export function drawControls(map, by, method, color) {
  const { info } = map.session;
  const { embeddings, layout, umap } = info;
  const choose = (field, usual) => (value) => go({ [field]: value === usual ? null : value }, { replace: true });
  fill(map.controls,
    select("color", "Colour by", colorChoices(info), color, choose("color", "split")),
    select("by", "Embedding", Object.fromEntries(embeddings.map((one) => [one.by, one.by])), by,
      choose("by", embeddings[0].by)),
    select("method", "Layout", { pca: "PCA", umap: umap.available ? "UMAP" : "UMAP: needs umap-learn" },
      method, choose("method", layout)),
    box(map, "pictures", "Pictures", `When up to ${FEW} images are in view`, map.withPictures),
    box(map, "names", "Names", MEASURE, map.withNames),
    segments("map-tool", "What dragging does", TOOLS, map.tool, (tool) => {
      map.tool = tool;
      map.canvas.classList.toggle("drawing", tool !== "move");
    }),
    segments("map-removes", "What shapes do", [["add", "Add"], ["remove", "Remove"]],
      map.removes ? "remove" : "add", (value) => { map.removes = value === "remove"; }));
  const layouts = document.getElementById("map-method");
  layouts.title = umap.reason;
  layouts.querySelector("[value=umap]").disabled = !umap.available;
}

function select(field, text, options, value, change) {
  const id = `map-${field}`;
  return h("label", { for: id }, text, h("select", {
    id, onchange: (event) => change(event.currentTarget.value),
  }, Object.entries(options).map(([key, title]) =>
    h("option", { value: key, selected: key === value }, title))));
}

function box(map, field, text, title, checked) {
  const id = `map-${field}`;
  return h("label", { for: id, title }, h("input", {
    type: "checkbox", id, checked, onchange: () => map.toggle(field),
  }), text);
}
