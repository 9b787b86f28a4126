// The names of the commonest labels or classes, written where most of their images are on the map.

const CELLS = 48; // of the map, along each axis
const APART = 70; // CSS pixels between two names

// [{ value, x, y }]: for each value the middle of its fullest cell; the commonest value first.
export function densestPlaces(points, column, chosen, values) {
  const cells = new Map(values.map((value) => [value, new Float64Array(3 * CELLS * CELLS)]));
  for (let row = 0; row < column.length; row += 1) {
    const sums = chosen[row] ? cells.get(column[row]) : undefined;
    const x = points[2 * row];
    const y = points[2 * row + 1];
    if (!sums || Number.isNaN(x)) continue;
    const cell = (one) => Math.min(CELLS - 1, Math.floor(((one + 1) / 2) * CELLS));
    const place = 3 * (cell(y) * CELLS + cell(x));
    sums[place] += 1;
    sums[place + 1] += x;
    sums[place + 2] += y;
  }
  const found = [];
  for (const [value, sums] of cells) {
    let best = 0;
    for (let place = 0; place < sums.length; place += 3) if (sums[place] > sums[best]) best = place;
    if (sums[best]) found.push({ value, x: sums[best + 1] / sums[best], y: sums[best + 2] / sums[best] });
  }
  return found;
}

// Writes the names, none too close to an earlier one. place: map coordinates to pixels.
export function drawNames(context, names, place, { ink, paper, ratio }) {
  const written = [];
  context.font = `600 ${13 * ratio}px system-ui, sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.lineJoin = "round";
  context.lineWidth = 4 * ratio;
  for (const { text, x, y } of names) {
    const [left, top] = place(x, y);
    const near = ([otherLeft, otherTop]) => Math.abs(otherTop - top) < 18 * ratio
      && Math.abs(otherLeft - left) < APART * ratio;
    if (written.some(near)) continue;
    written.push([left, top]);
    context.strokeStyle = paper;
    context.strokeText(text, left, top);
    context.fillStyle = ink;
    context.fillText(text, left, top);
  }
}
