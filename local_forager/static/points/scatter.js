// Writes points directly into the pixels of a canvas: 100,000 take a few milliseconds, also
// where the browser renders in software.

const OPACITY = 0.8; // of points with smooth edges

// The rows with a place on the map, those outside the filters first. Each part is shuffled with a
// fixed seed, so that later rows do not cover earlier ones systematically.
export function drawingOrder(points, chosen) {
  const parts = [[], []];
  for (let row = 0; row < chosen.length; row += 1) {
    if (!Number.isNaN(points[2 * row])) parts[chosen[row]].push(row);
  }
  let seed = 12345;
  for (const rows of parts) {
    for (let place = rows.length - 1; place > 0; place -= 1) {
      seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
      const other = seed % (place + 1);
      [rows[place], rows[other]] = [rows[other], rows[place]];
    }
  }
  return Int32Array.from([...parts[0], ...parts[1]]);
}

// A filled circle: offsets of its pixels in a buffer of this width, and how much of each it covers; null
// with hard edges.
export function disc(radius, width, smooth) {
  const reach = Math.ceil(radius);
  const offsets = [];
  const cover = [];
  for (let y = -reach; y <= reach; y += 1) {
    for (let x = -reach; x <= reach; x += 1) {
      const covered = Math.max(0, Math.min(1, radius + 0.5 - Math.hypot(x, y)));
      if (covered < (smooth ? 0.05 : 0.5)) continue;
      offsets.push(y * width + x);
      cover.push(Math.round(covered * OPACITY * 256));
    }
  }
  return { reach, offsets: Int32Array.from(offsets), cover: smooth ? Int32Array.from(cover) : null };
}

// Draws each point as a disc of its colour, mixed with what is there where the disc has smooth edges.
export function scatter(buffer, width, height, points, order, pixels, { reach, offsets, cover }, { scale, left, top }) {
  const right = width - reach;
  const bottom = height - reach;
  for (const row of order) {
    const x = (points[2 * row] * scale + left) | 0;
    const y = (top - points[2 * row + 1] * scale) | 0;
    if (x < reach || y < reach || x >= right || y >= bottom) continue;
    const start = y * width + x;
    const color = pixels[row];
    for (let part = 0; part < offsets.length; part += 1) {
      const at = start + offsets[part];
      buffer[at] = cover ? mix(buffer[at], color, cover[part]) : color;
    }
  }
}

// Mixes two pixels, two channels at a time; share is a whole number from 0 (under) to 256 (over).
export function mix(under, over, share) {
  const rest = 256 - share;
  const even = (((under & 0xff00ff) * rest + (over & 0xff00ff) * share) >>> 8) & 0xff00ff;
  const odd = (((under >>> 8) & 0xff00ff) * rest + ((over >>> 8) & 0xff00ff) * share) & 0xff00ff00;
  return (even | odd) >>> 0;
}
