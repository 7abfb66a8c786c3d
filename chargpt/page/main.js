// The page: its parts, the worker that runs the model, and how the model was trained.

import { fromBase64 } from "./weights.js";
import { printable } from "./glyphs.js";
import { drawCurve, drawMap } from "./pictures.js";
import { ShownText, at } from "./text.js";
import { Writing } from "./writing.js";
import { Character } from "./character.js";
import { Attention } from "./attention.js";

export function open() {
  const facts = JSON.parse(at("data").textContent);
  const characters = Array.from(facts.characters);
  const page = { facts, text: new ShownText(characters), post: (message, transfer) => worker.postMessage(message, transfer) };
  page.writing = new Writing(page);
  page.character = new Character(page);
  page.attention = new Attention(page);
  document.onkeydown = (event) => {
    if (event.key !== "Escape") return;
    if (!at("halt").disabled) at("halt").click();
    else if (page.character.selected !== null) {
      page.character.deselect();
      at("text").focus();
    }
  };
  showRun(facts, characters);
  at("status").textContent = "Loading the model";

  const worker = new Worker(URL.createObjectURL(new Blob([at("worker").textContent], { type: "text/javascript" })));
  worker.onmessage = ({ data }) => {
    if (data.type === "ready") ready(data);
    else if (data.type === "attention") {
      page.writing.show(); // the characters that it is about
      page.attention.show(data);
    } else page.writing.receive(data);
  };
  worker.onerror = (event) => {
    at("status").textContent = `The model cannot run here: ${event.message ?? "no worker"}`;
  };
  const bytes = fromBase64(at("weights").textContent);
  page.post({ type: "start", facts, bytes }, [bytes.buffer]);
}

function ready({ difference }) {
  at("status").textContent = "";
  at("go").disabled = at("again").disabled = false;
  const matches = difference < 1e-3; // rounding makes some 1e-5
  at("proof").textContent = matches
    ? `Checked on opening: but for rounding, the model in this page computes what PyTorch computed (the largest difference between logits is ${difference.toExponential(1)}).`
    : `The model in this page does not compute what PyTorch computed: logits differ by up to ${difference.toPrecision(2)}.`;
  at("proof").classList.toggle("error", !matches);
}

function showRun(facts, characters) {
  document.title = `${printable(facts.name)}: chargpt`;
  at("name").textContent = `A model of ${printable(facts.name)}`;
  at("summary").textContent = facts.summary;
  at("curve-figure").hidden = !facts.curve.length;
  if (facts.curve.length) {
    const [[step, , loss], [lastStep, , lastLoss]] = [facts.curve[0], facts.curve.at(-1)];
    const words = `${loss.toFixed(4)} after step ${step}, ${lastLoss.toFixed(4)} after step ${lastStep}`;
    at("curve").setAttribute("aria-label", `Validation loss ${words}; the lowest is ${facts.best.toFixed(4)}`);
  }
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
  for (const list of ["facts", "settings"]) {
    for (const [name, value] of facts[list]) {
      const [term, description] = [document.createElement("dt"), document.createElement("dd")];
      term.textContent = printable(name);
      description.textContent = printable(value);
      at(list).append(term, description);
    }
  }
}
