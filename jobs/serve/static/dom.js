// Elements, icons and texts. Text is set as text and never as markup, because names of cameras and models are data.

export const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export const element = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);
export const svg = (name, attributes = {}, ...children) => fill(document.createElementNS(SVG, name), attributes, children);

const ICONS = {
  confirm: "M4 13l5 5L20 6", reject: "M6 6l12 12M18 6L6 18", unsure: "M9 9a3 3 0 1 1 4 3c-1 .5-1 1-1 2M12 18v.5",
  search: "M10.5 4a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13zM15.5 15.5L21 21", left: "M15 5l-7 7 7 7", right: "M9 5l7 7-7 7",
  close: "M6 6l12 12M18 6L6 18", plus: "M12 5v14M5 12h14", minus: "M5 12h14", fit: "M4 9V4h5M20 9V4h-5M4 15v5h5M20 15v5h-5",
  video: "M4 6h11v12H4zM15 10l6-3v10l-6-3", box: "M4 8V4h4M20 8V4h-4M4 16v4h4M20 16v4h-4M9 9h6v6H9z",
  pair: "M3 5h8v14H3zM13 5h8v14h-8z", add: "M12 5v14M5 12h14", warn: "M12 4l9 16H3zM12 10v4M12 17v.5",
};

export function icon(name) {
  return svg("svg", { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true", focusable: "false" }, svg("path", { d: ICONS[name] }));
}

// A button with an icon whose name is read out and shown on hover.
export function iconButton(name, label, onclick, attributes = {}) {
  return element("button", { type: "button", class: "icon-button", title: label, "aria-label": label, onclick, ...attributes }, icon(name));
}

export const percent = (share) => `${Math.round(100 * share)} %`;

export function formatTime(ms) {
  if (ms === null || ms < 0) return "";
  if (ms > 8.64e15) return `${ms} ms since 1970`; // no date holds it
  return new Date(ms).toISOString().replace("T", " ").slice(0, 19);
}

export const formatStamp = (iso) => iso.replace("T", " ").slice(0, 16);

export function formatDuration(seconds) {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  let rest = Math.round(seconds);
  const parts = [];
  for (const [unit, size] of units) {
    const count = Math.floor(rest / size);
    rest -= count * size;
    if (count || (unit === "s" && !parts.length)) parts.push(`${count} ${unit}`);
  }
  return parts.slice(0, 2).join(" ");
}

export function formatLeg(leg) {
  const parts = [];
  if (leg.km !== null) parts.push(`${leg.km < 10 ? leg.km.toFixed(1) : Math.round(leg.km)} km`);
  parts.push(`in ${formatDuration(leg.seconds)}`);
  if (leg.kmh !== null) parts.push(`(${Math.round(leg.kmh)} km/h)`);
  return parts.join(" ");
}

export const plural = (count, noun, nouns = `${noun}s`) => `${count.toLocaleString("en")} ${count === 1 ? noun : nouns}`;

// One focus for all marks of a drawing: arrow keys move it, so a page of a thousand marks has one tab stop.
export function rove(marks) {
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

export function download({ name, content }) {
  const url = URL.createObjectURL(content);
  const link = element("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
