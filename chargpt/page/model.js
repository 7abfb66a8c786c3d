// The two models of chargpt/model.py, for one text; its end can be dropped from their cache.
//
// Matrices are Float32Arrays, row by row, as in PyTorch: a linear layer's is (outputs, inputs).

// The options of chargpt/model.py that these models know; the last two matter in training only. A page of a model with
// others is refused.
export const OPTIONS = [
  "name", "block_size", "n_layer", "n_head", "n_embd", "positions", "token_shift", "dropout", "zero_init"
];

const ROTARY_BASE = 10000;
const EPSILON = 1e-5; // LayerNorm's

export function buildModel(config, vocabSize, weights) {
  return config.name === "gpt" ? new GPT(config, vocabSize, weights) : new Bigram(config, vocabSize, weights);
}

class GPT {
  constructor(config, vocabSize, weights) {
    this.config = config;
    this.vocabSize = vocabSize;
    this.headSize = config.n_embd / config.n_head;
    this.shifted = config.token_shift ? Math.floor(config.n_embd / 2) : 0;
    this.rotary = config.positions === "rotary";
    this.weights = weights;
    this.layers = Array.from({ length: config.n_layer }, (_, n) => {
      const of = (name) => weights[`blocks.${n}.${name}`];
      return {
        ln1: [of("ln1.weight"), of("ln1.bias")],
        ln2: [of("ln2.weight"), of("ln2.bias")],
        qkv: [of("sa.qkv.weight"), null],
        proj: [of("sa.proj.weight"), of("sa.proj.bias")],
        up: [of("ffwd.net.0.weight"), of("ffwd.net.0.bias")],
        down: [of("ffwd.net.2.weight"), of("ffwd.net.2.bias")],
      };
    });
    // The angle between two positions for each pair of a head's channels.
    this.speeds = Array.from({ length: this.headSize / 2 }, (_, i) =>
      Math.fround(ROTARY_BASE ** -Math.fround((2 * i) / this.headSize)),
    );
    this.headsOn = new Uint8Array(config.n_layer * config.n_head).fill(1); // layer by layer
  }

  newCache() {
    const layers = Array.from({ length: this.config.n_layer }, () => ({
      queries: new Float32Array(),
      keys: new Float32Array(),
      values: new Float32Array(),
      // The first channels of each character in either half of the layer; the first row is before the first.
      shifted: [new Float32Array(), new Float32Array()],
    }));
    return { length: 0, room: 0, layers };
  }

  // Make room for so many characters, not for block_size, which may be beyond any memory.
  grow(cache, length) {
    if (length <= cache.room) return;
    const { block_size, n_embd: C } = this.config;
    const room = Math.min(block_size, Math.max(length, 2 * cache.room, 256));
    for (const kept of cache.layers) {
      for (const name of ["queries", "keys", "values"]) kept[name] = enlarged(kept[name], room * C);
      kept.shifted = kept.shifted.map((rows) => enlarged(rows, (room + 1) * this.shifted));
    }
    cache.room = room;
  }

  // Logits after each of the next characters, (ids.length, vocabSize) in one array.
  read(ids, cache) {
    const C = this.config.n_embd;
    const T = ids.length;
    const start = cache.length;
    this.grow(cache, start + T);
    let x = new Float32Array(T * C);
    const tokens = this.weights["token_embedding_table.weight"];
    const places = this.weights["position_embedding_table.weight"];
    for (let t = 0; t < T; t++) {
      for (let c = 0; c < C; c++) {
        x[t * C + c] = tokens[ids[t] * C + c] + (this.rotary ? 0 : places[(start + t) * C + c]);
      }
    }
    this.layers.forEach((layer, n) => {
      const kept = cache.layers[n];
      add(x, this.attend(layer, kept, n, this.shift(normalized(x, T, C, ...layer.ln1), kept.shifted[0], start), start));
      const thought = linear(this.shift(normalized(x, T, C, ...layer.ln2), kept.shifted[1], start), T, C, ...layer.up);
      for (let i = 0; i < thought.length; i++) if (thought[i] < 0) thought[i] = 0;
      add(x, linear(thought, T, 4 * C, ...layer.down));
    });
    cache.length = start + T;
    x = normalized(x, T, C, this.weights["ln_f.weight"], this.weights["ln_f.bias"]);
    return linear(x, T, C, this.weights["lm_head.weight"], this.weights["lm_head.bias"]);
  }

