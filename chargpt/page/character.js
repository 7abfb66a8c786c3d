// One character: its tooltip, its selection by pointer and keys, its probability, a change of it.

import { isolated, sign, spoken } from "./glyphs.js";
import { at, bits, percent } from "./text.js";

export class Character {
  constructor(page) {
    this.page = page;
    this.selected = null; // its place in the text
    at("text").onpointermove = at("text").onpointerdown = (event) => this.showTip(event);
    at("text").onpointerleave = () => {
      at("tip").hidden = true;
    };
    at("text").onclick = (event) => {
      const place = event.target.dataset?.at;
      if (place === undefined || getSelection().toString()) return;
      this.select(Number(place));
      if (matchMedia("(max-width: 40rem)").matches) at("character").scrollIntoView({ block: "nearest" });
    };
    at("text").onkeydown = (event) => this.move(event);
    at("apply").onclick = () => this.change();
    at("change").onkeydown = (event) => {
      if (event.key === "Enter") this.change();
    };
  }

  showTip(event) {
    const { text } = this.page;
    const entry = text.entries[event.target.dataset?.at];
    at("tip").hidden = !entry?.seen;
    if (!entry?.seen) return;
    const glyph = (id) => isolated(text.characters[id]);
    const others = entry.seen.likeliest.map(([id, probability]) => `${glyph(id)} ${percent(probability)}`);
    at("tip").textContent = `${glyph(entry.id)}: ${percent(entry.seen.probability)}, ${bits(entry.seen).toFixed(1)} bits\n${others.join("   ")}`;
    const { offsetWidth: width, offsetHeight: height } = at("tip");
    const below = event.clientY + 20 + height < innerHeight;
    at("tip").style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - width - 4))}px`;
    at("tip").style.top = `${below ? event.clientY + 20 : event.clientY - height - 10}px`;
  }

  // Arrow keys, Home and End.
  move(event) {
    const { text } = this.page;
    const sideways = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
    const lines = { ArrowUp: -1, ArrowDown: 1 };
    const known = event.key in sideways || event.key in lines;
    if (!known || !text.length || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const from = this.selected ?? (sideways[event.key] > 0 || lines[event.key] > 0 ? -1 : text.length);
    const to = event.key in sideways ? from + sideways[event.key] : text.inNextLine(from, lines[event.key]);
    this.select(Math.max(0, Math.min(text.length - 1, to)));
    text.entries[this.selected].span.scrollIntoView({ block: "nearest" });
  }

  deselect() {
    this.page.text.entries[this.selected]?.span.classList.remove("here");
    this.selected = null;
    at("character").hidden = true;
    this.page.text.showSurprise();
  }

  // After the text has changed.
  selectAgain() {
    if (this.selected === null) return;
    if (this.selected < this.page.text.length) this.select(this.selected);
    else this.deselect();
  }

  select(place) {
    const { text, post } = this.page;
    text.entries[this.selected]?.span.classList.remove("here");
    if (this.selected !== place) at("change").value = at("change-error").textContent = "";
    this.selected = place;
    const { id, seen, span } = text.entries[place];
    const character = text.characters[id];
    span.classList.add("here");
    at("character").hidden = false;
    at("character-title").textContent = `Character ${place + 1}: ${sign(character)}`;
    at("probability").textContent = seen
      ? `The model gave it a probability of ${percent(seen.probability)}, which is a surprise of ${bits(seen).toFixed(1)} bits. The likeliest, before temperature and the like:`
      : place
        ? "The model has not read this character yet."
        : "The text begins here: nothing was expected.";
    at("spoken-character").textContent = `${spoken(character)}${seen ? `, ${percent(seen.probability)}` : ""}`;
    const listed = seen?.likeliest.slice() ?? [];
    if (seen && !listed.some(([each]) => each === id)) listed.push([id, seen.probability]);
    at("likeliest").replaceChildren(...listed.map((each) => this.row(...each, id)));
    // The context from which the next character was predicted.
    post({ type: "attention", position: place, start: text.entries[place + 1]?.seen?.start ?? null });
  }

  // A row of the list of the likeliest.
  row(id, probability, chosen) {
    const character = this.page.text.characters[id];
    const item = document.createElement("li");
    const glyph = document.createElement("button");
    const [share, bar] = ["span", "span"].map((kind) => document.createElement(kind));
    glyph.type = "button";
    glyph.className = "glyph";
    glyph.textContent = sign(character);
    glyph.title = "Put it in place of the character";
    glyph.setAttribute("aria-label", `${spoken(character)}: put it in place of the character`);
    glyph.disabled = id === chosen;
    glyph.onclick = () => this.changeTo([id]);
    share.textContent = percent(probability);
    bar.className = "bar";
    bar.style.width = `${100 * probability}%`;
    item.classList.toggle("chosen", id === chosen);
    item.append(glyph, share, bar);
    return item;
  }

  change() {
    const ids = this.page.text.encode(at("change").value, "the new text", at("change-error"));
    if (ids?.length) this.changeTo(ids);
  }

  changeTo(ids) {
    if (!this.page.writing.change(this.selected, ids)) return;
    at("change").value = "";
    this.select(this.selected);
  }
}
