// The text on the page: an element for each character, coloured by surprise or by attention.

import { inText, isUnprintable, isolated } from "./glyphs.js";

export const at = (id) => document.getElementById(id);
const SHADES = 6; // above none

export class ShownText {
  constructor(characters) {
    this.characters = characters;
    this.idOf = new Map(characters.map((character, id) => [character, id]));
    this.entries = []; // {id, seen, span}; `seen` is what the worker reports of a character, or null
  }

  get length() {
    return this.entries.length;
  }

  ids(from = 0, to = this.length) {
    return this.entries.slice(from, to).map(({ id }) => id);
  }

  // The ids of a typed text; or null, and the error is shown in `place`. ↵ and ␣ stand for what a field cannot show.
  encode(typed, what, place) {
    const characters = Array.from(typed, (each) => (this.idOf.has(each) ? each : ({ "↵": "\n", "␣": " " })[each] ?? each));
    const unknown = [...new Set(characters.filter((character) => !this.idOf.has(character)))];
    place.textContent = "";
    if (!unknown.length) return characters.map((character) => this.idOf.get(character));
    const named = unknown.slice(0, 8).map((each) => {
      const code = `U+${each.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
      return isUnprintable(each) ? code : `${isolated(each)} (${code})`;
    });
    const more = unknown.length > 8 ? ` and ${unknown.length - 8} more` : "";
    place.textContent = `The model does not know ${unknown.length > 1 ? "these characters" : "a character"} of ${what}: ${named.join(", ")}${more}.`;
    return null;
  }

  append(id, seen = null, parent = at("text")) {
    const span = document.createElement("span");
    const character = this.characters[id];
    span.textContent = inText(character);
    span.classList.toggle("newline", character === "\n");
    span.classList.toggle("escape", isUnprintable(character));
    span.dataset.at = this.length;
    parent.append(span);
    this.entries.push({ id, seen: null, span });
    if (seen) this.look(this.length - 1, seen);
  }

  truncate(length) {
    for (const { span } of this.entries.splice(Math.max(0, length))) span.remove();
  }

  // Keep what the worker reports of the character at a place.
  look(place, seen) {
    const entry = this.entries[place];
    entry.seen = seen;
    if (at("legend-attention").hidden) shade(entry.span, "s", bits(seen));
  }

  showSurprise() {
    for (const { span, seen } of this.entries) shade(span, "s", seen ? bits(seen) : null);
    at("legend-surprise").hidden = false;
    at("legend-attention").hidden = at("back-to-surprise").hidden = at("enlarged").hidden = true;
  }

  // The weights of one head for the characters from `start` on.
  showAttention(weights, start, name) {
    const most = weights.reduce((a, b) => Math.max(a, b));
    this.entries.forEach(({ span }, place) => {
      const weight = weights[place - start];
      shade(span, "a", weight === undefined ? null : (SHADES * weight) / most);
    });
    at("legend-surprise").hidden = true;
    at("legend-attention").hidden = at("back-to-surprise").hidden = false;
    at("legend-head").textContent = name;
  }

  // The place of the nearest character in the line above (-1) or below (1).
  inNextLine(from, way) {
    if (!this.entries[from]) return from + way;
    const { left, top } = this.entries[from].span.getBoundingClientRect();
    let [nearest, line] = [from, null];
    let distance = Infinity;
    for (let n = from + way; this.entries[n]; n += way) {
      const found = this.entries[n].span.getBoundingClientRect();
      if (Math.abs(found.top - top) < 2) continue;
      line ??= found.top;
      if (Math.abs(found.top - line) >= 2) break;
      if (Math.abs(found.left - left) < distance) [nearest, distance] = [n, Math.abs(found.left - left)];
    }
    return nearest;
  }
}

function shade(span, kind, value) {
  for (const each of [...span.classList]) if (/^[as]\d$/.test(each)) span.classList.remove(each);
  if (value !== null) span.classList.add(`${kind}${Math.max(0, Math.min(SHADES, Math.round(value)))}`);
}

export function bits({ probability }) {
  return -Math.log2(Math.max(probability, Number.MIN_VALUE));
}

export function percent(probability) {
  return probability < 0.0005 ? "under 0.1%" : `${(100 * probability).toFixed(1)}%`;
}
