// The probe: choose, drop or paste images, draw a box on one, and see what is searched with.

import { $, element, formatTime, iconButton } from "./dom.js";
import { ApiError, imageOf, originalOf, upload } from "./api.js";
import { go, hasProbe, state } from "./state.js";

const TYPES = ["image/jpeg", "image/png", "image/webp"];
let limits = { pictures: 5, bytes: 32 << 20 };
let report = () => {};

export function setUp(about, onError) {
  limits = { pictures: about.max_pictures, bytes: about.max_upload_bytes };
  report = onError;
}

// Send the files, then search with their links. The probe before is gone at once: its answers are not these files'.
export async function choose(fileList) {
  const files = [...fileList].slice(0, limits.pictures);
  const had = hasProbe(state());
  go({ probes: [], feedback: false, hit: null, view: "gallery" });
  try {
    const wrong = files.find((file) => !TYPES.includes(file.type));
    if (wrong || !files.length) throw new ApiError(`${wrong ? wrong.name : "This"} is no JPEG, PNG or WebP image.`, "Choose another file.");
    const large = files.find((file) => file.size > limits.bytes - 4096);
    if (large) throw new ApiError(`${large.name} is larger than ${Math.round(limits.bytes / 2 ** 20)} MiB.`, "Send a smaller image.");
    document.body.classList.add("busy");
    const sent = await Promise.all(files.map(upload));
    go({ probes: sent.map(({ spec }) => spec), feedback: false, hit: null, view: "gallery" }, { replace: had });
  } catch (error) {
    document.body.classList.remove("busy");
    report(error, () => choose(files));
  }
}

export function searchFrom(spec) {
  go({ probes: [spec], feedback: false, hit: null, view: "gallery" });
  window.scrollTo(0, 0);
}

const MAX_CONFIRMED = 6; // thumbnails of a search with the confirmed crops

export function draw({ probes, feedback }, caseNumber, confirmed) {
  const joined = feedback ? confirmed.filter((crop) => !probes.includes(crop)).slice(-MAX_CONFIRMED) : [];
  $("probes").replaceChildren(...probes.map((spec, place) => {
    const image = element("img", { src: imageOf(spec), alt: probes.length > 1 ? `Probe, image ${place + 1}` : "Probe" });
    const tools = element("span", { class: "probe-tools" },
      spec.startsWith("upload:") && iconButton("box", "Draw a box around the vehicle", () => drawBox(spec)),
      probes.length > 1 && iconButton("close", "Remove this image", () => go({ probes: state().probes.filter((one) => one !== spec) })));
    return element("span", { class: "probe" }, image, tools);
  }), ...joined.map((crop) => element("span", { class: "probe" }, element("img", { src: imageOf(crop), alt: "Confirmed crop" }))));
  $("feedback-note").hidden = !feedback;
  $("feedback-note").textContent = `with the confirmed crops of case ${caseNumber || ""}, away from the rejected`;
  $("drop").classList.toggle("full", probes.length + joined.length > 0);
}

export function drawFacts(result) {
  const known = (result ? result.probes : []).filter((probe) => probe.camera_id || probe.captured_at >= 0);
  $("probe-facts").replaceChildren(...known.map((probe) => element("span", {},
    [probe.camera_id && `camera ${probe.camera_id}`, formatTime(probe.captured_at)].filter(Boolean).join(" · "))));
}

// ---- the box -------------------------------------------------------------------------------------------

const box = { spec: "", x: 0.25, y: 0.25, width: 0.5, height: 0.5 };
const MIN_SIDE = 0.02;

function drawBox(spec) {
  const [plain, known] = spec.split("@");
  const [x, y, width, height] = known ? known.split(",").map(Number) : [0.25, 0.25, 0.5, 0.5];
  Object.assign(box, { spec: plain, before: spec, x, y, width, height });
  $("box-image").src = originalOf(plain);
  placeBox();
  $("box").showModal();
  $("box-frame").focus();
}

function placeBox() {
  const style = $("box-frame").style;
  for (const [side, value] of [["left", box.x], ["top", box.y], ["width", box.width], ["height", box.height]]) style[side] = `${100 * value}%`;
  const name = `Box: ${Math.round(100 * box.width)} by ${Math.round(100 * box.height)} percent of the image, from ${Math.round(100 * box.x)}, ${Math.round(100 * box.y)}`;
  $("box-frame").setAttribute("aria-label", name);
}

function clamp(value, low, high) { return Math.min(high, Math.max(low, value)); }

function pointerShare(event) {
  const area = $("box-area").getBoundingClientRect();
  return [clamp((event.clientX - area.left) / area.width, 0, 1), clamp((event.clientY - area.top) / area.height, 0, 1)];
}

function setUpBox() {
  let from = null;
  const area = $("box-area");
  area.addEventListener("pointerdown", (event) => {
    from = pointerShare(event);
    area.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  area.addEventListener("pointermove", (event) => {
    if (!from) return;
    const to = pointerShare(event);
    Object.assign(box, {
      x: Math.min(from[0], to[0], 1 - MIN_SIDE), y: Math.min(from[1], to[1], 1 - MIN_SIDE),
      width: Math.max(MIN_SIDE, Math.abs(to[0] - from[0])), height: Math.max(MIN_SIDE, Math.abs(to[1] - from[1])),
    });
    placeBox();
  });
  for (const name of ["pointerup", "pointercancel"]) area.addEventListener(name, () => { from = null; $("box-frame").focus(); });
  $("box-frame").addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    const [dx, dy] = move.map((step) => step * 0.01);
    if (event.shiftKey) {
      box.width = clamp(box.width + dx, MIN_SIDE, 1 - box.x);
      box.height = clamp(box.height + dy, MIN_SIDE, 1 - box.y);
    } else {
      box.x = clamp(box.x + dx, 0, 1 - box.width);
      box.y = clamp(box.y + dy, 0, 1 - box.height);
    }
    placeBox();
  });
  const use = (spec) => {
    $("box").close();
    go({ probes: state().probes.map((one) => (one === box.before ? spec : one)), hit: null });
  };
  $("box-search").addEventListener("click", () => {
    const sides = [box.x, box.y, box.width, box.height].map((value) => Number(value.toFixed(4)));
    use(`${box.spec}@${sides.join(",")}`);
  });
  $("box-whole").addEventListener("click", () => use(box.spec));
  $("box-close").addEventListener("click", () => $("box").close());
}

export function listen(isReady) {
  setUpBox();
  $("file").addEventListener("change", (event) => {
    const files = [...event.target.files];
    event.target.value = "";
    if (files.length) choose(files);
  });
  $("choose").addEventListener("click", () => $("file").click());
  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      $("drop").classList.toggle("over", name === "dragover");
      if (name === "drop" && isReady() && event.dataTransfer.files.length) choose(event.dataTransfer.files);
    });
  }
  document.addEventListener("paste", (event) => {
    if (isReady() && event.clipboardData.files.length) choose(event.clipboardData.files);
  });
}
