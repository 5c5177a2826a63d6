"use strict";
// The state of the page is `probe`, the images and crops of the search, and `result`, the response of the server.
// The page is drawn from these two. Text is set by textContent, because camera and model names are data.

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
let about = null;
let probe = { files: [], crops: [] };
let result = null;
let request = null;
const ATTRIBUTES = [{ name: "color", plural: "colors" }, { name: "body_type", plural: "body_types" }];

// ---- requests to the server -----------------------------------------------------------------------------

async function fetchJson(path, options = {}) {
  const response = await fetch(path, { credentials: "same-origin", ...options });
  if (response.status === 401) {
    showLogin();
    throw new Error("a token is required");
  }
  const body = await response.json().catch(() => ({ error: `the server returned ${response.status}` }));
  if (!response.ok) {
    const message = body.error || (body.detail ? "the request is invalid" : "the request was refused");
    throw new Error([message, body.remedy].filter(Boolean).join(". "));
  }
  return body;
}

async function login(token) {
  const headers = { "Content-Type": "application/json" };
  await fetchJson("/api/login", { method: "POST", headers, body: JSON.stringify({ token }) });
}

function showLogin() {
  $("app").hidden = true;
  $("login").hidden = false;
  $("token").focus();
}

function splitCommas(text) {
  return text.split(",").map((name) => name.trim()).filter(Boolean);
}

function readRules() {
  const form = $("filters").elements;
  const utc = (text) => (text ? text + "Z" : null);
  return {
    top: Number(form.top.value),
    cameras: splitCommas(form.cameras.value),
    not_cameras: splitCommas(form.not_cameras.value),
    since: utc(form.since.value),
    until: utc(form.until.value),
    models: form.models.value === "" ? [] : [Number(form.models.value)],
    max_distance: form.max_distance.value === "" ? null : Number(form.max_distance.value),
    same_camera: form.same_camera.checked,
    every_crop: !form.group_by_track.checked,
    rerank: form.rerank.checked,
    drop_impossible: form.drop_impossible.checked,
    ...Object.fromEntries(ATTRIBUTES.flatMap(({ name, plural }) => [
      [plural, splitCommas(form[plural].value)],
      [`not_${plural}`, splitCommas(form[`not_${plural}`].value)],
      [`min_${name}_confidence`, form[plural].value || form[`not_${plural}`].value ? Number(form.min_confidence.value) || null : null],
    ])),
  };
}

async function search() {
  if (!probe.files.length && !probe.crops.length) {
    showError("choose an image first");
    return;
  }
  request?.abort();
  const current = (request = new AbortController());
  const body = new FormData();
  probe.files.forEach((file) => body.append("picture", file));
  probe.crops.forEach((crop) => body.append("crop", crop));
  body.append("rules", JSON.stringify(readRules()));
  document.body.classList.add("busy");
  showError("");
  const started = performance.now();
  try {
    const response = await fetchJson("/api/search", { method: "POST", body, signal: current.signal });
    result = { ...response, total_ms: performance.now() - started };
    if (result.generation !== about.generation) await loadAbout();
    draw();
  } catch (error) {
    if (error.name !== "AbortError") showError(error.message);
  } finally {
    if (request === current) document.body.classList.remove("busy");
  }
}

function showError(text) {
  $("error").textContent = text;
}

// ---- the probe -----------------------------------------------------------------------------------------

function setFiles(fileList) {
  const files = [...fileList].filter((file) => file.type.startsWith("image/")).slice(0, about.max_pictures);
  if (!files.length) {
    showError("this is not an image");
    return;
  }
  pushProbe({ files, crops: [] });
}

function setCrop(crop) {
  pushProbe({ files: [], crops: [crop] });
}

const visited = [];
function pushProbe(next) {
  visited.push(next);
  const url = next.crops.length ? `?crop=${next.crops[0].slice(5)}` : "/";
  history.pushState(visited.length - 1, "", url);
  openProbe(next);
}

