// Small pictures at the points of the map, when few enough points are in view.

export const FEW = 400; // points in view; pictures are drawn up to here
const SIDE = 44; // CSS pixels of the longer side
const LOADING = 6; // concurrent requests for thumbnails
const KEPT = 1500; // pictures in memory

export class Pictures {
  constructor(address, arrived) {
    this.address = address;
    this.arrived = arrived;
    this.known = new Map(); // row -> ImageBitmap, or null while it is loading or if there is none
    this.loading = 0;
  }

  // Draws pictures of the rows, in this order and without overlap; requests missing ones.
  // frames: of a row, the outermost first: [colour, CSS pixels around the picture].
  draw(context, rows, place, frames, ratio) {
    const taken = [];
    const side = SIDE * ratio;
    const apart = side + 8 * ratio;
    for (const row of rows) {
      const [x, y] = place(row);
      if (taken.some((other) => Math.abs(other[0] - x) < apart && Math.abs(other[1] - y) < apart)) continue;
      const picture = this.known.get(row);
      if (picture === undefined) this.load(row, Math.round(side));
      if (!picture) continue;
      taken.push([x, y]);
      const left = Math.round(x - picture.width / 2);
      const top = Math.round(y - picture.height / 2);
      for (const [color, width] of frames(row)) {
        const edge = width * ratio;
        context.fillStyle = color;
        context.fillRect(left - edge, top - edge, picture.width + 2 * edge, picture.height + 2 * edge);
      }
      context.drawImage(picture, left, top);
    }
  }

  async load(row, side) {
    if (this.loading >= LOADING) return;
    this.loading += 1;
    this.known.set(row, null);
    try {
      const image = new Image();
      image.src = this.address(row);
      await image.decode();
      const share = side / Math.max(image.naturalWidth, image.naturalHeight);
      const picture = await createImageBitmap(image, {
        resizeWidth: Math.max(1, Math.round(image.naturalWidth * share)),
        resizeHeight: Math.max(1, Math.round(image.naturalHeight * share)),
        resizeQuality: "medium",
      });
      if (this.known.size > KEPT) this.known.clear();
      this.known.set(row, picture);
    } catch {
      // This image has no thumbnail and stays a point.
    } finally {
      this.loading -= 1;
      this.arrived();
    }
  }
}
