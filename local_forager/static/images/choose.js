// The dialog that selects a few images which stand for all of the view.

import { askArray, count, embeddingOf, h, plural, Problem } from "../dom.js";

const KINDS = {
  diverse: ["Diverse", "as different from each other as possible"],
  typical: ["Typical", "the middle of each group of similar images, the largest group first"],
};
const COUNT = 100; // images to begin with
const MOST = 10_000; // images that the server chooses at once
const dialog = document.getElementById("choose");
let asked = null; // ends the request of this dialog

dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("close", () => asked?.abort());

export function openChoose(session, state) {
  const { selection, info } = session;
  const number = h("input", {
    type: "number", id: "choose-count", min: 1, max: MOST, step: 1, value: String(COUNT), required: true,
  });
  const by = h("select", { id: "choose-by" }, info.embeddings.map((one) => h("option", {
    value: one.by, selected: one.by === embeddingOf(info, state),
  }, `${one.by}: ${one.about}`)));
  const button = h("button", { type: "submit", class: "primary" }, "Choose");
  const status = h("p", { role: "status" });
  const form = h("form", {
    onsubmit: async (event) => {
      event.preventDefault();
      button.disabled = true;
      const kind = dialog.querySelector("[name=kind]:checked").value;
      await choose(session, state, { kind, count: Number(number.value), compare: by.value }, status);
      button.disabled = false;
    },
  },
  h("fieldset", { class: "export-formats" },
    h("legend", {}, "Choose images of this view that are"),
    Object.entries(KINDS).map(([name, [title, about]]) => h("label", {},
      h("input", { type: "radio", name: "kind", value: name, checked: name === "diverse" }),
      title, h("span", { class: "quiet" }, `: ${about}`)))),
  h("div", { class: "export-label" },
    h("p", {}, h("label", { for: "choose-count" }, "How many"), number),
    h("p", {}, h("label", { for: "choose-by" }, "Compare by"), by)),
  h("p", { class: "quiet" }, selection.count
    ? `They are added to the ${plural(selection.count, "selected image")}, and are far from these. `
    : "They become the selection. ",
  "Failed images are left out, and all but one of each group of near duplicates."),
  h("p", { class: "choose-do" }, button), status);
  dialog.replaceChildren(h("div", { class: "detail-head" },
    h("h2", { id: "choose-title" }, "Choose"),
    h("button", {
      type: "button", class: "round", "aria-label": "Close", onclick: () => dialog.close(),
    }, "×")), form);
  dialog.showModal();
  number.select();
}

async function choose(session, state, wanted, status) {
  const { name, rows, selection } = session;
  const parameters = { ...rows.parameters(state), text: null, like: null, sort: null, ...wanted };
  asked = new AbortController();
  status.textContent = "Choosing…";
  try {
    const chosen = await askArray(Int32Array, `/page/${name}/choose`, parameters, asked.signal,
      { method: "POST", body: selection.rows() }, (text) => { status.textContent = text; });
    selection.set(chosen);
    if (chosen.length === wanted.count) dialog.close();
    else {
      status.textContent = `Only ${count(chosen.length)} ${chosen.length === 1 ? "was" : "were"} left `
        + "to choose from.";
    }
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof Problem)) throw error;
    status.textContent = error.message;
  }
}
