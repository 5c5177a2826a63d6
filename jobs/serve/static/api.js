// Requests to the server. Every failure is an ApiError with a sentence, and with a remedy where there is one.

export class ApiError extends Error {
  constructor(message, remedy = "", status = 0) {
    super(message);
    this.remedy = remedy;
    this.status = status;
  }
}

// Nobody knows whether a request that got no answer was done.
const away = () => new ApiError("The server does not answer.", "Nothing that it confirmed is lost.");
export const isAway = (error) => error.status === 0 && error.message === away().message;
export const answersAgain = () => fetch("/healthz").then((response) => response.ok, () => false);

const signIn = { listener: () => {} };
export const onSignIn = (listener) => { signIn.listener = listener; };

export async function send(path, { method = "GET", json, form, signal } = {}) {
  const options = { method, signal, credentials: "same-origin", headers: {} };
  if (json !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(json);
  }
  if (form !== undefined) options.body = form;
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw away();
  }
  const body = await response.json().catch(() => ({}));
  if (response.status >= 502 && response.status <= 504 && !body.error) throw away(); // a proxy says so
  if (response.status === 401) signIn.listener();
  if (!response.ok) {
    const message = body.error || `The server refused the request (status ${response.status}).`;
    throw new ApiError(message.charAt(0).toUpperCase() + message.slice(1), body.remedy || "", response.status);
  }
  return body;
}

export const login = (token) => send("/api/login", { method: "POST", json: { token } });
export const readAbout = () => send("/api/about");

export function search({ probes, rules, caseNumber, feedback }, signal) {
  const form = new FormData();
  probes.forEach((spec) => form.append("probe", spec));
  form.append("rules", JSON.stringify(rules));
  if (caseNumber) form.append("case_number", caseNumber);
  if (feedback) form.append("feedback_case", feedback);
  return send("/api/search", { method: "POST", form, signal });
}

export function upload(file) {
  const form = new FormData();
  form.append("picture", file);
  return send("/api/uploads", { method: "POST", form });
}

const ofCase = (id, path = "") => `/api/cases/${id}${path}`;
export const readCrop = (crop) => send(`/api/crops/${crop.slice(5)}`);
export const listCases = () => send("/api/cases");
export const createCase = (number, title) => send("/api/cases", { method: "POST", json: { number, title } });
export const readCase = (id) => send(ofCase(id));
export const changeCase = (id, change) => send(ofCase(id), { method: "PATCH", json: change });
export const addProbe = (id, spec) => send(ofCase(id, "/probes"), { method: "POST", json: { spec } });
export const removeProbe = (id, spec) => send(ofCase(id, "/probes/remove"), { method: "POST", json: { spec } });
export const judge = (id, judgement) => send(ofCase(id, "/judgements"), { method: "POST", json: judgement });
export const addNote = (id, text) => send(ofCase(id, "/notes"), { method: "POST", json: { text } });
export const setWatch = (id, on) => send(ofCase(id, "/watch"), { method: "PUT", json: { on } });
export const readJourney = (id) => send(ofCase(id, "/journey"));
export const findCompanions = (id, seconds, distance) =>
  send(ofCase(id, "/companions"), { method: "POST", json: { window_seconds: Number(seconds), max_distance: distance ? Number(distance) : null } });
// The ZIP file of a case: its name and content.
export async function exportCase(id) {
  const response = await fetch(ofCase(id, "/export.zip"), { method: "POST", credentials: "same-origin" })
    .catch(() => { throw away(); });
  if (!response.ok) {
    const body = await response.json().catch(() => ({}));
    throw new ApiError(body.error || `The export was refused (status ${response.status}).`, body.remedy || "", response.status);
  }
  const name = /filename="([^"]+)"/.exec(response.headers.get("Content-Disposition") || "");
  return { name: name ? name[1] : "case.zip", content: await response.blob() };
}

export const listWatchHits = () => send("/api/watch");

export const cropImage = (crop) => `/api/crops/${crop.slice(5)}.jpg`;

function uploadImage(spec, isSmall) {
  const [sha256, box] = spec.slice("upload:".length).split("@");
  const query = [box && `box=${box}`, isSmall && "small=true"].filter(Boolean).join("&");
  return `/api/uploads/${sha256}.jpg${query ? `?${query}` : ""}`;
}

// The small image of a probe or crop, and the one to look at.
export const imageOf = (spec) => (spec.startsWith("upload:") ? uploadImage(spec, true) : cropImage(spec));
export const originalOf = (spec) => (spec.startsWith("upload:") ? uploadImage(spec) : `/api/crops/${spec.slice(5)}/original.jpg`);
