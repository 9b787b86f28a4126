// The dialog that asks whether to delete a dataset, and says what its buckets keep.

import { askJson, h, plural, post, Problem } from "./dom.js";

const ADDRESS = "/page/deletion";
const dialog = document.getElementById("deletion");

dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

// done is called after the deletion.
export async function openDeletion(name, done) {
  try {
    ask(await askJson(ADDRESS, { name }), done);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    show(`Delete ${name}?`, [h("p", { role: "alert" }, error.message)], closing("Close"));
  }
}

const closing = (text) =>
  h("button", { type: "button", autofocus: true, onclick: () => dialog.close() }, text);

function show(title, content, ...buttons) {
  dialog.replaceChildren(
    h("h2", { id: "deletion-title" }, h("bdi", {}, title)),
    h("div", { class: "deletion" }, content, h("p", { class: "inline" }, buttons)));
  if (!dialog.open) dialog.showModal();
  dialog.querySelector("[autofocus], button").focus();
}

function ask(plan, done) {
  const { name, num_train: train, num_val: val, annotations, shared_with: others } = plan;
  const status = h("p", { role: "status" });
  const remove = h("button", {
    type: "button", class: "danger",
    onclick: async () => {
      remove.disabled = true;
      status.textContent = "Deleting…";
      try {
        await post(ADDRESS, { name });
        done();
        show(`Deleted ${name}`, kept(plan), closing("Close"));
      } catch (error) {
        if (!(error instanceof Problem)) throw error;
        remove.disabled = false;
        status.textContent = error.message;
      }
    },
  }, "Delete");
  show(`Delete ${name}?`, [
    h("p", {}, `This deletes the dataset from this local Forager: the list of its ${plural(train + val, "image")} and `
      + `${plural(annotations, "label")}${others.length ? "." : ", and the copies of its index and thumbnails on "
      + "this machine."} It cannot be undone.`),
    ...kept(plan), status,
  ], closing("Cancel"), remove);
}

// What is not deleted, and the command that deletes the index.
function kept({ train_path: train, val_path: val, shared_with: others, command }) {
  const images = h("p", { class: "quiet" }, "The images in ", h("bdi", { class: "path" }, train), " and ",
    h("bdi", { class: "path" }, val), " stay.");
  if (others.length) {
    return [images, h("p", { class: "quiet" }, `The index stays too: ${others.join(", ")} has the same one.`)];
  }
  return [images, h("p", { class: "quiet" },
    "The index bucket keeps the index. This command deletes it, if no other Forager uses it:"),
  h("pre", {}, h("code", {}, command))];
}
