// The page: reads the address and shows what it asks for.

import { link } from "./base/controls.js";
import { button, count, fill, h, notice, own } from "./base/dom.js";
import { watchPictures } from "./base/missing.js";
import { askArray, askJson, pause, post, Problem, problemOf } from "./base/requests.js";
import { rove } from "./base/rove.js";
import { watchServer } from "./base/server.js";
import { current, onChange, onLink } from "./base/state.js";
import { byNeighbours, Filters } from "./filters/filters.js";
import { withPicture } from "./filters/picture.js";
import { impossible } from "./filters/ranges.js";
import { Health } from "./health/health.js";
import { home } from "./home/home.js";
import { closeDetail, showDetail } from "./images/detail.js";
import { Grid } from "./images/grid.js";
import { Rows } from "./images/rows.js";
import { Selection } from "./images/selection.js";
import { PointMap } from "./map/map.js";
import { watchShortcuts } from "./shortcuts.js";

const POLL = 3000; // milliseconds between checks for new labels
const COPY_POLL = 500; // milliseconds between looks at the copy of the index
const VIEWS = { grid: ["Images", Grid], map: ["Map", PointMap], health: ["Health", Health] };
const idle = globalThis.requestIdleCallback ?? setTimeout;
const main = document.getElementById("main");
const where = document.getElementById("where");
const tabs = document.getElementById("tabs");
let session = null; // the dataset that is shown

class Session {
  constructor(name) {
    this.name = name;
    this.ended = new AbortController();
    this.info = null;
    this.filters = new Filters(this);
    this.stage = h("section", { class: "stage" });
    this.view = null;
    this.kind = null;
    this.ready = false;
    this.turn = 0;
    this.resumed = 0;
    this.loading = false; // whether the view that was asked for last is still to come
  }

  ask(path, parameters = {}) {
    return askJson(`/page/${this.name}/${path}`, parameters, { signal: this.ended.signal });
  }

  askArray(Type, path, parameters = {}) {
    return askArray(Type, `/page/${this.name}/${path}`, parameters, { signal: this.ended.signal });
  }

  // What the server counts of a state; null if there is a problem: the view itself says what is wrong.
  async counts(path, state) {
    try {
      return await this.ask(path, this.rows.parameters(state));
    } catch (error) {
      if (error.name !== "AbortError") problemOf(error);
      return null;
    }
  }

  // Asks for the description until the index is here; tells how far its copy is.
  async open(tell) {
    this.info = await this.ask("dataset");
    while (this.info.index.state === "copying") {
      tell(this.info);
      await pause(COPY_POLL);
      this.info = await this.ask("dataset");
    }
  }

  async start() {
    main.replaceChildren(h("p", { class: "note", role: "status" }, "Opening the dataset…"));
    await this.open((info) => main.replaceChildren(copying(info)));
    if (this.info.index.state === "missing") {
      main.replaceChildren(missing(this.info));
      return;
    }
    this.rows = new Rows(this);
    this.selection = new Selection(this, this.info.rows);
    main.replaceChildren(
      h("div", { class: "workspace" }, this.filters.element, this.stage), this.selection.element);
    this.ready = true; // a key pressed while the first view is still loading changes that view
    await this.show(current(), { scroll: null, back: false });
    this.watch();
    if (this.info.text_search.available) idle(() => post("/page/text_model").catch(() => {}));
  }

  // Shows new labels without a reload: the version of the dataset changes with them.
  async watch() {
    while (!this.ended.signal.aborted) {
      await pause(POLL);
      if (document.hidden || this.ended.signal.aborted || this.loading) continue;
      try {
        const info = await this.ask("dataset");
        if (info.index_id !== this.info.index_id) location.reload(); // a new dataset of this name
        if (info.version === this.info.version) continue;
        this.info = info;
        this.rows.clear();
        await this.show(current(), { scroll: null, back: false });
      } catch (error) {
        if (error.name === "AbortError") return;
        if (problemOf(error).status === 404) endWith(error); // the dataset was deleted
      }
    }
  }

  // The server did not answer for a while, and may be another one: everything is asked for again.
  async resume() {
    const { index_id: before } = this.info;
    await this.open(() => {});
    if (this.info.index_id !== before) location.reload();
    this.rows.clear();
    this.dropView();
    this.resumed += 1; // an image that is shown is asked for again
    await this.show(current(), { scroll: scrollY, back: false });
  }

  // Shows a state. What is asked for later takes its place, however late the answers come.
  async show(asked, how) {
    const turn = (this.turn += 1);
    const late = () => turn !== this.turn;
    this.loading = true;
    try {
      await this.showNow(asked, { ...how, late });
    } catch (error) {
      if (late() && error instanceof Problem) return;
      this.loading = false;
      if (!problemOf(error).unreachable) this.refuse(error); // else what is shown stays: see server.js
    }
  }

  // What the server refuses takes the place of the view only: filters and selection stay.
  refuse(problem) {
    this.dropView();
    fill(this.stage, refusal(problem, button("Back", () => history.back()), " · ",
      h("a", { href: `/${this.name}` }, "All images")));
  }