function openProbe(next) {
  probe = next;
  drawProbe();
  window.scrollTo(0, 0);
  search();
}

function drawProbe() {
  const images = [
    ...probe.files.map((file) => URL.createObjectURL(file)),
    ...probe.crops.map((crop) => cropUrl(crop)),
  ].map((source) => {
    const image = element("img", { src: source, alt: "Probe" });
    image.addEventListener("load", () => URL.revokeObjectURL(source), { once: true });
    return image;
  });
  $("probes").replaceChildren(...images);
  $("drop").classList.toggle("full", images.length > 0);
  $("drop-text").hidden = images.length > 0;
}

// ---- drawing -------------------------------------------------------------------------------------------

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function svgElement(name, attributes = {}, text = "") {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.textContent = text;
  return node;
}

const cropUrl = (crop) => `/api/crops/${crop.slice(5)}.jpg`;
const isWithin = (match) => result.threshold !== null && match.distance <= result.threshold;
const isImpossible = (match) => match.journey !== null && !match.journey.possible;
const matchClass = (match) => (isImpossible(match) ? " impossible" : isWithin(match) ? " within" : "");
const attributesOf = (match) => ATTRIBUTES.filter(({ name }) => match[name])
  .map(({ name }) => `${match[name]} ${percent(match[`${name}_confidence`])}`);
const percent = (share) => `${Math.round(100 * share)} %`;

function formatTime(ms) {
  if (ms > 8.64e15) return `${ms} ms since 1970`; // no date holds it
  return ms < 0 ? "" : new Date(ms).toISOString().replace("T", " ").slice(0, 19);
}

function draw() {
  const matches = result.answers;
  $("empty").hidden = matches.length > 0;
  $("empty").textContent = "No crop of the archive passes these filters.";
  drawVerdict();
  const sightings = result.sightings.filter((sighting) => sighting.camera_id);
  $("probe-facts").textContent = sightings
    .map((sighting) => `camera ${sighting.camera_id} ${formatTime(sighting.captured_at)}`).join("; ");
  $("gallery").replaceChildren(...matches.map(card));
  drawTimeline(matches);
  drawPlaces(matches);
  showView(currentView());
}

function drawVerdict() {
  const count = result.answers.length;
  const labels = { found: "Found", "not found": "Not in the archive", nothing: "Nothing", ranked: "Ranked" };
  const within = result.answers.filter(isWithin).length;
  const note = result.threshold === null
    ? `${count} matches; not calibrated`
    : `${within} of ${count} matches within ${result.threshold.toFixed(2)} (false alarms ${percent(result.false_alarm_rate)})`;
  const time = `embedded in ${result.embed_ms} ms, searched in ${result.search_ms} ms`;
  $("verdict").replaceChildren(
    element("span", { class: result.verdict.replace(" ", "-") }, labels[result.verdict]),
    element("span", { class: "soft small" }, `  ${note} · ${time}`),
  );
  if (result.generation !== about.generation) {
    $("verdict").append(element("span", { class: "warn" }, ` · of ${result.generation}; the archive is now ${about.generation}: search again`));
  }
}

function spanOf(track) {
  if (!track || track.captured_to === null) return "";
  return ` in ${Math.round((track.captured_to - track.captured_from) / 1000)} s`;
}

