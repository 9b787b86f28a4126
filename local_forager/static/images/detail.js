// One image: the picture, what is known about it, and its nearest neighbours.

import { compareBy, link } from "../base/controls.js";
import { dialogHead, makeDialog } from "../base/dialogs.js";
import {
  basename, button, bytes, count, dot, embeddingOf, fill, h, labelText, percent, splitName,
} from "../base/dom.js";
import { pause, Problem, problemOf } from "../base/requests.js";
import { closeImage, go, onLink } from "../base/state.js";
import { boxSwitch } from "./boxes.js";
import { picture, splitBadge, tile } from "./picture.js";

const COUNT = 24; // neighbours shown
const POLL = 1500; // milliseconds between looks at the progress of preparing a faster search
const NO_SUCH = 404; // status
const NEAREST = "nearest"; // beside=nearest shows the nearest image beside each
const MARKS = 3; // dots on a neighbour, one per label
const dialog = makeDialog("detail", "detail", closeImage);
let shown = null; // what the dialog shows, as text
let lastRow = null; // the row it showed last

dialog.addEventListener("cancel", (event) => { event.preventDefault(); closeImage(); });
dialog.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  const press = (id) => document.getElementById(id)?.click();
  if (event.key === " " && !event.target.closest("a, button, input")) {
    event.preventDefault();
    press("mark");
  }
  if (event.key === "c") press("compare");
  if (event.target.closest("fieldset")) return; // there the arrow keys choose a button
  if (event.key === "ArrowLeft") press("previous");
  if (event.key === "ArrowRight") press("next");
});

export function closeDetail() {
  shown = null;
  dialog.close();
  dialog.replaceChildren();
}

export async function showDetail(session, state) {
  if (state.image === null) {
    // Not dialog.open: on Escape, the browser may close the dialog itself before this runs.
    if (shown === null) return;
    closeDetail();
    session.view.focusRow?.(lastRow);
    return;
  }
  const by = embeddingOf(session.info, state);
  const key = JSON.stringify([state, session.info.version, session.resumed]);
  if (key === shown) return;
  shown = key;
  let image;
  let rows;
  try {
    const row = Number(state.image);
    if (!Number.isInteger(row) || row < 0) throw new Problem("There is no such image.", NO_SUCH);
    const answers = [session.ask("images", { rows: row }), session.rows.select(state)];
    const [{ images }, selected] = await Promise.all(answers);
    if (!images.length) throw new Problem(`There is no row ${count(row)} in this dataset.`, NO_SUCH);
    image = images[0];
    rows = selected.rows;
  } catch (error) {
    const { status, message } = problemOf(error);
    if (shown === key) {
      const title = status === NO_SUCH ? "No such image" : "This image cannot be shown";
      open("message", h("div", { class: "facts" }, dialogHead(dialog, title, closeImage), h("p", {}, message),
        h("p", {}, button("Back to the images", closeImage))));
    }
    return;
  }
  if (shown !== key) return;
  const near = h("div", { class: "near" });
  const { length: boxes } = image.boxes;
  const figure = picture(session, image, state.beside !== null);
  const pictures = h("div", { class: "pictures" }, figure.element);
  const size = h("dd", { class: "quiet" }, image.width
    ? `${count(image.width)} × ${count(image.height)} pixels` : "…");
  const problem = h("dd", { class: "warning" }, "It failed at ingest: no vectors and no thumbnail.");
  lastRow = image.row;
  open("sheet", pictures, h("div", { class: "facts" },
    dialogHead(dialog, basename(image.name), closeImage, splitBadge(image.split)),
    h("div", { class: "steps" }, mark(session, image), compareSwitch(image, state)),
    steps(rows, rows.indexOf(image.row), state), facts(session, image, size, problem),
    labels(image),
    boxes > 0 && boxSwitch(boxes === 1 ? "Show the box" : `Show the ${count(boxes)} boxes`),
    neighbourhood(session, image, by, near)));
  measure(session, image, size, problem, figure);
  const shows = { near, pictures, beside: state.beside, key };
  if (/^\d{1,9}$/.test(state.beside ?? "")) {
    const { images: [other] } = await session.ask("images", { rows: state.beside });
    showBeside(session, other, shows);
  }
  if (!image.failed) await neighbours(session, image, by, shows);
}

