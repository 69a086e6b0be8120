"use strict";

// A cell sorts by its data-value: a number in columns of numbers, else text. Empty cells stay at the end.
function compare(a, b, numeric) {
  if (a === "" || b === "") return (a === "") - (b === "");
  const [x, y] = numeric ? [Number(a), Number(b)] : [a, b];
  return x < y ? -1 : Number(x > y); // a difference of two infinite numbers is none
}

function sortBy(header) {
  const table = header.closest("table");
  const column = Number(header.dataset.column);
  const numeric = header.classList.contains("number");
  const ascending = header.getAttribute("aria-sort") !== "ascending";
  const value = (row) => row.cells[column].dataset.value;
  const order = (a, b) => {
    const missing = value(a) === "" || value(b) === "";
    return compare(value(a), value(b), numeric) * (ascending || missing ? 1 : -1);
  };
  for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
}

function filterBy(input) {
  const rows = [...document.getElementById(input.getAttribute("aria-controls")).tBodies[0].rows];
  const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of rows) {
    const names = row.dataset.names.toLowerCase();
    row.hidden = !words.every((word) => names.includes(word));
  }
  const shown = rows.filter((row) => !row.hidden).length;
  document.getElementById("shown").textContent = `${shown} of ${rows.length} rows`;
}

for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => sortBy(button.closest("th")));
}
for (const input of document.querySelectorAll(".filter input")) {
  input.addEventListener("input", () => filterBy(input));
  filterBy(input);
}
