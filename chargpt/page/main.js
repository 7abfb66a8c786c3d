// What is seen, and what is done by hand.

import { fromBase64 } from "./weights.js";
import { inText, isUnprintable, printable, sign, spoken } from "./glyphs.js";
import { SVG, drawBars, drawCurve, drawMap } from "./pictures.js";

const at = (id) => document.getElementById(id);
const SHADES = 6; // above none
const GOES_BACK = 64; // characters that the small pictures of attention go back

export function open() {
  const facts = JSON.parse(at("data").textContent);
  const characters = Array.from(facts.characters);
  const idOf = new Map(characters.map((character, id) => [character, id]));
  const heads = new Uint8Array((facts.config.n_layer ?? 0) * (facts.config.n_head ?? 0)).fill(1);
  let text = []; // {id, seen, span}
  let selected = null; // the place of a character in it
  let head = null; // the one that is enlarged
  let attention = null; // the last answer about the selected character
  let job = 0; // what is being written, or was last
  let base = 0; // so many characters at the beginning are the person's own
  let promptLength = 0; // those of them that are the prompt: an empty one has a new line in its place
  let end = 0; // how long the text is to become
  let cut = []; // the text to stop at, where it was found
  let options = null; // the settings that the text is written with
  let unspoken = ""; // what a screen reader has not been told of
  let waiting = [];

  tellOfRun(facts, characters);
  at("status").textContent = "Loading the model";

  const worker = new Worker(URL.createObjectURL(new Blob([at("worker").textContent], { type: "text/javascript" })));
  worker.onmessage = ({ data }) => {
    if (data.job !== undefined && data.job !== job) return; // of a text that is given up
    if (data.type === "written" || data.type === "read") {
      if (!waiting.length) requestAnimationFrame(show);
      waiting.push(data);
    } else {
      show();
      ({ ready, done, attention: gotAttention })[data.type](data);
    }
  };
  worker.onerror = (event) => {
    at("status").textContent = `The model cannot run here: ${event.message ?? "no worker"}`;
  };
  const bytes = fromBase64(at("weights").textContent);
  worker.postMessage({ type: "start", facts, bytes }, [bytes.buffer]);

  function ready({ difference }) {
    at("status").textContent = "";
    at("go").disabled = at("again").disabled = false;
    const matches = difference < 1e-3; // rounding makes some 1e-5
    at("proof").textContent = matches
      ? `Checked on opening: but for rounding, the model in this page computes what PyTorch computed (the largest difference between logits is ${difference.toExponential(1)}).`
      : `The model in this page does not compute what PyTorch computed: logits differ by up to ${difference.toPrecision(2)}.`;
    at("proof").classList.toggle("error", !matches);
    if (facts.rounding) at("proof").textContent += ` ${facts.rounding}`;
  }

  // --- writing -----------------------------------------------------------------------------------------------------

  // The ids of a text, or null, with what is wrong with it told. ↵ and ␣ stand for what a field cannot show.
  function encoded(given, what, place) {
    const typed = Array.from(given, (each) => (idOf.has(each) ? each : ({ "↵": "\n", "␣": " " })[each] ?? each));
    const unknown = [...new Set(typed.filter((character) => !idOf.has(character)))];
    place.textContent = "";
    if (unknown.length) {
      const named = unknown.slice(0, 8).map((each) => {
        const code = each.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
        return isUnprintable(each) ? `U+${code}` : `${sign(each)} (U+${code})`;
      });
      const more = unknown.length > 8 ? ` and ${unknown.length - 8} more` : "";
      place.textContent = `The model does not know ${unknown.length > 1 ? "these characters" : "a character"} of ${what}: ${named.join(", ")}${more}.`;
      return null;
    }
    return typed.map((character) => idOf.get(character));
  }

  // The settings as they stand, or null, with what is wrong with them told.
  function settings() {
    at("error").textContent = "";
    for (const input of at("write").querySelectorAll("input")) {
      if (!input.validity.valid) {
        input.closest("details")?.setAttribute("open", "");
        at("error").textContent = `${input.labels[0].firstChild.textContent.trim()}: ${input.validationMessage}`;
        input.focus();
        return null;
      }
    }
    const number = (id) => (at(id).value === "" ? null : Number(at(id).value));
    const stop = encoded(at("stop-at").value, "the text to stop at", at("error"));
    return stop && {
      temperature: number("temperature"),
      length: number("length"),
      seed: number("seed"),
      topK: number("top-k"),
      topP: number("top-p"),
      stop,
      exact: at("exact").checked,
    };
  }

  // Make the text begin with ids, and have it continued to so many characters.
  function write(ids, length) {
    [job, waiting, cut, end] = [job + 1, [], [], ids.length + length];
    const differs = text.findIndex(({ id }, n) => id !== ids[n]);
    truncate(differs < 0 ? Math.min(text.length, ids.length) : differs);
    for (const id of ids.slice(text.length)) append(id, null);
    text.forEach(({ span }, n) => span.classList.toggle("prompt", n < promptLength));
    showSurprise();
    unspoken = "";
    at("halt").disabled = false;
    if (document.activeElement === at("more")) at("halt").focus(); // a button that is disabled loses the focus
    at("more").disabled = true;
    at("status").textContent = "Writing";
    at("speed").textContent = "";
    const off = heads.filter((on) => !on).length;
    at("heads-off").hidden = !off;
    at("how-many-off").textContent = off === 1 ? "One head is switched off." : `${off} heads are switched off.`;
    worker.postMessage({ type: "write", job, ids, settings: { ...options, length }, heads });
  }

  // A new text.
  function begin() {
    const given = settings();
    const prompt = given && encoded(at("prompt").value, "the prompt", at("error"));
    if (!prompt) {
      at("status").textContent = "";
      return false;
    }
    options = given;
    deselect();
    const ids = prompt.length ? prompt : [idOf.get("\n") ?? 0]; // the lecture, too, begins with a new line
    [base, promptLength] = [ids.length, prompt.length];
    write(ids, options.length);
    at("text").scrollIntoView({ block: "nearest" });
    return true;
  }

  at("write").onsubmit = (event) => {
    event.preventDefault();
    if (!at("go").disabled) begin();
  };
  at("again").onclick = () => {
    const before = at("seed").value;
    at("seed").value = (Number(before) + 1) % 2 ** 32;
    if (!begin()) at("seed").value = before;
  };
  at("more").onclick = () => {
    const given = settings();
    if (!given) return;
    options = given;
    write([...text.map(({ id }) => id), ...cut], options.length); // past the text to stop at, which would be found again
  };
  at("halt").onclick = () => worker.postMessage({ type: "stop" });
  at("prompt").onkeydown = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("write").requestSubmit();
  };
  document.onkeydown = (event) => {
    if (event.key !== "Escape") return;
    if (!at("halt").disabled) at("halt").click();
    else if (selected !== null) {
      deselect();
      at("text").focus();
    }
  };
  at("window-choice").hidden = facts.config.block_size < 2 || facts.config.name === "bigram";
  const context = facts.config.block_size.toLocaleString("en");
  at("price").textContent = `(slower: past ${context} characters, the last ${context} are read again for each that is written)`;

  // Put what came since the last frame into the page.
  function show() {
    const fresh = [];
    for (const message of waiting) {
      if (message.type === "read") {
        message.seen.forEach((seen, n) => {
          if (message.from + n < text.length) look(text[message.from + n], seen);
        });
      } else {
        message.ids.forEach((id, n) => {
          append(id, message.seen[n], fresh);
          unspoken += inText(characters[id]);
        });
        at("speed").textContent = `${Math.round(message.speed).toLocaleString("en")} characters per second`;
      }
    }
    waiting = [];
    if (fresh.length) {
      at("text").append(...fresh);
      worker.postMessage({ type: "shown", length: text.length });
    }
    const line = unspoken.lastIndexOf("\n");
    if (line > 0) {
      at("spoken").textContent = unspoken.slice(0, line);
      unspoken = unspoken.slice(line + 1);
    }
  }

  function done({ reason }) {
    if (reason === "stop") {
      cut = options.stop;
      truncate(text.length - cut.length);
    }
    end = text.length;
    at("more").disabled = !text.length;
    if (document.activeElement === at("halt")) at("more").focus();
    at("halt").disabled = true;
    at("status").textContent = { stopped: "Stopped", stop: "Found the text to stop at", length: "Done" }[reason];
    at("spoken").textContent = unspoken;
    if (selected !== null) {
      if (selected < text.length) select(selected);
      else deselect();
    }
  }

  function append(id, seen, into = null) {
    const span = document.createElement("span");
    const character = characters[id];
    span.textContent = inText(character);
    span.classList.toggle("newline", character === "\n");
    span.classList.toggle("escape", isUnprintable(character));
    const entry = { id, seen: null, span };
    span.dataset.at = text.length;
    text.push(entry);
    if (seen) look(entry, seen);
    if (into) into.push(span);
    else at("text").append(span);
  }

  function truncate(length) {
    for (const { span } of text.splice(Math.max(0, length))) span.remove();
  }

  function look(entry, seen) {
    entry.seen = seen;
    if (at("legend-attention").hidden) shade(entry.span, "s", bits(seen));
  }

  function bits({ probability }) {
    return -Math.log2(Math.max(probability, Number.MIN_VALUE));
  }

  function shade(span, kind, value) {
    for (const each of [...span.classList]) if (/^[as]\d$/.test(each)) span.classList.remove(each);
    if (value !== null) span.classList.add(`${kind}${Math.max(0, Math.min(SHADES, Math.round(value)))}`);
  }

  // --- one character -----------------------------------------------------------------------------------------------

  function percent(probability) {
    return probability < 0.0005 ? "under 0.1%" : `${(100 * probability).toFixed(1)}%`;
  }

  at("text").onpointermove = at("text").onpointerdown = (event) => {
    const entry = text[event.target.dataset?.at];
    at("tip").hidden = !entry?.seen;
    if (!entry?.seen) return;
    const others = entry.seen.likeliest.map(([id, probability]) => `${sign(characters[id])} ${percent(probability)}`);
    at("tip").textContent = `${sign(characters[entry.id])}: ${percent(entry.seen.probability)}, ${bits(entry.seen).toFixed(1)} bits\n${others.join("   ")}`;
    const { offsetWidth: width, offsetHeight: height } = at("tip");
    const below = event.clientY + 20 + height < innerHeight;
    at("tip").style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - width - 4))}px`;
    at("tip").style.top = `${below ? event.clientY + 20 : event.clientY - height - 10}px`;
  };
  at("text").onpointerleave = () => {
    at("tip").hidden = true;
  };
  at("text").onclick = (event) => {
    const place = event.target.dataset?.at;
    if (place === undefined || getSelection().toString()) return;
    select(Number(place));
    if (matchMedia("(max-width: 40rem)").matches) at("character").scrollIntoView({ block: "nearest" });
  };
  at("text").onkeydown = (event) => {
    const sideways = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
    const lines = { ArrowUp: -1, ArrowDown: 1 };
    const known = event.key in sideways || event.key in lines;
    if (!known || !text.length || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const from = selected ?? (sideways[event.key] > 0 || lines[event.key] > 0 ? -1 : text.length);
    const to = event.key in sideways ? from + sideways[event.key] : inNextLine(from, lines[event.key]);
    select(Math.max(0, Math.min(text.length - 1, to)));
    text[selected].span.scrollIntoView({ block: "nearest" });
  };

  // The place of the character that stands above (-1) or below (1) another.
  function inNextLine(from, way) {
    if (!text[from]) return from + way;
    const { left, top } = text[from].span.getBoundingClientRect();
    let [nearest, line] = [from, null];
    let distance = Infinity;
    for (let n = from + way; text[n]; n += way) {
      const found = text[n].span.getBoundingClientRect();
      if (Math.abs(found.top - top) < 2) continue;
      line ??= found.top;
      if (Math.abs(found.top - line) >= 2) break;
      if (Math.abs(found.left - left) < distance) [nearest, distance] = [n, Math.abs(found.left - left)];
    }
    return nearest;
  }

  function deselect() {
    if (selected !== null) text[selected]?.span.classList.remove("here");
    selected = attention = null;
    at("character").hidden = true;
    showSurprise();
  }

  function select(place) {
    if (selected !== null) text[selected]?.span.classList.remove("here");
    if (selected !== place) at("change").value = at("change-error").textContent = "";
    selected = place;
    const { id, seen, span } = text[place];
    span.classList.add("here");
    at("character").hidden = false;
    at("character-title").textContent = `Character ${place + 1}: ${sign(characters[id])}`;
    at("probability").textContent = seen
      ? `The model gave it a probability of ${percent(seen.probability)}, which is a surprise of ${bits(seen).toFixed(1)} bits. The likeliest, before temperature and the like:`
      : place
        ? "The model has not read this character yet."
        : "The text begins here: nothing was expected.";
    at("spoken-character").textContent = `${spoken(characters[id])}${seen ? `, ${percent(seen.probability)}` : ""}`;
    const listed = seen?.likeliest.slice() ?? [];
    if (seen && !listed.some(([each]) => each === id)) listed.push([id, seen.probability]);
    at("likeliest").replaceChildren(
      ...listed.map(([each, probability]) => {
        const item = document.createElement("li");
        const glyph = document.createElement("button");
        const [share, bar] = ["span", "span"].map((kind) => document.createElement(kind));
        glyph.type = "button";
        glyph.className = "glyph";
        glyph.textContent = sign(characters[each]);
        glyph.title = "Put it in place of the character";
        glyph.setAttribute("aria-label", `${spoken(characters[each])}: put it in place of the character`);
        glyph.disabled = each === id;
        glyph.onclick = () => changeTo([each]);
        share.textContent = percent(probability);
        bar.className = "bar";
        bar.style.width = `${100 * probability}%`;
        item.classList.toggle("chosen", each === id);
        item.append(glyph, share, bar);
        return item;
      }),
    );
    // The context from which the next character was predicted.
    worker.postMessage({ type: "attention", position: place, start: text[place + 1]?.seen?.start ?? null });
  }

  at("apply").onclick = change;
  at("change").onkeydown = (event) => {
    if (event.key === "Enter") change();
  };

  function change() {
    const given = encoded(at("change").value, "the new text", at("change-error"));
    if (given?.length) changeTo(given);
  }

  // Put ids in place of the selected character. What follows in the prompt stays as it is; what the model wrote is
  // written anew.
  function changeTo(ids) {
    const given = settings();
    if (!given) return;
    options = given;
    const [before, after] = [text.slice(0, selected), text.slice(selected + 1, Math.max(base, selected + 1))];
    const whole = [...before.map(({ id }) => id), ...ids, ...after.map(({ id }) => id)];
    const length = Math.max(1, end - selected - 1 - after.length);
    if (selected < promptLength) {
      promptLength += ids.length - 1;
      at("prompt").value = whole.slice(0, promptLength).map((id) => characters[id]).join("");
    }
    base = whole.length;
    at("change").value = "";
    write(whole, length);
    select(selected);
  }

  // --- attention ---------------------------------------------------------------------------------------------------

  function gotAttention(answer) {
    if (answer.position !== selected) return;
    attention = { ...answer, ids: text.slice(answer.start, answer.position + 1).map(({ id }) => id) };
    const { n_layer: layers = 0, n_head: perLayer = 0 } = facts.config;
    const before = selected - answer.start;
    at("about-attention").textContent = layers
      ? `To predict what comes after this character, each head of each layer (a row each) looks back over it and the ${before.toLocaleString("en")} before it, which were the context. Choose a head to see where it looks.`
      : "A bigram has no attention: it looks at one character only.";
    at("heads").style.gridTemplateColumns = `repeat(${perLayer || 1}, minmax(0, 1fr))`;
    const focused = [...at("heads").children].indexOf(document.activeElement);
    at("heads").replaceChildren(
      ...answer.rows.map((row, n) => {
        const button = document.createElement("button");
        button.type = "button";
        button.setAttribute("aria-label", `${nameOf(n)}${heads[n] ? "" : ", off"}`);
        button.setAttribute("aria-pressed", n === head);
        button.classList.toggle("off", !heads[n]);
        const svg = document.createElementNS(SVG, "svg");
        svg.setAttribute("aria-hidden", "true");
        drawBars(svg, row.subarray(Math.max(0, row.length - GOES_BACK)), 4 / row.length);
        button.append(svg);
        button.onclick = () => enlarge(n === head ? null : n);
        return button;
      }),
    );
    at("heads").children[focused]?.focus();
    enlarge(answer.rows.length ? head : null);
  }

  function nameOf(n) {
    const perLayer = facts.config.n_head;
    return `layer ${Math.floor(n / perLayer) + 1}, head ${(n % perLayer) + 1}`;
  }

  function enlarge(n) {
    head = n;
    at("enlarged").hidden = n === null;
    [...at("heads").children].forEach((button, each) => button.setAttribute("aria-pressed", each === n));
    if (n === null) {
      showSurprise();
      return;
    }
    const { rows, start, ids } = attention;
    const row = rows[n];
    const [most, ...next] = Array.from(row.keys()).sort((a, b) => row[b] - row[a]);
    const where = [most, ...next.slice(0, 2)].map((p) => `${sign(characters[ids[p]])} ${ids.length - 1 - p} back (${percent(row[p])})`);
    at("enlarged-title").textContent = `Enlarged: ${nameOf(n)}`;
    at("most-attention").textContent = `Most to ${where.join(", ")}.`;
    drawBars(at("row"), row);
    at("row").setAttribute("aria-label", `Attention of ${nameOf(n)}`);
    at("head-on").checked = Boolean(heads[n]);
    text.forEach(({ span }, place) => {
      const weight = row[place - start];
      shade(span, "a", weight === undefined ? null : (SHADES * weight) / row[most]);
    });
    at("legend-surprise").hidden = true;
    at("legend-attention").hidden = at("back-to-surprise").hidden = false;
    at("legend-head").textContent = nameOf(n);
  }

  function showSurprise() {
    text.forEach(({ span, seen }) => shade(span, "s", seen ? bits(seen) : null));
    at("legend-surprise").hidden = false;
    at("legend-attention").hidden = at("back-to-surprise").hidden = at("enlarged").hidden = true;
  }

  at("back-to-surprise").onclick = () => {
    enlarge(null);
    at("text").focus();
  };
  at("head-on").onchange = () => {
    heads[head] = Number(at("head-on").checked);
    writeAgain();
  };
  at("all-on").onclick = () => {
    heads.fill(1);
    writeAgain();
    at("text").focus();
  };

  // Write what the model wrote anew, with the heads as they are now.
  function writeAgain() {
    write(text.slice(0, base).map(({ id }) => id), Math.max(1, end - base));
  }
}

function tellOfRun(facts, characters) {
  document.title = `${printable(facts.name)}: chargpt`;
  at("name").textContent = `A model of ${printable(facts.name)}`;
  at("summary").textContent = facts.summary;
  at("curve-figure").hidden = !facts.curve.length;
  at("curve").setAttribute("aria-label", facts.curve_in_words);
  const draw = () => {
    if (facts.curve.length) drawCurve(at("curve"), facts.curve, facts.best);
    drawMap(at("embeddings"), characters, facts.places);
  };
  const left = characters.length - facts.places.length;
  if (left) at("map-note").textContent = `Another ${left.toLocaleString("en")} characters are not shown.`;
  addEventListener("resize", draw);
  draw();
  at("samples-part").hidden = !facts.samples.length;
  if (facts.samples.length) {
    const choice = at("sample-choice");
    choice.max = choice.value = facts.samples.length - 1;
    choice.oninput = () => {
      const [step, written] = facts.samples[choice.value];
      at("sample-step").textContent = step.toLocaleString("en");
      choice.setAttribute("aria-valuetext", `after step ${step}`);
      at("sample").textContent = printable(written);
    };
    choice.oninput();
  }
  for (const [name, value, into] of facts.told) {
    const [term, description] = [document.createElement("dt"), document.createElement("dd")];
    term.textContent = printable(name);
    description.textContent = printable(value);
    at(into).append(term, description);
  }
}
