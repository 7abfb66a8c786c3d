// The model in a separate thread, so that the page stays responsive.
//
// Messages, and the answers to them:
//   start {facts, bytes}               -> ready {difference}
//   write {job, ids, settings, heads}  -> read {job, from, seen} and written {job, ids, seen, speed} ..., then done
//   stop                               -> done {job, reason, stop}: `stop` holds the ids that it stopped at
//   shown {length}: the characters on the page, which may be slower than the model
//   attention {position, start}        -> attention {position, start, rows}
// A job ends when another begins; answers carry its number. `seen` has an entry per character: where its context began,
// its probability, and the likeliest characters in its place. `start` is where the context of a position begins, or null
// for the model's present window.

import { unpack, fromBase64 } from "./weights.js";
import { buildModel } from "./model.js";
import { choose, largest, noise, softmax } from "./sampling.js";

const RUNNERS_UP = 5;
const AT_ONCE = 16; // characters that are read before messages are looked at again
const PATIENCE = 15; // milliseconds between two messages to the page
const AHEAD = 1000; // characters that the page may be behind

export class Writer {
  // `post` takes the answers; `pause` resolves after messages that have come were handled.
  constructor(post, pause) {
    this.post = post;
    this.pause = pause;
    this.job = null; // the one that is being written
    this.turn = 0; // of writing
    this.look = 0; // a new look at attention ends the one at work
  }

  start(facts, bytes) {
    this.model = buildModel(facts.config, facts.characters.length, unpack(bytes, facts.weights.tensors));
    this.cache = this.model.newCache();
    this.text = []; // ids
    this.begin = 0; // where in the text the window begins
    this.post({ type: "ready", difference: this.check(facts.check) });
  }

  // The largest difference from PyTorch's logits, relative to the largest of these if it is above 1.
  check({ ids, logits }) {
    const expected = new Float32Array(fromBase64(logits).buffer);
    const found = this.model.read(ids, this.model.newCache());
    const first = found.length - expected.length; // of the last characters
    const scale = expected.reduce((most, logit) => Math.max(most, Math.abs(logit)), 1);
    return expected.reduce((most, logit, i) => Math.max(most, Math.abs(logit - found[first + i]) / scale), 0);
  }

  // Make the text begin with `ids`, and continue it.
  async write({ job, ids, settings, heads }) {
    this.job = job;
    const { block_size } = this.model.config;
    let same = 0; // characters at the beginning that are as they were
    while (same < Math.min(ids.length, this.text.length) && ids[same] === this.text[same]) same++;
    const kept = settings.exact ? block_size : Math.max(1, block_size >> 1);
    let begin = Math.max(0, ids.length - block_size);
    if (this.begin <= same && this.begin < ids.length) {
      const fits = ids.length - this.begin <= block_size;
      if (fits) begin = this.begin;
      else if (same === this.text.length && same === ids.length) begin = ids.length - kept; // as if it had not ended
    }
    const headsAsBefore = heads.every((on, n) => on === this.model.headsOn[n]);
    if (!headsAsBefore || begin !== this.begin || same < begin) {
      this.cache.length = 0;
    } else {
      // The last character that stays is read again for its prediction of the next.
      this.cache.length = Math.min(this.cache.length, Math.max(0, same - 1 - begin));
    }
    this.model.headsOn.set(heads);
    this.text = ids.slice();
    this.begin = begin;
    this.shown({ length: ids.length });
    const turn = ++this.turn;
    this.look++; // a look that is not done yet would mix two texts
    let logits = await this.readOn(job, headsAsBefore ? same : 0);
    if (!logits) return;
    const started = performance.now();
    let reported = -Infinity;
    let written = [];
    let seen = [];
    const report = (now, n) => {
      if (written.length) {
        this.post({ type: "written", job, ids: written, seen, speed: (n / Math.max(1, now - started)) * 1000 });
        [written, seen, reported] = [[], [], now];
      }
    };
    for (let n = 1; n <= settings.length; n++) {
      const position = this.text.length;
      const id = choose(logits, settings, (candidate) => noise(settings.seed, position, candidate));
      written.push(id);
      seen.push(this.lookAt(logits, id, this.begin));
      this.text.push(id);
      const now = performance.now();
      const stopped = settings.stops.find((stop) => endsWith(this.text, stop, ids.length));
      if (now - reported > PATIENCE || stopped || n === settings.length) {
        report(now, n);
        await this.pause();
        while (job === this.job && this.text.length - this.inPage > AHEAD) await new Promise((go) => (this.go = go));
        if (job !== this.job) return;
      }
      if (stopped || n === settings.length) {
        this.end(stopped ? "stop" : "length", stopped);
        break;
      }
      if (this.text.length - this.begin > block_size) {
        this.begin = this.text.length - kept;
        this.cache.length = 0;
        logits = await this.readOn(job, Infinity);
        if (!logits) return;
      } else {
        logits = this.model.read([id], this.cache);
      }
    }
    await this.readBefore(job, turn, begin);
  }

