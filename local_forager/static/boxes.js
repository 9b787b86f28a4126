// The boxes of an image, drawn over it, with their categories.

import { h, keep, kept, labelText, modeKind } from "./dom.js";
import { svg } from "./svg.js";

const HIDE = "forager-hide-boxes"; // the browser keeps "yes" if the person switched boxes off

// An overlay for an image element, and a box to switch it off; width and height are the image's in
// pixels. Both are null if the image has no boxes.
export function drawBoxes(boxes, picture, width, height) {
  const size = Math.max(width, height);
  const overlay = svg("svg", { class: "boxes", viewBox: `0 0 ${width} ${height}` },
    ...boxes.flatMap((box) => {
      const [left, top] = [Math.min(box.x1, box.x2), Math.min(box.y1, box.y2)];
      const text = svg("text", {
        x: left + 0.006 * size, y: Math.max(top - 0.008 * size, 0.028 * size), "font-size": 0.028 * size,
      });
      text.textContent = labelText(box);
      return [svg("rect", {
        class: modeKind(box.mode), x: left, y: top, width: Math.abs(box.x2 - box.x1),
        height: Math.abs(box.y2 - box.y1),
      }), text];
    }));
  const fit = () => {
    overlay.style.width = `${picture.clientWidth}px`;
    overlay.style.height = `${picture.clientHeight}px`;
  };
  new ResizeObserver(fit).observe(picture);
  fit();
  overlay.style.display = kept(HIDE) === "yes" ? "none" : "";
  return overlay;
}

export function boxSwitch(boxes, dialog) {
  if (!boxes.length) return null;
  return h("label", { class: "inline" }, h("input", {
    type: "checkbox", checked: kept(HIDE) !== "yes",
    onchange: (event) => {
      keep(HIDE, event.currentTarget.checked ? "no" : "yes");
      const overlay = dialog.querySelector(".boxes");
      if (overlay) overlay.style.display = event.currentTarget.checked ? "" : "none";
    },
  }), `Show ${boxes.length === 1 ? "the box" : `the ${boxes.length} boxes`}`);
}
