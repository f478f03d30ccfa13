"use strict";
// Draws every figure in the current theme, and redraws it when the theme changes.
const themes = JSON.parse(document.getElementById("themes").textContent);
const system = matchMedia("(prefers-color-scheme: dark)");
const button = document.getElementById("theme");
const config = { responsive: true, displayModeBar: false };

function show(theme) {
  document.documentElement.dataset.theme = theme;
  button.textContent = theme === "dark" ? "Light" : "Dark";
  button.setAttribute("aria-label", `Change to ${button.textContent.toLowerCase()} colours`);
  for (const box of document.querySelectorAll(".figure")) {
    const { data, layout } = JSON.parse(box.nextElementSibling.textContent);
    Plotly.react(box, data, { ...layout, template: themes[theme] }, config);
  }
}

button.addEventListener("click", () => show(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
system.addEventListener("change", () => show(system.matches ? "dark" : "light"));
show(system.matches ? "dark" : "light");
