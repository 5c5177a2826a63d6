// The filters: a form, and beside the answers a chip for each filter in force, which takes it away.

import { $, element, icon } from "./dom.js";
import { DEFAULT_RULES, go, state } from "./state.js";

const ATTRIBUTES = [["color", "colors"], ["body_type", "body_types"]];
const TIME = /^(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}:\d{2})(:\d{2})?)?Z?$/;
let models = {};

const splitCommas = (text) => [...new Set(text.split(",").map((name) => name.trim()).filter(Boolean))];

// What people write, 2026-01-10 or 2026-01-10 05:34, as ISO 8601 in UTC; null for other text.
export function parseTime(text) {
  const match = TIME.exec(text.trim());
  if (!match) return null;
  const iso = `${match[1]}T${match[2] || "00:00"}${match[3] || ":00"}Z`;
  return Number.isNaN(Date.parse(iso)) ? null : iso;
}

function timeOf(input) {
  const iso = input.value.trim() ? parseTime(input.value) : null;
  input.setCustomValidity(input.value.trim() && !iso ? "Write 2026-01-10 or 2026-01-10 05:34, in UTC." : "");
  return iso;
}

function readForm() {
  const form = $("filters").elements;
  const number = (input) => (input.value === "" ? null : Number(input.value));
  const rules = {
    ...DEFAULT_RULES,
    top: Number(form.top.value), cameras: splitCommas(form.cameras.value), not_cameras: splitCommas(form.not_cameras.value),
    since: timeOf(form.since), until: timeOf(form.until), models: form.models.value === "" ? [] : [Number(form.models.value)],
    max_distance: number(form.max_distance), same_camera: form.same_camera.checked, every_crop: !form.group_by_track.checked,
    rerank: form.rerank.checked, drop_impossible: form.drop_impossible.checked,
  };
  for (const [name, plural] of ATTRIBUTES) {
    rules[plural] = splitCommas(form[plural].value);
    rules[`not_${plural}`] = splitCommas(form[`not_${plural}`].value);
    const filtered = rules[plural].length || rules[`not_${plural}`].length;
    rules[`min_${name}_confidence`] = filtered ? number(form.min_confidence) : null;
  }
  return rules;
}

export function draw({ rules }) {
  const form = $("filters").elements;
  const time = (iso) => (iso ? iso.replace("T", " ").replace(/:00Z$|Z$/, "") : "");
  form.top.value = String(rules.top);
  if (form.top.value !== String(rules.top)) {
    form.top.append(element("option", {}, String(rules.top)));
    form.top.value = String(rules.top);
  }
  form.since.value = time(rules.since);
  form.until.value = time(rules.until);
  for (const input of [form.since, form.until]) input.setCustomValidity("");
  form.models.value = rules.models.length && String(rules.models[0]) in models ? String(rules.models[0]) : "";
  form.max_distance.value = rules.max_distance ?? "";
  for (const name of ["cameras", "not_cameras", "colors", "not_colors", "body_types", "not_body_types"]) form[name].value = rules[name].join(", ");
  form.min_confidence.value = rules.min_color_confidence ?? rules.min_body_type_confidence ?? "";
  for (const name of ["same_camera", "rerank", "drop_impossible"]) form[name].checked = rules[name];
  form.group_by_track.checked = !rules.every_crop;
  drawChips(rules);
}

function chipsOf(rules) {
  const chips = [];
  const add = (text, change) => chips.push({ text, change });
  const lists = [["cameras", "camera"], ["not_cameras", "not camera"], ["colors", "color"], ["not_colors", "not color"],
    ["body_types", "body type"], ["not_body_types", "not body type"]];
  for (const [name, noun] of lists) {
    for (const value of rules[name]) add(`${noun} ${value}`, { [name]: rules[name].filter((other) => other !== value) });
  }
  if (rules.since) add(`from ${rules.since.replace("T", " ").slice(0, 16)}`, { since: null });
  if (rules.until) add(`until ${rules.until.replace("T", " ").slice(0, 16)}`, { until: null });
  for (const id of rules.models) add(`model ${models[id] ?? id}`, { models: rules.models.filter((other) => other !== id) });
  if (rules.max_distance !== null) add(`distance up to ${rules.max_distance}`, { max_distance: null });
  if (rules.min_color_confidence !== null) add(`color confidence from ${rules.min_color_confidence}`, { min_color_confidence: null });
  if (rules.min_body_type_confidence !== null) add(`body type confidence from ${rules.min_body_type_confidence}`, { min_body_type_confidence: null });
  if (rules.same_camera) add("own camera included", { same_camera: false });
  if (rules.every_crop) add("every crop", { every_crop: false });
  if (rules.rerank) add("re-ranked", { rerank: false });
  if (rules.drop_impossible) add("impossible travel excluded", { drop_impossible: false });
  if (rules.top !== DEFAULT_RULES.top) add(`${rules.top} matches`, { top: DEFAULT_RULES.top });
  return chips;
}

function drawChips(rules) {
  const chips = chipsOf(rules);
  $("chips").hidden = !chips.length;
  $("filter-count").textContent = chips.length ? `${chips.length} in force` : "";
  $("chips").replaceChildren(...chips.map(({ text, change }) => element("li", {}, element("button", {
    type: "button", class: "chip", onclick: () => go({ rules: { ...state().rules, ...change }, hit: null }),
  }, element("span", {}, text), element("span", { class: "sr" }, ", remove"), icon("close")))));
  if (chips.length > 1) {
    $("chips").append(element("li", {}, element("button", { type: "button", class: "chip plain", onclick: reset }, "Remove all")));
  }
}

function reset() { go({ rules: DEFAULT_RULES, hit: null }); }

export function setUp(about) {
  models = about.models;
  const options = (id, values) => $(id).replaceChildren(...values.map((value) => element("option", { value })));
  options("known-cameras", about.cameras);
  for (const [name, plural] of ATTRIBUTES) {
    const known = about.attributes[name] || [];
    options(`known-${plural}`, known);
    for (const label of document.querySelectorAll(`[data-attribute="${name}"]`)) label.hidden = !known.length;
  }
  $("confidence").hidden = !Object.values(about.attributes).some((values) => values.length);
  $("impossible").hidden = !Object.keys(about.positions).length;
  const named = Object.entries(models).sort((a, b) => a[1].localeCompare(b[1]));
  $("filters").elements.models.replaceChildren(element("option", { value: "" }, "any"), ...named.map(([value, name]) => element("option", { value }, name)));
  $("model-filter").hidden = !named.length;
  draw(state());
}

export function listen(searchAgain) {
  $("filters").addEventListener("submit", (event) => {
    event.preventDefault();
    const rules = readForm();
    if (!$("filters").reportValidity()) return;
    if (JSON.stringify(rules) === JSON.stringify(state().rules)) searchAgain();
    else go({ rules, hit: null });
    if (matchMedia("(max-width: 820px)").matches) $("filter-fold").open = false;
  });
  $("filters").addEventListener("reset", (event) => { event.preventDefault(); reset(); });
}
