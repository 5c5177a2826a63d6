// Drawings: matches on a timeline, and cameras on a map with the route of a journey.

import { element, formatDuration, formatLeg, formatTime, svg } from "./dom.js";

const DAY = 86_400_000;
let drawings = 0; // ids of arrows are of one drawing, because a hidden one draws none

// One focus for all marks of a drawing: arrow keys move it, so a page of a thousand marks has one tab stop.
function rove(marks) {
  if (!marks.length) return;
  marks.forEach((mark, place) => {
    mark.setAttribute("tabindex", place ? "-1" : "0");
    mark.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
      if (step) {
        const next = marks[Math.min(marks.length - 1, Math.max(0, place + step))];
        marks.forEach((one) => one.setAttribute("tabindex", one === next ? "0" : "-1"));
        next.focus();
      } else if (event.key === "Enter" || event.key === " ") {
        mark.dispatchEvent(new MouseEvent("click", { bubbles: true }));
      } else return;
      event.preventDefault();
      event.stopPropagation();
    });
  });
}

// Times of ticks: whole days, hours or minutes, at most about eight.
function ticks(first, last) {
  const steps = [60_000, 300_000, 900_000, 3_600_000, 3 * 3_600_000, 6 * 3_600_000, 12 * 3_600_000, DAY, 2 * DAY, 7 * DAY, 14 * DAY, 30 * DAY, 90 * DAY, 365 * DAY];
  const step = steps.find((one) => (last - first) / one <= 8) || 365 * DAY * Math.ceil((last - first) / (8 * 365 * DAY));
  const found = [];
  for (let time = Math.ceil(first / step) * step; time <= last; time += step) found.push(time);
  return { step, times: found };
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
  const width = 1000, left = 120, top = 26, row = 30, height = top + row * lanes.length + 8;
  const x = (time) => left + 14 + (width - left - 34) * ((time - first) / Math.max(1, last - first));
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `Matches by time, from ${formatTime(first)} to ${formatTime(last)} UTC` });
  const { step, times: marks } = ticks(first, last);
  for (const time of marks) {
    const text = new Date(time).toISOString();
    drawing.append(svg("line", { class: "tick", x1: x(time), x2: x(time), y1: top - 6, y2: height - 4 }),
      svg("text", { x: x(time), y: 14, "text-anchor": "middle" }, step >= DAY ? text.slice(0, 10) : text.slice(11, 16) === "00:00" ? text.slice(0, 10) : text.slice(11, 16)));
  }
  if (!marks.length) drawing.append(svg("text", { x: left + 14, y: 14 }, formatTime(first)));
  lanes.forEach((name, place) => {
    const y = top + row * place + row / 2;
    drawing.append(svg("line", { class: "lane", x1: left, x2: width - 10, y1: y, y2: y }),
      svg("text", { class: "name", x: left - 12, y: y + 4, "text-anchor": "end" }, name.length > 15 ? `${name.slice(0, 14)}…` : name));
  });
  const preview = element("div", { class: "preview", "aria-hidden": "true", hidden: true }, element("img", { alt: "" }), element("span"));
  const dots = [...timed].sort((a, b) => a.time - b.time).map((entry) => {
    const y = top + row * lanes.indexOf(entry.camera) + row / 2;
    const dot = svg("circle", { class: `dot ${entry.className}`, "data-verdict": entry.verdict, cx: x(entry.time), cy: y, r: entry.strong ? 8 : 6, role: "button", "aria-label": entry.label, onclick: () => pick(entry.crop) });
    const show = () => {
      preview.firstChild.src = entry.image;
      preview.lastChild.textContent = entry.label;
      const box = dot.getBoundingClientRect(), frame = parent.getBoundingClientRect();
      preview.style.left = `${Math.min(Math.max(0, box.left - frame.left - 80 + parent.scrollLeft), Math.max(0, parent.scrollWidth - 170))}px`;
      preview.style.top = `${box.bottom - frame.top + 8}px`;
      preview.hidden = false;
    };
    for (const name of ["mouseenter", "focus"]) dot.addEventListener(name, show);
    for (const name of ["mouseleave", "blur"]) dot.addEventListener(name, () => { preview.hidden = true; });
    return dot;
  });
  drawing.append(...dots);
  rove(dots);
  parent.replaceChildren(drawing, preview);
}

