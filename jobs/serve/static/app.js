// The entry: connects state, probe, filters, answers, viewer and case; keys, theme, token and start.

import { $, element, formatTime } from "./dom.js";
import * as api from "./api.js";
import * as answers from "./answers.js";
import * as cases from "./case.js";
import * as filters from "./filters.js";
import * as probe from "./probe.js";
import * as viewer from "./viewer.js";
import { go, hasProbe, onChange, searchKey, start, state } from "./state.js";

const ABOUT_SECONDS = 30;
const AWAY_SECONDS = 2; // between looks at a server that is away
let about = null;
let request = null;
let isStarted = false;

// ---- search ----------------------------------------------------------------------------------------------

async function search() {
  request?.abort();
  const own = (request = new AbortController());
  pending = pending.filter(({ isChange }) => isChange); // this search takes the place of the last one
  const asked = state();
  answers.clear(hasProbe(asked) ? "Searching …" : "Drop an image of a vehicle to see the nearest crops of the archive.");
  report(null);
  probe.drawFacts(null);
  document.body.classList.toggle("busy", hasProbe(asked));
  if (!hasProbe(asked)) return;
  const failed = await cases.opened();
  if (request !== own) return;
  if (failed) { // the audit would not have the case
    document.body.classList.remove("busy");
    answers.clear("");
    report(failed, search);
    return;
  }
  const caseNumber = cases.caseNumber();
  if (about.case_required && !caseNumber && !asked.feedback) {
    document.body.classList.remove("busy");
    answers.clear("");
    report(new api.ApiError("A search needs a case number here.", "Choose a case, or give its number, then search."), search);
    return;
  }
  try {
    const result = await api.search({ probes: asked.probes, rules: asked.rules, caseNumber, feedback: asked.feedback ? asked.case : null }, own.signal);
    if (request !== own) return;
    if (result.generation !== about.generation) await loadAbout();
    answers.show(result);
    probe.drawFacts(result);
    viewer.drawAgain();
    cases.keepProbes(asked.probes);
  } catch (error) {
    if (request !== own || error.name === "AbortError") return;
    answers.clear("");
    report(error, search);
  } finally {
    if (request === own) document.body.classList.remove("busy");
  }
}

let pending = []; // what to do again once the server answers: {retry, isChange}
let timer = null;

function retryLater(retry, isChange = false) {
  if (!pending.some((one) => one.retry === retry)) pending.push({ retry, isChange });
  timer ??= setTimeout(lookForServer, 1000 * AWAY_SECONDS);
}

async function lookForServer() {
  const isBack = await api.answersAgain();
  timer = null;
  if (isBack) retryNow();
  else if (pending.length) timer = setTimeout(lookForServer, 1000 * AWAY_SECONDS);
}

async function retryNow() {
  const work = pending;
  pending = [];
  report(null);
  for (const { retry } of work) await retry();
}

// Show an error with its remedy, and a button that tries again. If the server is away, the page does so itself.
// isChange: it is done also if the user looks at something else meanwhile.
function report(error, retry, isChange = false) {
  $("error").hidden = !error;
  $("error").replaceChildren();
  $("viewer-error").textContent = error ? `${error.message} ${error.remedy}` : "";
  if (!error) return;
  const goesOn = Boolean(retry) && api.isAway(error);
  if (goesOn) retryLater(retry, isChange);
  $("empty").hidden = true;
  const remedy = [error.remedy, goesOn && "The page goes on as soon as it answers."].filter(Boolean).join(" ");
  $("error").append(element("p", {}, element("b", {}, error.message), ` ${remedy}`));
  if (retry) $("error").append(element("button", { type: "button", onclick: () => { if (goesOn) retryNow(); else { report(null); retry(); } } }, "Try again"));
}

const desk = {
  look: viewer.look,
  searchFrom: (spec) => probe.searchFrom(spec),
  judge: (crop, verdict) => cases.judge(crop, verdict, answers.shownResult()?.search_id),
  judgeButtons: answers.judgeButtons,
  verdictOf: cases.verdictOf,
  mayJudge: cases.mayJudge,
  report,
  redraw: () => {
    answers.drawJudgements();
    if (viewer.isOpen()) viewer.drawJudgement();
    probe.draw(state(), cases.caseNumber(), cases.confirmedCrops());
  },
};

function drawState(next, before) {
  filters.draw(next);
  probe.draw(next, cases.caseNumber(), cases.confirmedCrops());
  cases.draw(next, before);
  if (!isStarted || searchKey(next) !== searchKey(before)) search();
  else answers.drawView();
  viewer.draw(next);
}

