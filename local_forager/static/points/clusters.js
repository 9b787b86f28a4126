// Finds clusters of points: peaks of their smoothed density, each with the points around it.

const SAMPLE = 100_000; // points that are counted at most: of more, every second or third, and so on
const SMOOTHING = 2; // rounds; each mixes a cell with its eight neighbours
const VALLEY = 0.8; // of the lower peak; two peaks with less of a valley between them are one
const EDGE = 0.15; // of its peak: the density down to which a cell belongs to a cluster
const MIDDLE = 0.5; // of its peak: the density of the cells in whose middle a cluster's name stands
const LEAST = 5; // points of a cluster
const MOST = 100; // clusters, the largest

// The clusters of the chosen points within a rectangle, the largest first.
// rows: the points to look at; side: of a cell, in the map's coordinates.
// Returns { clusters: [{ count, x, y, left, right, bottom, top }], rows, of }, where `of` has the
// place of the cluster of each of these rows, or -1.
export function findClusters(points, rows, chosen, { left, right, bottom, top }, side) {
  const column = Math.floor(left / side) - 1; // the outermost cells stay empty
  const line = Math.floor(bottom / side) - 1;
  const width = Math.floor(right / side) - column + 2;
  const height = Math.floor(top / side) - line + 2;
  const step = Math.ceil(rows.length / SAMPLE) || 1;
  const found = new Int32Array(Math.ceil(rows.length / step));
  const cells = new Int32Array(found.length);
  const density = new Float32Array(width * height);
  let total = 0;
  for (let at = 0; at < rows.length; at += step) {
    const row = rows[at];
    const x = points[2 * row];
    const y = points[2 * row + 1];
    if (!chosen[row] || !(x >= left && x <= right && y >= bottom && y <= top)) continue;
    const cell = (Math.floor(y / side) - line) * width + Math.floor(x / side) - column;
    density[cell] += 1;
    found[total] = row;
    cells[total] = cell;
    total += 1;
  }
  for (let round = 0; round < SMOOTHING; round += 1) smooth(density, width, height);
  const { cluster, peaks } = climb(density, width, height);
  const members = found.subarray(0, total);
  return describe(points, members, cells, density, cluster, peaks, step);
}

// Mixes each cell with its neighbours: weights 1, 2, 1 along each axis.
function smooth(density, width, height) {
  for (const [step, first, last] of [[1, 1, width * height - 1], [width, width, width * (height - 1)]]) {
    let before = density[first - step];
    const behind = step === 1 ? null : density.slice();
    for (let cell = first; cell < last; cell += 1) {
      const own = density[cell];
      const previous = behind ? behind[cell - step] : before;
      density[cell] = (previous + 2 * own + density[cell + step]) / 4;
      before = own;
    }
  }
}

// The cluster of each cell, -1 for none, and the density of each cluster's peak. Cells are taken in
// the order of their density: each joins the highest peak beside it, and where two peaks meet in a
// valley that is not deep they become one.
function climb(density, width, height) {
  const order = Int32Array.from(density.keys()).filter((cell) => density[cell] > 0)
    .sort((one, other) => density[other] - density[one] || one - other);
  const cluster = new Int32Array(width * height).fill(-1);
  const peaks = [];
  const joined = []; // the cluster that each has become part of, or itself
  const root = (one) => {
    while (joined[one] !== one) one = joined[one] = joined[joined[one]];
    return one;
  };
  const beside = [-width - 1, -width, -width + 1, -1, 1, width - 1, width, width + 1];
  for (const cell of order) {
    let best = -1;
    for (const step of beside) {
      const near = cluster[cell + step] ?? -1;
      if (near < 0) continue;
      const other = root(near);
      if (best < 0) best = other;
      if (other === best) continue;
      const [high, low] = peaks[other] > peaks[best] ? [other, best] : [best, other];
      if (density[cell] >= VALLEY * peaks[low]) joined[low] = high;
      best = high;
    }
    if (best < 0) {
      best = peaks.length;
      peaks.push(density[cell]);
      joined.push(best);
    }
    cluster[cell] = best;
  }
  for (const cell of order) {
    const own = root(cluster[cell]);
    cluster[cell] = density[cell] >= EDGE * peaks[own] ? own : -1;
  }
  return { cluster, peaks };
}

// Counts the points of each cluster, and finds its middle and its limits.
function describe(points, rows, cells, density, cluster, peaks, step) {
  const all = peaks.map(() => ({
    count: 0, x: 0, y: 0, weight: 0, left: Infinity, right: -Infinity, bottom: Infinity, top: -Infinity,
  }));
  for (let at = 0; at < rows.length; at += 1) {
    const own = all[cluster[cells[at]]];
    if (!own) continue;
    const x = points[2 * rows[at]];
    const y = points[2 * rows[at] + 1];
    own.count += 1;
    own.left = Math.min(own.left, x);
    own.right = Math.max(own.right, x);
    own.bottom = Math.min(own.bottom, y);
    own.top = Math.max(own.top, y);
    if (density[cells[at]] < MIDDLE * peaks[cluster[cells[at]]]) continue;
    own.x += x;
    own.y += y;
    own.weight += 1;
  }
  const places = [...all.keys()].filter((one) => all[one].count >= LEAST && all[one].weight)
    .sort((one, other) => all[other].count - all[one].count).slice(0, MOST);
  const place = new Int32Array(all.length).fill(-1);
  places.forEach((one, rank) => { place[one] = rank; });
  const of = new Int32Array(rows.length);
  for (let at = 0; at < rows.length; at += 1) {
    of[at] = cluster[cells[at]] < 0 ? -1 : place[cluster[cells[at]]];
  }
  const clusters = places.map((one) => {
    const { weight, x, y, count, ...limits } = all[one];
    return { ...limits, x: x / weight, y: y / weight, count: count * step };
  });
  return { clusters, rows, of };
}
