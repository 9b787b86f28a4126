// One image: the picture, what is known about it, and its nearest neighbours.

import {
  basename, bytes, count, embeddingOf, h, labelText, modeKind, pause, Problem, splitName,
} from "../dom.js";
import { boxSwitch } from "./boxes.js";
import { picture, splitBadge } from "./picture.js";
import { changed, closeImage, go, onLink } from "../state.js";

const COUNT = 24; // neighbours shown
const POLL = 1500; // milliseconds between looks at the progress of preparing a faster search
const NO_SUCH = 404; // status
const NEAREST = "nearest"; // beside=nearest shows the nearest image beside each
const dialog = document.getElementById("detail");
let shown = null; // what the dialog shows, as text
let lastRow = null; // the row it showed last

dialog.addEventListener("cancel", (event) => { event.preventDefault(); close(); });
dialog.addEventListener("click", (event) => { if (event.target === dialog) close(); });
dialog.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key === " " && !event.target.closest("a, button, input")) {
    event.preventDefault();
    dialog.querySelector("[data-mark]")?.click();
  } else if (event.key === "c") dialog.querySelector("[data-compare]")?.click();
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step) return;
  if (event.target.closest("fieldset")) return; // there the arrow keys choose a button
  dialog.querySelector(step < 0 ? "[data-previous]" : "[data-next]")?.click();
});

const close = closeImage;

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
    if (!(error instanceof Problem)) throw error;
    if (shown === key) {
      const title = error.status === NO_SUCH ? "No such image" : "This image cannot be shown";
      open("message", h("div", { class: "facts" }, heading(title), h("p", {}, error.message),
        h("p", {}, h("button", { type: "button", onclick: close }, "Back to the images"))));
    }
    return;
  }
  if (shown !== key) return;
  const place = rows.indexOf(image.row);
  const near = h("div", { class: "near" });
  const pictures = h("div", { class: "pictures" });
  const size = h("dd", { class: "quiet" }, image.width
    ? `${count(image.width)} × ${count(image.height)} pixels` : "…");
  lastRow = image.row;
  const figure = picture(session, image);
  const problem = h("dd", { class: "warning" }, "It failed at ingest: no vectors and no thumbnail.");
  if (state.beside !== null) figure.tell(image);
  pictures.append(figure.element);
  open("sheet", pictures,
    h("div", { class: "facts" },
      heading(basename(image.name), image.split),
      h("div", { class: "steps" }, mark(session, image), compareSwitch(image, state)),
      steps(rows, place, state), facts(session, image, size, problem),
      labels(image), switchOf(image), neighbourhood(session, image, by, near)));
  measure(session, image, size, problem, figure);
  const shows = { near, pictures, beside: state.beside, key };
  if (/^\d{1,10}$/.test(state.beside ?? "")) await showBeside(session, Number(state.beside), shows);
  if (!image.failed) await neighbours(session, image, by, shows);
}

function open(kind, ...content) {
  const focus = dialog.open && dialog.contains(document.activeElement)
    ? document.activeElement.getAttribute("data-focus") : null;
  dialog.replaceChildren(h("div", { class: kind }, ...content));
  dialog.classList.toggle("small", kind === "message");
  dialog.scrollTop = 0;
  if (!dialog.open) dialog.showModal();
  const target = focus && dialog.querySelector(`[data-focus="${CSS.escape(focus)}"]`);
  (target ?? dialog.querySelector("[data-mark]") ?? dialog.querySelector("[data-focus=close]")).focus({ preventScroll: true });
}

// Space on this box, which has the focus at first, selects the image or takes it away.
function mark(session, { row }) {
  const { selection } = session;
  return h("label", { class: "mark" }, h("input", {
    type: "checkbox", "data-mark": true, "data-focus": "mark", checked: selection.has(row),
    onchange: (event) => selection.set([row], event.currentTarget.checked),
  }), "Selected");
}

function compareSwitch(image, state) {
  if (image.failed) return null;
  const on = state.beside !== null;
  return h("button", {
    type: "button", "data-compare": true, "data-focus": "compare", "aria-pressed": String(on),
    onclick: () => go({ beside: on ? null : NEAREST }, { replace: true }),
  }, on ? "Not side by side" : "Side by side with the nearest");
}