// ---- keys and theme --------------------------------------------------------------------------------------

function setTheme(next) {
  document.documentElement.dataset.theme = next;
  try { localStorage.setItem("theme", next); } catch { /* private windows have no storage */ }
}

function toggleTheme() {
  const chosen = document.documentElement.dataset.theme;
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  setTheme(dark ? "light" : "dark");
}

const judgeFocused = (verdict) => () => { const crop = answers.focusedCrop(); if (crop) desk.judge(crop, verdict); };
const KEYS = {
  g: () => go({ view: "gallery" }), l: () => go({ view: "timeline" }), m: () => go({ view: "map" }), k: () => cases.caseNumber() && go({ view: "case" }),
  t: toggleTheme, o: () => $("file").click(), "/": () => { $("filter-fold").open = true; $("filters").elements.since.focus(); },
  "?": () => $("help").showModal(), c: judgeFocused("confirmed"), x: judgeFocused("rejected"), u: judgeFocused("unsure"),
  s: () => { const crop = answers.focusedCrop(); if (crop) desk.searchFrom(crop); },
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) || $("app").hidden) return;
  if (event.target.getAttribute("role") === "tab") return;
  if (event.key.startsWith("Arrow")) {
    if (answers.moveFocus(event.key)) event.preventDefault();
  } else if (KEYS[event.key]) {
    event.preventDefault();
    KEYS[event.key]();
  }
});

$("views").addEventListener("click", (event) => {
  const { view } = event.target.closest("[role=tab]")?.dataset || {};
  if (view) go({ view, hit: null });
});
$("views").addEventListener("keydown", (event) => {
  const tabs = [...document.querySelectorAll("#views [role=tab]:not([hidden])")];
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const next = tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length];
  go({ view: next.dataset.view, hit: null });
  next.focus();
});
$("theme").addEventListener("click", toggleTheme);
$("help-button").addEventListener("click", () => $("help").showModal());
$("help-close").addEventListener("click", () => $("help").close());

// ---- start -----------------------------------------------------------------------------------------------

async function loadAbout() {
  about = await api.readAbout();
  const span = about.first === null ? "" : ` · ${formatTime(about.first).slice(0, 10)} – ${formatTime(about.last).slice(0, 10)}`;
  $("about").textContent = `${about.crops.toLocaleString("en")} ${about.unit}s · ${about.cameras.length} cameras${span} · ${about.generation}`;
  $("user").textContent = about.user.name;
  answers.setUp(about, desk);
  filters.setUp(about);
  probe.setUp(about, report);
}

// The archive of an open page changes: another generation goes live, crops are added.
async function refreshAbout() {
  if (!about || document.hidden || $("app").hidden) return;
  await loadAbout().catch(() => {});
  answers.drawVerdict();
}

function showLogin() {
  $("app").hidden = true;
  $("login").hidden = false;
  $("token").focus();
}

async function open() {
  $("start-error").hidden = true;
  try {
    await loadAbout();
  } catch (error) {
    if (error.status === 401 && $("login").hidden === false) return;
    $("start-error").hidden = false;
    $("start-error").replaceChildren(element("h1", {}, "The page cannot start"), element("p", {}, error.message), element("p", { class: "soft" }, error.remedy),
      element("button", { type: "button", class: "main", onclick: open }, "Try again"));
    if (api.isAway(error)) retryLater(open);
    return;
  }
  $("login").hidden = true;
  $("app").hidden = false;
  await cases.setUp(about, desk).catch((error) => report(error, () => cases.setUp(about, desk)));
  if (!isStarted) {
    onChange(drawState);
    start();
    isStarted = true;
  } else search();
}

$("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  $("login-error").textContent = "";
  try {
    await api.login($("token").value);
    await open();
  } catch (error) {
    $("login-error").textContent = `${error.message} ${error.remedy}`;
  }
});
api.onSignIn(showLogin);
probe.listen(() => about !== null && !$("app").hidden);
filters.listen(() => search());
viewer.listen(desk);
cases.listen();
answers.listen();
if (matchMedia("(max-width: 820px)").matches) $("filter-fold").open = false;
try { const stored = localStorage.getItem("theme"); if (stored === "light" || stored === "dark") setTheme(stored); } catch { /* private windows have no storage */ }
setInterval(refreshAbout, 1000 * ABOUT_SECONDS);
window.addEventListener("focus", refreshAbout);

const token = new URLSearchParams(location.hash.slice(1)).get("token");
if (token) {
  history.replaceState(null, "", location.pathname + location.search);
  await api.login(token).catch(() => {});
}
await open();
