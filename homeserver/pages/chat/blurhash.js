// BlurHash: a picture of some thirty characters, shown until the real one has arrived. https://blurha.sh

const DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz#$%*+,-.:;=?@[]^_{|}~";

function number(text) {
  let value = 0;
  for (const character of text) value = value * 83 + DIGITS.indexOf(character);
  return value;
}

// Returns the RGBA bytes of a blurhash, `width` × `height`; null if it is not valid.
export function decodeBlurhash(hash, width, height) {
  if (typeof hash !== "string" || hash.length < 6 || hash.length > 166) return null;
  if ([...hash].some((character) => !DIGITS.includes(character))) return null;
  const size = number(hash[0]);
  const columns = (size % 9) + 1;
  const rows = Math.floor(size / 9) + 1;
  if (hash.length !== 4 + 2 * columns * rows) return null;
  const strongest = (number(hash[1]) + 1) / 166;
  const colours = [average(number(hash.slice(2, 6)))];
  for (let index = 1; index < columns * rows; index += 1) {
    colours.push(component(number(hash.slice(4 + index * 2, 6 + index * 2)), strongest));
  }
  return paint(colours, columns, width, height);
}

function paint(colours, columns, width, height) {
  const pixels = new Uint8ClampedArray(width * height * 4);
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      const sum = [0, 0, 0];
      for (const [index, colour] of colours.entries()) {
        const basis = Math.cos((Math.PI * x * (index % columns)) / width) * Math.cos((Math.PI * y * Math.floor(index / columns)) / height);
        for (let channel = 0; channel < 3; channel += 1) sum[channel] += colour[channel] * basis;
      }
      pixels.set([...sum.map(toByte), 255], (y * width + x) * 4);
    }
  }
  return pixels;
}

function average(value) {
  return [value >> 16, (value >> 8) & 255, value & 255].map(toLight);
}

function component(value, strongest) {
  return [Math.floor(value / 361), Math.floor(value / 19) % 19, value % 19].map((digit) => {
    const offset = (digit - 9) / 9;
    return Math.sign(offset) * offset * offset * strongest;
  });
}

function toLight(byte) {
  const value = byte / 255;
  return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
}

function toByte(light) {
  const value = Math.max(0, Math.min(1, light));
  return Math.round((value <= 0.0031308 ? value * 12.92 : 1.055 * value ** (1 / 2.4) - 0.055) * 255);
}
