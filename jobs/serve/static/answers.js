// The answers of a search: verdict, gallery, timeline and map. They belong to the probe shown, or are not there.

import { $, element, formatLeg, formatTime, iconButton, percent, plural } from "./dom.js";
import { cropImage, imageOf } from "./api.js";
import { drawMap } from "./map.js";
import { go, state } from "./state.js";
import { drawTimeline } from "./timeline.js";

const EAGER = 24;
export const VERDICTS = { confirmed: "Confirm", rejected: "Reject", unsure: "Unsure" };
const VERDICT_ICONS = { confirmed: "confirm", rejected: "reject", unsure: "unsure" };

let result = null;
let about = null;
let desk = null;

// actions: look(crop), searchFrom(crop), judge(crop, verdict), verdictOf(crop), mayJudge().
export function setUp(facts, actions) {
  about = facts;
  desk = actions;
}

export const answers = () => (result ? result.answers : []);
export const shownResult = () => result;

export const isWithin = (match) => result !== null && result.threshold !== null && match.distance <= result.threshold;
export const isImpossible = (match) => Boolean(match.journey) && match.journey.possible === false;
const classOf = (match) => (isImpossible(match) ? " impossible" : isWithin(match) ? " within" : "");

export function attributesOf(match) {
  return [["color", match.color_confidence], ["body_type", match.body_type_confidence]]
    .filter(([name]) => match[name]).map(([name, confidence]) => `${match[name]} ${percent(confidence)}`);
}

// Take away everything that belongs to another probe or to other filters.
export function clear(text) {
  result = null;
  $("verdict").replaceChildren();
  for (const id of ["gallery", "timeline", "map"]) $(id).replaceChildren();
  $("empty").textContent = text;
  drawView();
}

export function show(next) {
  result = next;
  drawVerdict();
  $("empty").textContent = "No crop of the archive passes these filters.";
  $("gallery").replaceChildren(...result.answers.map(card));
  for (const id of ["timeline", "map"]) $(id).replaceChildren();
  drawView();
}

export function drawVerdict() {
  if (!result) return;
  // A search with the confirmed crops leaves them out, so it says nothing of whether the archive has the vehicle.
  const labels = result.feedback ? { found: "More matches", "not found": "No further match", nothing: "Nothing", ranked: "Ranked" }
    : { found: "Found", "not found": "Not in the archive", nothing: "Nothing", ranked: "Ranked" };
  const within = result.answers.filter(isWithin).length;
  const count = plural(result.answers.length, "match", "matches");
  const note = result.threshold === null ? `${count}; not calibrated`
    : `${within} of ${count} within ${result.threshold.toFixed(2)} (false alarms ${percent(result.false_alarm_rate)})`;
  const judged = result.feedback ? ` · by ${result.feedback.confirmed} confirmed, away from ${result.feedback.rejected} rejected` : "";
  $("verdict").replaceChildren(
    element("span", { class: `verdict ${result.feedback && result.verdict === "not found" ? "" : result.verdict.replace(" ", "-")}` }, labels[result.verdict]),
    element("span", { class: "soft small" }, `${note}${judged} · ${Math.round(result.embed_ms + result.search_ms)} ms`));
  if (result.generation !== about.generation) {
    $("verdict").append(element("span", { class: "warn small" }, `of ${result.generation}; the archive is now ${about.generation}: search again`));
  }
}

function spanOf(track) {
  if (!track || track.captured_to === null) return "";
  return ` in ${Math.round((track.captured_to - track.captured_from) / 1000)} s`;
}

function card(match) {
  const head = match.likelihood === null ? match.distance.toFixed(3) : percent(match.likelihood);
  const lines = [
    element("span", { class: "first" }, element("span", { class: "rank" }, `${match.rank}`), element("span", {}, head),
      match.likelihood !== null && element("span", { class: "soft" }, match.distance.toFixed(3))),
    (match.camera_id || match.captured_at >= 0) && element("span", { class: "seen" },
      [match.camera_id && `camera ${match.camera_id}`, match.crops_of_pass > 1 && `${match.crops_of_pass} crops${spanOf(match.track)}`].filter(Boolean).join(" · ")),
    match.captured_at >= 0 && element("span", { class: "seen" }, formatTime(match.captured_at)),
    match.model_id >= 0 && element("span", { title: match.vehicle_model }, match.vehicle_model),
  ];
  const looks = attributesOf(match);
  if (looks.length) lines.push(element("span", {}, looks.join(" · ")));
  if (isImpossible(match)) lines.push(element("span", { class: "warn" }, `impossible: ${formatLeg(match.journey)}`));
  const image = element("img", { alt: "", loading: match.rank > EAGER ? "lazy" : "eager", decoding: "async", width: 160, height: 120, src: cropImage(match.crop) });
  const meter = match.likelihood === null ? null : element("span", { class: "meter" }, element("span"));
  if (meter) meter.firstChild.style.width = percent(match.likelihood).replace(" ", "");
  const look = element("button", { type: "button", class: "look", onclick: () => desk.look(match.crop) }, image, meter, element("span", { class: "text" }, ...lines));
  const actions = element("div", { class: "actions" }, ...judgeButtons(match.crop),
    iconButton("search", "Search from this", () => desk.searchFrom(match.crop), { class: "icon-button search-from" }));
  return element("li", { class: `hit${classOf(match)}`, "data-crop": match.crop, "data-verdict": desk.verdictOf(match.crop) || "" }, look, actions);
}

