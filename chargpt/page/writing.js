// The form above the text: settings, and the worker's answers while it writes.

import { printable } from "./glyphs.js";
import { at } from "./text.js";

export class Writing {
  constructor(page) {
    this.page = page;
    this.job = 0; // the number of the last one; answers to others are dropped
    this.base = 0; // characters at the beginning that the person wrote
    this.promptLength = 0; // those of them in the prompt; if it is empty, a new line stands in its place
    this.end = 0; // the length that the text is to have
    this.cut = []; // the text to stop at, where it was found
    this.options = null; // settings of the text
    this.unspoken = ""; // text for a screen reader, until its line is complete
    this.waiting = []; // answers since the last frame
    at("write").onsubmit = (event) => {
      event.preventDefault();
      if (!at("go").disabled) this.begin();
    };
    at("again").onclick = () => {
      const before = at("seed").value;
      at("seed").value = (Number(before) + 1) % 2 ** 32;
      if (!this.begin()) at("seed").value = before;
    };
    at("more").onclick = () => {
      // The text goes on past the one to stop at, which would be found again.
      if (this.readSettings()) this.write([...page.text.ids(), ...this.cut], this.options.length);
    };
    at("halt").onclick = () => page.post({ type: "stop" });
    at("prompt").onkeydown = (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("write").requestSubmit();
    };
    const { name, block_size } = page.facts.config;
    at("window-choice").hidden = block_size < 2 || name === "bigram";
    const context = block_size.toLocaleString("en");
    at("price").textContent = `(slower: past ${context} characters, the last ${context} are read again for each that is written)`;
  }

  // Read the form; if something in it is wrong, show that, and return false.
  readSettings() {
    at("error").textContent = "";
    for (const input of at("write").querySelectorAll("input")) {
      if (!input.validity.valid) {
        input.closest("details")?.setAttribute("open", "");
        at("error").textContent = `${input.labels[0].firstChild.textContent.trim()}: ${input.validationMessage}`;
        input.focus();
        return false;
      }
    }
    const { text } = this.page;
    const stop = text.encode(at("stop-at").value, "the text to stop at", at("error"));
    if (!stop) return false;
    const number = (id) => (at(id).value === "" ? null : Number(at(id).value));
    this.options = {
      temperature: number("temperature"),
      length: number("length"),
      seed: number("seed"),
      topK: number("top-k"),
      topP: number("top-p"),
      stops: stop.length ? [stop] : [],
      exact: at("exact").checked,
    };
    return true;
  }

  // A new text.
  begin() {
    const { text, character } = this.page;
    const prompt = this.readSettings() && text.encode(at("prompt").value, "the prompt", at("error"));
    if (!prompt) {
      at("status").textContent = "";
      return false;
    }
    character.deselect();
    const ids = prompt.length ? prompt : [text.idOf.get("\n") ?? 0]; // the lecture, too, begins with a new line
    [this.base, this.promptLength] = [ids.length, prompt.length];
    this.write(ids, this.options.length);
    at("text").scrollIntoView({ block: "nearest" });
    return true;
  }

  // Replace the text by ids, and let the model add `length` characters.
  write(ids, length) {
    const { text, attention } = this.page;
    Object.assign(this, { job: this.job + 1, waiting: [], cut: [], end: ids.length + length, unspoken: "" });
    const differs = text.ids().findIndex((id, n) => id !== ids[n]);
    text.truncate(differs < 0 ? Math.min(text.length, ids.length) : differs);
    for (const id of ids.slice(text.length)) text.append(id);
    text.entries.forEach(({ span }, n) => span.classList.toggle("prompt", n < this.promptLength));
    text.showSurprise();
    at("halt").disabled = false;
    if (document.activeElement === at("more")) at("halt").focus(); // a button that is disabled loses the focus
    at("more").disabled = true;
    at("status").textContent = "Writing";
    at("speed").textContent = "";
    const heads = attention.on;
    const off = heads.filter((on) => !on).length;
    at("heads-off").hidden = !off;
    at("how-many-off").textContent = off === 1 ? "One head is switched off." : `${off} heads are switched off.`;
    this.page.post({ type: "write", job: this.job, ids, settings: { ...this.options, length }, heads });
  }

  // Write again what the model wrote, with the heads as they are now.
  writeAgain() {
    this.write(this.page.text.ids(0, this.base), Math.max(1, this.end - this.base));
  }

  // Put ids in place of one character. What follows in the prompt stays; the model writes its own part again. Returns
  // whether the settings allow it.
  change(place, ids) {
    if (!this.readSettings()) return false;
    const { text } = this.page;
    const after = text.ids(place + 1, Math.max(this.base, place + 1));
    const whole = [...text.ids(0, place), ...ids, ...after];
    const length = Math.max(1, this.end - place - 1 - after.length);
    if (place < this.promptLength) {
      this.promptLength += ids.length - 1;
      at("prompt").value = whole.slice(0, this.promptLength).map((id) => text.characters[id]).join("");
    }
    this.base = whole.length;
    this.write(whole, length);
    return true;
  }

  // An answer of the worker: `read` and `written` wait for the next frame.
  receive(answer) {
    if (answer.job !== this.job) return;
    if (answer.type === "done") {
      this.show();
      this.done(answer);
    } else {
      if (!this.waiting.length) requestAnimationFrame(() => this.show());
      this.waiting.push(answer);
    }
  }

  // Put the answers since the last frame into the page.
  show() {
    const { text, post } = this.page;
    const fresh = document.createDocumentFragment();
    for (const answer of this.waiting) {
      if (answer.type === "read") {
        answer.seen.forEach((seen, n) => {
          if (answer.from + n < text.length) text.look(answer.from + n, seen);
        });
      } else {
        answer.ids.forEach((id, n) => {
          text.append(id, answer.seen[n], fresh);
          this.unspoken += text.characters[id];
        });
        at("speed").textContent = `${Math.round(answer.speed).toLocaleString("en")} characters per second`;
      }
    }
    this.waiting = [];
    if (fresh.hasChildNodes()) {
      at("text").append(fresh);
      post({ type: "shown", length: text.length });
    }
    const line = this.unspoken.lastIndexOf("\n") + 1;
    if (line > 1) {
      at("spoken").textContent = printable(this.unspoken.slice(0, line));
      this.unspoken = this.unspoken.slice(line);
    }
  }

  done({ reason, stop }) {
    const { text, character } = this.page;
    if (stop) {
      this.cut = stop;
      text.truncate(text.length - stop.length);
    }
    this.end = text.length;
    at("more").disabled = !text.length;
    if (document.activeElement === at("halt")) at("more").focus();
    at("halt").disabled = true;
    at("status").textContent = { stopped: "Stopped", stop: "Found the text to stop at", length: "Done" }[reason];
    at("spoken").textContent = printable(this.unspoken);
    character.selectAgain();
  }
}
