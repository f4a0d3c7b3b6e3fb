"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const get = id => document.getElementById(id), all = selector => [...document.querySelectorAll(selector)];
document.documentElement.classList.add("on");
const only = (selector, keep) => { for (const e of all(selector)) e.hidden = !keep(e); };

// Tables: one kind, one baseline, rows in the order of a column.
const kindTable = get("kind-table"), against = get("against");
const showTable = () => only(".by-kind", t => t.dataset.kind === kindTable.value);
kindTable.onchange = showTable; showTable();
const showPairs = () => only(".against", t => Number(t.dataset.index) === against.selectedIndex);
if (against) { against.onchange = showPairs; showPairs(); }

function sortTable(head) {
  const table = head.closest("table"), column = [...head.parentNode.children].indexOf(head);
  const up = (head.dataset.up === "1") !== (head.dataset.sorted === "best");
  for (const h of head.parentNode.children) {
    if (h !== head) delete h.dataset.sorted;
    h.removeAttribute("aria-sort");
  }
  head.dataset.sorted = head.dataset.sorted === "best" ? "worst" : "best";
  head.setAttribute("aria-sort", up ? "descending" : "ascending");
  for (const body of table.tBodies) {
    const rows = [...body.rows].filter(r => !r.classList.contains("apart"));
    const value = r => r.cells[column].dataset.value;
    rows.sort((a, b) => {
      const x = value(a), y = value(b);
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
      return up ? y - x : x - y;
    });
    body.append(...rows);
  }
}
for (const head of all("thead th[data-up]")) head.onclick = () => sortTable(head);

// Pictures: which, in which order, with which figure below.
const cases = get("cases"), sections = [...cases.children];
function show() {
  const kind = get("kind").value, order = get("order").value, c = Number(get("configuration").value);
  const m = data.metrics.findIndex(m => m.key === get("metric").value), metric = data.metrics[m];
  const value = section => m < 0 ? null : data.scores[section.dataset.case][c][m];
  const sign = (metric && metric.up ? 1 : -1) * (order === "worst" ? 1 : -1);
  const rank = (a, b) => {
    const x = value(a), y = value(b);
    if (x === null || y === null) return (x === null) - (y === null);
    return sign * (x - y);
  };
  const sorted = order === "own" ? sections : [...sections].sort(rank);
  let shown = 0;
  for (const section of sorted) {
    section.hidden = kind !== "all" && section.dataset.kind !== kind;
    shown += !section.hidden;
    for (const span of section.querySelectorAll(".score")) {
      const v = m < 0 ? null : data.scores[section.dataset.case][Number(span.dataset.configuration)][m];
      span.textContent = v === null ? "" : (v * metric.scale).toFixed(metric.decimals);
    }
  }
  cases.replaceChildren(...sorted);
  get("count").textContent = shown + (shown === 1 ? " case" : " cases");
}
for (const id of ["kind", "metric", "configuration", "order"]) get(id).onchange = show;
for (const section of sections) section.onclick = e => {
  if (e.target.tagName === "IMG") section.classList.toggle("large");
};
show();
