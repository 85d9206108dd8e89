// Masks of the photo's size: run lengths (COCO's, column by column) to pixels and back, painting.

/** {size: [H, W], counts} -> Uint8Array [H * W] of 0 and 1, row by row. */
export function decode({ size: [height, width], counts }) {
  const mask = new Uint8Array(height * width);
  let position = 0;
  let set = false;
  for (const count of counts) {
    if (set) {
      for (let k = position; k < position + count; k++) {
        mask[(k % height) * width + Math.floor(k / height)] = 1;
      }
    }
    position += count;
    set = !set;
  }
  return mask;
}

/** The inverse of decode. */
export function encode(mask, height, width) {
  const counts = [];
  let run = 0;
  let value = 0;
  for (let x = 0; x < width; x++) {
    for (let y = 0, at = x; y < height; y++, at += width) {
      if (mask[at] === value) {
        run++;
      } else {
        counts.push(run);
        run = 1;
        value = mask[at];
      }
    }
  }
  counts.push(run);
  return { size: [height, width], counts };
}

export function area(mask) {
  let total = 0;
  for (let k = 0; k < mask.length; k++) total += mask[k];
  return total;
}

/** Sets or clears the pixels whose centres lie within a radius of a line between two points. */
export function stroke(mask, height, width, from, to, radius, value) {
  const left = Math.max(0, Math.floor(Math.min(from[0], to[0]) - radius));
  const right = Math.min(width - 1, Math.ceil(Math.max(from[0], to[0]) + radius));
  const top = Math.max(0, Math.floor(Math.min(from[1], to[1]) - radius));
  const bottom = Math.min(height - 1, Math.ceil(Math.max(from[1], to[1]) + radius));
  const along = [to[0] - from[0], to[1] - from[1]];
  const length = along[0] ** 2 + along[1] ** 2;
  for (let y = top; y <= bottom; y++) {
    for (let x = left; x <= right; x++) {
      const away = [x + 0.5 - from[0], y + 0.5 - from[1]];
      const t = length ? (away[0] * along[0] + away[1] * along[1]) / length : 0;
      const clamped = Math.min(1, Math.max(0, t));
      const dx = away[0] - clamped * along[0];
      const dy = away[1] - clamped * along[1];
      if (dx * dx + dy * dy <= radius * radius) mask[y * width + x] = value;
    }
  }
}

/** Sets or clears the pixels whose centres lie within a polygon (even-odd). */
export function fill(mask, height, width, points, value) {
  for (let y = 0; y < height; y++) {
    const crossings = [];
    for (let i = 0; i < points.length; i++) {
      const [x0, y0] = points[i];
      const [x1, y1] = points[(i + 1) % points.length];
      const middle = y + 0.5;
      if (y0 <= middle !== y1 <= middle) crossings.push(x0 + ((middle - y0) / (y1 - y0)) * (x1 - x0));
    }
    crossings.sort((a, b) => a - b);
    for (let i = 0; i + 1 < crossings.length; i += 2) {
      const first = Math.max(0, Math.ceil(crossings[i] - 0.5));
      const last = Math.min(width - 1, Math.ceil(crossings[i + 1] - 0.5) - 1);
      if (last >= first) mask.fill(value, y * width + first, y * width + last + 1);
    }
  }
}

/** First and last row and column of a mask, or null. */
export function bounds(mask, height, width) {
  let [x0, y0, x1, y1] = [width, height, -1, -1];
  for (let y = 0, k = 0; y < height; y++) {
    for (let x = 0; x < width; x++, k++) {
      if (mask[k]) {
        if (x < x0) x0 = x;
        if (x > x1) x1 = x;
        if (y < y0) y0 = y;
        y1 = y;
      }
    }
  }
  return x1 < 0 ? null : [x0, y0, x1, y1];
}

/** A canvas with a mask in a colour: fill, outline inside, dark halo outside. */
export function picture(mask, height, width, [red, green, blue], alpha = 110) {
  const canvas = document.createElement("canvas");
  const box = bounds(mask, height, width);
  if (!box) return { canvas, x: 0, y: 0 };
  const x0 = Math.max(0, box[0] - 1);
  const y0 = Math.max(0, box[1] - 1);
  canvas.width = Math.min(width - 1, box[2] + 1) - x0 + 1;
  canvas.height = Math.min(height - 1, box[3] + 1) - y0 + 1;
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  const at = (x, y) => x >= 0 && y >= 0 && x < width && y < height && mask[y * width + x];
  for (let j = 0, k = 0; j < canvas.height; j++) {
    for (let i = 0; i < canvas.width; i++, k += 4) {
      const x = x0 + i;
      const y = y0 + j;
      const inside = at(x, y);
      const near = at(x - 1, y) + at(x + 1, y) + at(x, y - 1) + at(x, y + 1);
      if (inside) {
        image.data.set([red, green, blue, near < 4 ? 255 : alpha], k);
      } else if (near) {
        image.data.set([0, 0, 0, 170], k);
      }
    }
  }
  context.putImageData(image, 0, 0);
  return { canvas, x: x0, y: y0 };
}

export const COLOURS = [
  [30, 144, 255], [255, 99, 71], [60, 200, 90], [255, 200, 0], [190, 90, 255], [0, 205, 205],
  [255, 105, 180], [160, 220, 60], [255, 140, 0], [110, 130, 255], [0, 170, 130], [230, 60, 140],
];
