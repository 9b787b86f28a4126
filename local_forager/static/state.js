// What is shown, as stated in the address: /NAME?view=...&split=... and so on.

const FIELDS = [
  "view", "split", "category", "mode", "labelled", "class", "set", "text", "like", "by", "color",
  "method", "pictures", "image",
];
export const FILTERS = ["split", "category", "mode", "labelled", "class", "set", "text", "like"];
const listeners = new Set();
history.scrollRestoration = "manual";

export function current() {
  const query = new URLSearchParams(location.search);
  const name = /^\/([-a-zA-Z0-9_]+)$/.exec(location.pathname)?.[1] ?? null;
  const state = { name };
  for (const field of FIELDS) state[field] = query.get(field);
  return state;
}

export function address(state) {
  if (!state.name) return "/";
  const query = new URLSearchParams();
  for (const field of FIELDS) {
    if (state[field] !== null && state[field] !== undefined && state[field] !== "") {
      query.set(field, state[field]);
    }
  }
  return query.size ? `/${state.name}?${query}` : `/${state.name}`;
}

export const changed = (changes) => address({ ...current(), ...changes });

// For a link that can be copied or opened in a new tab; a plain click stays on the page.
export function onLink(event) {
  if (event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey) {
    return;
  }
  event.preventDefault();
  moveTo(event.currentTarget.getAttribute("href"));
}

export function moveTo(target, { replace = false } = {}) {
  history.replaceState({ scroll: scrollY }, "");
  const before = current();
  history[replace ? "replaceState" : "pushState"]({ scroll: null }, "", target);
  notify(before, null);
}

export const go = (changes, options) => moveTo(changed(changes), options);
export const onChange = (listener) => listeners.add(listener);

let shown = current();
addEventListener("popstate", (event) => notify(shown, event.state?.scroll ?? null));

function notify(before, scroll) {
  shown = current();
  for (const listener of listeners) listener(shown, before, scroll);
}
