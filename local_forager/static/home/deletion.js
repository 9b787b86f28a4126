// The dialog that asks whether to delete a dataset, and says what its buckets keep.

import { makeDialog, openDialog } from "../base/dialogs.js";
import { button, h, plural } from "../base/dom.js";
import { askJson, post, problemOf } from "../base/requests.js";

const ADDRESS = "/page/deletion";
const dialog = makeDialog("deletion");

// done is called after the deletion.
export async function openDeletion(name, done) {
  try {
    ask(await askJson(ADDRESS, { name }), done);
  } catch (error) {
    show(`Delete ${name}?`, h("p", { role: "alert" }, problemOf(error).message));
  }
}

const show = (title, ...content) => openDialog(dialog, title, h("div", { class: "deletion" }, ...content));

function ask(plan, done) {
  const { name, num_train: train, num_val: val, annotations, shared_with: others } = plan;
  const status = h("p", { role: "status" });
  const remove = button("Delete", async () => {
    remove.disabled = true;
    status.textContent = "Deleting…";
    try {
      await post(ADDRESS, { name });
      done();
      show(`Deleted ${name}`, kept(plan));
    } catch (error) {
      remove.disabled = false;
      status.textContent = problemOf(error).message;
    }
  }, { class: "danger" });
  show(`Delete ${name}?`,
    h("p", {}, `This deletes the dataset from this local Forager: the list of its ${plural(train + val, "image")} and `
      + `${plural(annotations, "label")}${others.length ? "." : ", and the copies of its index and thumbnails on "
      + "this machine."} It cannot be undone.`),
    kept(plan), status,
    h("p", { class: "inline" }, button("Cancel", () => dialog.close()), remove));
}

// What is not deleted, and the command that deletes the index.
function kept({ train_path: train, val_path: val, shared_with: others, command }) {
  return [
    h("p", { class: "quiet" }, "The images in ", h("bdi", { class: "path" }, train), " and ",
      h("bdi", { class: "path" }, val), " stay."),
    h("p", { class: "quiet" }, others.length ? `The index stays too: ${others.join(", ")} has the same one.`
      : "The index bucket keeps the index. This command deletes it, if no other Forager uses it:"),
    others.length ? null : h("pre", {}, h("code", {}, command)),
  ];
}
