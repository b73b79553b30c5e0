"use strict";
(() => {
  const figure = (text) => {
    const number = parseFloat(text.replace(/[,\s]/g, ""));
    return Number.isNaN(number) ? null : number;
  };
  const compare = (a, b) => {
    const x = figure(a), y = figure(b);
    if (x === null && y === null) return a.localeCompare(b);
    if (x === null) return 1;
    if (y === null) return -1;
    return x - y;
  };
  const plain = (a, b) => a.localeCompare(b, undefined, { numeric: true });

  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const original = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      const numeric = head.classList.contains("n");
      const steps = numeric ? ["descending", "ascending"] : ["ascending", "descending"];
      button.addEventListener("click", () => {
        const next = steps[steps.indexOf(head.getAttribute("aria-sort")) + 1];
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        const rows = [...original];
        if (next) {
          head.setAttribute("aria-sort", next);
          const sign = next === "ascending" ? 1 : -1;
          const order = numeric ? compare : plain;
          const text = (row) => row.cells[column].textContent;
          rows.sort((a, b) => {
            const missing = numeric && (figure(text(a)) === null || figure(text(b)) === null);
            return (missing ? 1 : sign) * order(text(a), text(b));
          });
        }
        body.append(...rows);
      });
    });
  }

  for (const input of document.querySelectorAll("input[data-filter]")) {
    const rows = [...document.getElementById(input.dataset.filter).tBodies[0].rows];
    const tools = input.closest(".tools");
    tools.hidden = false;
    input.addEventListener("input", () => {
      const wanted = input.value.toLowerCase();
      let seen = 0;
      for (const row of rows) {
        row.hidden = !row.textContent.toLowerCase().includes(wanted);
        seen += row.hidden ? 0 : 1;
      }
      tools.querySelector(".tally").textContent = wanted ? `${seen} of ${rows.length} rows` : "";
    });
  }

  const family = document.getElementById("family");
  if (family) {
    const layer = document.getElementById("layer");
    const walls = [...document.querySelectorAll("details.layer")];
    const tools = family.closest(".tools");
    tools.hidden = false;
    const names = new Set(walls.flatMap((wall) => [...wall.querySelectorAll("figure")].map((f) => f.dataset.f)));
    for (const name of [...names].sort()) family.append(new Option(name, name));
    const refresh = () => {
      let seen = 0;
      for (const wall of walls) {
        let here = 0;
        for (const item of wall.querySelectorAll("figure")) {
          item.hidden = family.value !== "" && item.dataset.f !== family.value;
          here += item.hidden ? 0 : 1;
        }
        const named = wall.dataset.name.toLowerCase().includes(layer.value.toLowerCase());
        wall.hidden = here === 0 || !named;
        seen += wall.hidden ? 0 : here;
      }
      const asked = family.value !== "" || layer.value !== "";
      tools.querySelector(".tally").textContent = asked ? `${seen} kernels` : "";
    };
    family.addEventListener("change", refresh);
    layer.addEventListener("input", refresh);
  }

  const theme = document.getElementById("theme");
  if (theme) {
    const root = document.documentElement;
    const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    const say = () => { theme.textContent = dark() ? "Light" : "Dark"; };
    theme.hidden = false;
    theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; say(); });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", say);
    say();
  }

  const kernels = [...document.querySelectorAll("figure.k")];
  if (kernels.length) {
    const large = document.createElement("dialog");
    const close = document.createElement("button");
    close.type = "button";
    close.textContent = "Close";
    close.addEventListener("click", () => large.close());
    large.addEventListener("click", (event) => { if (event.target === large) large.close(); });
    document.body.append(large);
    const open = (figure) => {
      const copy = figure.cloneNode(true);
      copy.removeAttribute("tabindex");
      copy.removeAttribute("role");
      large.replaceChildren(copy, close);
      large.showModal();
    };
    for (const figure of kernels) {
      figure.tabIndex = 0;
      figure.setAttribute("role", "button");
      figure.addEventListener("click", () => { if (!large.open) open(figure); });
      figure.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(figure); }
      });
    }
  }

  const copy = document.getElementById("copy");
  if (copy) {
    copy.hidden = false;
    copy.addEventListener("click", () => {
      const code = document.getElementById("command");
      const range = document.createRange();
      range.selectNodeContents(code);
      const selection = window.getSelection();
      selection.removeAllRanges();
      selection.addRange(range);
      const done = () => { copy.textContent = "Copied"; };
      if (navigator.clipboard) navigator.clipboard.writeText(code.textContent).then(done, () => { copy.textContent = "Selected"; });
      else { document.execCommand("copy"); done(); }
    });
  }
})();
