/* Reads the page again every five seconds while it is seen. It works without: by the link "Refresh". */
"use strict";

const EVERY = 5000;
const fresh = document.querySelector("#fresh");
const live = document.querySelector("[data-live]");

// What was told of an action is not told again when the page is read again.
const here = new URL(location.href);
for (const name of ["done", "count"]) here.searchParams.delete(name);
if (here.href !== location.href) history.replaceState(null, "", here);

for (const form of document.querySelectorAll("form[method=post]")) {
  let sent = false;
  form.addEventListener("submit", (event) => {
    if (sent) event.preventDefault(); // a double click
    sent = true;
  });
  addEventListener("pageshow", () => { sent = false; });
}

// How what has the focus is found again.
const way = (element) => {
  if (element.id) return `#${CSS.escape(element.id)}`;
  if (element.matches("summary")) return `${way(element.parentElement)} > summary`;
  const named = element.getAttribute("href") ? "href" : "aria-labelledby";
  return `[${named}="${CSS.escape(element.getAttribute(named) || "")}"]`;
};

const show = (section) => {
  const focused = live.contains(document.activeElement) ? way(document.activeElement) : "";
  const nth = focused ? [...live.querySelectorAll(focused)].indexOf(document.activeElement) : -1;
  const scrolled = [...live.querySelectorAll(".wide")].map((box) => [box.scrollLeft, box.scrollTop]);
  for (const open of live.querySelectorAll("details[open]")) {
    const same = section.querySelector(`#${CSS.escape(open.id)}`);
    if (same) same.open = true;
  }
  live.replaceChildren(...section.childNodes);
  live.querySelectorAll(".wide").forEach((box, i) => { [box.scrollLeft, box.scrollTop] = scrolled[i] || [0, 0]; });
  if (nth >= 0) live.querySelectorAll(focused)[nth]?.focus({ preventScroll: true });
};

// What somebody is about to do, or to copy, stays as it is.
const busy = () => live.querySelector("input:checked") || String(getSelection());

const look = async () => {
  if (paused || document.visibilityState !== "visible" || busy()) return;
  try {
    const headers = { Accept: "text/html", "Taskflow-Seen": fresh.dataset.read };
    const answer = await fetch(here, { headers, signal: AbortSignal.timeout(EVERY) });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const section = page.querySelector("[data-live]");
    if (!answer.ok || answer.redirected || !section) throw new Error(String(answer.status));
    if (paused || busy()) return;
    show(section);
    const again = page.querySelector("#fresh");
    fresh.dataset.read = again.dataset.read;
    fresh.replaceChildren(...again.childNodes);
  } catch {
    fresh.textContent = "No answer: what you see is old";
  }
};

let paused = false;
if (live && fresh) {
  const button = document.createElement("button");
  button.type = "button";
  const tell = () => { button.textContent = paused ? "Go on by itself" : "Hold still"; };
  button.addEventListener("click", () => { paused = !paused; tell(); look(); });
  tell();
  fresh.after(button);
  setInterval(look, EVERY);
  addEventListener("visibilitychange", look);
}
