// The shapes that select points on the map: a rectangle or a lasso, in the map's coordinates.

// The chosen ones of some rows that are within a shape; ends after `most` and one more.
// path: corners [x, y]; a rectangle has two opposite ones.
export function rowsWithin({ points, chosen }, rows, kind, path, most = Infinity) {
  const { left, right, bottom, top } = limits(path);
  const found = [];
  for (const row of rows) {
    const x = points[2 * row];
    const y = points[2 * row + 1];
    if (!chosen[row] || !(x >= left && x <= right && y >= bottom && y <= top)) continue;
    if (kind === "rectangle" || within(x, y, path)) found.push(row);
    if (found.length > most) break;
  }
  return found;
}

export function limits(path) {
  const [xs, ys] = [0, 1].map((axis) => path.map((corner) => corner[axis]));
  return { left: Math.min(...xs), right: Math.max(...xs), bottom: Math.min(...ys), top: Math.max(...ys) };
}

// Whether a ray to the right crosses the closed path an odd number of times.
function within(x, y, path) {
  let inside = false;
  for (let at = 0, before = path.length - 1; at < path.length; before = at, at += 1) {
    const [ax, ay] = path[at];
    const [bx, by] = path[before];
    if ((ay > y) !== (by > y) && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) inside = !inside;
  }
  return inside;
}

// Draws the outline of a shape; corners in pixels of the canvas.
export function drawShape(context, kind, corners, color, ratio) {
  context.beginPath();
  if (kind === "rectangle") {
    const [[ax, ay], [bx, by]] = [corners[0], corners[corners.length - 1]];
    context.rect(Math.min(ax, bx), Math.min(ay, by), Math.abs(bx - ax), Math.abs(by - ay));
  } else {
    corners.forEach(([x, y], place) => (place ? context.lineTo(x, y) : context.moveTo(x, y)));
    context.closePath();
  }
  context.strokeStyle = context.fillStyle = color;
  context.globalAlpha = 0.12;
  context.fill();
  context.globalAlpha = 1;
  context.lineWidth = 1.5 * ratio;
  context.stroke();
}

export function drawRing(context, [x, y], radius, color, ratio) {
  context.lineWidth = 2 * ratio;
  context.strokeStyle = color;
  context.beginPath();
  context.arc(x, y, radius, 0, 7);
  context.stroke();
}

// A cross in the middle of the canvas.
export function drawCross(context, color, ratio) {
  const [x, y] = [context.canvas.width / 2, context.canvas.height / 2];
  context.lineWidth = ratio;
  context.strokeStyle = color;
  context.beginPath();
  context.moveTo(x - 8 * ratio, y);
  context.lineTo(x + 8 * ratio, y);
  context.moveTo(x, y - 8 * ratio);
  context.lineTo(x, y + 8 * ratio);
  context.stroke();
}
