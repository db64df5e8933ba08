// What a pointer rests on, at once and in words, and the time below it. The page is whole without this.
"use strict";
const tip = document.body.appendChild(document.createElement("div"));
tip.id = "tip";
tip.hidden = true;

for (const plot of document.querySelectorAll("svg.plot")) {
  for (const title of plot.querySelectorAll("title")) {
    if (title.parentNode === plot) {
      // The picture's own name, which would else be shown wherever nothing lies: kept for who listens to the page.
      const name = plot.insertBefore(document.createElementNS(plot.namespaceURI, "desc"), title);
      name.id = title.id;
      name.textContent = title.textContent;
    } else {
      title.parentNode.setAttribute("data-tip", title.textContent);
    }
    title.remove();
  }
  const total = Number(plot.dataset.total);
  const cross = plot.appendChild(document.createElementNS(plot.namespaceURI, "line"));
  cross.setAttribute("class", "pointer");
  cross.setAttribute("y1", "18");
  cross.setAttribute("y2", plot.dataset.bottom);
  cross.style.display = "none";

  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const share = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
    const at = total * share;
    const time = at < 1 ? (at * 1000).toFixed(at < 0.01 ? 1 : 0) + " ms" : at.toFixed(2) + " s";
    const mark = event.target.closest("[data-tip]");
    cross.style.display = "";
    cross.setAttribute("x1", 100 * share + "%");
    cross.setAttribute("x2", 100 * share + "%");
    tip.textContent = (mark ? mark.dataset.tip + "\n" : "") + "pointer at " + time;
    tip.hidden = false;
    const right = event.clientX + 14 + tip.offsetWidth > document.documentElement.clientWidth;
    tip.style.left = event.clientX + (right ? -14 - tip.offsetWidth : 14) + "px";
    tip.style.top = Math.min(event.clientY + 16, window.innerHeight - tip.offsetHeight - 4) + "px";
  });
  plot.addEventListener("pointerleave", () => {
    tip.hidden = true;
    cross.style.display = "none";
  });
}

addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
