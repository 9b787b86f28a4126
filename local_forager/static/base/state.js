// What is shown, as stated in the address: /NAME?view=...&split=... and so on.

export const FILTERS = [
  "split", "category", "mode", "or", "with", "without", "labelled", "class", "name_part", "failed",
  "set", "distance", "text", "like", "sort",
];
const OF_FIELD = /^(min|max|is)_./s; // also filters: limits of a field, texts of a column
const OF_COLUMN = /^is_./s;
const FIELDS = [
  "view", ...FILTERS, "by", "color", "method", "pictures", "names", "at", "selected", "image", "beside",
];
export const LABEL_LISTS = ["or", "with", "without"]; // fields that hold several labels
const BETWEEN = "\n"; // labels of one field in the address
const listeners = new Set();
history.scrollRestoration = "manual";

export function current() {
  const query = new URLSearchParams(location.search);
  const name = /^\/([-a-zA-Z0-9_]+)$/.exec(location.pathname)?.[1] ?? null;
  const state = { name };
  for (const field of FIELDS) state[field] = query.get(field);
  for (const field of query.keys()) if (OF_FIELD.test(field)) state[field] = query.get(field);
  return state;
}

// The names of all filters that a state has, and of its lists of labels and texts.
export const ofField = (state) => Object.keys(state).filter((field) => OF_FIELD.test(field));
export const filtersIn = (state) => [...FILTERS, ...ofField(state)];
export const listsIn = (state) =>
  [...LABEL_LISTS, ...Object.keys(state).filter((field) => OF_COLUMN.test(field))];
export const noFilters = (state) => Object.fromEntries(filtersIn(state).map((field) => [field, null]));

export function address(state) {
  if (!state.name) return "/";
  const query = new URLSearchParams();
  if (!state.set && state.view !== "health") state = { ...state, distance: null };
  for (const field of [...ofField(state), ...FIELDS]) {
    if (field === "beside" && state.image === null) continue; // it belongs to the image
    if (state[field] !== null && state[field] !== undefined && state[field] !== "") {
      query.set(field, state[field]);
    }
  }
  return query.size ? `/${state.name}?${query}` : `/${state.name}`;
}

// The labels in one of LABEL_LISTS: of which images may have any too, must have all, must have none.
// Each is a category, for a positive label, or a category, NUL and a mode, "" for any mode.
export const labelsIn = (state, field) => (state[field] ? state[field].split(BETWEEN) : [])
  .map((label) => label.replace(/%(25|0A)/g, decodeURIComponent));
export function toggled(state, field, label) {
  const labels = labelsIn(state, field);
  const left = labels.filter((one) => one !== label);
  return (left.length < labels.length ? left : [...labels, label])
    .map((one) => one.replace(/[%\n]/g, encodeURIComponent)).join(BETWEEN) || null;
}
export const termOf = (category, mode) => (mode === "POSITIVE" ? category : `${category}\0${mode ?? ""}`);
export function labelOf(term) {
  const [category, mode = "POSITIVE"] = term.split("\0");
  return { category, mode: mode || null };
}

// The health report is of all images, so a filter that is chosen there leads to the images.
export const leaveHealth = (state) => (state.view === "health" ? { view: null } : {});

export const changed = (changes) => address({ ...current(), ...changes });

// For a link that can be copied or opened in a new tab; a plain click stays on the page.
export function onLink(event, how) {
  if (event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey) {
    return;
  }
  event.preventDefault();
  moveTo(event.currentTarget.getAttribute("href"), how);
}

// Each history entry keeps its scroll position and, as depth, the number of entries back to the
// view from which an image was opened; 0 where that view is not in the history.
export function moveTo(target, { replace = false } = {}) {
  const before = current();
  const depth = history.state?.depth ?? 0;
  history.replaceState({ scroll: scrollY, depth }, "");
  if (replace) history.replaceState({ scroll: null, depth }, "", target);
  else {
    const opens = new URL(target, location.href).searchParams.has("image");
    const next = opens && (before.image === null || depth > 0) ? depth + 1 : 0;
    history.pushState({ scroll: null, depth: next }, "", target);
  }
  notify({ scroll: null, back: false });
}

export const go = (changes, options) => moveTo(changed(changes), options);
export const onChange = (listener) => listeners.add(listener);

// Closes an image by going back to the view it was opened from, so that Back does not reopen it.
export function closeImage() {
  const depth = history.state?.depth ?? 0;
  if (depth > 0) history.go(-depth);
  else go({ image: null }, { replace: true });
}

// Changes the address of the present history entry without showing anything anew.
export const note = (changes) => history.replaceState(history.state, "", changed(changes));

addEventListener("popstate", (event) => notify({ scroll: event.state?.scroll ?? null, back: true }));

function notify(how) {
  for (const listener of listeners) listener(current(), how);
}