function card(match) {
  const text = element("span", { class: "text" },
    element("span", { class: "first" }, element("span", {}, `Rank ${match.rank}`), element("span", {}, match.distance.toFixed(3))));
  if (match.likelihood !== null) {
    const bar = element("span");
    bar.style.width = percent(match.likelihood).replace(" ", "");
    text.append(element("span", { class: "meter", title: `${percent(match.likelihood)} likely the same vehicle` }, bar));
    text.append(element("span", {}, `${percent(match.likelihood)} likely the same vehicle`));
  }
  if (match.camera_id) text.append(element("span", {}, `camera ${match.camera_id}`));
  if (match.captured_at >= 0) text.append(element("span", {}, formatTime(match.captured_at)));
  text.append(element("span", { title: match.vehicle_model }, match.vehicle_model));
  const looks = attributesOf(match);
  if (looks.length) text.append(element("span", { class: "chips" }, ...looks.map((look) => element("span", { class: "chip" }, look))));
  if (match.crops_of_pass > 1) text.append(element("span", {}, `${match.crops_of_pass} crops of this track${spanOf(match.track)}`));
  if (isImpossible(match)) {
    const { km, seconds } = match.journey;
    text.append(element("span", { class: "warn" }, `impossible: ${km.toFixed(1)} km in ${Math.round(seconds)} s`));
  }
  const image = element("img", { alt: "", loading: match.rank > 24 ? "lazy" : "eager", decoding: "async" });
  image.src = cropUrl(match.crop);
  const button = element("button", { type: "button", class: `hit${matchClass(match)}`, "data-crop": match.crop,
    "aria-label": `Rank ${match.rank}, camera ${match.camera_id}: search from this` }, image, text);
  button.addEventListener("click", () => setCrop(match.crop));
  return button;
}

function dot(match, attributes) {
  const circle = svgElement("circle", { class: `dot${matchClass(match)}`, ...attributes });
  circle.append(svgElement("title", {}, `rank ${match.rank}, camera ${match.camera_id}, ${formatTime(match.captured_at)}`));
  circle.addEventListener("click", () => showDetail(match));
  return circle;
}

function countByCamera(matches) {
  const counts = new Map();
  matches.forEach((match) => counts.set(match.camera_id || "unknown", (counts.get(match.camera_id || "unknown") || 0) + 1));
  return counts;
}

function drawTimeline(matches) {
  const timed = matches.filter((match) => match.captured_at >= 0);
  if (!timed.length) {
    $("timeline").replaceChildren("No match has a time.");
    return;
  }
  const times = timed.map((match) => match.captured_at);
  const first = Math.min(...times), last = Math.max(...times);
  const lanes = [...countByCamera(timed).keys()].sort();
  const width = 1000, left = 130, height = 26 * lanes.length + 44;
  const svg = svgElement("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  lanes.forEach((name, row) => {
    const y = 20 + 26 * row;
    svg.append(svgElement("line", { class: "lane", x1: left, x2: width - 10, y1: y, y2: y }));
    svg.append(svgElement("text", { x: left - 12, y: y + 4, "text-anchor": "end" }, name));
  });
  const x = (time) => left + 8 + (width - left - 26) * ((time - first) / Math.max(1, last - first));
  for (const match of [...timed].reverse()) {
    const y = 20 + 26 * lanes.indexOf(match.camera_id || "unknown");
    svg.append(dot(match, { cx: x(match.captured_at), cy: y, r: match.rank <= 10 ? 7 : 5 }));
  }
  svg.append(svgElement("text", { x: left, y: height - 6 }, formatTime(first)));
  svg.append(svgElement("text", { x: width - 10, y: height - 6, "text-anchor": "end" }, formatTime(last)));
  $("timeline").replaceChildren(svg);
}

function drawPlaces(matches) {
  const counts = countByCamera(matches);
  const cameras = Object.entries(about.positions);
  $("places").replaceChildren(cameras.length ? drawMap(cameras, counts) : drawBars(counts));
}

