// How characters are shown: as text, never as markup; those that could control or reverse it as escapes.

// As in chargpt/errors.py: control characters, line separators, marks of direction, tags.
const UNPRINTABLE = /[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\u{e0000}-\u{e007f}]/u;
const NAMES = { "\n": "new line", " ": "space", "\t": "tab" };
const SIGNS = { "\n": "↵", " ": "␣", "\t": "⇥" };

export function isUnprintable(character) {
  return UNPRINTABLE.test(character);
}

function escaped(character) {
  const code = character.codePointAt(0).toString(16);
  return code.length > 4 ? `\\u{${code}}` : `\\u${code.padStart(4, "0")}`;
}

// In running text.
export function inText(character) {
  return isUnprintable(character) ? escaped(character) : character;
}

// A whole text. Of accents on one letter 16 are kept: the time to draw them is quadratic.
export function printable(text) {
  return Array.from(text.replace(/(\p{M}{16})\p{M}+/gu, "$1…"), inText).join("");
}

// Blanks, and characters that draw nothing.
const INVISIBLE = /[\p{Z}\p{C}\p{Default_Ignorable_Code_Point}\u2800\ufffc]/u;

// One character alone: a space becomes visible, and an accent gets a circle to stand on.
export function sign(character) {
  if (SIGNS[character]) return SIGNS[character];
  if (INVISIBLE.test(character)) return escaped(character);
  return /\p{M}/u.test(character) ? `◌${character}` : inText(character);
}

// One character among other words: a letter from right to left does not reorder them (Unicode's isolates).
export function isolated(character) {
  return `\u2068${sign(character)}\u2069`;
}

// To be read aloud.
export function spoken(character) {
  return NAMES[character] ?? inText(character);
}
