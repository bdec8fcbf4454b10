"use strict";
// All of the page can be read without this; it searches, sorts and sets two classes side by side.
const byId = (id) => document.getElementById(id);
const pairs = JSON.parse(byId("pairs").textContent);
const cards = [...byId("cards").children];
const byNumber = new Map(cards.map((card) => [card.dataset.number, card]));

function arrange() {
  const key = byId("sort").value;
  const wanted = byId("filter").value.trim().toLowerCase();
  const value = (card) => (card.dataset[key] === "" ? -Infinity : Number(card.dataset[key]));
  const order = key === "name"
    ? (a, b) => a.dataset.name.localeCompare(b.dataset.name, undefined, { numeric: true })
    : (a, b) => value(b) - value(a);
  for (const card of cards.sort(order)) {
    card.hidden = !card.dataset.search.includes(wanted);
  }
  byId("cards").append(...cards);
  const n = cards.filter((card) => !card.hidden).length;
  byId("shown").value = `${n} of ${cards.length} classes`;
}

// -- two classes side by side ---------------------------------------------------------------
function copyOf(number) {
  const copy = byNumber.get(number).cloneNode(true);
  copy.hidden = false;
  for (const note of copy.querySelectorAll("small")) note.remove();
  for (const item of copy.querySelectorAll("li")) item.removeAttribute("style");
  return copy;
}

function mark(item, colour, text) {
  const note = document.createElement("small");
  note.textContent = text;
  item.style.borderColor = colour;
  item.classList.add("shared");
  item.append(note);
}

function compare() {
  const numbers = [byId("left").value, byId("right").value];
  const [left, right] = numbers.map(Number);
  byId("compared").hidden = numbers.includes("") || left === right;
  if (byId("compared").hidden) return;
  const copies = numbers.map(copyOf);
  const items = copies.map((copy) => copy.querySelectorAll("li"));
  const originals = byNumber.get(numbers[0]).querySelectorAll("li");
  const [first, second] = [Math.min(left, right), Math.max(left, right)];
  const shared = pairs.filter(([a, , b]) => a === first && b === second);
  shared.forEach(([, i, , j, cosine], n) => {
    const ranks = left < right ? [i, j] : [j, i];
    const colour = originals[ranks[0]].style.borderColor;
    ranks.forEach((rank, side) => {
      mark(items[side][rank], colour, `shared (${n + 1}), cosine ${cosine}`);
    });
  });
  byId("pair").replaceChildren(...copies);
  const names = copies.map((copy) => `“${copy.dataset.name}”`).join(" and ");
  byId("common").textContent = `${names} share ${shared.length || "none"} of the concepts shown.`;
}

byId("class-controls").addEventListener("submit", (event) => event.preventDefault());
for (const id of ["filter", "sort"]) byId(id).addEventListener("input", arrange);
for (const id of ["left", "right"]) byId(id).addEventListener("input", compare);
byId("class-controls").hidden = false;
arrange();
