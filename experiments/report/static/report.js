// Sorting, filtering and copying of the tables of a page. Everything can be read without it.
"use strict";
(() => {
  const all = (what, of = document) => [...of.querySelectorAll(what)];
  const state = () => new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.v ?? cell.textContent.trim();
  };

  function remember(table, changes) {
    const found = state();
    for (const [name, text] of Object.entries(changes)) {
      const key = `${table.id}.${name}`;
      if (text) found.set(key, text); else found.delete(key);
    }
    history.replaceState(null, "", `#${found.size ? found : "="}`);
  }

  function sort(table, column, descending) {
    const body = table.tBodies[0], sign = descending ? -1 : 1;
    const rows = [...body.rows].map((row, place) => ({row, place, v: value(row, column)}));
    const numeric = rows.every(({v}) => v === "" || !isNaN(v));
    rows.sort((a, b) => {
      if ((a.v === "") !== (b.v === "")) return a.v === "" ? 1 : -1;  // what has no value stands last either way
      return sign * (numeric ? a.v - b.v : a.v.localeCompare(b.v)) || a.place - b.place;
    });
    body.append(...rows.map(({row}) => row));
    all("thead th", table).forEach((head, i) => {
      if (i === column) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    body.classList.add("sorted");
  }

  function filter(table, form) {
    const wanted = all("select", form).filter((select) => select.value);
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      row.hidden = !wanted.every((select) => value(row, +select.dataset.column) === select.value);
      shown += !row.hidden;
    }
    form.querySelector("output").value = `${shown} of ${table.tBodies[0].rows.length} lines`;
  }

  // A cell with an interval is three columns in what is copied.
  function lines(table) {
    const heads = all("thead th", table), rows = [...table.tBodies[0].rows].filter((row) => !row.hidden);
    const used = heads.map((_, i) => i).filter((i) => !("skip" in heads[i].dataset));
    const name = (i) => heads[i].dataset.name ?? heads[i].textContent.trim();
    const spread = (i) => "interval" in heads[i].dataset;
    const first = used.flatMap((i) => spread(i) ? [name(i), `${name(i)} low`, `${name(i)} high`] : [name(i)]);
    const others = rows.map((row) => used.flatMap((i) => {
      const cell = row.cells[i], text = value(row, i);
      return spread(i) ? [text, cell.dataset.l ?? "", cell.dataset.h ?? ""] : [text];
    }));
    return [first, ...others];
  }

  const formats = {
    CSV: (rows) => rows.map((row) => row.map((text) => /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text).join(",")).join("\n"),
    Markdown: ([head, ...rows]) => [head, head.map(() => "---"), ...rows].map((row) => `| ${row.map((text) => text.replaceAll("|", "\\|")).join(" | ")} |`).join("\n"),
    LaTeX: (rows) => [`\\begin{tabular}{${"l".repeat(rows[0].length)}}`, ...rows.map((row) => `${row.map((text) => text.replace(/[&%$#_{}]/g, "\\$&").replaceAll("−", "-")).join(" & ")} \\\\`), "\\end{tabular}"].join("\n"),
  };

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {  // not allowed for files in every browser
      const area = document.body.appendChild(document.createElement("textarea"));
      area.value = text;
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  }

  for (const table of all("table.data")) {
    const form = document.querySelector(`form[data-for="${table.id}"]`), found = state();
    all("thead th", table).forEach((head, column) => {
      if ("skip" in head.dataset) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const descending = head.getAttribute("aria-sort") === "ascending";
        sort(table, column, descending);
        remember(table, {sort: `${column}${descending ? "-" : ""}`});
      });
    });
    const order = found.get(`${table.id}.sort`);
    if (order && parseInt(order) < table.tHead.rows[0].cells.length) sort(table, parseInt(order), order.endsWith("-"));
    if (!form) continue;
    form.hidden = false;
    for (const select of all("select", form)) {
      select.value = found.get(`${table.id}.${select.name}`) ?? "";
      if (select.selectedIndex < 0) select.value = "";
      select.addEventListener("change", () => {
        filter(table, form);
        remember(table, {[select.name]: select.value});
      });
    }
    for (const button of all("button[data-copy]", form)) {
      button.addEventListener("click", async () => {
        const text = formats[button.dataset.copy](lines(table));
        await copy(text);
        form.querySelector("output").value = `${text.split("\n").length} lines copied as ${button.dataset.copy}`;
      });
    }
    filter(table, form);
  }
  addEventListener("beforeprint", () => all("details").forEach((each) => { each.open = true; }));
})();
