"use strict";
{
const all = (query, from = document) => [...from.querySelectorAll(query)];
const root = document.documentElement;
root.classList.add("js");
for (const part of all("form.controls, fieldset.choice, button.save")) part.hidden = false;

// What the reader chose outlives a renewal of a live page; a page opened from disk may have no such memory.
const memory = {
  get(key) { try { return sessionStorage.getItem(key); } catch { return null; } },
  set(key, value) { try { sessionStorage.setItem(key, value); } catch { /* nothing is lost but comfort */ } },
};

const showPanel = (section, chosen) => {
  for (const panel of all(":scope > .panel", section)) panel.hidden = panel.dataset.panel !== chosen;
};
for (const section of all("main > section")) {
  const choice = section.querySelector(":scope > fieldset.choice");
  if (!choice) continue;
  const before = memory.get("panel " + section.id);
  const radio = before !== null && choice.querySelector(`input[value="${CSS.escape(before)}"]`);
  if (radio) radio.checked = true;
  showPanel(section, choice.querySelector("input:checked").value);
  choice.addEventListener("change", (event) => {
    showPanel(section, event.target.value);
    memory.set("panel " + section.id, event.target.value);
  });
}

// What scrolls sideways can be reached by keyboard, and only that: a figure that fits is no stop on the way.
const reach = new ResizeObserver((seen) => {
  for (const { target } of seen) {
    if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  }
});
for (const part of all(".scroll")) reach.observe(part);

const form = document.querySelector("form.controls");
if (form) {
  // The controls stay above what they change, and a section that is jumped to begins below them.
  new ResizeObserver(() => {
    const covers = getComputedStyle(form).position === "sticky" ? form.offsetHeight : 0;
    root.style.scrollPaddingTop = `${covers + 16}px`;
  }).observe(form);
  form.addEventListener("submit", (event) => event.preventDefault());
  const showSeries = (box) => {
    for (const part of all(`[data-series="${box.dataset.shows}"]`)) part.classList.toggle("off", !box.checked);
  };
  const boxes = all("input[data-shows]", form);
  for (const box of boxes) box.addEventListener("change", () => showSeries(box));
  for (const button of all("button[data-all]", form)) button.addEventListener("click", () => {
    for (const box of boxes) { box.checked = Boolean(button.dataset.all); showSeries(box); }
  });
  const seeds = form.querySelector("#seeds");
  seeds.addEventListener("change", () => {
    for (const part of all('[data-part="seeds"]')) part.style.display = seeds.checked ? "" : "none";
  });
  const published = form.querySelector("#published");
  if (published) {
    const show = () => {
      for (const part of all("[data-overlay]")) part.style.display = part.dataset.overlay === published.value ? "" : "none";
    };
    published.addEventListener("change", show);
    show();
  }
  const theme = form.querySelector("#theme");
  const dress = () => { if (theme.value) root.dataset.theme = theme.value; else delete root.dataset.theme; };
  theme.value = memory.get("theme") || "";
  dress();
  theme.addEventListener("change", () => { dress(); memory.set("theme", theme.value); });
}

// A figure alone knows no theme of a page: its colours become the light ones that stand beside the variables.
for (const button of all("button.save")) button.addEventListener("click", () => {
  const drawn = button.closest("figure").querySelector("svg").cloneNode(true);
  for (const part of all(".off, [style*='display: none']", drawn)) part.remove();
  const [, , width, height] = drawn.getAttribute("viewBox").split(" ");
  drawn.setAttribute("width", width);
  drawn.setAttribute("height", height);
  const paper = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  paper.setAttribute("width", "100%");
  paper.setAttribute("height", "100%");
  paper.setAttribute("fill", "#ffffff");
  drawn.prepend(paper);
  const text = new XMLSerializer().serializeToString(drawn).replace(/var\(--[a-z0-9]+, (#[0-9a-f]{6})\)/g, "$1");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
  link.download = button.dataset.name + ".svg";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
});

// A live page asks its own server, and nobody else, whether there is something new.
const live = document.body.dataset.live;
if (live) {
  const says = document.getElementById("live");
  setInterval(async () => {
    try {
      const answer = await fetch("/version");
      if ((await answer.text()) !== live) location.reload();
      else says.textContent = "Live: the page renews itself while the runs go on.";
    } catch {
      says.textContent = "The server behind this page has ended; what is here stays as it was.";
    }
  }, 3000);
}
}
