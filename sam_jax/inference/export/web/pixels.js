// Resizing of photos and of masks, with the arithmetic of the package, so that results are its own.

/** Pillow's bilinear filter in fixed point: RGBA bytes -> RGB bytes at another size. */
export function resize(rgba, [height, width], [newHeight, newWidth]) {
  const across = taps(width, newWidth), down = taps(height, newHeight);
  const wide = new Uint8Array(height * newWidth * 3);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < newWidth; x++) {
      const { first, weights } = across[x];
      for (let c = 0; c < 3; c++) {
        let sum = 2 ** 21;
        for (let k = 0; k < weights.length; k++) {
          sum += weights[k] * rgba[4 * (y * width + first + k) + c];
        }
        wide[3 * (y * newWidth + x) + c] = byte(sum);
      }
    }
  }
  const out = new Uint8Array(newHeight * newWidth * 3), row = 3 * newWidth;
  for (let y = 0; y < newHeight; y++) {
    const { first, weights } = down[y];
    for (let i = 0; i < row; i++) {
      let sum = 2 ** 21;
      for (let k = 0; k < weights.length; k++) sum += weights[k] * wide[(first + k) * row + i];
      out[y * row + i] = byte(sum);
    }
  }
  return out;
}

const byte = (sum) => Math.min(255, Math.max(0, Math.floor(sum / 2 ** 22)));

/** For each new pixel the old ones that it is a mean of, and their weights times 2**22. */
function taps(old, size) {
  if (old === size) {
    return Array.from({ length: size }, (_, i) => ({ first: i, weights: [2 ** 22] }));
  }
  const scale = old / size, wide = Math.max(scale, 1);
  return Array.from({ length: size }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - wide + 0.5));
    const last = Math.min(old, Math.trunc(centre + wide + 0.5));
    const weights = [];
    for (let x = first; x < last; x++) {
      weights.push(Math.max(0, 1 - Math.abs((x - centre + 0.5) * (1 / wide))));
    }
    const total = weights.reduce((a, b) => a + b, 0);
    return { first, weights: weights.map((w) => Math.floor((w / total) * 2 ** 22 + 0.5)) };
  });
}

const lines = new Map();

/** Indices and float32 weights, four a pixel, that enlarge one axis of a mask. */
function line(low, side, crop, size) {
  const key = `${low} ${side} ${crop} ${size}`;
  if (lines.has(key)) return lines.get(key);
  const toFrame = (i) => {
    const at = Math.max((i + 0.5) * (low / side) - 0.5, 0), first = Math.floor(at), t = at - first;
    const found = new Map([[Math.min(first, low - 1), 1 - t]]);
    const second = Math.min(first + 1, low - 1);
    found.set(second, (found.get(second) || 0) + t);
    return found;
  };
  const f = Math.fround, index = new Int32Array(4 * size), weight = new Float32Array(4 * size);
  for (let i = 0; i < size; i++) {
    const at = Math.max(f(f(f(i + 0.5) * f(crop / size)) - 0.5), 0);
    const first = Math.min(Math.floor(at), crop - 1), t = at - first, sum = new Map();
    for (const [pixel, part] of [[first, 1 - t], [Math.min(first + 1, crop - 1), t]]) {
      for (const [k, w] of toFrame(pixel)) sum.set(k, (sum.get(k) || 0) + f(w) * part);
    }
    [...sum].sort((a, b) => a[0] - b[0]).forEach(([k, w], n) => {
      index[4 * i + n] = k;
      weight[4 * i + n] = w;
    });
  }
  if (lines.size > 32) lines.clear();
  lines.set(key, { index, weight });
  return lines.get(key);
}

/** Logits [low, low] of the padded frame -> bytes [height, width], 1 where the photo's mask is. */
export function enlarge(logits, low, side, frameHw, [height, width]) {
  const across = line(low, side, frameHw[1], width), down = line(low, side, frameHw[0], height);
  const wide = new Float32Array(low * width), f = Math.fround;
  for (let y = 0; y < low; y++) {
    for (let x = 0; x < width; x++) {
      let sum = 0;
      for (let k = 4 * x; k < 4 * x + 4; k++) {
        sum = f(sum + f(across.weight[k] * logits[y * low + across.index[k]]));
      }
      wide[y * width + x] = sum;
    }
  }
  const mask = new Uint8Array(height * width), row = new Float32Array(width);
  for (let y = 0; y < height; y++) {
    row.fill(0);
    for (let k = 4 * y; k < 4 * y + 4; k++) {
      const weight = down.weight[k], start = down.index[k] * width;
      if (!weight) continue;
      for (let x = 0; x < width; x++) row[x] = f(row[x] + f(weight * wide[start + x]));
    }
    for (let x = 0; x < width; x++) mask[y * width + x] = row[x] > 0 ? 1 : 0;
  }
  return mask;
}

/** A box, in pixels of the frame, as mask logits [low, low]. */
export function drawnBox([x0, y0, x1, y1], low, patch, [slope, limit]) {
  const f = Math.fround, inward = (a, b) => Float32Array.from({ length: low }, (_, i) => {
    const centre = f((i + 0.5) * (patch / 4));
    return Math.min(f(centre - f(a)), f(f(f(b) + 1) - centre));
  });
  const x = inward(x0, x1), y = inward(y0, y1), drawn = new Float32Array(low * low);
  for (let i = 0; i < drawn.length; i++) {
    const depth = Math.min(x[i % low], y[Math.floor(i / low)]);
    drawn[i] = Math.min(limit, Math.max(-limit, f(slope * depth)));
  }
  return drawn;
}
