"use strict";
// One page, one state: `probe` is what was asked with, `found` what was answered. Everything on the screen is
// drawn from these two. Text goes in by textContent only: names of cameras and models are not markup.

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
let about = null;
let probe = { files: [], crops: [] };
let found = null;
let running = null;

// ---- talking to the server -----------------------------------------------------------------------------

async function ask(path, options = {}) {
  const answer = await fetch(path, { credentials: "same-origin", ...options });
  if (answer.status === 401) {
    showLogin();
    throw new Error("show the token");
  }
  const body = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
  if (!answer.ok) {
    const said = body.error || (body.detail ? "the server did not understand the request" : "refused");
    throw new Error([said, body.remedy].filter(Boolean).join(". "));
  }
  return body;
}

async function login(token) {
  const headers = { "Content-Type": "application/json" };
  await ask("/api/login", { method: "POST", headers, body: JSON.stringify({ token }) });
}

function showLogin() {
  $("desk").hidden = true;
  $("login").hidden = false;
  $("token").focus();
}

function commas(text) {
  return text.split(",").map((name) => name.trim()).filter(Boolean);
}

function filters() {
  const form = $("filters").elements;
  const time = (text) => (text ? text + "Z" : null);
  return {
    top: Number(form.top.value),
    cameras: commas(form.cameras.value),
    not_cameras: commas(form.not_cameras.value),
    since: time(form.since.value),
    until: time(form.until.value),
    models: form.models.value === "" ? [] : [Number(form.models.value)],
    max_distance: form.max_distance.value === "" ? null : Number(form.max_distance.value),
    same_camera: form.same_camera.checked,
    every_crop: form.every_crop.checked,
    rerank: form.rerank.checked,
    drop_impossible: form.drop_impossible.checked,
  };
}

async function search() {
  if (!probe.files.length && !probe.crops.length) {
    say("choose a picture first");
    return;
  }
  running?.abort();
  const mine = (running = new AbortController());
  const body = new FormData();
  probe.files.forEach((file) => body.append("picture", file));
  probe.crops.forEach((crop) => body.append("crop", crop));
  body.append("rules", JSON.stringify(filters()));
  document.body.classList.add("busy");
  say("");
  const started = performance.now();
  try {
    const answer = await ask("/api/search", { method: "POST", body, signal: mine.signal });
    found = { ...answer, total_ms: performance.now() - started };
    draw();
  } catch (error) {
    if (error.name !== "AbortError") say(error.message);
  } finally {
    if (running === mine) document.body.classList.remove("busy");
  }
}

function say(text) {
  $("error").textContent = text;
}

// ---- the probe -----------------------------------------------------------------------------------------

function setFiles(list) {
  const files = [...list].filter((file) => file.type.startsWith("image/")).slice(0, about.max_pictures);
  if (!files.length) {
    say("this is not a picture");
    return;
  }
  remember({ files, crops: [] });
}

function setCrop(crop) {
  remember({ files: [], crops: [crop] });
}

const visited = [];
function remember(next) {
  visited.push(next);
  const url = next.crops.length ? `?crop=${next.crops[0].slice(5)}` : "/";
  history.pushState(visited.length - 1, "", url);
  open(next);
}

function open(next) {
  probe = next;
  drawProbe();
  window.scrollTo(0, 0);
  search();
}

function drawProbe() {
  const pictures = [
    ...probe.files.map((file) => URL.createObjectURL(file)),
    ...probe.crops.map((crop) => cropUrl(crop)),
  ].map((source) => {
    const image = make("img", { src: source, alt: "Probe" });
    image.addEventListener("load", () => URL.revokeObjectURL(source), { once: true });
    return image;
  });
  $("probes").replaceChildren(...pictures);
  $("drop").classList.toggle("full", pictures.length > 0);
  $("drop-text").hidden = pictures.length > 0;
}

// ---- drawing -------------------------------------------------------------------------------------------

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function shape(name, attributes = {}, text = "") {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
}