function drawMap(cameras, counts) {
  const lats = cameras.map(([, position]) => position[0]), lons = cameras.map(([, position]) => position[1]);
  const [south, north, west, east] = [Math.min(...lats), Math.max(...lats), Math.min(...lons), Math.max(...lons)];
  const longitudeScale = Math.cos(((south + north) / 2) * Math.PI / 180);
  const width = 1000, height = 560;
  const scale = Math.min((width - 160) / Math.max(1e-9, (east - west) * longitudeScale), (height - 100) / Math.max(1e-9, north - south));
  const svg = svgElement("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  for (const [name, [lat, lon]] of cameras) {
    const x = width / 2 + (lon - (west + east) / 2) * longitudeScale * scale, y = 50 + (north - lat) * scale;
    const count = counts.get(name) || 0;
    const group = cameraGroup(name, count);
    group.append(svgElement("circle", { class: count ? "dot" : "none", cx: x, cy: y, r: count ? 6 + 4 * Math.sqrt(count) : 4 }));
    group.append(svgElement("text", { x, y: y - (count ? 12 + 4 * Math.sqrt(count) : 9), "text-anchor": "middle" }, count ? `${name}: ${count}` : name));
    svg.append(group);
  }
  return svg;
}

function drawBars(counts) {
  const rows = [...counts].sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0]));
  const maximum = rows.length ? rows[0][1] : 1;
  const svg = svgElement("svg", { viewBox: `0 0 1000 ${24 * rows.length + 10}`, role: "img" });
  rows.forEach(([name, count], row) => {
    const group = cameraGroup(name, count);
    group.append(svgElement("text", { x: 118, y: 19 + 24 * row, "text-anchor": "end" }, name));
    group.append(svgElement("rect", { class: "length", x: 130, y: 6 + 24 * row, width: (780 * count) / maximum, height: 17, rx: 4 }));
    group.append(svgElement("text", { x: 138 + (780 * count) / maximum, y: 19 + 24 * row }, String(count)));
    svg.append(group);
  });
  return svg;
}

function cameraGroup(name, count) {
  const group = svgElement("g", { class: "camera" });
  group.append(svgElement("title", {}, `${name}: ${count} matches; click to search this camera only`));
  group.addEventListener("click", () => {
    $("filters").elements.cameras.value = name;
    search();
  });
  return group;
}

function showDetail(match) {
  const facts = {
    rank: match.rank, distance: match.distance.toFixed(4),
    likelihood: match.likelihood === null ? "not calibrated" : percent(match.likelihood),
    camera: match.camera_id || "unknown", "time (UTC)": formatTime(match.captured_at) || "unknown",
    track: match.track_id || "none", model: `${match.vehicle_model} (${percent(match.model_confidence)})`,
    ...(attributesOf(match).length ? { looks: attributesOf(match).join(", ") } : {}),
    crop: match.crop, object: match.uri,
  };
  if (match.journey) facts.journey = `${match.journey.km.toFixed(1)} km in ${Math.round(match.journey.seconds)} s` + (match.journey.possible ? "" : ": impossible");
  $("detail-image").src = cropUrl(match.crop);
  $("detail-facts").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, String(value))]));
  $("detail-search").onclick = () => { $("detail").close(); setCrop(match.crop); };
  $("detail").showModal();
}

// ---- views, keys, theme --------------------------------------------------------------------------------

const currentView = () => document.querySelector('#views [aria-selected="true"]').dataset.view;

function showView(name) {
  for (const tab of document.querySelectorAll("#views button")) tab.setAttribute("aria-selected", String(tab.dataset.view === name));
  for (const section of ["gallery", "timeline", "places"]) $(section).hidden = section !== name || !result?.answers.length;
}

function setTheme(next) {
  document.documentElement.dataset.theme = next;
  try { localStorage.setItem("theme", next); } catch { /* private windows have no storage */ }
}

function toggleTheme() {
  const chosen = document.documentElement.dataset.theme;
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  setTheme(dark ? "light" : "dark");
}

function moveFocus(key) {
  const cards = [...document.querySelectorAll(".hit")];
  if (!cards.length || currentView() !== "gallery") return false;
  const index = cards.indexOf(document.activeElement);
  const columns = getComputedStyle($("gallery")).gridTemplateColumns.split(" ").length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  const next = index < 0 ? 0 : Math.min(cards.length - 1, Math.max(0, index + step));
  cards[next].focus();
  return true;
}

