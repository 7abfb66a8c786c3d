// The model at work, apart from the page, so that the page never stands still.
//
// It is sent {type, ...} and answers likewise:
//   start {facts, bytes}            -> ready {difference}
//   write {ids, settings, heads}    -> read {from, seen} and written {ids, seen, speed} ..., then done {reason}
//   stop                            -> done
//   attention {position}            -> attention {position, start, rows}
// `seen` has an entry per character: how surprising it was in bits, and the likeliest characters in its place.

import { unpack, fromBase64 } from "./weights.js";
import { buildModel } from "./model.js";
import { choose, largest, noise, softmax } from "./sampling.js";

const RUNNERS_UP = 5;
const AT_ONCE = 16; // characters that are read before messages are looked at again
const PATIENCE = 15; // milliseconds between two messages to the page

export class Writer {
  // `post` takes the answers; `pause` resolves after messages that have come were handled.
  constructor(post, pause) {
    this.post = post;
    this.pause = pause;
    this.job = 0; // a new one ends the one at work
    this.look = 0; // so does a new look at attention
  }

  start(facts, bytes) {
    this.model = buildModel(facts.config, facts.characters.length, unpack(bytes, facts.weights.tensors));
    this.cache = this.model.newCache();
    this.text = []; // ids
    this.begin = 0; // where in the text the window begins
    this.post({ type: "ready", difference: this.check(facts.check) });
  }

  // The largest difference between our logits and PyTorch's.
  check({ ids, logits }) {
    const expected = new Float32Array(fromBase64(logits).buffer);
    const ours = this.model.read(ids, this.model.newCache());
    const first = ours.length - expected.length; // of the last characters
    return expected.reduce((most, logit, i) => Math.max(most, Math.abs(logit - ours[first + i])), 0);
  }

  // Make the text begin with `ids`, and continue it.
  async write({ ids, settings, heads }) {
    const job = ++this.job;
    const { block_size } = this.model.config;
    let same = 0;
    while (same < Math.min(ids.length, this.text.length) && ids[same] === this.text[same]) same++;
    const begin = Math.max(0, ids.length - block_size);
    const headsAsBefore = heads.every((on, n) => on === this.model.headsOn[n]);
    if (!headsAsBefore || begin !== this.begin || same < begin) {
      this.cache.length = 0;
    } else {
      // What follows the last character that stays is read again, so that its prediction is at hand.
      this.cache.length = Math.min(this.cache.length, Math.max(0, same - 1 - begin));
    }
    this.model.headsOn.set(heads);
    this.text = ids.slice();
    this.begin = begin;
    let logits = await this.readOn(job, true);
    if (!logits) return;
    const kept = settings.exact ? block_size : Math.max(1, block_size >> 1);
    const started = performance.now();
    let reported = -Infinity;
    let written = [];
    let seen = [];
    const report = (now, n) => {
      if (written.length) {
        this.post({ type: "written", ids: written, seen, speed: (n / (now - started)) * 1000 });
        [written, seen, reported] = [[], [], now];
      }
    };
    for (let n = 1; n <= settings.length; n++) {
      const position = this.text.length;
      const id = choose(logits, settings, (candidate) => noise(settings.seed, position, candidate));
      written.push(id);
      seen.push(this.lookAt(logits, id));
      this.text.push(id);
      const now = performance.now();
      const stopped = settings.stop.length > 0 && endsWith(this.text, settings.stop, ids.length);
      if (now - reported > PATIENCE || stopped || n === settings.length) {
        report(now, n);
        await this.pause();
        if (job !== this.job) return;
      }
      if (stopped) return this.post({ type: "done", reason: "stop" });
      if (n === settings.length) break;
      if (this.text.length - this.begin > block_size) {
        this.begin = this.text.length - kept;
        this.cache.length = 0;
        logits = await this.readOn(job, false);
        if (!logits) return;
      } else {
        logits = this.model.read([id], this.cache);
      }
    }
    this.post({ type: "done", reason: "length" });
  }

  // Read what of the window is not in the cache; returns the last character's logits, or null where another job came.
  async readOn(job, tell) {
    const V = this.model.vocabSize;
    let logits = null;
    while (this.begin + this.cache.length < this.text.length) {
      const from = this.begin + this.cache.length;
      const ids = this.text.slice(from, from + AT_ONCE);
      const all = this.model.read(ids, this.cache);
      logits = all.subarray((ids.length - 1) * V);
      if (tell) {
        const next = this.text.slice(from + 1, from + 1 + ids.length);
        const seen = next.map((id, t) => this.lookAt(all.subarray(t * V, (t + 1) * V), id));
        this.post({ type: "read", from: from + 1, seen });
      }
      await this.pause();
      if (job !== this.job) return null;
    }
    return logits;
  }

  lookAt(logits, id) {
    const probabilities = softmax(logits);
    const likeliest = largest(probabilities, RUNNERS_UP).map((each) => [each, probabilities[each]]);
    return { probability: probabilities[id], likeliest };
  }

  // Where the window has moved past the character, the text up to it is read again for this.
  async attention({ position }) {
    const look = ++this.look;
    let [cache, start] = [this.cache, this.begin];
    if (position < start || position >= start + cache.length) {
      start = Math.max(0, position + 1 - this.model.config.block_size);
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

  stop() {
    this.job++;
    this.post({ type: "done", reason: "stopped" });
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
  scope.onmessage = ({ data }) => {
    if (data.type === "start") writer.start(data.facts, data.bytes);
    else writer[data.type](data);
  };
}