// positions: camera -> [latitude, longitude]. counts: camera -> number. route: {stops, legs} of a journey.
export function drawMap(parent, positions, { counts = new Map(), route = null, pick = null, hint = "" } = {}) {
  const cameras = Object.entries(positions);
  if (!cameras.length) {
    parent.replaceChildren(route ? element("p", { class: "soft" }, "The positions of the cameras are not known: clvr serve --camera-positions cameras.csv.") : drawBars(counts, pick, hint));
    return;
  }
  const lats = cameras.map(([, place]) => place[0]), lons = cameras.map(([, place]) => place[1]);
  const south = Math.min(...lats), north = Math.max(...lats), west = Math.min(...lons), east = Math.max(...lons);
  const stretch = Math.cos((((south + north) / 2) * Math.PI) / 180);
  const width = 1000, height = 560, border = 70;
  const scale = Math.min((width - 2 * border) / Math.max(1e-4, (east - west) * stretch), (height - 2 * border) / Math.max(1e-4, north - south));
  const at = ([lat, lon]) => [width / 2 + (lon - (west + east) / 2) * stretch * scale, height / 2 - (lat - (south + north) / 2) * scale];
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": route ? "The journey on a map" : "Matches by camera on a map" });
  const arrows = `arrow-${++drawings}`;
  drawing.append(svg("defs", {}, ...["leg", "leg-bad"].map((id) => svg("marker", { id: `${arrows}-${id}`, viewBox: "0 0 10 10", refX: 9, refY: 5, markerWidth: 14, markerHeight: 14, orient: "auto-start-reverse", markerUnits: "userSpaceOnUse" }, svg("path", { class: id, d: "M0 0l10 5-10 5z" })))));
  drawScale(drawing, scale, width, height);
  if (route) drawRoute(drawing, route, at, arrows);
  const visits = new Map();
  route?.stops.forEach((stop, place) => visits.set(stop.camera_id, [...(visits.get(stop.camera_id) || []), place + 1]));
  const groups = cameras.map(([name, position]) => {
    const [x, y] = at(position);
    const count = counts.get(name) || 0, numbers = visits.get(name) || [];
    const radius = numbers.length ? 11 : count ? 6 + 3 * Math.sqrt(Math.min(count, 100)) : 4;
    const text = numbers.length ? `${name}: stop ${numbers.join(", ")}` : count ? `${name}: ${count}` : name;
    const group = svg("g", { class: "camera", ...(pick && count ? { role: "button", "aria-label": `camera ${name}, ${count} matches: ${hint}`, onclick: () => pick(name) } : {}) },
      svg("circle", { class: numbers.length ? "stop" : count ? "dot" : "none", cx: x, cy: y, r: radius }),
      svg("text", { x, y: y - radius - 6, "text-anchor": "middle", class: numbers.length || count ? "name" : "" }, text));
    if (numbers.length) group.append(svg("text", { class: "number", x, y: y + 4, "text-anchor": "middle" }, numbers.length > 2 ? `${numbers[0]}…` : numbers.join(",")));
    return group;
  });
  drawing.append(...groups);
  rove(groups.filter((group) => group.getAttribute("role") === "button"));
  parent.replaceChildren(drawing);
}

