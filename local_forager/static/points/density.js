// Draws very many points as density: each pixel counts its points and mixes their colours. Measured
// with 1,000,000 points at 1280x720 on two busy cores without a GPU: 43 to 210 ms a frame, where
// WebGL2 takes 1,400 ms, since the browser then runs its shaders on the processor too.

import { mix } from "./scatter.js";

const FRAME = 14; // milliseconds that a frame may take while the map moves
const FAINT = 3; // points outside the filters count as one third of a point

export class Density {
  // rows: all rows with a place, those of a neighbourhood one after the other, so that drawing them
  // writes to memory in order.
  constructor(points, rows) {
    this.rows = rows;
    this.x = Float32Array.from(rows, (row) => points[2 * row]);
    this.y = Float32Array.from(rows, (row) => points[2 * row + 1]);
    this.step = 1;
  }

  // pixels: the colour of each row; chosen: 1 for the rows that pass the filters.
  color(pixels, chosen) {
    this.pixels = Uint32Array.from(this.rows, (row) => pixels[row]);
    this.chosen = Uint8Array.from(this.rows, (row) => chosen[row]);
  }

  // While the map moves, draws every step-th point, so that a frame takes about FRAME milliseconds.
  draw(buffer, width, height, { scale, left, top, paper, faint, moving }) {
    const begin = performance.now();
    if (this.sums?.length !== 4 * width * height) {
      this.sums = new Float32Array(4 * width * height);
      this.others = new Float32Array(width * height);
    }
    const step = moving ? this.step : 1;
    this.sums.fill(0);
    this.others.fill(0);
    this.count(width, height, scale, left, top, step);
    this.mix(buffer, paper, faint);
    if (moving) {
      const taken = performance.now() - begin;
      this.step = Math.max(1, Math.min(16, Math.round((this.step * taken) / FRAME)));
    }
  }

  count(width, height, scale, left, top, step) {
    const { x: xs, y: ys, pixels, chosen, sums, others } = this;
    for (let at = 0; at < xs.length; at += step) {
      const x = (xs[at] * scale + left) | 0;
      const y = (top - ys[at] * scale) | 0;
      if (x < 0 || y < 0 || x >= width || y >= height) continue;
      const place = y * width + x;
      if (!chosen[at]) {
        others[place] += step;
        continue;
      }
      const pixel = pixels[at];
      const sum = 4 * place;
      sums[sum] += step * (pixel & 255);
      sums[sum + 1] += step * ((pixel >>> 8) & 255);
      sums[sum + 2] += step * ((pixel >>> 16) & 255);
      sums[sum + 3] += step;
    }
  }

  // A pixel with n points is n / (n + 1) of their mean colour; the rest is paper.
  mix(buffer, paper, faint) {
    const { sums, others } = this;
    for (let place = 0; place < others.length; place += 1) {
      const number = sums[4 * place + 3];
      let under = paper;
      if (others[place]) under = mix(paper, faint, ((256 * others[place]) / (others[place] + FAINT)) | 0);
      if (!number) {
        buffer[place] = under;
        continue;
      }
      const rest = 1 / (number + 1);
      const red = sums[4 * place] * rest + (under & 255) * rest;
      const green = sums[4 * place + 1] * rest + ((under >>> 8) & 255) * rest;
      const blue = sums[4 * place + 2] * rest + ((under >>> 16) & 255) * rest;
      buffer[place] = 0xff000000 | (blue << 16) | (green << 8) | red;
    }
  }
}
