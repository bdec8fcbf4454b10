"use strict";
// All of the page can be read without this; it sorts, filters and paints one concept at a time.
const byId = (id) => document.getElementById(id);
const { grid, colours, maps } = JSON.parse(byId("maps").textContent);

// -- the cards of concepts ------------------------------------------------------------------
const cards = [...byId("cards").children];

function arrange() {
  const key = byId("sort").value;
  const wanted = byId("filter").value.trim().toLowerCase();
  const order = key === "name"
    ? (a, b) => a.dataset.name.localeCompare(b.dataset.name, undefined, { numeric: true })
    : (a, b) => b.dataset[key] - a.dataset[key];
  for (const card of cards.sort(order)) {
    card.hidden = !card.dataset.name.toLowerCase().includes(wanted);
    byId("cards").append(card);
  }
  const n = cards.filter((card) => !card.hidden).length;
  byId("shown").value = `${n} of ${cards.length} concepts`;
}

// -- one concept on the pictures ------------------------------------------------------------
function paint(frame) {
  const canvas = frame.querySelector("canvas");
  const [height, width] = grid;
  const concept = Number(byId("concept").value);
  const strengths = atob(maps[frame.dataset.picture][concept]);
  const colour = colours[concept].match(/[0-9a-f]{2}/gi).map((part) => parseInt(part, 16));
  const pixels = new ImageData(width, height);
  for (let i = 0; i < strengths.length; i += 1) {
    pixels.data.set([...colour, 0.8 * strengths.charCodeAt(i)], 4 * i);
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

function prepare(frame) {
  const canvas = document.createElement("canvas");
  [canvas.height, canvas.width] = grid;
  canvas.setAttribute("aria-hidden", "true");
  frame.append(canvas);
  frame.tabIndex = 0;
  frame.setAttribute("role", "group");
  frame.setAttribute("aria-label", `${frame.querySelector("img").alt}, with the chosen concept`);
  paint(frame);
}

const frames = [...document.querySelectorAll(".mapped")];
if (grid) {
  frames.forEach(prepare);
  byId("concept").addEventListener("input", () => frames.forEach(paint));
  byId("pinned").addEventListener("input", (event) => {
    document.querySelector(".pictures").classList.toggle("pinned", event.target.checked);
  });
  byId("map-controls").hidden = false;
}
for (const form of document.querySelectorAll("form.controls")) {
  form.addEventListener("submit", (event) => event.preventDefault());
}
byId("sort").addEventListener("input", arrange);
byId("filter").addEventListener("input", arrange);
byId("concept-controls").hidden = false;
arrange();