const cropUrl = (crop) => `/api/crops/${crop.slice(5)}.jpg`;
const strong = (each) => about.threshold !== null && each.distance <= about.threshold;
const impossible = (each) => each.journey !== null && !each.journey.possible;
const kind = (each) => (impossible(each) ? " impossible" : strong(each) ? " strong" : "");
const percent = (share) => `${Math.round(100 * share)} %`;

function moment(ms) {
  return ms < 0 ? "" : new Date(ms).toISOString().replace("T", " ").slice(0, 19);
}

function draw() {
  const answers = found.answers;
  $("empty").hidden = answers.length > 0;
  $("empty").textContent = "Nothing in the archive passes these filters.";
  drawVerdict();
  const seen = found.sightings.filter((each) => each.camera_id);
  $("probe-facts").textContent = seen
    .map((each) => `camera ${each.camera_id} ${moment(each.captured_at)}`).join("; ");
  $("gallery").replaceChildren(...answers.map(card));
  drawTimeline(answers);
  drawPlaces(answers);
  show(view());
}

function drawVerdict() {
  const many = found.answers.length;
  const words = { found: "Found", "not found": "Not in the archive", nothing: "Nothing", ranked: "Ranked" };
  const within = found.answers.filter(strong).length;
  const note = about.threshold === null
    ? `${many} answers; not calibrated`
    : `${within} of ${many} answers within ${about.threshold.toFixed(2)} (false alarms ${percent(about.false_alarm_rate)})`;
  const time = `embedded in ${found.embed_ms} ms, searched in ${found.search_ms} ms`;
  $("verdict").replaceChildren(
    make("span", { class: found.verdict.replace(" ", "-") }, words[found.verdict]),
    make("span", { class: "soft small" }, `  ${note} · ${time}`),
  );
}

function card(each) {
  const words = make("span", { class: "words" },
    make("span", { class: "first" }, make("span", {}, `Rank ${each.rank}`), make("span", {}, each.distance.toFixed(3))));
  if (each.likelihood !== null) {
    const bar = make("span");
    bar.style.width = percent(each.likelihood).replace(" ", "");
    words.append(make("span", { class: "meter", title: `${percent(each.likelihood)} likely the same` }, bar));
    words.append(make("span", {}, `${percent(each.likelihood)} likely the same`));
  }
  if (each.camera_id) words.append(make("span", {}, `camera ${each.camera_id}`));
  if (each.captured_at >= 0) words.append(make("span", {}, moment(each.captured_at)));
  words.append(make("span", { title: each.vehicle_model }, each.vehicle_model));
  if (each.crops_of_pass > 1) words.append(make("span", {}, `${each.crops_of_pass} crops of this pass`));
  if (impossible(each)) {
    const { km, seconds } = each.journey;
    words.append(make("span", { class: "warn" }, `impossible: ${km.toFixed(1)} km in ${Math.round(seconds)} s`));
  }
  const image = make("img", { alt: "", loading: each.rank > 24 ? "lazy" : "eager", decoding: "async" });
  image.src = cropUrl(each.crop);
  const button = make("button", { type: "button", class: `hit${kind(each)}`, "data-crop": each.crop,
    "aria-label": `Rank ${each.rank}, camera ${each.camera_id}: search from this` }, image, words);
  button.addEventListener("click", () => setCrop(each.crop));
  return button;
}

function dot(each, attributes) {
  const circle = shape("circle", { class: `dot${kind(each)}`, ...attributes });
  circle.append(shape("title", {}, `rank ${each.rank}, camera ${each.camera_id}, ${moment(each.captured_at)}`));
  circle.addEventListener("click", () => showDetail(each));
  return circle;
}

function byCamera(answers) {
  const counts = new Map();
  answers.forEach((each) => counts.set(each.camera_id || "unknown", (counts.get(each.camera_id || "unknown") || 0) + 1));
  return counts;
}

