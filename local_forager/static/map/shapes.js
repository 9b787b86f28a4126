// The shapes that select points on the map: a rectangle or a lasso, in the map's coordinates.

export const rectangle = ([ax, ay], [bx, by]) => [[ax, ay], [bx, ay], [bx, by], [ax, by]];

// The chosen ones of some rows that are within a shape; ends after `most` and one more.
// path: corners [x, y].
export function rowsWithin({ points, chosen }, rows, path, most = Infinity) {
  const found = [];
  for (const row of rows) {
    if (chosen[row] && within(points[2 * row], points[2 * row + 1], path)) found.push(row);
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
export function drawShape(context, corners, color, ratio) {
  context.beginPath();
  for (const [x, y] of corners) context.lineTo(x, y);
  context.closePath();
  context.strokeStyle = context.fillStyle = color;
  context.globalAlpha = 0.12;
  context.fill();
  context.globalAlpha = 1;
  context.lineWidth = 1.5 * ratio;
  context.stroke();
}
