// Drawings in SVG.

import { sign } from "./glyphs.js";

export const SVG = "http://www.w3.org/2000/svg";

function shape(kind, attributes, text = "") {
  const made = document.createElementNS(SVG, kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

// The losses of [step, training loss, validation loss], either of which may be null.
export function drawCurve(svg, curve, best) {
  const width = Math.max(280, svg.clientWidth); // pixels, so that letters stay as large as they are
  const [height, left, bottom, top, right] = [260, 44, 28, 12, 12];
  const losses = curve.flatMap(([, train, val]) => [train, val]).filter((loss) => loss !== null);
  const [low, high] = [Math.min(...losses), Math.max(...losses)];
  const last = Math.max(...curve.map(([step]) => step), 1);
  const across = (step) => left + (step / last) * (width - left - right);
  const up = (loss) => height - bottom - ((loss - low) / (high - low || 1)) * (height - bottom - top);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren(shape("path", { class: "axis", d: `M${left} ${top}V${height - bottom}H${width - right}` }));
  for (const loss of low === high ? [low] : [low, (low + high) / 2, high]) {
    svg.append(shape("text", { x: left - 6, y: up(loss) + 4, "text-anchor": "end" }, loss.toFixed(2)));
  }
  for (const step of [0, last / 2, last]) {
    const anchor = step === last ? "end" : "middle";
    svg.append(
      shape("text", { x: across(step), y: height - 8, "text-anchor": anchor }, Math.round(step).toLocaleString("en")),
    );
  }
  for (const [which, name] of [[1, "train"], [2, "val"]]) {
    const points = curve.filter((point) => point[which] !== null);
    const path = points.map((point, n) => `${n ? "L" : "M"}${across(point[0])} ${up(point[which])}`).join("");
    svg.append(shape("path", { class: name, d: path || "M0 0" }));
    if (points.length === 1 || name === "val") {
      for (const point of points) {
        const radius = point[2] === best && name === "val" ? 5 : 2.5;
        svg.append(shape("circle", { class: "dot", cx: across(point[0]), cy: up(point[which]), r: radius }));
      }
    }
  }
}

// A bar for each of some weights; the largest is as high as the drawing, unless it is below `least`.
export function drawBars(svg, weights, least = 1e-9) {
  const most = weights.reduce((a, b) => Math.max(a, b), least);
  svg.setAttribute("viewBox", `0 0 ${weights.length} 1`);
  svg.setAttribute("preserveAspectRatio", "none");
  const bars = Array.from(weights, (weight, n) => {
    const height = weight / most;
    return `M${n} 1v${-height}h1v${height}z`;
  });
  svg.replaceChildren(shape("path", { class: "bar-mark", d: bars.join("") }));
}

// Characters at [x, y] of [-1, 1].
export function drawMap(svg, characters, places) {
  const [width, height] = [Math.max(280, svg.clientWidth), 480];
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren(
    ...places.map(([x, y], id) => {
      const at = { x: (width / 2) * (1 + 0.94 * x), y: (height / 2) * (1 - 0.94 * y) };
      return shape("text", at, sign(characters[id]));
    }),
  );
}