// A second image beside the one that is shown.
async function showBeside(session, row, { pictures, key }) {
  try {
    const { images: [image] } = await session.ask("images", { rows: row });
    if (shown !== key || !image) return;
    const figure = picture(session, image);
    figure.element.classList.add("beside");
    figure.tell(image);
    pictures.append(figure.element);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
  }
}

function heading(text, split = null) {
  return h("div", { class: "detail-head" },
    h("div", {}, h("h2", { id: "detail-title" }, h("bdi", {}, text)), split ? splitBadge(split) : null),
    h("button", {
      type: "button", class: "round", "aria-label": "Close", "data-focus": "close", onclick: close,
    }, "×"));
}

function steps(rows, place, state) {
  if (place < 0 || rows.length < 2) return null;
  const beside = state.beside === NEAREST ? NEAREST : null; // another image has other neighbours
  const step = (to, text, name, key) => h("a", {
    class: "button", "data-focus": key, [`data-${key}`]: true, "aria-label": name,
    href: changed({ image: rows[to], beside }),
    onclick: (event) => { event.preventDefault(); go({ image: rows[to], beside }, { replace: true }); },
  }, text);
  return h("nav", { class: "steps", "aria-label": "Images in this view" },
    place > 0 ? step(place - 1, "‹ Previous", "Previous image", "previous")
      : h("span", { class: "button off" }, "‹ Previous"),
    h("span", { class: "quiet" }, `${count(place + 1)} of ${count(rows.length)}`),
    place < rows.length - 1 ? step(place + 1, "Next ›", "Next image", "next")
      : h("span", { class: "button off" }, "Next ›"));
}

function facts(session, image, size, problem) {
  const fact = (name, ...value) => [h("dt", {}, name), h("dd", {}, ...value)];
  const { train_path: train } = session.info;
  const number = image.imagenet_class;
  return h("dl", {},
    fact("Object", h("bdi", { class: "path" }, `gs://${train.split("/")[2]}/${image.name}`)),
    h("dt", {}, "Size"), size,
    fact("Split", splitName(image.split), h("span", { class: "quiet" }, ` · row ${count(image.row)}`)),
    fact("ImageNet class", number === null ? "none" : h("a", {
      href: changed({ image: null, class: number, view: null }), onclick: onLink,
    }, image.class_name)),
    image.failed ? [h("dt", {}, "Problem"), problem] : []);
}

// Shows width, height and bytes. The server first downloads the image, which can take a while.
async function measure(session, image, size, problem, figure) {
  try {
    const detail = await session.ask(`image/${image.row}`);
    const text = [detail.width ? `${count(detail.width)} × ${count(detail.height)} pixels` : null,
      detail.bytes !== null ? bytes(detail.bytes) : null].filter(Boolean).join(" · ");
    const turned = detail.orientation === 1 ? null : h("p", { class: "quiet" },
      "The file asks viewers to turn it. It is shown as the models see it.");
    size.replaceChildren(text || "unknown", ...(turned ? [turned] : []));
    size.className = "";
    size.parentElement.append(...detail.values.flatMap((value) => [
      h("dt", {}, h("bdi", {}, value.title)), h("dd", {}, h("bdi", {}, value.text))]));
    if (detail.width && detail.boxes.length) figure.draw(detail.boxes, detail.width, detail.height);
    if (image.failed) problem.textContent = `It failed at ingest. ${detail.problem}`;
    if (detail.problem) figure.fail(detail.problem);
  } catch (error) {
    if (!(error instanceof Problem)) return;
    size.replaceChildren(error.message);
  }
}

function switchOf({ boxes }) {
  if (!boxes.length) return null;
  return boxSwitch(boxes.length === 1 ? "Show the box" : `Show the ${count(boxes.length)} boxes`);
}