function drawScale(drawing, scale, width, height) {
  const perKm = scale / 111.195; // a degree of latitude
  const km = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500].findLast((one) => one * perKm <= 220) || 0.05;
  const x = width - 24 - km * perKm, y = height - 22;
  drawing.append(
    svg("path", { class: "scale", d: `M${x} ${y - 5}v5h${km * perKm}v-5` }),
    svg("text", { x: width - 24, y: y - 10, "text-anchor": "end" }, km < 1 ? `${1000 * km} m` : `${km} km`),
    svg("path", { class: "scale", d: "M30 46V16M24 24l6-9 6 9" }), svg("text", { x: 30, y: 62, "text-anchor": "middle" }, "N"));
}

function drawRoute(drawing, { stops, legs }, at, arrows) {
  legs.forEach((leg, place) => {
    const start = stops[place], end = stops[place + 1];
    if (!start.position || !end.position || start.camera_id === end.camera_id) return;
    const [x1, y1] = at(start.position), [x2, y2] = at(end.position);
    const length = Math.hypot(x2 - x1, y2 - y1) || 1, bad = leg.possible === false;
    // Bent to the right, so that a way there and the way back are two lines.
    const bend = Math.min(40, length / 5);
    const mx = (x1 + x2) / 2 - ((y2 - y1) / length) * bend, my = (y1 + y2) / 2 + ((x2 - x1) / length) * bend;
    const into = Math.hypot(x2 - mx, y2 - my) || 1;
    const ex = x2 - ((x2 - mx) / into) * 14, ey = y2 - ((y2 - my) / into) * 14;
    drawing.append(svg("path", { class: bad ? "route bad" : "route", d: `M${x1} ${y1}Q${mx} ${my} ${ex} ${ey}`, "marker-end": `url(#${arrows}-leg${bad ? "-bad" : ""})` },
      svg("title", {}, `${start.camera_id} to ${end.camera_id}: ${formatLeg(leg)}${bad ? ", impossible" : ""}`)));
  });
}

function drawBars(counts, pick, hint) {
  const rows = [...counts].sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0]));
  const maximum = rows.length ? rows[0][1] : 1;
  return element("ul", { class: "bars" }, ...rows.map(([name, count]) => {
    const bar = element("span", { class: "bar-length" });
    bar.style.width = `${Math.max(1, (100 * count) / maximum)}%`;
    const parts = [element("span", { class: "bar-name" }, name), element("span", { class: "bar-track" }, bar), element("span", { class: "bar-count" }, String(count))];
    return element("li", {}, pick && name !== "unknown"
      ? element("button", { type: "button", class: "camera", title: hint, onclick: () => pick(name) }, ...parts)
      : element("span", { class: "camera" }, ...parts));
  }));
}

// A table of the stops and legs of a journey.
export function journeyTable({ stops, legs }, look) {
  const rows = [];
  stops.forEach((stop, place) => {
    const leg = legs[place - 1];
    if (leg) {
      const bad = leg.possible === false;
      rows.push(element("tr", { class: bad ? "leg bad" : "leg" }, element("td"), element("td", { colspan: 3 },
        `${leg.km === null ? `after ${formatDuration(leg.seconds)}` : formatLeg(leg)}${bad ? ": impossible, one of the two is another vehicle, or a clock is wrong" : ""}`)));
    }
    const span = stop.last > stop.first ? ` – ${formatTime(stop.last).slice(11)}` : "";
    rows.push(element("tr", {}, element("th", { scope: "row" }, String(place + 1)), element("td", {}, formatTime(stop.first) + span),
      element("td", {}, `camera ${stop.camera_id || "unknown"}`),
      element("td", {}, element("button", { type: "button", class: "link", onclick: () => look(stop.crops[0], stops.flatMap((one) => one.crops)) }, stop.crops.length > 1 ? `look (${stop.crops.length} crops)` : "look"),
        stop.video && element("a", { class: "link", href: stop.video, target: "_blank", rel: "noreferrer" }, "video"))));
  });
  return element("table", { class: "journey" },
    element("thead", {}, element("tr", {}, ...["Stop", "Time (UTC)", "Camera", "Images"].map((title) => element("th", { scope: "col" }, title)))),
    element("tbody", {}, ...rows));
}
