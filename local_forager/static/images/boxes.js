// The boxes of an image, drawn over its picture, with their categories.

import { h, keep, kept, labelText, modeKind, svg } from "../base/dom.js";

const HIDE = "forager-hide-boxes"; // the browser keeps "yes" if the person switched boxes off
let hidden = kept(HIDE) === "yes";

// viewBox: the part of the image that is seen; place: the attributes of the text of a box.
function overlay(boxes, viewBox, place) {
  return svg("svg", { class: "boxes", viewBox, "aria-hidden": "true" }, ...boxes.flatMap((box) => {
    const [left, top] = [Math.min(box.x1, box.x2), Math.min(box.y1, box.y2)];
    // The mode is readable whatever marks of writing direction the category has.
    const text = svg("text", place(left, top), svg("tspan", {}, box.category),
      labelText(box).slice(box.category.length));
    return [svg("rect", {
      class: modeKind(box.mode), x: left, y: top, width: Math.abs(box.x2 - box.x1),
      height: Math.abs(box.y2 - box.y1),
    }), text];
  }));
}

// Over a full image; width and height are the image's in pixels.
export function drawBoxes(boxes, picture, width, height) {
  const size = Math.max(width, height);
  const drawn = overlay(boxes, `0 0 ${width} ${height}`, (left, top) => ({
    x: left + 0.006 * size, y: Math.max(top - 0.008 * size, 0.028 * size), "font-size": 0.028 * size,
  }));
  const fit = () => {
    drawn.style.width = `${picture.clientWidth}px`;
    drawn.style.height = `${picture.clientHeight}px`;
  };
  new ResizeObserver(fit).observe(picture);
  fit();
  return drawn;
}

// Over a square thumbnail, which shows the middle of an image of this width and height in pixels.
export function tileBoxes(boxes, width, height) {
  const side = Math.min(width, height);
  const [x, y] = [(width - side) / 2, (height - side) / 2];
  const drawn = overlay(boxes, `${x} ${y} ${side} ${side}`, (left, top) => ({
    x: Math.max(left, x), y: Math.max(top, y), dx: "0.3em", dy: "1.1em",
  }));
  drawn.style.setProperty("--side", side); // the size of the text depends on it
  return drawn;
}

const apply = () => {
  document.documentElement.classList.toggle("no-boxes", hidden);
  for (const input of document.querySelectorAll("[data-boxes]")) input.checked = !hidden;
};

// A check box that switches the boxes of all views on and off.
export function boxSwitch(text) {
  return h("label", { class: "inline" }, h("input", {
    type: "checkbox", "data-boxes": true, checked: !hidden,
    onchange: (event) => {
      hidden = !event.currentTarget.checked;
      keep(HIDE, hidden ? "yes" : "no");
      apply();
    },
  }), text);
}

apply();
