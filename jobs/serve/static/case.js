// Cases: choose one, judge, and see what it holds: probes, judgements, the journey, companions, notes, searches.

import { $, download, element, formatStamp, formatTime, iconButton, percent, plural } from "./dom.js";
import * as api from "./api.js";
import { drawMap, journeyTable } from "./map.js";
import { go, state } from "./state.js";

let about = null;
let desk = null; // look(crop, among), searchFrom(spec), report(error, retry, isChange), redraw()
let cases = [];
let document_ = null;
let journey = null;
let verdicts = new Map();

export const mayJudge = () => document_ !== null && document_.case.state === "open";
export const verdictOf = (crop) => verdicts.get(crop) || null;
const hasRole = (role) => about.user.roles.includes(role);

export const confirmedCrops = () => [...verdicts].filter(([, verdict]) => verdict === "confirmed").map(([crop]) => crop);

// The number that a search gives as its reason.
export const caseNumber = () => (hasRole("judge") ? document_?.case.number || "" : $("case-text").value.trim());

export async function setUp(facts, actions) {
  about = facts;
  desk = actions;
  $("case-text-label").hidden = hasRole("judge");
  $("case-choice").hidden = !hasRole("judge");
  $("case-tab").hidden = !hasRole("judge");
  if (hasRole("judge")) {
    cases = (await api.listCases()).cases;
    drawChoice();
    await drawWatchNote();
  }
}

function drawChoice() {
  const open = cases.filter((one) => one.state === "open" || one.id === state().case);
  $("case").replaceChildren(element("option", { value: "" }, about.case_required ? "choose a case" : "no case"),
    ...open.map((one) => element("option", { value: one.id }, one.title ? `${one.number} – ${one.title}` : one.number)),
    element("option", { value: "new" }, "new case…"));
  $("case").value = state().case === null ? "" : String(state().case);
}

async function drawWatchNote() {
  const hits = (await api.listWatchHits()).hits.filter((hit) => !hit.judged);
  const numbers = [...new Set(hits.map((hit) => hit.case_number))];
  $("watch-note").hidden = !hits.length;
  if (!hits.length) return;
  $("watch-note").replaceChildren(element("span", {}, `${plural(hits.length, "new crop")} of watched vehicles: `),
    ...numbers.map((number) => {
      const hit = hits.find((one) => one.case_number === number);
      return element("button", { type: "button", class: "link", onclick: () => go({ case: hit.case_id, view: "case", hit: null }) }, `case ${number}`);
    }));
}

let opening = Promise.resolve();
let openError = null;

// Wait until the case of the state is known: a search says for which one it is. Returns why it is not known, or null.
export async function opened() {
  await opening;
  if (openError) {
    open(state().case);
    await opening;
  }
  return openError;
}

// Load the case of the state; nothing of another case stays on the page meanwhile.
export function open(id) {
  opening = load(id);
}

async function load(id) {
  document_ = null;
  openError = null;
  journey = null;
  verdicts = new Map();
  drawCase();
  desk.redraw();
  if (id === null || !hasRole("judge")) return;
  try {
    const found = await api.readCase(id);
    if (state().case === id) take(found);
    if (!cases.some((one) => one.id === id)) cases = (await api.listCases()).cases;
    drawChoice();
  } catch (error) {
    if (state().case === id) openError = error;
    desk.report(error, () => open(id));
  }
}

function take(found) {
  document_ = found;
  verdicts = new Map(found.judgements.map((entry) => [entry.crop, entry.verdict]));
  drawCase();
  desk.redraw();
}

// Do a change and show the case after it. again: the work once more, after nobody answered whether it was done.
async function change(work, again = work, id = document_.case.id) {
  try {
    await work(id);
    const found = await api.readCase(id);
    if (state().case === id) take(found);
  } catch (error) {
    desk.report(error, () => change(again, again, id), true);
  }
}

// A note is added once, also if the answer to its first request was lost.
function addNote(text) {
  const add = (id) => api.addNote(id, text);
  change(add, async (id) => { if (!(await api.readCase(id)).notes.some((note) => note.text === text.trim())) await add(id); });
}

export function judge(crop, verdict, searchId) {
  if (!mayJudge()) return;
  change((id) => api.judge(id, { crop, verdict, search_id: searchId || "" }));
}

export function keepProbes(specs) {
  const known = new Set(document_?.probes.map((probe) => probe.spec));
  const fresh = specs.filter((spec) => !known.has(spec));
  if (mayJudge() && fresh.length) change(async (id) => { for (const spec of fresh) await api.addProbe(id, spec); });
}

// ---- the view of a case --------------------------------------------------------------------------------

const VERDICT_TITLES = { confirmed: "Confirmed", unsure: "Unsure", rejected: "Rejected" };

function section(title, ...children) {
  return element("section", { class: "card" }, element("h2", {}, title), ...children);
}