// Three buttons, of which the one that was said is pressed; none without an open case.
export function judgeButtons(crop) {
  if (!desk.mayJudge()) return [];
  return Object.entries(VERDICTS).map(([verdict, label]) => iconButton(VERDICT_ICONS[verdict], label, () => desk.judge(crop, verdict), {
    class: `icon-button judge ${verdict}`, "data-verdict": verdict, "aria-pressed": String(desk.verdictOf(crop) === verdict),
  }));
}

// Show a judgement at every card of a crop, without drawing the answers again.
export function drawJudgements() {
  for (const item of document.querySelectorAll(".hit")) {
    const crop = item.dataset.crop;
    item.dataset.verdict = desk.verdictOf(crop) || "";
    const actions = item.querySelector(".actions");
    const focused = actions.contains(document.activeElement) ? document.activeElement.dataset.verdict : null;
    actions.querySelectorAll(".judge").forEach((button) => button.remove());
    actions.prepend(...judgeButtons(crop));
    if (focused) actions.querySelector(`[data-verdict="${focused}"]`)?.focus();
  }
  $("timeline").replaceChildren();
  drawView();
}

// The timeline is drawn for the width of the screen.
export function listen() {
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (width === window.innerWidth) return;
    width = window.innerWidth;
    $("timeline").replaceChildren();
    if (result) drawView();
  });
}

// ---- views ---------------------------------------------------------------------------------------------

function entry(match) {
  return {
    crop: match.crop, image: imageOf(match.crop), camera: match.camera_id || "unknown", time: match.captured_at,
    className: classOf(match).trim(), label: `rank ${match.rank}, camera ${match.camera_id || "unknown"}, ${formatTime(match.captured_at)}`,
    strong: match.rank <= 10, verdict: desk.verdictOf(match.crop),
  };
}

export function countByCamera(matches) {
  const counts = new Map();
  for (const match of matches) counts.set(match.camera_id || "unknown", (counts.get(match.camera_id || "unknown") || 0) + 1);
  return counts;
}

export function drawView() {
  const { view } = state();
  for (const tab of document.querySelectorAll("#views [role=tab]")) {
    const chosen = tab.dataset.view === view;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
  }
  const matches = answers();
  for (const name of ["gallery", "timeline", "map"]) $(`${name}-panel`).hidden = name !== view || !matches.length;
  $("case-panel").hidden = view !== "case";
  $("empty").hidden = view === "case" || matches.length > 0;
  if (matches.length && view === "timeline" && !$("timeline").hasChildNodes()) {
    drawTimeline($("timeline"), matches.map(entry), desk.look);
  }
  if (matches.length && view === "map" && !$("map").hasChildNodes()) {
    drawMap($("map"), about.positions, {
      counts: countByCamera(matches),
      pick: (camera) => go({ rules: { ...state().rules, cameras: [camera] }, hit: null, view: "gallery" }),
      hint: "search this camera only",
      tiles: about.tiles,
    });
  }
}

export function moveFocus(key) {
  const looks = [...document.querySelectorAll("#gallery .look")];
  if (!looks.length || state().view !== "gallery") return false;
  const inside = document.activeElement.closest?.(".hit");
  const index = inside ? looks.indexOf(inside.querySelector(".look")) : -1;
  const columns = getComputedStyle($("gallery")).gridTemplateColumns.split(" ").length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  looks[index < 0 ? 0 : Math.min(looks.length - 1, Math.max(0, index + step))].focus();
  return true;
}

export const focusedCrop = () => document.activeElement.closest?.(".hit")?.dataset.crop || null;

