"use strict";
// Tables are sorted by a click on a head, or with the keyboard: numbers from the highest, words from
// A, then the other way, then as they were. What stands beneath a line goes with it.
const value = (line, column, words) => {
  const text = line[0].cells[column].textContent.trim();
  return words ? text : parseFloat(text.replace(/^[<>] */, "").replace("−", "-"));
};
const compare = (a, b, words) => {
  if (words) return a.localeCompare(b, undefined, { numeric: true });
  if (isNaN(a) || isNaN(b)) return isNaN(a) - isNaN(b);
  return b - a;
};
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const lines = [];
  for (const row of body.rows) {
    if (row.classList.contains("paper")) lines.at(-1).push(row);
    else lines.push([row]);
  }
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    const words = head.classList.contains("key");
    const orders = words ? ["ascending", "descending"] : ["descending", "ascending"];
    button.addEventListener("click", () => {
      const order = orders[orders.indexOf(head.getAttribute("aria-sort")) + 1];
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      let shown = lines;
      if (order) {
        head.setAttribute("aria-sort", order);
        const flip = order === orders[0] ? 1 : -1;
        shown = lines.map((line) => [line, value(line, column, words)]);
        shown.sort(([, a], [, b]) =>
          !words && (isNaN(a) || isNaN(b)) ? compare(a, b) : flip * compare(a, b, words));
        shown = shown.map(([line]) => line);
      }
      body.append(...shown.flat());
    });
  });
}
for (const input of document.querySelectorAll("input")) {
  const rows = [...document.getElementById(input.dataset.of).tBodies[0].rows];
  input.hidden = false;
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
}
