// Finds the nearest point with a grid of cells over -1 to 1, each listing its points.

const POINTS_A_CELL = 4;

export function pointIndex(points) {
  const total = points.length / 2;
  const side = Math.max(1, Math.min(512, Math.ceil(Math.sqrt(total / POINTS_A_CELL))));
  const cell = (value) => Math.max(0, Math.min(side - 1, Math.floor(((value + 1) / 2) * side)));
  const starts = new Int32Array(side * side + 1);
  const cells = new Int32Array(total).fill(-1);
  for (let row = 0; row < total; row += 1) {
    if (Number.isNaN(points[2 * row])) continue;
    cells[row] = cell(points[2 * row + 1]) * side + cell(points[2 * row]);
    starts[cells[row] + 1] += 1;
  }
  for (let place = 0; place < side * side; place += 1) starts[place + 1] += starts[place];
  const next = starts.slice();
  const members = new Int32Array(starts[side * side]);
  for (let row = 0; row < total; row += 1) {
    if (cells[row] >= 0) members[next[cells[row]]++] = row;
  }

  // The nearest chosen point within a distance, or -1.
  function nearest(x, y, distance, chosen) {
    let found = -1;
    let best = distance * distance;
    const area = { left: x - distance, right: x + distance, bottom: y - distance, top: y + distance };
    for (const row of within(area)) {
      if (!chosen[row]) continue;
      const away = (points[2 * row] - x) ** 2 + (points[2 * row + 1] - y) ** 2;
      if (away < best) {
        best = away;
        found = row;
      }
    }
    return found;
  }

  // The rows of the cells that a rectangle touches.
  function within({ left, right, bottom, top }) {
    const parts = [];
    for (let line = cell(bottom); line <= cell(top); line += 1) {
      const from = starts[line * side + cell(left)];
      parts.push(members.subarray(from, starts[line * side + cell(right) + 1]));
    }
    const found = new Int32Array(parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of parts) {
      found.set(part, at);
      at += part.length;
    }
    return found;
  }

  return { nearest, within, rows: members }; // rows: all with a place, those of a cell one after the other
}
