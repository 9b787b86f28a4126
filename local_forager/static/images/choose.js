// The dialog that selects a few images which stand for all of the view.

import { form } from "../base/controls.js";
import { field, makeDialog, openDialog, radioList } from "../base/dialogs.js";
import { count, embeddingOf, h, plural } from "../base/dom.js";
import { askArray, problemOf } from "../base/requests.js";

const KINDS = {
  diverse: ["Diverse", "as different from each other as possible"],
  typical: ["Typical", "the middle of each group of similar images, the largest group first"],
};
const COUNT = 100; // images to begin with
const MOST = 10_000; // images that the server chooses at once
const dialog = makeDialog("choose");
let asked = null; // ends the request of this dialog

dialog.addEventListener("close", () => asked?.abort());

export function openChoose(session, state) {
  const { selection, info } = session;
  const number = h("input", {
    type: "number", id: "choose-count", min: 1, max: MOST, step: 1, value: String(COUNT), required: true,
  });
  const by = h("select", { id: "choose-by" }, info.embeddings.map((one) => h("option", {
    value: one.by, selected: one.by === embeddingOf(info, state),
  }, `${one.by}: ${one.about}`)));
  const submit = h("button", { type: "submit", class: "primary" }, "Choose");
  const status = h("p", { role: "status" });
  const act = async () => {
    submit.disabled = true;
    const kind = dialog.querySelector("[name=kind]:checked").value;
    await choose(session, state, { kind, count: Number(number.value), compare: by.value }, status);
    submit.disabled = false;
  };
  openDialog(dialog, "Choose", form(act, {},
    radioList("kind", "Choose images of this view that are", KINDS),
    field("How many", number),
    field("Compare by", by),
    h("p", { class: "quiet" }, selection.count
      ? `They are added to the ${plural(selection.count, "selected image")}, and are far from these. `
      : "They become the selection. ",
    "Failed images are left out, and all but one of each group of near duplicates."),
    h("p", {}, submit), status));
  number.select();
}

async function choose(session, state, wanted, status) {
  const { name, rows, selection } = session;
  const parameters = { ...rows.parameters(state), text: null, like: null, sort: null, ...wanted };
  asked = new AbortController();
  const tell = (text) => { status.textContent = text; };
  tell("Choosing…");
  try {
    const chosen = await askArray(Int32Array, `/page/${name}/choose`, parameters,
      { method: "POST", body: selection.rows(), signal: asked.signal }, tell);
    selection.set(chosen);
    if (chosen.length === wanted.count) dialog.close();
    else tell(`Only ${count(chosen.length)} ${chosen.length === 1 ? "was" : "were"} left to choose from.`);
  } catch (error) {
    if (error.name !== "AbortError") tell(problemOf(error).message);
  }
}