function drawTimeline(answers) {
  const timed = answers.filter((each) => each.captured_at >= 0);
  if (!timed.length) {
    $("timeline").replaceChildren("No answer says when it was taken.");
    return;
  }
  const times = timed.map((each) => each.captured_at);
  const first = Math.min(...times), last = Math.max(...times);
  const lanes = [...byCamera(timed).keys()].sort();
  const width = 1000, left = 130, height = 26 * lanes.length + 44;
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  lanes.forEach((name, row) => {
    const y = 20 + 26 * row;
    svg.append(shape("line", { class: "lane", x1: left, x2: width - 10, y1: y, y2: y }));
    svg.append(shape("text", { x: left - 12, y: y + 4, "text-anchor": "end" }, name));
  });
  const x = (time) => left + 8 + (width - left - 26) * ((time - first) / Math.max(1, last - first));
  for (const each of [...timed].reverse()) {
    const y = 20 + 26 * lanes.indexOf(each.camera_id || "unknown");
    svg.append(dot(each, { cx: x(each.captured_at), cy: y, r: each.rank <= 10 ? 7 : 5 }));
  }
  svg.append(shape("text", { x: left, y: height - 6 }, moment(first)));
  svg.append(shape("text", { x: width - 10, y: height - 6, "text-anchor": "end" }, moment(last)));
  $("timeline").replaceChildren(svg);
}

function drawPlaces(answers) {
  const counts = byCamera(answers);
  const known = Object.entries(about.positions);
  $("places").replaceChildren(known.length ? map(known, counts) : bars(counts));
}

function map(known, counts) {
  const lats = known.map(([, place]) => place[0]), lons = known.map(([, place]) => place[1]);
  const [south, north, west, east] = [Math.min(...lats), Math.max(...lats), Math.min(...lons), Math.max(...lons)];
  const narrow = Math.cos(((south + north) / 2) * Math.PI / 180);
  const width = 1000, height = 560;
  const scale = Math.min((width - 160) / Math.max(1e-9, (east - west) * narrow), (height - 100) / Math.max(1e-9, north - south));
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  for (const [name, [lat, lon]] of known) {
    const x = width / 2 + (lon - (west + east) / 2) * narrow * scale, y = 50 + (north - lat) * scale;
    const many = counts.get(name) || 0;
    const group = camera(name, many);
    group.append(shape("circle", { class: many ? "dot" : "none", cx: x, cy: y, r: many ? 6 + 4 * Math.sqrt(many) : 4 }));
    group.append(shape("text", { x, y: y - (many ? 12 + 4 * Math.sqrt(many) : 9), "text-anchor": "middle" }, many ? `${name}: ${many}` : name));
    svg.append(group);
  }
  return svg;
}

function bars(counts) {
  const rows = [...counts].sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0]));
  const most = rows.length ? rows[0][1] : 1;
  const svg = shape("svg", { viewBox: `0 0 1000 ${24 * rows.length + 10}`, role: "img" });
  rows.forEach(([name, many], row) => {
    const group = camera(name, many);
    group.append(shape("text", { x: 118, y: 19 + 24 * row, "text-anchor": "end" }, name));
    group.append(shape("rect", { class: "length", x: 130, y: 6 + 24 * row, width: (780 * many) / most, height: 17, rx: 4 }));
    group.append(shape("text", { x: 138 + (780 * many) / most, y: 19 + 24 * row }, String(many)));
    svg.append(group);
  });
  return svg;
}

function camera(name, many) {
  const group = shape("g", { class: "camera" });
  group.append(shape("title", {}, `${name}: ${many} answers; click to search there only`));
  group.addEventListener("click", () => {
    $("filters").elements.cameras.value = name;
    search();
  });
  return group;
}

function showDetail(each) {
  const facts = {
    rank: each.rank, distance: each.distance.toFixed(4),
    likelihood: each.likelihood === null ? "not calibrated" : percent(each.likelihood),
    camera: each.camera_id || "unknown", "time (UTC)": moment(each.captured_at) || "unknown",
    track: each.track_id || "none", model: `${each.vehicle_model} (${percent(each.model_confidence)})`,
    crop: each.crop, object: each.uri,
  };
  if (each.journey) facts.journey = `${each.journey.km.toFixed(1)} km in ${Math.round(each.journey.seconds)} s` + (each.journey.possible ? "" : ": impossible");
  $("detail-picture").src = cropUrl(each.crop);
  $("detail-facts").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))]));
  $("detail-search").onclick = () => { $("detail").close(); setCrop(each.crop); };
  $("detail").showModal();
}