  dropView() {
    this.view?.close();
    this.view = null;
    this.kind = null;
  }

  async showNow(asked, how) {
    const state = await withPicture(this, this.possible(asked));
    if (how.late()) return;
    const kind = own(VIEWS, state.view) ? state.view : "grid";
    // The chip of a sort by similarity names the image, so it must be known before it is shown.
    if (/^\d{1,9}$/.test(state.like ?? "")) await this.rows.learn([Number(state.like)], () => {});
    if (how.late()) return;
    this.filters.show(this.info, state);
    showTabs(kind);
    if (kind !== this.kind) {
      this.dropView();
      const [, View] = VIEWS[kind];
      this.view = new View(this);
      this.kind = kind;
      this.stage.replaceChildren(this.view.element);
    }
    await this.view.show(state, how);
    if (how.late()) return;
    this.loading = false;
    await showDetail(this, state);
  }

  selectionChanged() {
    this.view?.showSelection?.();
    if (current().selected === "yes") show(current(), { scroll: scrollY, back: false });
  }

  // A shared address may ask for what this server or index cannot do: show the images all the same.
  possible(state) {
    const { text_search: search, neighbour_sorts: neighbours } = this.info;
    const notes = [];
    const left = { ...state };
    if (state.text && !search.available) {
      left.text = null;
      notes.push(`They are not sorted by the text “${state.text}”. ${search.reason}`);
    }
    if (byNeighbours(state.sort) && !neighbours.available) {
      left.sort = null;
      notes.push(neighbours.reason);
    }
    const dropped = impossible(this.info, state);
    Object.assign(left, dropped.left);
    notes.push(...dropped.notes);
    if (state.selected === "yes" && !this.selection.count) {
      notes.push("Nothing is selected in this browser. A link does not contain a selection: it stays "
        + "in the browser in which it was made, until it is exported.");
    }
    return { ...left, notes };
  }

  end() {
    this.selection?.keepNow();
    this.ended.abort();
    this.dropView();
  }
}

function copying({ index: { done, total } }) {
  const megabytes = (number) => count(Math.round(number / 1e6));
  return notice("Fetching the index",
    h("p", { role: "status" }, total
      ? `${megabytes(done)} of ${megabytes(total)} MB. It is kept, so this happens once.`
      : "Reading the list of images."),
    h("progress", { max: total || 1, value: total ? done : undefined, "aria-label": "Index fetched" }));
}

function missing(info) {
  return notice("There is nothing to show yet",
    h("p", {}, info.index.detail),
    h("p", {}, `The server has ${count(info.num_train)} training and ${count(info.num_val)} `
      + "validation images for this dataset, but the vectors and thumbnails come from its index."),
    h("p", {}, button("Look again", () => location.reload())));
}

// Why something cannot be shown, and where one can go from there.
const refusal = ({ message }, ...links) => h("div", { role: "alert" },
  notice("This cannot be shown", h("p", {}, message), h("p", {}, ...links)));

function showTabs(kind) {
  tabs.hidden = false;
  fill(tabs, Object.entries(VIEWS).map(([view, [title]]) => link(
    { view: view === "grid" ? null : view, image: null },
    { id: `tab-${view}`, "aria-current": view === kind ? "page" : null }, title)));
  rove(tabs);
}

let shows = 0;

// Shows a state of the page; main is aria-busy until all of it is there.
async function show(state, how) {
  const turn = (shows += 1);
  main.ariaBusy = "true";
  try {
    await (session?.ready && session.name === state.name ? session.show(state, how) : begin(state));
  } catch (error) {
    if (error.name !== "AbortError") endWith(problemOf(error));
  } finally {
    if (turn === shows) main.ariaBusy = "false";
  }
}

function leave() {
  session?.end();
  session = null;
  closeDetail();
  tabs.hidden = true;
}

// Opens another dataset, or the list of them.
function begin({ name }) {
  leave();
  session = name ? new Session(name) : null;
  document.title = name ? `${name} · Forager` : "Forager";
  fill(where, name && h("bdi", {}, name));
  return session ? session.start() : home(main);
}

// Says why nothing of a dataset, or no list of datasets, can be shown.
function endWith(error) {
  leave();
  fill(main, refusal(error, h("a", { href: "/" }, "All datasets")));
}

// Shows everything again once the server answers again.
async function resume() {
  try {
    if (session?.ready) await session.resume();
    else if (!main.querySelector(".home")) await show(current(), { scroll: null, back: false });
  } catch (error) {
    if (error.name === "AbortError" || error.unreachable) return; // the latter begins a new wait
    endWith(problemOf(error));
  }
}

document.querySelector("[data-home]").addEventListener("click", onLink);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  if (!session?.view?.focusImages?.()) main.focus();
});
watchPictures();
watchShortcuts();
watchServer(resume);
onChange(() => session?.selection?.forgetUndo());
onChange(show);
show(current(), { scroll: null, back: false });