  // Each character with the first channels of the one before it; these are kept for the next.
  shift(x, kept, start) {
    const S = this.shifted;
    if (!S) return x;
    const C = this.config.n_embd;
    const T = x.length / C;
    for (let t = 0; t < T; t++) kept.set(x.subarray(t * C, t * C + S), (start + t + 1) * S);
    for (let t = 0; t < T; t++) x.set(kept.subarray((start + t) * S, (start + t + 1) * S), t * C);
    return x;
  }

  attend(layer, kept, n, x, start) {
    const { n_embd: C, n_head } = this.config;
    const T = x.length / C;
    const qkv = linear(x, T, C, ...layer.qkv);
    for (let t = 0; t < T; t++) {
      if (this.rotary) this.turn(qkv.subarray(t * 3 * C, t * 3 * C + 2 * C), start + t);
      kept.queries.set(qkv.subarray(t * 3 * C, t * 3 * C + C), (start + t) * C);
      kept.keys.set(qkv.subarray(t * 3 * C + C, t * 3 * C + 2 * C), (start + t) * C);
      kept.values.set(qkv.subarray(t * 3 * C + 2 * C, (t + 1) * 3 * C), (start + t) * C);
    }
    const out = new Float32Array(T * C);
    const hs = this.headSize;
    for (let h = 0; h < n_head; h++) {
      if (!this.headsOn[n * n_head + h]) continue; // it adds nothing
      for (let t = 0; t < T; t++) {
        const row = this.attentionRow(kept, h, start + t);
        for (let s = 0; s < row.length; s++) {
          const weight = row[s];
          const from = s * C + h * hs;
          const to = t * C + h * hs;
          for (let c = 0; c < hs; c++) out[to + c] += weight * kept.values[from + c];
        }
      }
    }
    return linear(out, T, C, ...layer.proj);
  }

  // How much the character at a position attends to each one up to it.
  attentionRow(kept, head, position) {
    const C = this.config.n_embd;
    const hs = this.headSize;
    const scale = 1 / Math.sqrt(hs);
    const { queries, keys } = kept;
    const row = new Float32Array(position + 1);
    const q = position * C + head * hs;
    let most = -Infinity;
    for (let s = 0; s <= position; s++) {
      const k = s * C + head * hs;
      let product = 0;
      for (let c = 0; c < hs; c++) product += queries[q + c] * keys[k + c];
      row[s] = product * scale;
      if (row[s] > most) most = row[s];
    }
    let sum = 0;
    for (let s = 0; s <= position; s++) sum += row[s] = Math.exp(row[s] - most);
    for (let s = 0; s <= position; s++) row[s] /= sum;
    return row;
  }

  // The attention of every layer and head from a position that was read: an array of rows, layer by layer.
  attention(cache, position) {
    const heads = Array.from({ length: this.config.n_head }, (_, head) => head);
    return cache.layers.flatMap((kept) => heads.map((head) => this.attentionRow(kept, head, position)));
  }

  // Rotary positions: turn the pairs of channels of all heads of a query and a key.
  turn(queryAndKey, position) {
    const pairs = this.speeds.length;
    for (let i = 0; i < pairs; i++) {
      const angle = Math.fround(position * this.speeds[i]);
      const cos = Math.cos(angle);
      const sin = Math.sin(angle);
      for (let at = 2 * i; at < queryAndKey.length; at += this.headSize) {
        const [a, b] = [queryAndKey[at], queryAndKey[at + 1]];
        queryAndKey[at] = a * cos - b * sin;
        queryAndKey[at + 1] = a * sin + b * cos;
      }
    }
  }
}

class Bigram {
  constructor(config, vocabSize, weights) {
    this.config = config;
    this.vocabSize = vocabSize;
    this.table = weights["token_embedding_table.weight"];
    this.headsOn = new Uint8Array(0);
  }

  newCache() {
    return { length: 0, layers: [] };
  }

