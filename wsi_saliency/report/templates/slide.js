"use strict";

const byId = (name) => document.getElementById(name);
const stack = byId("stack");

// Shows one map, with its legend; those of a target without positive patches have none to show.
function choose(number) {
  for (const layer of stack.querySelectorAll(".layer")) layer.hidden = layer.id !== `layer-${number}`;
  for (const legend of document.querySelectorAll(".legend")) legend.hidden = legend.id !== `legend-${number}`;
  fade();
}

function fade() {
  const shown = stack.querySelector(".layer:not([hidden])");
  if (shown) shown.style.opacity = byId("opacity").value / 100;
  stack.querySelector(".tissue").classList.toggle("pale", byId("pale").checked && shown !== null && byId("opacity").value > 0);
}

byId("choice")?.addEventListener("change", (event) => choose(event.target.value));
byId("opacity").addEventListener("input", fade);
byId("pale").addEventListener("change", fade);
choose(byId("choice")?.value ?? 0);
