// The next character, as chargpt/sampling.py draws it.

// Probabilities of logits, an array of one number per character.
export function softmax(logits) {
  let most = -Infinity;
  for (const logit of logits) if (logit > most) most = logit;
  const probabilities = Float64Array.from(logits, (logit) => Math.exp(logit - most));
  let sum = 0;
  for (const each of probabilities) sum += each;
  return probabilities.map((each) => each / sum);
}

// The ids of the `count` largest numbers, largest first; of equal ones the lower first.
export function largest(numbers, count) {
  if (count > 16) return Array.from(numbers.keys()).sort((a, b) => numbers[b] - numbers[a] || a - b).slice(0, count);
  const found = [];
  for (let id = 0; id < numbers.length; id++) {
    let place = found.length;
    while (place > 0 && numbers[found[place - 1]] < numbers[id]) place--;
    if (place < count) {
      found.splice(place, 0, id);
      found.length = Math.min(found.length, count);
    }
  }
  return found;
}

// A random number of (0, 1) for a place in the text and a character. Where one character of the text is changed, all
// others still meet the same numbers: what then differs follows from the change.
export function noise(seed, position, id) {
  let h = Math.imul(seed ^ 0x9e3779b9, 0x85ebca6b);
  for (const part of [position, id]) {
    h ^= part + 0x7f4a7c15;
    h = Math.imul(h ^ (h >>> 16), 0x21f0aaad);
    h = Math.imul(h ^ (h >>> 15), 0x735a2d97);
    h ^= h >>> 15;
  }
  return ((h >>> 0) + 0.5) / 2 ** 32;
}

// The id of the next character.
//
// temperature divides the logits, 0 takes the likeliest; topK (or null) leaves the k likeliest and what ties with the
// k-th; topP (or null) leaves those of which all likelier ones together have a probability below it. `random(id)` gives
// each character a number of (0, 1).
export function choose(logits, { temperature, topK, topP }, random) {
  if (temperature === 0) return largest(logits, 1)[0];
  const most = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  let scaled = Float64Array.from(logits, (logit) => (logit - most) / temperature);
  if (topK !== null && topK < scaled.length) {
    const least = scaled[largest(scaled, topK)[topK - 1]];
    scaled = scaled.map((logit) => (logit < least ? -Infinity : logit));
  }
  let probabilities = softmax(scaled);
  if (topP !== null) {
    let before = 0;
    let least = Infinity;
    for (const id of largest(probabilities, probabilities.length)) {
      if (before >= topP) break;
      least = probabilities[id];
      before += least;
    }
    probabilities = probabilities.map((each) => (each < least ? 0 : each));
  }
  // An exponential race: each wins with its own probability.
  let winner = 0;
  let first = Infinity;
  probabilities.forEach((probability, id) => {
    if (!probability) return;
    const time = -Math.log(random(id)) / probability;
    if (time < first) [winner, first] = [id, time];
  });
  return winner;
}
