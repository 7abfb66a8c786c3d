// The attention of all heads from the selected character: small pictures, and one of them enlarged.

import { isolated } from "./glyphs.js";
import { SVG, drawBars } from "./pictures.js";
import { at, percent } from "./text.js";

const GOES_BACK = 64; // characters that the small pictures go back

export class Attention {
  constructor(page) {
    this.page = page;
    const { n_layer = 0, n_head = 0 } = page.facts.config;
    this.perLayer = n_head;
    this.on = new Uint8Array(n_layer * n_head).fill(1); // heads that are switched on, layer by layer
    this.head = null; // the one that is enlarged
    this.answer = null; // the worker's last one
    at("back-to-surprise").onclick = () => {
      this.enlarge(null);
      at("text").focus();
    };
    at("head-on").onchange = () => {
      this.on[this.head] = Number(at("head-on").checked);
      page.writing.writeAgain();
    };
    at("all-on").onclick = () => {
      this.on.fill(1);
      page.writing.writeAgain();
      at("text").focus();
    };
  }

  // An answer of the worker: a row of weights for each head.
  show(answer) {
    const { text, character } = this.page;
    if (answer.position !== character.selected) return;
    this.answer = { ...answer, ids: text.ids(answer.start, answer.position + 1) };
    const before = answer.position - answer.start;
    at("about-attention").textContent = this.perLayer
      ? `To predict what comes after this character, each head of each layer (a row each) looks back over it and the ${before.toLocaleString("en")} before it, which were the context. Choose a head to see where it looks.`
      : "A bigram has no attention: it looks at one character only.";
    at("heads").style.gridTemplateColumns = `repeat(${this.perLayer || 1}, minmax(0, 1fr))`;
    const focused = [...at("heads").children].indexOf(document.activeElement);
    at("heads").replaceChildren(...answer.rows.map((row, n) => this.button(row, n)));
    at("heads").children[focused]?.focus();
    this.enlarge(answer.rows.length ? this.head : null);
  }

  button(row, n) {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-label", `${this.nameOf(n)}${this.on[n] ? "" : ", off"}`);
    button.setAttribute("aria-pressed", n === this.head);
    button.classList.toggle("off", !this.on[n]);
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("aria-hidden", "true");
    drawBars(svg, row.subarray(Math.max(0, row.length - GOES_BACK)), 4 / row.length);
    button.append(svg);
    button.onclick = () => this.enlarge(n === this.head ? null : n);
    return button;
  }

  nameOf(n) {
    return `layer ${Math.floor(n / this.perLayer) + 1}, head ${(n % this.perLayer) + 1}`;
  }

  enlarge(n) {
    const { text } = this.page;
    this.head = n;
    at("enlarged").hidden = n === null;
    [...at("heads").children].forEach((button, each) => button.setAttribute("aria-pressed", each === n));
    if (n === null) {
      text.showSurprise();
      return;
    }
    const { rows, start, ids } = this.answer;
    const row = rows[n];
    const most = Array.from(row.keys()).sort((a, b) => row[b] - row[a]).slice(0, 3);
    const where = most.map((p) => `${isolated(text.characters[ids[p]])} ${ids.length - 1 - p} back (${percent(row[p])})`);
    at("enlarged-title").textContent = `Enlarged: ${this.nameOf(n)}`;
    at("most-attention").textContent = `Most to ${where.join(", ")}.`;
    drawBars(at("row"), row);
    at("row").setAttribute("aria-label", `Attention of ${this.nameOf(n)}`);
    at("head-on").checked = Boolean(this.on[n]);
    text.showAttention(row, start, this.nameOf(n));
  }
}
