// The viewer: a match in its own size beside the probe. Both zoom and move together.

import { $, element, formatLeg, formatTime, percent } from "./dom.js";
import { cropImage, originalOf, readCrop } from "./api.js";
import { answers, attributesOf, isImpossible, isWithin, judgeButtons, shownResult } from "./answers.js";
import { go, goBack, state } from "./state.js";

const MAX_SCALE = 16;
const view = { scale: 1, x: 0, y: 0 };
let crops = []; // what previous and next go through
let shown = null;
let desk = null;
let serial = 0;
let isEntry = false; // whether the history has an entry without the match before this one

export const isOpen = () => $("viewer").open;

// Look at a crop among others, the answers by default.
export function look(crop, among = null) {
  crops = among || answers().map((match) => match.crop);
  isEntry = isEntry || !state().hit;
  go({ hit: crop }, { replace: Boolean(state().hit) });
}

export function draw({ hit }) {
  if (!hit) {
    if (isOpen()) $("viewer").close();
    return;
  }
  if (!crops.includes(hit)) crops = answers().map((match) => match.crop);
  if (!isOpen()) {
    $("viewer").showModal();
    $("viewer-stage").focus();
  }
  if (shown !== hit) {
    shown = hit;
    reset();
    drawHit(hit);
  } else drawJudgement();
}

// The answers arrive after a link with a match was opened, or went away.
export function drawAgain() {
  if (!isOpen() || !shown) return;
  crops = crops.includes(shown) && crops.length > 1 ? crops : answers().map((match) => match.crop);
  drawHit(shown);
}

export function drawJudgement() {
  if (!shown) return;
  const focused = $("viewer-judge").contains(document.activeElement) ? document.activeElement.dataset.verdict : null;
  $("viewer-judge").replaceChildren(...judgeButtons(shown));
  if (focused) $("viewer-judge").querySelector(`[data-verdict="${focused}"]`)?.focus();
}

function drawHit(crop) {
  const match = answers().find((one) => one.crop === crop);
  const place = crops.indexOf(crop);
  $("viewer-title").textContent = match ? `Rank ${match.rank}` : "Crop";
  $("viewer-place").textContent = place >= 0 ? `${place + 1} of ${crops.length}` : "";
  $("viewer-previous").disabled = place <= 0;
  $("viewer-next").disabled = place < 0 || place >= crops.length - 1;
  setImage($("viewer-image"), crop);
  const probe = shownResult()?.probes[0]?.spec || state().probes[0];
  const hasPair = Boolean(probe) && probe !== crop;
  $("viewer-probe-pane").hidden = !hasPair || $("viewer-pair").getAttribute("aria-pressed") !== "true";
  $("viewer-pair").disabled = !hasPair;
  if (hasPair && $("viewer-probe").dataset.spec !== probe) setImage($("viewer-probe"), probe);
  drawFacts(match, null);
  drawJudgement();
  $("viewer-track").replaceChildren();
  $("viewer-video").hidden = true;
  const own = ++serial;
  readCrop(crop).then((facts) => {
    if (own !== serial) return;
    drawFacts(match, facts);
    drawTrack(facts);
    $("viewer-video").hidden = !facts.video;
    if (facts.video) $("viewer-video").href = facts.video;
  }).catch((error) => {
    if (own === serial) $("viewer-facts").replaceChildren(element("p", { class: "error" }, `${error.message} ${error.remedy}`));
  });
}

function setImage(image, spec) {
  image.dataset.spec = spec;
  image.classList.remove("broken");
  // The small image is there at once; the large one takes its place.
  image.src = spec.startsWith("crop:") ? cropImage(spec) : originalOf(spec);
  if (!spec.startsWith("crop:")) return;
  const large = new Image();
  large.onload = () => { if (image.dataset.spec === spec) { image.src = large.src; drawSize(); } };
  large.onerror = () => { if (image.dataset.spec === spec) image.classList.add("broken"); };
  large.src = originalOf(spec);
}

function drawSize() {
  const image = $("viewer-image"), { naturalWidth: width, naturalHeight: height } = image;
  const fit = Math.min(image.clientWidth / width, image.clientHeight / height); // 1 shows a pixel as a pixel
  $("viewer-size").textContent = width ? `${width} × ${height} px · ${Math.round(100 * fit * view.scale)} %` : "";
}

function drawFacts(match, facts) {
  const rows = [];
  const add = (name, value, className = "") => { if (value) rows.push(element("dt", {}, name), element("dd", { class: className }, value)); };
  if (match) {
    add("Likelihood", match.likelihood === null ? "not calibrated" : percent(match.likelihood), isWithin(match) ? "good" : "");
    add("Distance", match.distance.toFixed(4));
  }
  const known = match || facts;
  if (known) {
    add("Camera", known.camera_id || "unknown");
    add("Time (UTC)", formatTime(known.captured_at) || "unknown");
    if (known.model_confidence > 0) add("Model", `${known.vehicle_model} (${percent(known.model_confidence)})`);
    if (match && attributesOf(match).length) add("Looks", attributesOf(match).join(", "));
    if (match && match.journey) add("From the probe", formatLeg(match.journey) + (isImpossible(match) ? ": impossible" : ""), isImpossible(match) ? "warn" : "");
    add("Track", known.track_id);
    add("Crop", known.crop);
    add("Object", known.uri);
  }
  $("viewer-facts").replaceChildren(element("dl", {}, ...rows));
}

