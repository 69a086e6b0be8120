"use strict";

const byId = (name) => document.getElementById(name);

// Texts come from files of others: they are only ever set as text.
function element(tag, text, kind) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function card(result, number) {
  const item = element("li");
  const link = element("a");
  link.href = `r/${number}/`;
  const picture = element("img");
  picture.src = `r/${number}/thumbnail.jpg`;
  picture.loading = "lazy";
  picture.alt = "";
  link.append(picture, element("strong", result.folder), element("span", result.slide));
  for (const said of result.predictions) link.append(element("span", said, "faint"));
  item.dataset.words = [result.folder, result.slide, ...result.predictions].join(" ").toLowerCase();
  item.append(link);
  return item;
}

function filter() {
  const words = byId("words").value.toLowerCase().split(/\s+/).filter(Boolean);
  const items = [...byId("results").children];
  for (const item of items) item.hidden = !words.every((word) => item.dataset.words.includes(word));
  const shown = items.filter((item) => !item.hidden).length;
  byId("shown").textContent = `${shown} of ${items.length}`;
}

fetch("results.json").then((reply) => reply.json()).then((results) => {
  byId("results").append(...results.map(card));
  byId("words").addEventListener("input", filter);
  filter();
});
