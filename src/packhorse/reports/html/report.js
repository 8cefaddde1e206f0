"use strict";
// The page is whole without this: it sorts tables, copies commands, shows details of points.

for (const block of document.querySelectorAll(".command")) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    const code = block.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  block.append(button);
}

function sortValue(row, column) {
  if (column === 0) return row.cells[0].textContent.trim();
  const value = row.cells[column]?.dataset.sort;
  return value === undefined ? null : Number(value);
}

function sortBy(table, column, ascending) {
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const sign = ascending ? 1 : -1;
  rows.sort((left, right) => {
    const [a, b] = [sortValue(left, column), sortValue(right, column)];
    if (a === null || b === null) return (a === null) - (b === null);
    return a < b ? -sign : a > b ? sign : 0;
  });
  body.append(...rows);
}

for (const table of document.querySelectorAll(".sortable")) {
  Array.from(table.tHead.rows[0].cells).forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const before = heading.getAttribute("aria-sort");
      const first = heading.dataset.more === "yes" ? "descending" : "ascending";
      const next = before === null ? first : before === "ascending" ? "descending" : "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", next);
      sortBy(table, column, next === "ascending");
    });
  });
}

const tip = document.getElementById("tip");
let pointed = null;

function showTip(point) {
  pointed = point;
  tip.hidden = point === null;
  if (point === null) return;
  tip.textContent = point.getAttribute("aria-label");
  const mark = point.getBoundingClientRect();
  const box = tip.getBoundingClientRect();
  const left = Math.min(mark.right + 8, document.documentElement.clientWidth - box.width - 8);
  const above = mark.top - box.height - 8;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${above > 8 ? above : mark.bottom + 8}px`;
}

for (const point of document.querySelectorAll(".point")) {
  point.querySelector("title").remove();
  for (const name of ["pointerenter", "focus"]) point.addEventListener(name, () => showTip(point));
  for (const name of ["pointerleave", "blur"]) point.addEventListener(name, () => showTip(null));
}
for (const name of ["scroll", "resize"]) addEventListener(name, () => showTip(pointed), { passive: true });
addEventListener("keydown", (event) => { if (event.key === "Escape") showTip(null); });
