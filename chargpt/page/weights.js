// Weights as the page carries them: base64 of float16 numbers, or of int8 numbers with a float32 scale per row.

export function fromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

// The number that a float16's 16 bits stand for.
function ofHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

// From bytes and their table of contents to a Float32Array for each name.
export function unpack(bytes, tensors) {
  const halves = new Float32Array(65536);
  for (let bits = 0; bits < halves.length; bits++) halves[bits] = ofHalf(bits);
  const weights = {};
  for (const { name, shape, kind, offset, scales } of tensors) {
    const size = shape.reduce((product, n) => product * n, 1);
    const numbers = new Float32Array(size);
    if (kind === "fp16") {
      const stored = new Uint16Array(bytes.buffer, bytes.byteOffset + offset, size);
      for (let i = 0; i < size; i++) numbers[i] = halves[stored[i]];
    } else {
      const stored = new Int8Array(bytes.buffer, bytes.byteOffset + offset, size);
      const scale = new Float32Array(bytes.buffer, bytes.byteOffset + scales, shape[0]);
      const row = size / shape[0];
      for (let i = 0, at = 0; i < shape[0]; i++) {
        for (let j = 0; j < row; j++, at++) numbers[at] = stored[at] * scale[i];
      }
    }
    weights[name] = numbers;
  }
  return weights;
}