  read(ids, cache) {
    cache.length += ids.length;
    const V = this.vocabSize;
    const logits = new Float32Array(ids.length * V);
    ids.forEach((id, t) => logits.set(this.table.subarray(id * V, (id + 1) * V), t * V));
    return logits;
  }

  attention() {
    return [];
  }
}

function enlarged(numbers, size) {
  const larger = new Float32Array(size);
  larger.set(numbers);
  return larger;
}

function add(x, y) {
  for (let i = 0; i < x.length; i++) x[i] += y[i];
}

// LayerNorm of each of T rows of C channels.
function normalized(x, T, C, weight, bias) {
  const out = new Float32Array(T * C);
  for (let t = 0; t < T; t++) {
    let mean = 0;
    for (let c = 0; c < C; c++) mean += x[t * C + c];
    mean /= C;
    let variance = 0;
    for (let c = 0; c < C; c++) variance += (x[t * C + c] - mean) ** 2;
    const scale = 1 / Math.sqrt(variance / C + EPSILON);
    for (let c = 0; c < C; c++) out[t * C + c] = (x[t * C + c] - mean) * scale * weight[c] + bias[c];
  }
  return out;
}

// x, (T, inputs), times the transpose of weight, (outputs, inputs), plus bias: where the time goes. Several sums at a
// time keep the processor busy, and share what they read: for four characters and two outputs, or for four outputs of
// the characters that remain.
function linear(x, T, inputs, weight, bias) {
  const outputs = weight.length / inputs;
  const out = new Float32Array(T * outputs);
  const whole = outputs % 2 ? 0 : T - (T % 4);
  for (let t = 0; t < whole; t += 4) ofFour(x, t, inputs, weight, outputs, out);
  for (let t = whole; t < T; t++) ofOne(x, t, inputs, weight, outputs, out);
  if (bias) for (let t = 0; t < T; t++) for (let o = 0; o < outputs; o++) out[t * outputs + o] += bias[o];
  return out;
}

function ofFour(x, t, inputs, weight, outputs, out) {
  const [x0, x1, x2, x3] = [t * inputs, (t + 1) * inputs, (t + 2) * inputs, (t + 3) * inputs];
  for (let o = 0; o < outputs; o += 2) {
    const [v0, w0] = [o * inputs, (o + 1) * inputs];
    let [a0, a1, a2, a3, b0, b1, b2, b3] = [0, 0, 0, 0, 0, 0, 0, 0];
    for (let i = 0; i < inputs; i++) {
      const v = weight[v0 + i];
      const w = weight[w0 + i];
      a0 += v * x[x0 + i];
      a1 += v * x[x1 + i];
      a2 += v * x[x2 + i];
      a3 += v * x[x3 + i];
      b0 += w * x[x0 + i];
      b1 += w * x[x1 + i];
      b2 += w * x[x2 + i];
      b3 += w * x[x3 + i];
    }
    out.set([a0, b0], t * outputs + o);
    out.set([a1, b1], (t + 1) * outputs + o);
    out.set([a2, b2], (t + 2) * outputs + o);
    out.set([a3, b3], (t + 3) * outputs + o);
  }
}

function ofOne(x, t, inputs, weight, outputs, out) {
  const [from, to] = [t * inputs, t * outputs];
  let o = 0;
  for (; o + 3 < outputs; o += 4) {
    const [w0, w1, w2, w3] = [o * inputs, (o + 1) * inputs, (o + 2) * inputs, (o + 3) * inputs];
    let [a, b, c, d] = [0, 0, 0, 0];
    for (let i = 0; i < inputs; i++) {
      const value = x[from + i];
      a += weight[w0 + i] * value;
      b += weight[w1 + i] * value;
      c += weight[w2 + i] * value;
      d += weight[w3 + i] * value;
    }
    out[to + o] = a;
    out[to + o + 1] = b;
    out[to + o + 2] = c;
    out[to + o + 3] = d;
  }
  for (; o < outputs; o++) {
    let sum = 0;
    for (let i = 0; i < inputs; i++) sum += weight[o * inputs + i] * x[from + i];
    out[to + o] = sum;
  }
}
