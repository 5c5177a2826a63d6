// The state of the page, which is the query of its URL: probes, filters, case, view and the match looked at.
// Whoever changes it calls `go`; whoever shows it listens by `onChange`, also when the user goes back.

export const DEFAULT_RULES = Object.freeze({
  top: 50, cameras: [], not_cameras: [], since: null, until: null, models: [], max_distance: null, same_camera: false,
  every_crop: false, rerank: false, drop_impossible: false, colors: [], not_colors: [], min_color_confidence: null,
  body_types: [], not_body_types: [], min_body_type_confidence: null,
});
export const VIEWS = ["gallery", "timeline", "map", "case"];
const EMPTY = Object.freeze({ probes: [], feedback: false, rules: DEFAULT_RULES, case: null, view: "gallery", hit: null });
const PROBE = /^(crop:\d{1,19}|upload:[0-9a-f]{64}(@[0-9.,]{7,60})?)$/;

let current = EMPTY;
const listeners = [];
export const state = () => current;
export const onChange = (listener) => listeners.push(listener);

export function parse(query) {
  const values = new URLSearchParams(query);
  const rules = { ...DEFAULT_RULES };
  for (const [name, standard] of Object.entries(DEFAULT_RULES)) {
    if (!values.has(name)) continue;
    const [text] = values.getAll(name);
    if (Array.isArray(standard)) rules[name] = values.getAll(name).map((one) => (name === "models" ? Number(one) : one));
    else if (typeof standard === "boolean") rules[name] = text === "1";
    else if (name === "since" || name === "until") rules[name] = text;
    else if (Number.isFinite(Number(text))) rules[name] = Number(text);
  }
  const old = /^\d{1,19}$/.test(values.get("crop") || "") ? [`crop:${values.get("crop")}`] : []; // links of earlier releases
  const number = (name) => (/^\d{1,15}$/.test(values.get(name) || "") ? Number(values.get(name)) : null);
  return {
    probes: [...old, ...values.getAll("probe").filter((spec) => PROBE.test(spec))],
    feedback: values.get("with") === "confirmed" && number("case") !== null,
    rules,
    case: number("case"),
    view: VIEWS.includes(values.get("view")) ? values.get("view") : "gallery",
    hit: /^\d{1,19}$/.test(values.get("hit") || "") ? `crop:${values.get("hit")}` : null,
  };
}

export function toQuery(next) {
  const values = new URLSearchParams();
  next.probes.forEach((spec) => values.append("probe", spec));
  if (next.feedback) values.set("with", "confirmed");
  for (const [name, standard] of Object.entries(DEFAULT_RULES)) {
    const value = next.rules[name];
    if (Array.isArray(standard)) value.forEach((one) => values.append(name, one));
    else if (typeof standard === "boolean") { if (value) values.set(name, "1"); }
    else if (value !== standard) values.set(name, value);
  }
  if (next.case !== null) values.set("case", next.case);
  if (next.view !== "gallery") values.set("view", next.view);
  if (next.hit) values.set("hit", next.hit.slice(5));
  const text = values.toString().replaceAll("%3A", ":").replaceAll("%40", "@").replaceAll("%2C", ",");
  return text ? `?${text}` : "";
}

// What a search depends on: another key is another search.
export const searchKey = (one) => JSON.stringify([one.probes, one.feedback && one.case, one.rules]);
export const hasProbe = (one) => one.probes.length > 0 || one.feedback;

function show(next) {
  const before = current;
  current = next;
  listeners.forEach((listener) => listener(next, before));
}

// Change the state. replace: the entry before is no place to go back to.
export function go(change, { replace = false } = {}) {
  const next = { ...current, ...change };
  record(location.pathname + toQuery(next), replace);
  show(next);
}

let waiting = null; // changes of the history that came while it was on its way back

function record(url, replace) {
  if (waiting) waiting.push([url, replace]);
  else if (!replace && url !== location.pathname + location.search) history.pushState(null, "", url);
  else history.replaceState(null, "", url);
}

// Change the state to that of the entry before, and go back to it.
export function goBack(change) {
  waiting = [];
  history.back();
  show({ ...current, ...change });
}

export function start() {
  window.addEventListener("popstate", () => {
    if (!waiting) {
      show(parse(location.search));
      return;
    }
    const late = waiting;
    waiting = null;
    late.forEach(([url, replace]) => record(url, replace));
  });
  go(parse(location.search), { replace: true });
}