function open(kind, ...content) {
  fill(dialog, h("div", { class: kind }, ...content));
  dialog.scrollTop = 0;
  if (!dialog.open) dialog.showModal();
  if (dialog.contains(document.activeElement) && document.activeElement.id !== "detail-close") return;
  (document.getElementById("mark") ?? document.getElementById("detail-close")).focus({ preventScroll: true });
}

// Space on this box, which has the focus at first, selects the image or takes it away.
function mark(session, { row }) {
  const { selection } = session;
  return h("label", { class: "mark" }, h("input", {
    type: "checkbox", id: "mark", checked: selection.has(row),
    onchange: (event) => selection.set([row], event.currentTarget.checked),
  }), "Selected");
}

function compareSwitch(image, state) {
  if (image.failed) return null;
  const on = state.beside !== null;
  return button(on ? "Not side by side" : "Side by side with the nearest",
    () => go({ beside: on ? null : NEAREST }, { replace: true }), { id: "compare", "aria-pressed": String(on) });
}

// A second image beside the one that is shown.
function showBeside(session, image, { pictures, key }) {
  if (shown !== key || !image) return;
  const { element } = picture(session, image, true);
  element.classList.add("beside");
  pictures.append(element);
}

function steps(rows, place, state) {
  if (place < 0 || rows.length < 2) return null;
  const beside = state.beside === NEAREST ? NEAREST : null; // another image has other neighbours
  const step = (to, text, id) => (to in rows ? link({ image: rows[to], beside }, {
    id, class: "button", "aria-label": `${id === "next" ? "Next" : "Previous"} image`,
    onclick: (event) => onLink(event, { replace: true }),
  }, text) : h("span", { class: "button off" }, text));
  return h("nav", { class: "steps", "aria-label": "Images in this view" },
    step(place - 1, "‹ Previous", "previous"),
    h("span", { class: "quiet" }, `${count(place + 1)} of ${count(rows.length)}`),
    step(place + 1, "Next ›", "next"));
}

function facts(session, image, size, problem) {
  const fact = (name, ...value) => [h("dt", {}, name), h("dd", {}, ...value)];
  const { train_path: train } = session.info;
  const number = image.imagenet_class;
  return h("dl", {},
    fact("Object", h("bdi", { class: "path" }, `gs://${train.split("/")[2]}/${image.name}`)),
    h("dt", {}, "Size"), size,
    fact("Split", splitName(image.split), h("span", { class: "quiet" }, ` · row ${count(image.row)}`)),
    fact("ImageNet class", number === null ? "none"
      : link({ image: null, class: number, view: null }, {}, image.class_name)),
    image.failed && [h("dt", {}, "Problem"), problem]);
}

// Shows width, height and bytes. The server first downloads the image, which can take a while.
async function measure(session, image, size, problem, figure) {
  try {
    const detail = await session.ask(`image/${image.row}`);
    const text = [detail.width ? `${count(detail.width)} × ${count(detail.height)} pixels` : null,
      detail.bytes !== null ? bytes(detail.bytes) : null].filter(Boolean).join(" · ");
    fill(size, text || "unknown", detail.orientation !== 1 && h("p", { class: "quiet" },
      "The file asks viewers to turn it. It is shown as the models see it."));
    size.className = "";
    size.parentElement.append(...detail.values.flatMap((value) => [
      h("dt", {}, h("bdi", {}, value.title)), h("dd", {}, h("bdi", {}, value.text))]));
    if (detail.width && detail.boxes.length) figure.draw(detail.boxes, detail.width, detail.height);
    if (image.failed) problem.textContent = `It failed at ingest. ${detail.problem}`;
    if (detail.problem) figure.fail(detail.problem);
  } catch (error) {
    if (error.name !== "AbortError") fill(size, problemOf(error).message);
  }
}

