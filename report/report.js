"use strict";
// Draws the plots in the page's colours, and serves the buttons. Asks nothing of any network.
(() => {
  const figures = new Map();
  for (const source of document.querySelectorAll("script[data-figure]")) {
    figures.set(source.dataset.figure, JSON.parse(source.textContent));
  }
  const fine = matchMedia("(pointer: fine)").matches;

  // A figure names colours as var(--name), since plotly.js cannot read CSS variables.
  const inColour = (value, css) => {
    if (typeof value === "string") {
      return value.startsWith("var(") ? css.getPropertyValue(value.slice(4, -1)).trim() : value;
    }
    if (Array.isArray(value)) return value.map((item) => inColour(item, css));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, inColour(v, css)]));
  };

  const draw = (id) => {
    const css = getComputedStyle(document.documentElement);
    const { data, layout } = inColour(figures.get(id), css);
    // Dragging must scroll the page on a touch screen; it zooms where there is a mouse.
    layout.dragmode = fine ? "zoom" : false;
    Plotly.react(id, data, layout, { responsive: true, displayModeBar: false });
  };
  const drawAll = () => [...figures.keys()].forEach(draw);
  drawAll();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);

  for (const choice of document.querySelectorAll("[data-axis]")) {
    choice.addEventListener("change", (event) => {
      const axis = figures.get(choice.dataset.axis).layout.xaxis;
      axis.type = event.target.value;
      axis.tickmode = axis.type === "log" ? "array" : "auto";
      draw(choice.dataset.axis);
    });
  }
  for (const choice of document.querySelectorAll("[data-panels]")) {
    const panels = document.querySelectorAll(`[data-panel="${choice.dataset.panels}"]`);
    choice.addEventListener("change", (event) => {
      for (const panel of panels) panel.hidden = panel.dataset.value !== event.target.value;
    });
  }

  const exported = JSON.parse(document.getElementById("exports").textContent);
  const copy = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  };
  const say = (button, text) => {
    const before = button.textContent;
    button.textContent = text;
    setTimeout(() => { button.textContent = before; }, 1500);
  };
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      await copy(exported[button.dataset.copy]);
      button.parentElement.querySelector("[role=status]").textContent = "Copied.";
    });
  }
  for (const button of document.querySelectorAll("[data-copy-previous]")) {
    button.addEventListener("click", async () => {
      await copy(button.previousElementSibling.textContent);
      say(button, "Copied");
    });
  }
  for (const button of document.querySelectorAll("[data-download]")) {
    button.addEventListener("click", () => {
      const link = document.createElement("a");
      const blob = new Blob([exported[button.dataset.download]], { type: "text/plain" });
      link.href = URL.createObjectURL(blob);
      link.download = button.dataset.file;
      link.click();
      URL.revokeObjectURL(link.href);
    });
  }
})();
