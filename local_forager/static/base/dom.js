// Building blocks: elements, and the words for numbers, modes and splits. Text is never set as HTML.

const SVG = "http://www.w3.org/2000/svg";
const present = (children) => children.flat(Infinity)
  .filter((child) => child !== null && child !== undefined && child !== false);

export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && name !== "list" && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...present(children));
  return element;
}

export function svg(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// Changes what is in an element. The control that has the focus keeps it, by its id; where it is gone,
// the first one has it.
export function keepFocus(element, change) {
  const focused = element.contains(document.activeElement) && document.activeElement;
  change();
  if (!focused || document.activeElement === focused) return;
  const same = focused.isConnected ? focused : document.getElementById(focused.id);
  (same ?? element.querySelector("a, button"))?.focus({ preventScroll: true });
}

export const fill = (element, ...children) =>
  keepFocus(element, () => element.replaceChildren(...present(children)));

export const button = (text, act, properties = {}) =>
  h("button", { type: "button", onclick: act, ...properties }, text);

export const dot = (mode) => h("span", { class: `dot ${modeKind(mode)}`, "aria-hidden": "true" });

// A view that has nothing to show but words.
export const notice = (title, ...content) => h("div", { class: "note" }, h("h1", {}, title), ...content);

const numbers = new Intl.NumberFormat("en");
export const count = (number) => numbers.format(number);
export const plural = (number, one, many = `${one}s`) =>
  `${count(number)} ${number === 1 ? one : many}`;
export const percent = (share) => `${Math.round(100 * share)}%`;

export function bytes(number) {
  if (number < 1000) return `${number} bytes`;
  const units = ["kB", "MB", "GB", "TB"];
  let unit = -1;
  do { number /= 1000; unit += 1; } while (number >= 999.5 && unit < units.length - 1);
  return `${number.toFixed(number < 10 ? 1 : 0)} ${units[unit]}`;
}

// Text that the browser keeps for this server; null where it keeps nothing.
export function kept(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

// Keeps it, or nothing if text is null; false if the browser has no room or keeps nothing.
export function keep(name, text) {
  try {
    if (text === null) localStorage.removeItem(name);
    else localStorage.setItem(name, text);
    return true;
  } catch {
    return false;
  }
}

// An object's own property. The name may be anything, such as "constructor".
export const own = (object, name) => (Object.hasOwn(object, name ?? "") ? object[name] : undefined);

const MODE_NAMES = {
  POSITIVE: "positive", NEGATIVE: "negative", HARD_NEGATIVE: "hard negative", UNSURE: "unsure",
};
export const modeName = (mode) => own(MODE_NAMES, mode) ?? mode;
export const modeKind = (mode) => (own(MODE_NAMES, mode) ? mode.toLowerCase() : "custom");
export const splitName = (split) => (split === "val" ? "validation" : "train");
export const basename = (name) => name.slice(name.lastIndexOf("/") + 1) || name;
export const labelText = (label) =>
  label.mode === "POSITIVE" ? label.category : `${label.category}: ${modeName(label.mode)}`;

// The embedding to compare by: the one in the address, or the first.
export const embeddingOf = (info, state) =>
  (info.embeddings.find(({ by }) => by === state.by) ?? info.embeddings[0]).by;
