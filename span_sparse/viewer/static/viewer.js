// The page: a list of slides, a slide with its scores, what is known of a patch. All addresses are relative, so they
// keep the token; nothing is asked of anyone else.

import { buildList } from "./cohort.js";
import { Overlay } from "./overlay.js";

const NUM_TOP = 10;
const byId = (id) => document.getElementById(id);
const state = { number: -1, slide: null, score: 0, kept: -1, request: 0, patchRequest: 0 };

// OpenSeadragon 6.1 adds a <style> of its own, which this page's security policy blocks with an error on the console,
// unless it finds one. An element of that name in no namespace of the browser's is found and does nothing.
const found = document.createElementNS("urn:span-sparse", "style");
found.setAttribute("data-openseadragon-mobile-css", "");
document.head.append(found);

const viewer = OpenSeadragon({
  element: byId("viewer"),
  drawer: "canvas",
  showNavigationControl: false,
  showNavigator: true,
  navigatorPosition: "TOP_RIGHT",
  navigatorSizeRatio: 0.16,
  maxZoomPixelRatio: 4,
  visibilityRatio: 0.4,
  animationTime: window.matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 0.4,
  gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
  gestureSettingsTouch: { clickToZoom: false },
});
viewer.canvas.setAttribute("role", "group");
viewer.canvas.setAttribute("aria-label", "Slide. Arrow keys move, plus and minus zoom, 0 shows all of it.");
const cohort = await fetchJson("cohort.json");
const overlay = new Overlay(viewer, cohort.colours);
overlay.canvas.style.opacity = 0.5;
const marks = { hover: mark("mark"), kept: mark("mark kept") };
const list = buildList(cohort.slides, cohort.error_words, (number) => show(number));
byId("cohort-title").textContent = cohort.title;
drawColours();
if (list.first() >= 0) await show(list.first());

async function fetchAnswer(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(answer.status === 422 ? await answer.text() : `the viewer answered ${answer.status}`);
  return answer;
}

async function fetchJson(address) {
  return (await fetchAnswer(address)).json();
}

async function show(number) {
  const request = ++state.request;
  Object.assign(state, { number, slide: null, kept: -1 });
  list.mark(number);
  const entry = cohort.slides[number];
  byId("slide-title").textContent = entry.id;
  byId("slide-title").title = entry.id;
  byId("outcome").textContent = [
    `patient ${entry.case}`, entry.true && `true: ${entry.true}`, entry.predicted && `predicted: ${entry.predicted}`,
  ].filter(Boolean).join(" · ");
  problem("");
  overlay.clear();
  showPatch(-1);
  viewer.element.removeAttribute("data-ready");
  try {
    const [slide, corners] = await Promise.all([
      fetchJson(`slides/${number}.json`),
      fetchAnswer(`slides/${number}/corners`).then((answer) => answer.arrayBuffer()),
    ]);
    if (request !== state.request) return;
    state.slide = slide;
    overlay.setPatches(new Int32Array(corners), slide);
    if (!slide.has_slide) problem(`Shown as patches on white: ${slide.reason}.`);
    fillScores(slide);
    await openTiles(number, slide);
    await showScore(Number(byId("score").value));
    if (request === state.request) viewer.element.dataset.ready = number;
  } catch (error) {
    if (request === state.request) problem(`${entry.id}: ${error.message}`);
  }
}

function openTiles(number, slide) {
  return new Promise((resolve, reject) => {
    viewer.addOnceHandler("open", resolve);
    viewer.addOnceHandler("open-failed", (event) => reject(new Error(event.message)));
    viewer.open({
      width: slide.width_px0,
      height: slide.height_px0,
      tileSize: slide.tile_px,
      tileOverlap: 0,
      minLevel: slide.min_level,
      maxLevel: slide.max_level,
      getTileUrl: (level, column, row) => `slides/${number}/tiles/${level}/${column}_${row}.jpg`,
    });
  });
}

function fillScores(slide) {
  const before = state.scoreName;
  const kept = slide.scores.indexOf(before);
  byId("score").replaceChildren(...slide.scores.map((name, column) => new Option(words(name), column)));
  byId("score").value = kept >= 0 ? kept : slide.default;
}

function words(name) {
  const parts = /^attention_stage(\d+)_head(\d+)$/.exec(name);
  if (parts) return `attention, stage ${parts[1]}, head ${parts[2]}`;
  const known = { attention: "attention, mean over heads", gradient_x_input: "gradient × input" };
  return known[name] ?? name.replace(/^logit_/, "logit of ").replace(/^prob_/, "probability of ");
}

async function showScore(column) {
  const { request, number, slide } = state;
  const scores = await (await fetchAnswer(`slides/${number}/scores/${column}`)).arrayBuffer();
  if (request !== state.request) return;
  Object.assign(state, { score: column, scoreName: slide.scores[column] });
  const [low, high, isCohort] = slide.limits[column];
  overlay.setScores(new Float32Array(scores), [low, high]);
  byId("low").textContent = figure(low);
  byId("high").textContent = figure(high);
  byId("scale-note").textContent = isCohort ? "scale of the cohort" : "scale of this slide";
  byId("colours").setAttribute("aria-label", `Colours of ${words(state.scoreName)}, from ${figure(low)} to ${figure(high)}`);
  fillTop();
  showPatch(state.kept);
}

function fillTop() {
  const highest = [...overlay.order].sort((a, b) => overlay.scores[b] - overlay.scores[a]).slice(0, NUM_TOP);
  byId("top").replaceChildren(...highest.map((patch) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = `${figure(overlay.scores[patch])} at ${overlay.corners[2 * patch]}, ${overlay.corners[2 * patch + 1]} px`;
    button.addEventListener("click", () => { keep(patch); fly(patch); });
    const item = document.createElement("li");
    item.append(button);
    return item;
  }));
}

