// Building blocks: elements, numbers, requests to the page's API. Text is never set as HTML.

export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && name !== "list" && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

const numbers = new Intl.NumberFormat("en");
export const count = (number) => numbers.format(number);
export const plural = (number, one, many = `${one}s`) =>
  `${count(number)} ${number === 1 ? one : many}`;

export function bytes(number) {
  if (number < 1000) return `${number} bytes`;
  const units = ["kB", "MB", "GB", "TB"];
  let unit = -1;
  do { number /= 1000; unit += 1; } while (number >= 999.5 && unit < units.length - 1);
  return `${number.toFixed(number < 10 ? 1 : 0)} ${units[unit]}`;
}

const working = document.getElementById("working"); // says what the server is computing

// A request without success: the server's sentence and status, 0 where it does not answer.
export class Problem extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }

  get unreachable() {
    return this.status === 0;
  }
}

export const noAnswer = new EventTarget(); // gets an event whenever the server does not answer

async function ask(path, parameters, signal, options = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value === null || value === undefined || value === "") continue;
    for (const one of Array.isArray(value) ? value : [value]) query.append(name, one);
  }
  let response;
  try {
    response = await fetch(query.size ? `${path}?${query}` : path, { signal, ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    noAnswer.dispatchEvent(new Event("problem"));
    throw new Problem("The local Forager does not answer: is it still running?");
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => ({}));
  throw new Problem(answer.error ?? `The server answered with status ${response.status}.`,
    response.status);
}

export const askJson = async (path, parameters = {}, signal = undefined) =>
  (await ask(path, parameters, signal)).json();

export const post = (path, parameters = {}) => ask(path, parameters, undefined, { method: "POST" });

// Posts rows as 32-bit numbers; the answer is a file.
export const sendRows = async (path, parameters, rows) =>
  (await ask(path, parameters, undefined, { method: "POST", body: rows })).blob();

// Posts a file; the answer is JSON.
export const sendFile = async (path, file) =>
  (await ask(path, {}, undefined, { method: "POST", body: file })).json();

// An array. While the server is computing it, the answer is 202 and the request is repeated; tell
// gets how far it is.
export async function askArray(
  Type, path, parameters = {}, signal = undefined, options = {},
  tell = (text) => { working.textContent = text; },
) {
  for (;;) {
    const response = await ask(path, parameters, signal, options);
    if (response.status !== 202) {
      tell("");
      return new Type(await response.arrayBuffer());
    }
    tell((await response.json()).working);
    await pause(400);
  }
}

export const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

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
