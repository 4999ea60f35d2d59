// The review page. It knows places (left, right) and positions; what stands where only the server knows.
"use strict";

const TAGS = ["wrong", "unsafe", "biased", "off-tone"];
const PLACES = ["left", "right"];
const WRITTEN = ["correction", "note"];
const KEYS = {1: "left", ArrowLeft: "left", 2: "right", ArrowRight: "right", 0: "tie", " ": "tie", b: "bad"};
const SAID = {left: "Saved: answer 1", right: "Saved: answer 2", tie: "Saved: tie", bad: "Saved: both bad"};
const get = (id) => document.getElementById(id);
let position = null; // of the sample on the page; null where all are judged
let busy = false; // a request is on its way: a second key press must not vote on a sample that was not seen

async function ask(path, content) {
  const request = content === undefined ? {} :
    {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(content)};
  const reply = await fetch(path, request);
  const body = await reply.json();
  if (!reply.ok) throw new Error(body.error);
  return body;
}

async function doing(work) {
  if (busy) return;
  busy = true;
  try {
    await work();
    get("trouble").hidden = true;
  } catch (error) {
    const lost = error instanceof TypeError; // fetch's word for "no connection"
    get("trouble").textContent = lost ? "Not saved: luthier review does not answer. Is it still running?" : error.message;
    get("trouble").hidden = false;
  } finally {
    busy = false;
  }
}

function show(state) {
  const sample = state.sample;
  position = sample && sample.position;
  get("bar").max = Math.max(state.total, 1);
  get("bar").value = state.done;
  get("count").textContent = `${state.done} of ${state.total} judged`;
  get("work").hidden = !sample;
  get("over").hidden = Boolean(sample);
  get("bar-of-choices").hidden = false;
  document.querySelector(".choices").hidden = !sample;
  get("tag").hidden = !sample;
  get("undo").disabled = state.done === 0;
  setTagging(false);
  if (!sample) return get("over-title").focus();
  for (const place of ["prompt", ...PLACES]) {
    get(place).textContent = sample[place];
    get(place).scrollTop = 0;
  }
  for (const name of WRITTEN) get(name).value = sample[name];
  for (const button of document.querySelectorAll(".tags button"))
    button.setAttribute("aria-pressed", sample.tags[button.dataset.place].includes(button.dataset.tag));
  hideReference();
  scrollTo(0, 0);
  get("asked").focus({preventScroll: true});
}

const pressed = (place) => TAGS.filter((tag) => button(place, tag).getAttribute("aria-pressed") === "true");
const button = (place, tag) => document.querySelector(`[data-place="${place}"] [data-tag="${tag}"]`);

const vote = (choice) => doing(async () => {
  if (position === null) return;
  const tags = {left: pressed("left"), right: pressed("right")};
  const written = Object.fromEntries(WRITTEN.map((name) => [name, get(name).value]));
  show(await ask("/vote", {position, choice, tags, ...written}));
  get("said").textContent = SAID[choice];
});

const undo = () => doing(async () => {
  if (get("undo").disabled) return;
  show(await ask("/undo", {}));
  get("said").textContent = "Taken back";
});

const toggleReference = () => doing(async () => {
  if (position === null) return;
  if (!get("reference").hidden) return hideReference();
  get("reference").textContent = (await ask(`/reference?position=${position}`)).reference;
  get("reference").hidden = false;
  tellReference("Hide the reference answer", true);
});

function hideReference() {
  get("reference").hidden = true;
  get("reference").textContent = "";
  tellReference("Show the reference answer", false);
}

function tellReference(text, shown) {
  get("reference-button").querySelector("span").textContent = text;
  get("reference-button").setAttribute("aria-expanded", shown);
}

function toggleTag(place, tag) {
  const chip = button(place, tag);
  chip.setAttribute("aria-pressed", chip.getAttribute("aria-pressed") !== "true");
}

function setTagging(on) {
  document.body.classList.toggle("tagging", on);
  get("tag-help").hidden = !on;
  get("tag").setAttribute("aria-pressed", on);
}

const tagging = () => document.body.classList.contains("tagging");

function pressTagKey(key) {
  if (key === "Escape" || key === "Enter" || key === "t") setTagging(false);
  const i = Number(key) - 1;
  if (i in [...TAGS, ...TAGS]) toggleTag(PLACES[Math.floor(i / TAGS.length)], TAGS[i % TAGS.length]);
}

document.addEventListener("keydown", (event) => {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (WRITTEN.includes(event.target.id)) {
    if (key === "Escape") event.target.blur();
    return;
  }
  if (event.target instanceof HTMLButtonElement && (key === " " || key === "Enter")) return; // presses the button
  if (event.repeat) return; // a key that is held down judges one sample
  const write = (name) => () => get(name).focus();
  const does = {u: undo, r: toggleReference, t: () => setTagging(position !== null), c: write("correction"), n: write("note")};
  if (tagging()) pressTagKey(key);
  else if (key in KEYS) vote(KEYS[key]);
  else if (key in does) does[key]();
  else return;
  event.preventDefault();
});

for (const group of document.querySelectorAll(".tags"))
  TAGS.forEach((tag, i) => {
    const chip = document.createElement("button");
    const key = document.createElement("kbd");
    key.textContent = i + 1 + (group.dataset.place === "right" ? TAGS.length : 0);
    chip.append(key, tag);
    chip.dataset.tag = tag;
    chip.dataset.place = group.dataset.place;
    chip.addEventListener("click", () => toggleTag(chip.dataset.place, tag));
    group.append(chip);
  });
for (const choice of document.querySelectorAll("[data-choice]"))
  choice.addEventListener("click", () => vote(choice.dataset.choice));
document.addEventListener("click", (event) => { // by mouse, focus must not stay where space would press again
  if (event.detail && document.activeElement instanceof HTMLButtonElement) document.activeElement.blur();
});
get("undo").addEventListener("click", undo);
get("tag").addEventListener("click", () => setTagging(!tagging()));
get("reference-button").addEventListener("click", toggleReference);
doing(async () => show(await ask("/state")));
