// Pointer, wheel and keyboard of the map: moving, zooming, opening images, drawing shapes.

import { own } from "../base/dom.js";
import { go } from "../base/state.js";
import { dark } from "./colors.js";
import { limits, rectangle, rowsWithin } from "./shapes.js";

const STEP = 60; // CSS pixels that an arrow key moves the map
export const ZOOM_STEP = 1.5; // of a key or a button
const CLICK = 4; // CSS pixels; a pointer that moves further drags

// Connects a map with its canvas; returns a function that ends what outlives the canvas.
export function listenTo(map) {
  const on = (name, act) => map.canvas.addEventListener(name, (event) => act(map, event));
  on("pointerdown", onDown);
  on("pointermove", onMove);
  on("pointerup", onUp);
  on("pointercancel", onUp);
  on("pointerleave", () => { map.pointer = null; map.hover(-1); });
  on("keydown", onKey);
  map.canvas.addEventListener("wheel", (event) => onWheel(map, event), { passive: false });
  const observer = new ResizeObserver(() => map.resize());
  observer.observe(map.box);
  const onTheme = () => map.paint();
  dark.addEventListener("change", onTheme);
  return () => {
    observer.disconnect();
    dark.removeEventListener("change", onTheme);
  };
}

function at(map, event) {
  const box = map.canvas.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

function onWheel(map, event) {
  event.preventDefault();
  const lines = event.deltaMode === 1 ? 20 : 1;
  map.zoomBy(Math.exp(-event.deltaY * lines * 0.002), ...at(map, event));
}

function onDown(map, event) {
  map.canvas.setPointerCapture(event.pointerId);
  map.pointers.set(event.pointerId, at(map, event));
  map.dragged = false;
  map.hover(-1); // the picture would hide what is drawn
  map.start = at(map, event);
  const kind = event.shiftKey && map.tool === "move" ? "rectangle" : map.tool;
  if (kind === "move" || map.pointers.size > 1) map.shape = null;
  else {
    const removes = map.removes || event.altKey;
    map.shape = { kind, removes, path: [map.toMap(...map.start)] };
  }
}

function onMove(map, event) {
  const place = at(map, event);
  map.pointer = event.pointerType === "mouse" && !map.pointers.size ? place : null;
  const last = map.pointers.get(event.pointerId);
  if (!last) {
    const name = map.names.at(...place);
    map.canvas.title = name?.title ?? "";
    map.canvas.classList.toggle("named", name !== undefined);
    map.hover(map.under(...place));
    return;
  }
  if (Math.hypot(place[0] - map.start[0], place[1] - map.start[1]) > CLICK) map.dragged = true;
  if (map.shape && map.dragged) {
    const corner = map.toMap(...place);
    const { kind, path } = map.shape;
    if (kind === "rectangle") map.shape.path = rectangle(path[0], corner);
    else path.push(corner);
    map.request();
    return;
  }
  const others = [...map.pointers].filter(([id]) => id !== event.pointerId);
  if (others.length) {
    const [, other] = others[0];
    const spread = (one) => Math.hypot(one[0] - other[0], one[1] - other[1]) || 1;
    map.zoomBy(spread(place) / spread(last), ...other);
  } else if (map.dragged) {
    map.panBy(place[0] - last[0], place[1] - last[1]);
  }
  map.pointers.set(event.pointerId, place);
}

function onUp(map, event) {
  const known = map.pointers.delete(event.pointerId);
  const { shape } = map;
  map.shape = null;
  if (shape && map.dragged && event.type !== "pointercancel") {
    const near = map.index.within(limits(shape.path));
    map.session.selection.set(rowsWithin(map, near, shape.path), !shape.removes);
  }
  if (shape) map.request();
  if (!known || map.dragged || event.type === "pointercancel") return;
  const name = map.names.at(...at(map, event));
  if (name) map.zoomTo(name);
  const row = name ? -1 : map.nearest(...at(map, event));
  if (row >= 0) go({ image: row });
}

function onKey(map, event) {
  const acts = {
    ArrowLeft: () => map.panBy(STEP, 0), ArrowRight: () => map.panBy(-STEP, 0),
    ArrowUp: () => map.panBy(0, STEP), ArrowDown: () => map.panBy(0, -STEP),
    "+": () => map.zoomBy(ZOOM_STEP), "=": () => map.zoomBy(ZOOM_STEP), "-": () => map.zoomBy(1 / ZOOM_STEP),
    0: () => map.all(), n: () => map.toggle("names"),
    Enter: () => {
      const row = map.index?.nearest(...map.center, 2, map.chosen) ?? -1;
      if (row >= 0) go({ image: row });
    },
  };
  if (!own(acts, event.key) || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  acts[event.key]();
}