function labels(image) {
  return h("ul", { class: "labels", role: "list", "aria-label": "Labels" },
    image.labels.length ? image.labels.map((label) => h("li", {}, h("a", {
      class: "chip", title: `by ${label.user}`, onclick: onLink,
      href: changed({ image: null, view: null, category: label.category, mode: label.mode }),
    }, h("span", { class: `dot ${modeKind(label.mode)}` }), h("bdi", {}, labelText(label)))))
      : h("li", { class: "quiet" }, "No labels"));
}

function neighbourhood(session, image, by, near) {
  if (image.failed) return null;
  const { embeddings } = session.info;
  return h("section", { "aria-labelledby": "near-title" },
    h("div", { class: "near-head" },
      h("h3", { id: "near-title" }, "Nearest"),
      h("fieldset", { class: "segments" },
        h("legend", { class: "hidden" }, "Compare by"),
        embeddings.map(({ by: name, about }) => h("label", { title: about },
          h("input", {
            type: "radio", name: "by", value: name, checked: name === by, "data-focus": `by-${name}`,
            onchange: () => go({ by: name === "clip" ? null : name }, { replace: true }),
          }),
          h("span", {}, name))))),
    h("p", { class: "quiet" },
      `Compares ${embeddings.find((one) => one.by === by).about}.`),
    near,
    h("p", {}, h("a", {
      onclick: onLink, href: changed({ image: null, like: image.row, text: null, set: null, view: null }),
    }, "Sort all images by similarity to this one")));
}

async function neighbours(session, image, by, shows, exact = null) {
  const { near, key } = shows;
  near.replaceChildren(h("p", { class: "quiet", role: "status" }, "Comparing with other images…"));
  try {
    const answer = await session.ask(`neighbours/${image.row}`, { by, count: COUNT, exact });
    if (shown !== key) return;
    const how = h("p", { class: "quiet small" }, compared(session, answer));
    if (!answer.exact) {
      how.append(" ", h("button", {
        type: "button", "data-focus": "exact",
        onclick: () => neighbours(session, image, by, shows, 1),
      }, "Compare with all"));
    }
    near.replaceChildren(
      h("ol", { class: "strip", role: "list" }, answer.neighbours.map((one) => neighbour(session, one, shows.beside))),
      how,
      h("button", {
        type: "button", hidden: !answer.neighbours.length, "data-focus": "select-near",
        onclick: (event) => {
          session.selection.set(answer.neighbours.map((one) => one.image.row));
          event.currentTarget.textContent = "Selected";
        },
      }, `Select these ${count(answer.neighbours.length)}`));
    const nearest = answer.neighbours[0]?.image.row;
    if (shows.beside === NEAREST && nearest !== undefined && shows.pictures.childElementCount < 2) {
      await showBeside(session, nearest, shows);
    }
    await tellPreparation(session, answer.search, by, key, how);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    near.replaceChildren(h("p", { class: "warning", role: "alert" }, error.message));
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
    text.textContent = `A faster search is being prepared: ${Math.round(100 * search.progress)}%.`;
    await pause(POLL);
    search = await session.ask("search", { by });
    if (shown !== key || !how.isConnected) return;
  }
  text.textContent = search.reason || "A faster search is ready.";
}

function neighbour(session, { distance, image }, beside) {
  const text = [basename(image.name), `distance ${distance.toFixed(3)}`, splitName(image.split),
    ...image.labels.map(labelText)].join(", ");
  return h("li", {}, h("a", {
    class: "tile here", href: changed({ image: image.row, beside: null }), onclick: onLink, title: text,
    "data-focus": `near-${image.row}`,
  },
  h("img", { src: session.rows.thumbnail(image.row), alt: text, decoding: "async" }),
  h("span", { class: "dots", "aria-hidden": "true" }, image.labels.slice(0, 3).map((label) =>
    h("span", { class: `dot ${modeKind(label.mode)}` })))),
  h("span", { class: "distance", "aria-hidden": "true" }, distance.toFixed(3)),
  h("button", {
    type: "button", "data-focus": `beside-${image.row}`, "aria-label": `beside: ${basename(image.name)}`,
    "aria-pressed": String(beside === String(image.row)),
    onclick: () => go({ beside: beside === String(image.row) ? null : image.row }, { replace: true }),
  }, "beside"));
}