function fly(patch) {
  const edge = 8 * state.slide.patch_px0;
  const middle = state.slide.patch_px0 / 2;
  const [x, y] = overlay.corners.slice(2 * patch, 2 * patch + 2);
  const image = viewer.world.getItemAt(0);
  viewer.viewport.fitBounds(image.imageToViewportRectangle(x + middle - edge / 2, y + middle - edge / 2, edge, edge));
}

function keep(patch) {
  state.kept = patch;
  showPatch(patch);
}

async function showPatch(patch) {
  placeMarks(patch);
  if (patch === state.shownPatch && patch >= 0 && state.shownSlide === state.number) return markScore();
  const request = ++state.patchRequest;
  Object.assign(state, { shownPatch: patch, shownSlide: state.number });
  const rows = byId("patch-scores");
  if (patch < 0) {
    byId("patch-place").textContent = "Point at a patch, or choose one above; a click keeps it.";
    return rows.replaceChildren();
  }
  try {
    const found = await fetchJson(`slides/${state.number}/patches/${patch}.json`);
    if (request !== state.patchRequest) return;
    byId("patch-place").textContent = `row ${found.row}, column ${found.col}; corner at ${found.x_px0}, ${found.y_px0} px`;
    rows.replaceChildren(...found.values.map((value, column) => {
      const row = document.createElement("tr");
      const name = document.createElement("th");
      name.scope = "row";
      name.textContent = words(state.slide.scores[column]);
      row.append(name);
      row.insertCell().textContent = value === null ? "–" : figure(value);
      return row;
    }));
    markScore();
  } catch (error) {
    if (request === state.patchRequest) problem(error.message);
  }
}

function markScore() {
  [...byId("patch-scores").rows].forEach((row, column) => row.classList.toggle("chosen", column === state.score));
}

function mark(name) {
  const element = document.createElement("div");
  element.className = name;
  element.hidden = true;
  viewer.canvas.append(element);
  return element;
}

function placeMarks(hovered = state.hovered ?? -1) {
  state.hovered = hovered;
  for (const [element, patch] of [[marks.hover, hovered], [marks.kept, state.kept]]) {
    const box = overlay.patchBox(patch);
    element.hidden = !box;
    if (!box) continue;
    ["left", "top", "width", "height"].forEach((side, index) => { element.style[side] = `${box[index]}px`; });
  }
}

function drawColours() {
  const context = byId("colours").getContext("2d");
  cohort.colours.forEach((colour, place) => {
    context.fillStyle = colour;
    context.fillRect(place, 0, 1, 14);
  });
}

function drawScaleBar() {
  const place = overlay.toScreen();
  if (!place) return;
  const unit = state.slide?.mpp ? state.slide.mpp : 1;
  const longest = (140 / place[0]) * unit;
  const decade = 10 ** Math.floor(Math.log10(longest));
  const length = Math.max(...[1, 2, 5].map((factor) => factor * decade).filter((one) => one <= longest));
  const text = !state.slide?.mpp ? `${figure(length)} px` : length >= 1000 ? `${length / 1000} mm` : `${figure(length)} µm`;
  byId("scale-length").textContent = text;
  byId("scale-line").style.width = `${(length / unit) * place[0]}px`;
}

function figure(value) {
  const size = Math.abs(value);
  return size === 0 || (size >= 0.001 && size < 1e6) ? String(Number(value.toPrecision(4))) : value.toExponential(2);
}

function problem(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = !text;
}

function patchAtEvent(event) {
  const image = viewer.world.getItemAt(0);
  if (!image || !state.slide) return -1;
  const box = viewer.canvas.getBoundingClientRect();
  const point = image.viewerElementToImageCoordinates(
    new OpenSeadragon.Point(event.clientX - box.left, event.clientY - box.top));
  return overlay.patchAt(point.x, point.y);
}

viewer.canvas.addEventListener("pointermove", (event) => {
  const patch = patchAtEvent(event);
  if (patch !== state.hovered) showPatch(patch >= 0 ? patch : state.kept);
});
viewer.canvas.addEventListener("pointerleave", () => showPatch(state.kept));
viewer.addHandler("canvas-click", (event) => {
  if (event.quick) keep(patchAtEvent(event.originalEvent));
});
viewer.addHandler("canvas-key", (event) => {
  // keys of OpenSeadragon that turn the slide, which the overlay does not follow
  if (["r", "R", "f", "F"].includes(event.originalEvent.key)) event.preventDefaultAction = true;
});
viewer.addHandler("update-viewport", () => { placeMarks(); drawScaleBar(); });
viewer.addHandler("tile-load-failed", (event) => problem(`A part of the slide cannot be read (${event.message}).`));
byId("score").addEventListener("change", (event) => showScore(Number(event.target.value)).catch((error) => problem(error.message)));
byId("overlay").addEventListener("change", (event) => { overlay.visible = event.target.checked; overlay.draw(); });
byId("opacity").addEventListener("input", (event) => {
  overlay.canvas.style.opacity = event.target.value / 100;
  byId("opacity-value").textContent = `${event.target.value} %`;
});
byId("zoom-in").addEventListener("click", () => viewer.viewport.zoomBy(2));
byId("zoom-out").addEventListener("click", () => viewer.viewport.zoomBy(0.5));
byId("home").addEventListener("click", () => viewer.viewport.goHome());

// For the console and for tests: where a level-0 pixel is on the screen.
window.spanView = {
  viewer,
  overlay,
  screenOf(x, y) {
    const [scale, left, top] = overlay.toScreen();
    const box = viewer.canvas.getBoundingClientRect();
    return [box.left + left + x * scale, box.top + top + y * scale];
  },
};