  // Then read the part of a long prompt that stands before the window.
  async readBefore(job, turn, begin) {
    const { block_size } = this.model.config;
    const cache = this.model.newCache();
    for (let start = 0; start < begin; start += block_size) {
      cache.length = 0;
      const end = Math.min(start + block_size, begin);
      while (start + cache.length < end) {
        const from = start + cache.length;
        const ids = this.text.slice(from, Math.min(from + AT_ONCE, end));
        this.report(job, from, this.model.read(ids, cache), start, 0);
        await this.pause();
        if (turn !== this.turn) return;
      }
    }
  }

  // Read the part of the window that is not in the cache, and report the characters from a place on; returns the last
  // character's logits, or null if another job came.
  async readOn(job, reportFrom) {
    const V = this.model.vocabSize;
    let logits = null;
    while (this.begin + this.cache.length < this.text.length) {
      const from = this.begin + this.cache.length;
      const ids = this.text.slice(from, from + AT_ONCE);
      const all = this.model.read(ids, this.cache);
      logits = all.subarray((ids.length - 1) * V);
      this.report(job, from, all, this.begin, reportFrom);
      await this.pause();
      if (job !== this.job) return null;
    }
    return logits;
  }

  // Post the probabilities of the characters that follow those read, from a place in the text on.
  report(job, from, logits, start, reportFrom) {
    const V = this.model.vocabSize;
    const first = Math.max(from + 1, reportFrom);
    const next = this.text.slice(first, from + 1 + logits.length / V);
    const seen = next.map((id, n) => {
      const row = (first + n - 1 - from) * V;
      return this.lookAt(logits.subarray(row, row + V), id, start);
    });
    if (seen.length) this.post({ type: "read", job, from: first, seen });
  }

  lookAt(logits, id, start) {
    const probabilities = softmax(logits);
    const likeliest = largest(probabilities, RUNNERS_UP).map((each) => [each, probabilities[each]]);
    return { start, probability: probabilities[id], likeliest };
  }

  // Where the window has moved on since, the text is read again as it was read then.
  async attention({ position, start }) {
    const look = ++this.look;
    const least = Math.max(0, position + 1 - this.model.config.block_size);
    start = Math.max(least, start ?? (position < this.begin ? 0 : this.begin));
    let cache = this.cache;
    if (start !== this.begin || position >= start + cache.length) {
      cache = this.model.newCache();
      while (start + cache.length <= position) {
        const from = start + cache.length;
        this.model.read(this.text.slice(from, Math.min(from + AT_ONCE, position + 1)), cache);
        await this.pause();
        if (look !== this.look || position >= this.text.length) return;
      }
    }
    this.post({ type: "attention", position, start, rows: this.model.attention(cache, position - start) });
  }

  shown({ length }) {
    this.inPage = length;
    this.go?.();
  }

  stop() {
    if (this.job !== null) this.end("stopped");
    this.go?.();
  }

  end(reason, stop) {
    this.post({ type: "done", job: this.job, reason, stop });
    this.job = null;
  }
}

function endsWith(text, ending, from) {
  const start = text.length - ending.length;
  return start >= from && ending.every((id, i) => text[start + i] === id);
}

export function listen(scope) {
  const channel = new MessageChannel();
  const waiting = [];
  channel.port1.onmessage = () => waiting.shift()();
  const pause = () =>
    new Promise((resolve) => {
      waiting.push(resolve);
      channel.port2.postMessage(null);
    });
  const writer = new Writer((message) => scope.postMessage(message), pause);
  scope.onunhandledrejection = ({ reason }) => {
    setTimeout(() => {
      throw reason; // reaches the page as an error
    });
  };
  scope.onmessage = ({ data }) => {
    if (data.type === "start") writer.start(data.facts, data.bytes);
    else writer[data.type](data);
  };
}