const KEYS = {
  g: () => showView("gallery"), l: () => showView("timeline"), c: () => showView("places"), t: toggleTheme,
  o: () => $("file").click(), "/": () => $("filters").elements.since.focus(), "?": () => $("help").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) || $("app").hidden) return;
  if (event.key.startsWith("Arrow")) {
    if (moveFocus(event.key)) event.preventDefault();
  } else if (event.key === " " && document.activeElement.dataset.crop) {
    event.preventDefault();
    showDetail(result.answers.find((match) => match.crop === document.activeElement.dataset.crop));
  } else if (KEYS[event.key]) {
    event.preventDefault();
    KEYS[event.key]();
  }
});

// ---- start ---------------------------------------------------------------------------------------------

$("views").addEventListener("click", (event) => event.target.dataset.view && showView(event.target.dataset.view));
$("theme").addEventListener("click", toggleTheme);
$("help-button").addEventListener("click", () => $("help").showModal());
$("detail-close").addEventListener("click", () => $("detail").close());
$("filters").addEventListener("submit", (event) => { event.preventDefault(); search(); });
$("file").addEventListener("change", (event) => { if (event.target.files.length) setFiles(event.target.files); event.target.value = ""; });
$("drop").addEventListener("keydown", (event) => { if (event.key === "Enter") $("file").click(); });
$("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  try { await login($("token").value); await start(); } catch { $("login-error").textContent = "The token is wrong."; }
});
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop" && about && event.dataTransfer.files.length) setFiles(event.dataTransfer.files);
  });
}
document.addEventListener("paste", (event) => { if (about && event.clipboardData.files.length) setFiles(event.clipboardData.files); });
window.addEventListener("popstate", (event) => { const previous = visited[event.state]; if (previous) openProbe(previous); });

async function loadAbout() {
  about = await fetchJson("/api/about");
  $("about").textContent = `${about.crops.toLocaleString("en")} ${about.unit}s · ${about.cameras.length} cameras · ${formatTime(about.first ?? -1)} – ${formatTime(about.last ?? -1)} · ${about.generation}`;
  $("cameras").replaceChildren(...about.cameras.map((name) => element("option", { value: name })));
  const models = Object.entries(about.models).sort((a, b) => a[1].localeCompare(b[1]));
  const chosen = $("filters").elements.models.value;
  $("filters").elements.models.replaceChildren(element("option", { value: "" }, "any"), ...models.map(([id, name]) => element("option", { value: id }, name)));
  $("filters").elements.models.value = chosen in about.models ? chosen : "";
  for (const { name, plural } of ATTRIBUTES) {
    const known = about.attributes[name] || [];
    $(plural).replaceChildren(...known.map((value) => element("option", { value })));
    for (const label of document.querySelectorAll(`[data-attribute="${name}"]`)) label.hidden = !known.length;
  }
  $("confidence").hidden = !Object.keys(about.attributes).length;
  $("impossible").hidden = !Object.keys(about.positions).length;
}

// The archive of an open page changes: another generation goes live, crops are added.
const ABOUT_SECONDS = 30;
async function refreshAbout() {
  if (!about || document.hidden || $("app").hidden) return;
  await loadAbout().catch(() => {});
  if (result) drawVerdict();
}

async function start() {
  await loadAbout();
  $("login").hidden = true;
  $("app").hidden = false;
  const crop = new URLSearchParams(location.search).get("crop");
  if (crop) setCrop(`crop:${crop}`);
}

try { const stored = localStorage.getItem("theme"); if (stored === "light" || stored === "dark") setTheme(stored); } catch { /* private windows have no storage */ }
(async () => {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) {
    history.replaceState(null, "", location.pathname + location.search);
    await login(token).catch(() => {});
  }
  await start().catch(() => {});
})();
setInterval(refreshAbout, 1000 * ABOUT_SECONDS);
