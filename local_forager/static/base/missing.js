// What is shown in place of a thumbnail that cannot be had: the same picture everywhere.

export const MISSING = "/static/missing.svg";
const THUMBNAIL = /\/(thumbnail|cover)\/\d+(\?|$)/;

export function watchPictures() {
  new Image().src = MISSING; // so that it is here when the server does not answer
  document.addEventListener("error", ({ target }) => {
    if (target instanceof HTMLImageElement && THUMBNAIL.test(target.src) && !target.matches(".preview")) {
      target.src = MISSING;
      target.title ||= "no thumbnail";
    }
  }, true); // errors of pictures do not bubble
}
