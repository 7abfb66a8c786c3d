// What is seen, and what is done by hand.

import { fromBase64 } from "./weights.js";
import { inText, isUnprintable, printable, sign, spoken } from "./glyphs.js";
import { drawBars, drawCurve, drawMap } from "./pictures.js";

const at = (id) => document.getElementById(id);
const SHADES = 6; // above none
const GOES_BACK = 64; // characters that the small pictures of attention go back

export function open() {
  const facts = JSON.parse(at("data").textContent);
  const characters = Array.from(facts.characters);
  const idOf = new Map(characters.map((character, id) => [character, id]));
  const heads = new Uint8Array((facts.config.n_layer ?? 0) * (facts.config.n_head ?? 0)).fill(1);
  let text = []; // {id, seen, span, isPrompt}
  let selected = null; // the place of a character in it
  let head = null; // the one that is enlarged
  let attention = null; // the last answer about the selected character
  let asked = null; // what is being written: {ids, settings}
  let unspoken = ""; // what a screen reader has not been told of
  let waiting = [];

  tellOfRun(facts, characters);

  const worker = new Worker(URL.createObjectURL(new Blob([at("worker").textContent], { type: "text/javascript" })));
  worker.onmessage = ({ data }) => {
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
    at("go").disabled = false;
    at("again").disabled = false;
    const matches = difference < 1e-3; // rounding makes some 1e-5
    at("proof").textContent = matches
      ? `Checked: the model in this page computes what PyTorch computed; the largest difference between logits is ${difference.toExponential(1)}.`
      : `The model in this page does not compute what PyTorch computed: logits differ by up to ${difference.toPrecision(2)}.`;
    at("proof").classList.toggle("error", !matches);
    if (facts.rounding) at("proof").textContent += ` ${facts.rounding}`;
  }

  // --- writing -----------------------------------------------------------------------------------------------------

  // The ids of a text, or null, with what is wrong with it told.
  function encoded(given, what) {
    const unknown = [...new Set(Array.from(given).filter((character) => !idOf.has(character)))];
    if (unknown.length) {
      const named = unknown.slice(0, 8).map((each) => {
        const code = each.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
        return isUnprintable(each) ? `U+${code}` : `${sign(each)} (U+${code})`;
      });
      const more = unknown.length > 8 ? ` and ${unknown.length - 8} more` : "";
      at("error").textContent = `The model does not know ${unknown.length > 1 ? "these characters" : "a character"} of ${what}: ${named.join(", ")}${more}.`;
      return null;
    }
    return Array.from(given, (character) => idOf.get(character));
  }

  // The settings as they stand, or null, with what is wrong with them told.
  function settings() {
    at("error").textContent = "";
    for (const input of at("write").querySelectorAll("input")) {
      if (!input.validity.valid || (input.required && !input.value)) {
        input.closest("details")?.setAttribute("open", "");
        at("error").textContent = `${input.parentElement.textContent.trim()}: ${input.validationMessage}`;
        return null;
      }
    }
    const number = (id) => (at(id).value === "" ? null : Number(at(id).value));
    const stop = encoded(at("stop-at").value, "the text to stop at");
    const topP = number("top-p");
    return stop && {
      temperature: number("temperature"),
      length: number("length"),
      seed: number("seed"),
      topK: number("top-k"),
      topP: topP === 0 ? Number.MIN_VALUE : topP,
      stop,
      exact: at("exact").checked,
    };
  }

  // Write `prompt` anew, or go on with what stands there.
  function write(ids, promptLength, options) {
    asked = { ids, promptLength, settings: options };
    const same = text.findIndex(({ id }, n) => id !== ids[n]);
    truncate(same < 0 ? Math.min(text.length, ids.length) : same);
    for (const id of ids.slice(text.length)) append(id, null);
    text.forEach((each, n) => {
      each.span.classList.toggle("prompt", n < promptLength);
      each.span.classList.remove("here");
    });
    unspoken = "";
    at("halt").disabled = false;
    at("more").disabled = true;
    at("status").textContent = "Reading the prompt";
    worker.postMessage({ type: "write", ids, settings: options, heads });
  }

  function begin() {
    const options = settings();
    const given = options && encoded(at("prompt").value, "the prompt");
    if (!given) return;
    deselect();
    const start = given.length ? given : [idOf.get("\n") ?? 0]; // the lecture, too, begins with a new line
    write(start, given.length, options);
  }

  at("write").onsubmit = (event) => {
    event.preventDefault();
    if (!at("go").disabled) begin();
  };
  at("again").onclick = () => {
    at("seed").value = (Number(at("seed").value) + 1) % 2 ** 32;
    begin();
  };
  at("more").onclick = () => {
    const options = settings();
    if (options) write(text.map(({ id }) => id), asked.promptLength, options);
  };
  at("halt").onclick = () => worker.postMessage({ type: "stop" });
  at("prompt").onkeydown = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("write").requestSubmit();
  };
  if ((facts.config.block_size ?? 0) < 2 || facts.config.name === "bigram") at("window-choice").hidden = true;
  at("price").textContent = `(past ${facts.config.block_size.toLocaleString("en")} characters: the lecture's way, some ${Math.ceil(facts.config.block_size / 2).toLocaleString("en")} times slower or more)`;

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
          unspoken += spoken(characters[id]) === "new line" ? "\n" : inText(characters[id]);
        });
        at("status").textContent = `${Math.round(message.speed).toLocaleString("en")} characters per second`;
      }
    }
    waiting = [];
    if (fresh.length) at("text").append(...fresh);
    const line = unspoken.lastIndexOf("\n");
    if (line > 0) {
      at("spoken").textContent = unspoken.slice(0, line);
      unspoken = unspoken.slice(line + 1);
    }
  }

  function done({ reason }) {
    if (reason === "stop") truncate(text.length - asked.settings.stop.length);
    at("halt").disabled = true;
    at("more").disabled = !text.length;
    const speed = at("status").textContent;
    at("status").textContent = { stopped: "Stopped", stop: "Found the text to stop at", length: "Done" }[reason];
    if (/\d/.test(speed)) at("status").textContent += `, ${speed}`;
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
    if (attention === null || head === null) shade(entry.span, "s", bits(seen));
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

  at("text").onpointermove = (event) => {
    const entry = text[event.target.dataset?.at];
    at("tip").hidden = !entry?.seen;
    if (!entry?.seen) return;
    const others = entry.seen.likeliest.map(([id, probability]) => `${sign(characters[id])} ${percent(probability)}`);
    at("tip").textContent = `${sign(characters[entry.id])}: ${percent(entry.seen.probability)}, ${bits(entry.seen).toFixed(1)} bits\n${others.join("   ")}`;
    at("tip").style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - at("tip").offsetWidth - 4))}px`;
    at("tip").style.top = `${event.clientY + 20 + at("tip").offsetHeight > innerHeight ? event.clientY - at("tip").offsetHeight - 10 : event.clientY + 20}px`;
  };
  at("text").onpointerleave = () => {
    at("tip").hidden = true;
  };
  at("text").onclick = (event) => {
    const place = event.target.dataset?.at;
    if (place !== undefined && !getSelection().toString()) select(Number(place));
  };
  at("text").onkeydown = (event) => {
    const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -40, ArrowDown: 40, Home: -Infinity, End: Infinity };
    if (event.key === "Escape") deselect();
    if (!(event.key in moves) || !text.length || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const from = selected ?? (moves[event.key] > 0 ? -1 : text.length);
    select(Math.max(0, Math.min(text.length - 1, from + moves[event.key])));
    text[selected].span.scrollIntoView({ block: "nearest" });
  };

  function deselect() {
    if (selected !== null) text[selected]?.span.classList.remove("here");
    selected = attention = head = null;
    at("character").hidden = true;
    showSurprise();
  }

  function select(place) {
    if (selected !== null) text[selected]?.span.classList.remove("here");
    selected = place;
    const { id, seen, span } = text[place];
    span.classList.add("here");
    at("character").hidden = false;
    at("character-title").textContent = `Character ${place + 1}: ${sign(characters[id])}`;
    const said = seen
      ? `Its probability was ${percent(seen.probability)}: ${bits(seen).toFixed(1)} bits of surprise. At a temperature of 1, the likeliest were:`
      : "The text begins here: nothing was expected.";
    at("probability").textContent = said;
    at("spoken-character").textContent = `${spoken(characters[id])}${seen ? `, ${percent(seen.probability)}` : ""}`;
    const listed = seen?.likeliest.slice() ?? [];
    if (seen && !listed.some(([each]) => each === id)) listed.push([id, seen.probability]);
    at("likeliest").replaceChildren(
      ...listed.map(([each, probability]) => {
        const item = document.createElement("li");
        const [glyph, share, bar] = ["span", "span", "span"].map((kind) => document.createElement(kind));
        glyph.className = "glyph";
        glyph.textContent = sign(characters[each]);
        share.textContent = percent(probability);
        bar.className = "bar";
        bar.style.width = `${100 * probability}%`;
        item.classList.toggle("chosen", each === id);
        item.append(glyph, share, bar);
        return item;
      }),
    );
    worker.postMessage({ type: "attention", position: place });
  }

  at("apply").onclick = change;
  at("change").onkeydown = (event) => {
    if (event.key === "Enter") change();
  };

  function change() {
    const options = settings();
    const typed = at("change").value.replaceAll("↵", "\n").replaceAll("␣", " ");
    const given = options && encoded(typed, "the new text");
    if (!given?.length) return;
    const after = text.length - selected - 1;
    const before = text.slice(0, selected).map(({ id }) => id);
    const keepsPrompt = selected < asked.promptLength;
    // What follows in the prompt stays as it is; what the model wrote is written anew.
    const rest = keepsPrompt ? text.slice(selected + 1, asked.promptLength).map(({ id }) => id) : [];
    const promptLength = keepsPrompt ? asked.promptLength + given.length - 1 : asked.promptLength;
    if (keepsPrompt) {
      const prompt = [...before, ...given, ...rest].map((id) => characters[id]).join("");
      at("prompt").value = prompt;
    }
    at("change").value = "";
    const length = Math.max(1, after - rest.length);
    const place = selected;
    deselect();
    write([...before, ...given, ...rest], promptLength, { ...asked.settings, length, seed: options.seed });
    select(place);
  }

  // --- attention ---------------------------------------------------------------------------------------------------

  function gotAttention(answer) {
    if (answer.position !== selected) return;
    attention = answer;
    const { n_layer: layers = 0, n_head: perLayer = 0 } = facts.config;
    at("about-attention").textContent = layers
      ? `A row per layer; each drawing ends at this character. It was read from ${(selected - answer.start).toLocaleString("en")} characters before it.`
      : "A bigram has no attention: it looks at one character only.";
    at("heads").style.gridTemplateColumns = `repeat(${perLayer || 1}, minmax(0, 1fr))`;
    at("heads").replaceChildren(
      ...answer.rows.map((row, n) => {
        const button = document.createElement("button");
        button.type = "button";
        button.setAttribute("aria-label", nameOf(n));
        button.setAttribute("aria-pressed", n === head);
        button.classList.toggle("off", !heads[n]);
        const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
        drawBars(svg, row.subarray(Math.max(0, row.length - GOES_BACK)), 4 / row.length);
        button.append(svg);
        button.onclick = () => enlarge(n === head ? null : n);
        return button;
      }),
    );
    at("all-on").hidden = heads.every(Boolean);
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
    if (n === null) return showSurprise();
    const { rows, start } = attention;
    const row = rows[n];
    const most = row.reduce((a, b) => Math.max(a, b), 0);
    const top = Array.from(row.keys()).sort((a, b) => row[b] - row[a]).slice(0, 3);
    const where = top.map((p) => `${spoken(characters[text[start + p].id])} ${selected - start - p || "0"} back (${percent(row[p])})`);
    at("enlarged-title").textContent = `Enlarged: ${nameOf(n)}`;
    drawBars(at("row"), row);
    at("row").setAttribute("aria-label", `Attention of ${nameOf(n)}; most to ${where.join(", ")}`);
    at("head-on").checked = Boolean(heads[n]);
    text.forEach(({ span }, place) => {
      const weight = row[place - start];
      shade(span, "a", weight === undefined ? null : (SHADES * weight) / most);
    });
    at("legend-surprise").hidden = true;
    at("legend-attention").hidden = false;
    at("back-to-surprise").hidden = false;
    at("legend-head").textContent = nameOf(n);
    return undefined;
  }

  function showSurprise() {
    text.forEach(({ span, seen }) => shade(span, "s", seen ? bits(seen) : null));
    at("legend-surprise").hidden = false;
    at("legend-attention").hidden = at("back-to-surprise").hidden = at("enlarged").hidden = true;
  }

  at("back-to-surprise").onclick = () => enlarge(null);
  at("head-on").onchange = () => {
    heads[head] = Number(at("head-on").checked);
    writeAgain();
  };
  at("all-on").onclick = () => {
    heads.fill(1);
    writeAgain();
  };

  // Write the same with the heads as they are now.
  function writeAgain() {
    const length = Math.max(1, text.length - asked.ids.length);
    const place = selected;
    write(asked.ids, asked.promptLength, { ...asked.settings, length });
    selected = Math.min(place, text.length - 1);
  }
}

function tellOfRun(facts, characters) {
  document.title = `${printable(facts.name)}: chargpt`;
  at("name").textContent = `A model of ${printable(facts.name)}`;
  at("summary").textContent = facts.summary;
  at("curve-figure").hidden = !facts.curve.length;
  if (facts.curve.length) {
    drawCurve(at("curve"), facts.curve, facts.best);
    at("curve").setAttribute("aria-label", facts.curve_in_words);
  }
  at("samples-part").hidden = !facts.samples.length;
  if (facts.samples.length) {
    const choice = at("sample-choice");
    choice.max = choice.value = facts.samples.length - 1;
    choice.oninput = () => {
      const [step, written] = facts.samples[choice.value];
      at("sample-step").textContent = step.toLocaleString("en");
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
  drawMap(at("embeddings"), characters, facts.places);
}