function drawTrack({ track }) {
  if (track.length < 2) return;
  $("viewer-track").replaceChildren(element("p", { class: "small soft" }, `The ${track.length} crops of this track`),
    element("div", { class: "strip" }, ...track.map((one) => element("button", {
      type: "button", class: "thumb", "aria-pressed": String(one.spec === shown), "aria-label": formatTime(one.captured_at) || one.spec, title: formatTime(one.captured_at),
      onclick: (event) => {
        setImage($("viewer-image"), one.spec);
        for (const button of event.currentTarget.parentNode.children) button.setAttribute("aria-pressed", String(button === event.currentTarget));
      },
    }, element("img", { alt: "", src: one.image, loading: "lazy" })))));
}

export function step(by) {
  const next = crops[crops.indexOf(shown) + by];
  if (next) go({ hit: next }, { replace: true });
}

// ---- zoom ----------------------------------------------------------------------------------------------

function apply() {
  for (const id of ["viewer-image", "viewer-probe"]) $(id).style.transform = `translate(${100 * view.x}%, ${100 * view.y}%) scale(${view.scale})`;
  drawSize();
}

function reset() {
  Object.assign(view, { scale: 1, x: 0, y: 0 });
  apply();
}

// Zoom around a point, in shares of the pane from its middle.
function zoom(factor, px = 0, py = 0) {
  const scale = Math.min(MAX_SCALE, Math.max(1, view.scale * factor));
  const change = scale / view.scale;
  view.x = px - (px - view.x) * change;
  view.y = py - (py - view.y) * change;
  view.scale = scale;
  keepInside();
}

function keepInside() {
  const room = (view.scale - 1) / 2;
  view.x = Math.min(room, Math.max(-room, view.x));
  view.y = Math.min(room, Math.max(-room, view.y));
  apply();
}

function listenToPane(pane) {
  const pointers = new Map();
  let spread = 0;
  const share = (event) => {
    const box = pane.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width - 0.5, (event.clientY - box.top) / box.height - 0.5];
  };
  pane.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 400), ...share(event));
  }, { passive: false });
  pane.addEventListener("dblclick", (event) => (view.scale > 1 ? reset() : zoom(3, ...share(event))));
  pane.addEventListener("pointerdown", (event) => {
    pointers.set(event.pointerId, share(event));
    pane.setPointerCapture(event.pointerId);
  });
  pane.addEventListener("pointermove", (event) => {
    if (!pointers.has(event.pointerId)) return;
    const [x, y] = share(event), [x0, y0] = pointers.get(event.pointerId);
    pointers.set(event.pointerId, [x, y]);
    if (pointers.size === 2) {
      const [[ax, ay], [bx, by]] = [...pointers.values()];
      const distance = Math.hypot(ax - bx, ay - by);
      if (spread) zoom(distance / spread, (ax + bx) / 2, (ay + by) / 2);
      spread = distance;
    } else {
      view.x += x - x0;
      view.y += y - y0;
      keepInside();
    }
  });
  for (const name of ["pointerup", "pointercancel"]) pane.addEventListener(name, (event) => { pointers.delete(event.pointerId); spread = 0; });
}

const KEYS = {
  ArrowLeft: () => step(-1), ArrowRight: () => step(1), "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: reset,
  c: () => desk.judge(shown, "confirmed"), x: () => desk.judge(shown, "rejected"), u: () => desk.judge(shown, "unsure"),
  s: () => desk.searchFrom(shown), p: () => $("viewer-pair").click(),
};

export function listen(actions) {
  desk = actions;
  listenToPane($("viewer-pane"));
  listenToPane($("viewer-probe-pane"));
  $("viewer").addEventListener("close", () => {
    const crop = shown;
    shown = null;
    serial += 1;
    if (state().hit && isEntry) goBack({ hit: null });
    else if (state().hit) go({ hit: null }, { replace: true });
    isEntry = false;
    document.querySelector(`.hit[data-crop="${crop}"] .look`)?.focus();
  });
  $("viewer").addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
    event.preventDefault();
    event.stopPropagation();
    KEYS[event.key]();
  });
  $("viewer-image").addEventListener("load", drawSize);
  $("viewer-previous").addEventListener("click", () => step(-1));
  $("viewer-next").addEventListener("click", () => step(1));
  $("viewer-in").addEventListener("click", () => zoom(1.5));
  $("viewer-out").addEventListener("click", () => zoom(1 / 1.5));
  $("viewer-fit").addEventListener("click", reset);
  $("viewer-close").addEventListener("click", () => $("viewer").close());
  $("viewer-search").addEventListener("click", () => desk.searchFrom(shown));
  $("viewer-pair").addEventListener("click", () => {
    const on = $("viewer-pair").getAttribute("aria-pressed") !== "true";
    $("viewer-pair").setAttribute("aria-pressed", String(on));
    $("viewer-probe-pane").hidden = !on;
  });
}
