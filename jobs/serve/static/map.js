// Cameras on a map with the matches at each, or with the route of a journey. Leaflet pans, zooms and shows tiles.

import { element, formatDuration, formatLeg, formatTime, rove, svg } from "./dom.js";

const BEND = 0.18; // of a leg to its right, in shares of its length: a way there and the way back are two lines
const ZOOM = 10; // at which the bend of a leg is computed; its form is the same at each
const maps = new WeakMap(); // element -> its map

async function leaflet() {
  await import("./vendor/leaflet.js");
  return window.L;
}

// positions: camera -> [latitude, longitude]. counts: camera -> number. route: {stops, legs} of a journey.
export async function drawMap(parent, positions, { counts = new Map(), route = null, pick = null, hint = "", tiles = null } = {}) {
  const cameras = Object.entries(positions);
  if (!cameras.length) {
    parent.replaceChildren(route ? element("p", { class: "soft" }, "The positions of the cameras are not known: clvr serve --camera-positions cameras.csv.") : drawBars(counts, pick, hint));
    return;
  }
  const area = element("div", { class: "map" });
  parent.replaceChildren(area);
  const L = await leaflet();
  if (!area.isConnected) return; // another drawing took its place meanwhile
  maps.get(parent)?.remove();
  // One finger scrolls the page, two move the map; the wheel zooms once the map has the focus.
  const map = L.map(area, { dragging: !L.Browser.mobile, scrollWheelZoom: false, attributionControl: Boolean(tiles?.attribution), zoomSnap: 0.25, maxZoom: 19 });
  maps.set(parent, map);
  area.setAttribute("role", "region");
  area.setAttribute("aria-label", route ? "The journey on a map" : "Matches by camera on a map");
  map.on("focus", () => map.scrollWheelZoom.enable()).on("blur", () => map.scrollWheelZoom.disable());
  L.control.scale({ imperial: false }).addTo(map);
  if (tiles) {
    map.attributionControl?.setPrefix(false);
    L.tileLayer(tiles.url, { attribution: tiles.attribution.replace(/[&<>]/g, (sign) => `&#${sign.charCodeAt(0)};`), maxZoom: 19, referrerPolicy: "no-referrer" }).addTo(map);
  }
  const visits = new Map();
  route?.stops.forEach((stop, place) => visits.set(stop.camera_id, [...(visits.get(stop.camera_id) || []), place + 1]));
  const isShown = ([name]) => visits.has(name) || counts.get(name);
  const shown = cameras.filter(isShown);
  map.fitBounds(L.latLngBounds((shown.length ? shown : cameras).map(([, position]) => position)).pad(0.15), { maxZoom: 14, animate: false });
  for (const [name, position] of cameras.filter((camera) => !isShown(camera))) {
    L.circleMarker(position, { radius: 4, className: "none" }).bindTooltip(tooltip(name), { direction: "top" }).addTo(map);
  }
  if (route) drawRoute(L, map, route);
  rove(shown.map(([name, position]) => mark(L, map, name, position, visits.get(name) || [], counts.get(name) || 0, pick, hint)).filter(Boolean));
}

const tooltip = (text) => element("span", {}, text); // an element, because Leaflet takes a string as HTML

// Mark a camera with its matches or stops; return the button, if it is one.
function mark(L, map, name, position, stops, count, pick, hint) {
  const size = stops.length ? 24 : Math.round(14 + 6 * Math.sqrt(Math.min(count, 100)));
  const icon = element("span", {}, stops.length > 2 ? `${stops[0]}…` : stops.length ? stops.join(",") : String(count));
  const marker = L.marker(position, { icon: L.divIcon({ className: `mark ${stops.length ? "stop" : "count"}`, html: icon, iconSize: [size, size] }), keyboard: Boolean(pick), interactive: Boolean(pick) }).addTo(map);
  marker.bindTooltip(tooltip(stops.length ? `${name}: stop ${stops.join(", ")}` : name), { permanent: true, direction: "bottom", offset: [0, size / 2] });
  const node = marker.getElement();
  node.removeAttribute("aria-describedby");
  if (!pick) return null;
  node.setAttribute("role", "button");
  node.setAttribute("aria-label", `${count} at camera ${name}: ${hint}`);
  marker.on("click", () => pick(name));
  return node;
}

function drawRoute(L, map, { stops, legs }) {
  legs.forEach((leg, place) => {
    const start = stops[place], end = stops[place + 1];
    if (!start.position || !end.position || start.camera_id === end.camera_id) return;
    const from = map.project(start.position, ZOOM), to = map.project(end.position, ZOOM), way = to.subtract(from);
    const control = from.add(to).divideBy(2).add(L.point(-way.y, way.x).multiplyBy(BEND));
    const at = (share) => from.multiplyBy((1 - share) ** 2).add(control.multiplyBy(2 * share * (1 - share))).add(to.multiplyBy(share ** 2));
    const points = Array.from({ length: 25 }, (_, step) => map.unproject(at(step / 24), ZOOM));
    const bad = leg.possible === false, text = `${start.camera_id} to ${end.camera_id}: ${formatLeg(leg)}${bad ? ", impossible" : ""}`;
    L.polyline(points, { className: bad ? "route bad" : "route", smoothFactor: 0 }).bindTooltip(tooltip(text), { sticky: true }).addTo(map);
    // In its middle the leg runs as the straight line between its ends.
    const arrow = svg("svg", { viewBox: "0 0 16 16", width: 16, height: 16, class: bad ? "leg-bad" : "leg", "aria-hidden": "true" },
      svg("path", { d: "M2 2l12 6-12 6z", transform: `rotate(${(Math.atan2(way.y, way.x) * 180) / Math.PI} 8 8)` }));
    L.marker(map.unproject(at(0.5), ZOOM), { icon: L.divIcon({ className: "arrow", html: arrow, iconSize: [16, 16] }), interactive: false, keyboard: false }).addTo(map);
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