function labels(image) {
  return h("ul", { class: "labels", role: "list", "aria-label": "Labels" },
    image.labels.length ? image.labels.map((label) => h("li", {}, link(
      { image: null, view: null, category: label.category, mode: label.mode },
      { class: "chip", title: `by ${label.user}` }, dot(label.mode), h("bdi", {}, labelText(label)))))
      : h("li", { class: "quiet" }, "No labels"));
}

function neighbourhood(session, image, by, near) {
  if (image.failed) return null;
  const { embeddings } = session.info;
  return h("section", { "aria-labelledby": "near-title" },
    h("div", { class: "near-head" },
      h("h3", { id: "near-title" }, "Nearest"), compareBy("detail", embeddings, by)),
    h("p", { class: "quiet" },
      `Compares ${embeddings.find((one) => one.by === by).about}.`),
    near,
    h("p", {}, link({ image: null, like: image.row, text: null, set: null, view: null }, {},
      "Sort all images by similarity to this one")));
}

async function neighbours(session, image, by, shows, exact = null) {
  const { near, key } = shows;
  fill(near, h("p", { class: "quiet", role: "status" }, "Comparing with other images…"));
  try {
    const answer = await session.ask(`neighbours/${image.row}`, { by, count: COUNT, exact });
    if (shown !== key) return;
    const { neighbours: found } = answer;
    const how = h("p", { class: "quiet small" }, compared(session, answer), !answer.exact && [" ",
      button("Compare with all", () => neighbours(session, image, by, shows, 1))]);
    const select = button(`Select these ${count(found.length)}`, () => {
      session.selection.set(found.map((one) => one.image.row));
      select.textContent = "Selected";
    }, { hidden: !found.length });
    fill(near,
      h("ol", { class: "strip", role: "list" }, found.map((one) => neighbour(session, one, shows.beside))),
      how, select);
    if (shows.beside === NEAREST && found.length && shows.pictures.childElementCount < 2) {
      showBeside(session, found[0].image, shows);
    }
    await tellPreparation(session, answer.search, by, key, how);
  } catch (error) {
    fill(near, h("p", { class: "warning", role: "alert" }, problemOf(error).message));
  }
}

// What was compared, in a sentence.
function compared(session, { neighbours: found, milliseconds, exact, search }) {
  if (!found.length) return "There is no other image to compare with.";
  const time = `${Math.max(1, Math.round(milliseconds))} ms`;
  return (exact
    ? `Cosine distance, 0 is the same; ${count(session.info.rows)} images compared in ${time}. `
    : `Cosine distance, 0 is the same. Found in ${time} among roughly similar images; a few may be `
      + "missing. ") + search.reason;
}

// The progress of a faster search that the server prepares meanwhile.
async function tellPreparation(session, search, by, key, how) {
  if (search.state !== "building") return;
  const text = h("span", { role: "status" });
  how.append(text);
  while (search.state === "building") {
    text.textContent = `A faster search is being prepared: ${percent(search.progress)}.`;
    await pause(POLL);
    search = await session.ask("search", { by });
    if (shown !== key || !how.isConnected) return;
  }
  text.textContent = search.reason || "A faster search is ready.";
}

function neighbour(session, { distance, image }, beside) {
  const text = [basename(image.name), `distance ${distance.toFixed(3)}`, splitName(image.split),
    ...image.labels.map(labelText)].join(", ");
  const on = beside === String(image.row);
  return h("li", {},
    tile(session, image.row, text, { id: `near-${image.row}` },
      h("span", { class: "dots" }, image.labels.slice(0, MARKS).map(({ mode }) => dot(mode)))),
    h("span", { class: "distance", "aria-hidden": "true" }, distance.toFixed(3)),
    button("beside", () => go({ beside: on ? null : image.row }, { replace: true }), {
      id: `beside-${image.row}`, "aria-label": `beside: ${basename(image.name)}`, "aria-pressed": String(on),
    }));
}