// ---- views, keys, theme --------------------------------------------------------------------------------

const view = () => document.querySelector('#views [aria-selected="true"]').dataset.view;

function show(name) {
  for (const tab of document.querySelectorAll("#views button")) tab.setAttribute("aria-selected", String(tab.dataset.view === name));
  for (const section of ["gallery", "timeline", "places"]) $(section).hidden = section !== name || !found?.answers.length;
}

function theme(next) {
  document.documentElement.dataset.theme = next;
  try { localStorage.setItem("theme", next); } catch { /* private windows keep nothing */ }
}

function toggleTheme() {
  const chosen = document.documentElement.dataset.theme;
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  theme(dark ? "light" : "dark");
}

function move(key) {
  const cards = [...document.querySelectorAll(".hit")];
  if (!cards.length || view() !== "gallery") return false;
  const at = cards.indexOf(document.activeElement);
  const columns = getComputedStyle($("gallery")).gridTemplateColumns.split(" ").length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  const next = at < 0 ? 0 : Math.min(cards.length - 1, Math.max(0, at + step));
  cards[next].focus();
  return true;
}

const KEYS = {
  g: () => show("gallery"), l: () => show("timeline"), c: () => show("places"), t: toggleTheme,
  o: () => $("file").click(), "/": () => $("filters").elements.since.focus(), "?": () => $("help").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) || $("desk").hidden) return;
  if (event.key.startsWith("Arrow")) {
    if (move(event.key)) event.preventDefault();
  } else if (event.key === " " && document.activeElement.dataset.crop) {
    event.preventDefault();
    showDetail(found.answers.find((each) => each.crop === document.activeElement.dataset.crop));
  } else if (KEYS[event.key]) {
    event.preventDefault();
    KEYS[event.key]();
  }
});

// ---- start ---------------------------------------------------------------------------------------------

$("views").addEventListener("click", (event) => event.target.dataset.view && show(event.target.dataset.view));
$("theme").addEventListener("click", toggleTheme);
$("help-button").addEventListener("click", () => $("help").showModal());
$("detail-close").addEventListener("click", () => $("detail").close());
$("filters").addEventListener("submit", (event) => { event.preventDefault(); search(); });
$("file").addEventListener("change", (event) => { if (event.target.files.length) setFiles(event.target.files); event.target.value = ""; });
$("drop").addEventListener("keydown", (event) => { if (event.key === "Enter") $("file").click(); });
$("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  try { await login($("token").value); await start(); } catch { $("login-error").textContent = "This is not the token."; }
});
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop" && about && event.dataTransfer.files.length) setFiles(event.dataTransfer.files);
  });
}
document.addEventListener("paste", (event) => { if (about && event.clipboardData.files.length) setFiles(event.clipboardData.files); });
window.addEventListener("popstate", (event) => { const before = visited[event.state]; if (before) open(before); });

async function start() {
  about = await ask("/api/about");
  $("login").hidden = true;
  $("desk").hidden = false;
  $("about").textContent = `${about.crops.toLocaleString("en")} crops · ${about.cameras.length} cameras · ${moment(about.first ?? -1)} – ${moment(about.last ?? -1)} · ${about.generation}`;
  $("cameras").replaceChildren(...about.cameras.map((name) => make("option", { value: name })));
  const models = Object.entries(about.models).sort((a, b) => a[1].localeCompare(b[1]));
  $("filters").elements.models.replaceChildren(make("option", { value: "" }, "any"), ...models.map(([id, name]) => make("option", { value: id }, name)));
  $("impossible").hidden = !Object.keys(about.positions).length;
  const crop = new URLSearchParams(location.search).get("crop");
  if (crop) setCrop(`crop:${crop}`);
}

try { const kept = localStorage.getItem("theme"); if (kept === "light" || kept === "dark") theme(kept); } catch { /* as above */ }
(async () => {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) {
    history.replaceState(null, "", location.pathname + location.search);
    await login(token).catch(() => {});
  }
  await start().catch(() => {});
})();
