/* What makes the page for a code nicer. It works without. Nothing here submits a form. */
"use strict";

const all = (selector) => [...document.querySelectorAll(selector)];
const problem = document.querySelector(".taskflow-problem");
if (problem) problem.focus();

for (const form of all("form[method=post]")) {
  const buttons = () => [...form.elements].filter((element) => element.type === "submit");
  let sent = false;
  form.addEventListener("submit", (event) => {
    if (sent) return event.preventDefault(); // a double click
    sent = true;
    for (const button of buttons()) button.setAttribute("aria-disabled", "true");
  });
  // Back from the next page, by the browser's own memory of this one.
  addEventListener("pageshow", () => {
    sent = false;
    for (const button of buttons()) button.removeAttribute("aria-disabled");
  });
}

const field = document.querySelector("#taskflow-otp");
if (field) {
  // A field without a name: browsers offer no code of last time.
  const carrier = document.createElement("input");
  carrier.type = "hidden";
  carrier.name = field.name;
  field.removeAttribute("name");
  field.after(carrier);
  field.form.addEventListener("submit", () => { carrier.value = field.value; });
  if (field.hasAttribute("data-webotp") && "OTPCredential" in window) {
    const ended = new AbortController();
    field.form.addEventListener("submit", () => ended.abort());
    navigator.credentials.get({ otp: { transport: ["sms"] }, signal: ended.signal })
      .then((message) => { if (message && !field.value) field.value = message.code; })
      .catch(() => {});
  }
}

for (const wait of all(".taskflow-wait")) {
  const section = wait.parentElement;
  const count = section.querySelector(".taskflow-count");
  const say = section.querySelector("[data-spoken]");
  const phases = Object.keys(wait.dataset).filter((name) => name.startsWith("left-")).map((name) => Number(name.slice(5)));
  const held = [...section.querySelectorAll("form[data-waits]")];
  const end = performance.now() + 1000 * wait.dataset.seconds;
  let last = Number(wait.dataset.seconds);
  const tick = () => {
    const left = Math.max(Math.ceil((end - performance.now()) / 1000), 0);
    count.textContent = `${wait.dataset.label} ${Math.floor(left / 60)}:${String(left % 60).padStart(2, "0")}`;
    // Spoken now and then: each second would drown everything else.
    const phase = phases.find((at) => left <= at && at < last);
    if (phase) say.textContent = wait.dataset[`left-${phase}`];
    last = left;
    if (left) return;
    clearInterval(timer);
    count.hidden = true;
    for (const form of held) form.hidden = false;
    say.textContent = "";
    section.querySelector("[data-alert]").textContent = wait.dataset.end;
  };
  say.textContent = wait.textContent;
  wait.hidden = true;
  count.hidden = false;
  for (const form of held) form.hidden = true;
  const timer = setInterval(tick, 250);
  tick();
}

const look = async () => {
  const shown = document.querySelector("[data-poll]");
  if (!shown) return;
  if (document.visibilityState === "visible") {
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = page.querySelector("#taskflow-outcome");
      if (fresh && fresh.textContent.trim() !== shown.textContent.trim()) {
        // The region stays, so that what is new in it is spoken.
        shown.replaceChildren(...fresh.childNodes);
        shown.className = fresh.className;
        document.title = page.title;
        document.querySelector("h1").textContent = page.querySelector("h1").textContent;
        if (!fresh.hasAttribute("data-poll")) shown.removeAttribute("data-poll");
      }
    } catch { /* the next time */ }
  }
  setTimeout(look, 1000 * (shown.dataset.poll || 2));
};
setTimeout(look, 1000);