function drawCase() {
  if (state().view !== "case") return;
  const panel = $("case-content");
  if (!document_) {
    panel.replaceChildren(state().case === null
      ? element("p", { class: "empty" }, "Choose a case above, or make a new one. It keeps probes, judgements, notes and searches.")
      : element("p", { class: "empty" }, "Loading the case …"));
    return;
  }
  const { case: facts, probes, judgements, notes, searches, watch_hits: hits } = document_;
  const judged = (verdict) => judgements.filter((entry) => entry.verdict === verdict);
  const confirmed = judged("confirmed");
  panel.replaceChildren(
    head(facts, confirmed.length),
    hits.length ? section(`New crops of the watched vehicle (${hits.filter((hit) => !hit.judged).length} to judge)`, strip(hits, (hit) => hit.likelihood)) : "",
    element("div", { class: "pair" }, section("Probes", keepButton(probes), probes.length ? element("ul", { class: "strip" }, ...probes.map(probeItem)) : element("p", { class: "soft" }, "None yet. Search with the case chosen, and its probes are kept here.")), judgedSection("confirmed", confirmed)),
    section("Journey", element("div", { id: "journey" })),
    section("Travel companions", companions(confirmed.length)),
    element("div", { class: "pair" }, ...["unsure", "rejected"].map((verdict) => judgedSection(verdict, judged(verdict)))),
    section("Notes", ...notes.map(noteItem), noteForm()),
    section(`Searches (${searches.length})`, searchTable(searches)),
  );
  drawJourney();
}

function judgedSection(verdict, entries) {
  return section(`${VERDICT_TITLES[verdict]} (${entries.length})`, entries.length ? strip(entries, (entry) => entry.likelihood)
    : element("p", { class: "soft" }, verdict === "confirmed" ? "Confirm a match by its check mark." : "None."));
}

function head(facts, confirmed) {
  const isOpen = facts.state === "open";
  const button = (text, onclick, attributes = {}) => element("button", { type: "button", onclick, ...attributes }, text);
  return element("header", { class: "case-head" },
    element("div", {}, element("h1", {}, facts.title ? `${facts.number}: ${facts.title}` : facts.number),
      element("p", { class: "soft small" }, `${facts.state} · made ${formatStamp(facts.created_at)} UTC by ${facts.created_by}`)),
    element("div", { class: "row wrap" },
      button("Search with the confirmed", () => go({ probes: [], feedback: true, view: "gallery", hit: null }), { class: "main", disabled: !confirmed }),
      isOpen && button(facts.watched ? "Stop watching" : "Watch", () => change((id) => api.setWatch(id, !facts.watched)), { disabled: !confirmed && !facts.watched, "aria-pressed": String(facts.watched) }),
      button("Export", () => change(async (id) => download(await api.exportCase(id)))),
      button(isOpen ? "Close case" : "Open again", () => change((id) => api.changeCase(id, { state: isOpen ? "closed" : "open" })).then(refreshList))));
}

async function refreshList() {
  cases = (await api.listCases()).cases;
  drawChoice();
}

function strip(entries, likelihoodOf) {
  const among = entries.map((entry) => entry.crop);
  return element("ul", { class: "strip" }, ...entries.map((entry) => element("li", { class: "kept" },
    element("button", { type: "button", class: "look", onclick: () => desk.look(entry.crop, among) },
      element("img", { alt: "", src: api.cropImage(entry.crop), loading: "lazy" }),
      element("span", { class: "text" }, element("span", {}, entry.camera_id ? `camera ${entry.camera_id}` : "camera unknown"),
        element("span", {}, formatTime(entry.captured_at)), typeof likelihoodOf(entry) === "number" && element("span", {}, percent(likelihoodOf(entry))))),
    element("div", { class: "actions" }, ...desk.judgeButtons(entry.crop), iconButton("search", "Search from this", () => desk.searchFrom(entry.crop))))));
}

function keepButton(probes) {
  const shown = state().probes.filter((spec) => !probes.some((probe) => probe.spec === spec));
  if (!mayJudge() || !shown.length) return "";
  return element("div", {}, element("button", { type: "button", onclick: () => keepProbes(shown) }, "Keep the probe shown"));
}

function probeItem(probe) {
  return element("li", { class: "kept" },
    element("button", { type: "button", class: "look", onclick: () => desk.searchFrom(probe.spec) }, element("img", { alt: "", src: api.imageOf(probe.spec), loading: "lazy" }),
      element("span", { class: "text" }, element("span", {}, "search from this"), element("span", {}, formatStamp(probe.at)), element("span", {}, `by ${probe.by}`))),
    mayJudge() && element("div", { class: "actions" }, iconButton("close", "Remove this probe", () => change((id) => api.removeProbe(id, probe.spec)))));
}

function noteItem(note) {
  return element("article", { class: "note-item" }, element("p", {}, note.text), element("p", { class: "soft small" }, `${formatStamp(note.at)} UTC · ${note.by}`));
}

function noteForm() {
  if (!mayJudge()) return "";
  const text = element("textarea", { rows: 3, "aria-label": "New note", required: true });
  return element("form", { class: "note-form", onsubmit: (event) => { event.preventDefault(); addNote(text.value); } },
    text, element("button", { type: "submit" }, "Add note"));
}

const shorten = (spec) => spec.replace(/^(upload:[0-9a-f]{8})[0-9a-f]{56}/, "$1…");

