// How characters are shown: as text, never as markup, and what could command or turn it, as an escape.

// As in chargpt/errors.py: control characters, line separators, what turns the direction of text, tags.
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

// All of a text.
export function printable(text) {
  return Array.from(text, inText).join("");
}

// Alone, where a space would not be seen, and an accent needs something to stand on.
export function sign(character) {
  return SIGNS[character] ?? (/\p{M}/u.test(character) ? `◌${character}` : inText(character));
}

// To be read aloud.
export function spoken(character) {
  return NAMES[character] ?? inText(character);
}
