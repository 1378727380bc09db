"use strict";
(() => {
  const { views, height } = JSON.parse(document.getElementById("data").textContent);
  const buttons = [...document.querySelectorAll("button[data-picture]")];
  const bars = [...document.querySelectorAll("rect[data-place]")];
  const heatOn = document.getElementById("show-heat");
  const marksOn = document.getElementById("show-marks");
  const dialog = document.getElementById("enlarged");
  const CELL = 16; // canvas units a side of a cell
  let open = null;

  const chosenView = () => views[Number(document.querySelector("input[name=view]:checked").value)];

  function drawHeat(context, coded, columns) {
    const cells = Uint8Array.from(atob(coded), (one) => one.charCodeAt(0));
    cells.forEach((heat, cell) => {
      context.fillStyle = `rgb(255 ${200 - Math.round(0.55 * heat)} 0 / ${(0.72 * heat) / 255})`;
      context.fillRect((cell % columns) * CELL, Math.floor(cell / columns) * CELL, CELL, CELL);
    });
  }

  function drawMark(context, row, column, kind) {
    const left = column * CELL, top = row * CELL;
    const path = new Path2D();
    if (kind === "dropped") {
      path.moveTo(left + 4, top + 4); path.lineTo(left + CELL - 4, top + CELL - 4);
      path.moveTo(left + CELL - 4, top + 4); path.lineTo(left + 4, top + CELL - 4);
    } else {
      path.rect(left + 1.5, top + 1.5, CELL - 3, CELL - 3);
    }
    for (const [colour, width] of [["#ffffff", 3.5], [kind === "dropped" ? "#c1121f" : "#1450c8", 1.8]]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.stroke(path);
    }
  }

  function drawPicture(canvas, button, view) {
    const rows = Number(button.dataset.rows), columns = Number(button.dataset.columns);
    const context = canvas.getContext("2d");
    canvas.width = columns * CELL;
    canvas.height = rows * CELL;
    const coded = view.heat[button.dataset.picture];
    if (coded && heatOn.checked) drawHeat(context, coded, columns);
    if (!marksOn.checked) return;
    const number = Number(button.dataset.picture);
    for (const [picture, row, column, kind] of view.marks) {
      if (picture === number) drawMark(context, row, column, kind);
    }
  }

  function drawDialog(view) {
    if (!open) return;
    dialog.querySelector("img").src = open.querySelector("img").src;
    dialog.querySelector("p").textContent = open.getAttribute("aria-label").replace(": enlarge", "");
    drawPicture(dialog.querySelector("canvas"), open, view);
  }

  function draw() {
    const view = chosenView();
    bars.forEach((bar, place) => {
      const tall = (view.bars[place] * height) / 1000;
      bar.setAttribute("y", height - tall);
      bar.setAttribute("height", tall);
    });
    document.getElementById("scale").textContent = view.scale;
    buttons.forEach((button) => drawPicture(button.querySelector("canvas"), button, view));
    drawDialog(view);
  }

  buttons.forEach((button) => button.addEventListener("click", () => {
    open = button;
    drawDialog(chosenView());
    dialog.showModal();
  }));
  dialog.addEventListener("close", () => { open.focus(); open = null; });
  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const next = step && buttons[buttons.indexOf(open) + step];
    if (next) { open = next; drawDialog(chosenView()); }
  });
  document.querySelectorAll("input").forEach((input) => input.addEventListener("change", draw));
  draw();
})();
