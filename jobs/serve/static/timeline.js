// The matches by time: a lane for each camera, drawn in the pixels of the screen, so that text keeps its size.

import { element, formatTime, rove, svg } from "./dom.js";

const DAY = 86_400_000;
const LABEL = 76; // pixels that a tick's text needs

// Times of ticks: whole days, hours or minutes, at most so many.
function ticks(first, last, most) {
  const steps = [60_000, 300_000, 900_000, 3_600_000, 3 * 3_600_000, 6 * 3_600_000, 12 * 3_600_000, DAY, 2 * DAY, 3 * DAY, 7 * DAY, 14 * DAY, 30 * DAY, 90 * DAY, 365 * DAY];
  const step = steps.find((one) => (last - first) / one <= most) || 365 * DAY * Math.ceil((last - first) / (most * 365 * DAY));
  const found = [];
  for (let time = Math.ceil(first / step) * step; time <= last; time += step) found.push(time);
  return { step, times: found };
}

const LEGEND = [["within", "within the threshold"], ["", "beyond it"], ["impossible", "impossible travel"], ["confirmed", "confirmed"], ["rejected", "rejected"]];

// Explain the marks that occur.
function legend(timed) {
  const kinds = new Set(timed.flatMap((entry) => [entry.className, entry.verdict]));
  const shown = LEGEND.filter(([kind]) => kinds.has(kind));
  return element("p", { class: "legend small soft" }, ...shown.map(([kind, text]) => {
    const isVerdict = kind === "confirmed" || kind === "rejected";
    const dot = svg("circle", { class: `dot ${isVerdict ? "" : kind}`, "data-verdict": isVerdict ? kind : "", cx: 9, cy: 9, r: 6 });
    return element("span", {}, svg("svg", { viewBox: "0 0 18 18", width: 18, height: 18, "aria-hidden": "true" }, dot), text);
  }), element("span", {}, "large: the first ten ranks"));
}

// entries: {crop, image, camera, time, label, className, strong, verdict}
export function drawTimeline(parent, entries, pick) {
  const timed = entries.filter((entry) => entry.time >= 0 && entry.time <= 8.64e15);
  if (!timed.length) {
    parent.replaceChildren(element("p", { class: "soft" }, "No match has a time."));
    return;
  }
  const times = timed.map((entry) => entry.time);
  const first = times.reduce((a, b) => Math.min(a, b)), last = times.reduce((a, b) => Math.max(a, b));
  const lanes = [...new Set(timed.map((entry) => entry.camera))].sort();
  const frame = getComputedStyle(parent);
  const width = Math.max(240, parent.clientWidth - parseFloat(frame.paddingLeft) - parseFloat(frame.paddingRight));
  const longest = Math.min(15, Math.max(...lanes.map((name) => name.length)));
  const left = Math.min(width / 3, 14 + 7.6 * longest), top = 30, row = 30, height = top + row * lanes.length + 8;
  const x = (time) => left + 14 + (width - left - 28) * (last > first ? (time - first) / (last - first) : 0.5);
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": `Matches by time, from ${formatTime(first)} to ${formatTime(last)} UTC` });
  const { step, times: marks } = ticks(first, last, Math.max(1, Math.floor((width - left) / LABEL)));
  for (const time of marks) {
    const text = new Date(time).toISOString();
    const anchor = x(time) > width - LABEL / 2 ? "end" : x(time) < left + LABEL / 2 ? "start" : "middle";
    drawing.append(svg("line", { class: "tick", x1: x(time), x2: x(time), y1: top - 8, y2: height - 4 }),
      svg("text", { x: x(time), y: 14, "text-anchor": anchor }, step >= DAY ? text.slice(0, 10) : text.slice(11, 16) === "00:00" ? text.slice(0, 10) : text.slice(11, 16)));
  }
  if (!marks.length) drawing.append(svg("text", { x: left + 14, y: 14 }, formatTime(first)));
  lanes.forEach((name, place) => {
    const y = top + row * place + row / 2;
    drawing.append(svg("line", { class: "lane", x1: left, x2: width, y1: y, y2: y }),
      svg("text", { class: "name", x: left - 10, y: y + 4, "text-anchor": "end" }, name.length > 15 ? `${name.slice(0, 14)}…` : name));
  });
  const preview = element("div", { class: "preview", "aria-hidden": "true", hidden: true }, element("img", { alt: "" }), element("span"));
  const dots = [...timed].sort((a, b) => a.time - b.time).map((entry) => {
    const y = top + row * lanes.indexOf(entry.camera) + row / 2;
    const dot = svg("circle", { class: `dot ${entry.className}`, "data-verdict": entry.verdict, cx: x(entry.time), cy: y, r: entry.strong ? 8 : 6, role: "button", "aria-label": entry.label, onclick: () => pick(entry.crop) });
    const show = () => {
      preview.firstChild.src = entry.image;
      preview.lastChild.textContent = entry.label;
      const box = dot.getBoundingClientRect(), outer = parent.getBoundingClientRect();
      preview.style.left = `${Math.min(Math.max(0, box.left - outer.left - 80), Math.max(0, parent.clientWidth - 170))}px`;
      preview.style.top = `${box.bottom - outer.top + 8}px`;
      preview.hidden = false;
    };
    for (const name of ["mouseenter", "focus"]) dot.addEventListener(name, show);
    for (const name of ["mouseleave", "blur"]) dot.addEventListener(name, () => { preview.hidden = true; });
    return dot;
  });
  drawing.append(...dots);
  rove(dots);
  parent.replaceChildren(drawing, legend(timed), preview);
}