// What was asked, in words: what differs from the defaults.
function describe({ feedback, sha256, ...parameters }) {
  const texts = Object.entries(parameters).map(([name, value]) => `${name.replaceAll("_", " ")}${value === true ? "" : ` ${Array.isArray(value) ? value.join(", ") : value}`}`);
  if (feedback) texts.unshift(`${feedback.confirmed.length} confirmed, away from ${feedback.rejected.length} rejected`);
  return texts.join("; ");
}

function searchTable(searches) {
  if (!searches.length) return element("p", { class: "soft" }, "None yet.");
  const rows = [...searches].reverse().map((one) => element("tr", {},
    element("td", {}, formatStamp(one.at)), element("td", {}, one.by), element("td", {}, one.action),
    element("td", {}, one.state === "done" ? `${one.verdict || "done"}, ${one.answers} shown` : `${one.state}${one.error ? `: ${one.error}` : ""}`),
    element("td", { class: "name" }, one.probes.map(shorten).join(", ")), element("td", { class: "name" }, describe(one.parameters)), element("td", { class: "name" }, one.generation)));
  return element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Searches of the case" }, element("table", { class: "searches" },
    element("thead", {}, element("tr", {}, ...["Time (UTC)", "User", "Action", "Outcome", "Probes", "Rules", "Generation"].map((title) => element("th", { scope: "col" }, title)))),
    element("tbody", {}, ...rows)));
}

async function drawJourney() {
  const own = document_;
  try {
    const found = await api.readJourney(own.case.id);
    if (own !== document_ || !$("journey")) return;
    journey = found;
    if (found.stops.length < 1) {
      $("journey").replaceChildren(element("p", { class: "soft" }, "Confirmed matches with a time are listed here, in order."));
      return;
    }
    const map = element("div", { class: "drawing" });
    drawMap(map, about.positions, { route: found, tiles: about.tiles });
    const warning = found.impossible ? element("p", { class: "warn" }, `${plural(found.impossible, "leg")} that no vehicle can have made at ${found.max_speed_kmh} km/h.`) : "";
    $("journey").replaceChildren(warning, map, element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Stops of the journey" }, journeyTable(found, desk.look)));
  } catch (error) {
    if (own === document_ && $("journey")) $("journey").replaceChildren(element("p", { class: "error" }, `${error.message} ${error.remedy}`));
  }
}

function companions(confirmed) {
  if (confirmed < 2) return element("p", { class: "soft" }, "Needs two confirmed stops.");
  const seconds = element("select", {}, ...[[30, "30 s"], [60, "1 min"], [300, "5 min"], [900, "15 min"]].map(([value, text]) => element("option", { value, selected: value === 60 }, text)));
  const distance = element("input", { type: "number", min: "0", step: "any", placeholder: about.threshold === null ? "required" : about.threshold.toFixed(2) });
  const found = element("div", { "aria-live": "polite" });
  const search = async (event) => {
    event.preventDefault();
    found.replaceChildren(element("p", { class: "soft" }, "Searching …"));
    try {
      const answer = await api.findCompanions(document_.case.id, seconds.value, distance.value);
      found.replaceChildren(answer.companions.length ? "" : element("p", { class: "soft" }, "No vehicle was near two of the stops."),
        ...answer.companions.map((one) => element("div", { class: "companion" },
          element("p", {}, element("b", {}, `${one.stops.length} of ${answer.stops} stops`), ` (${one.stops.map((stop) => stop + 1).join(", ")}) · ${Math.round(one.seconds)} s apart · distance ${one.distance.toFixed(2)}`),
          strip(one.crops.map((crop) => ({ ...crop, crop: crop.spec })), () => null))));
    } catch (error) {
      found.replaceChildren(element("p", { class: "error" }, `${error.message} ${error.remedy}`));
    }
  };
  return element("div", {}, element("form", { class: "row wrap end", onsubmit: search },
    element("label", {}, "At most apart ", seconds), element("label", {}, "Distance up to ", distance), element("button", { type: "submit" }, "Find companions")), found);
}

export function draw(next, before) {
  if ($("case").options.length) $("case").value = next.case === null ? "" : String(next.case);
  if (next.case !== before.case) open(next.case);
  else if (next.view === "case" && (before.view !== "case" || !$("case-content").hasChildNodes())) drawCase();
}

export function listen() {
  $("case").addEventListener("change", (event) => {
    const { value } = event.target;
    if (value === "new") {
      event.target.value = state().case === null ? "" : String(state().case);
      $("new-case").showModal();
    } else go({ case: value === "" ? null : Number(value), hit: null });
  });
  $("new-case-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const form = event.target.elements;
    $("new-case-error").textContent = "";
    try {
      const made = await api.createCase(form.number.value, form.title.value);
      $("new-case").close();
      event.target.reset();
      cases = [made, ...cases];
      go({ case: made.id });
      drawChoice();
    } catch (error) {
      $("new-case-error").textContent = `${error.message} ${error.remedy}`;
    }
  });
  $("new-case-cancel").addEventListener("click", () => $("new-case").close());
}
