"use strict";

const byId = (id) => document.getElementById(id);
const urls = byId("transfer").dataset;
const statusTexts = {
  PENDING: "Waiting for your code",
  SUCCESS: "Verified",
  LOCKED: "Locked: too many wrong codes. Start another transfer.",
  EXPIRED: "Expired: start another transfer.",
};
const ends = {
  "callback-succeeded": "Done: confirmed once, paid once.",
  "callback-dead": "Given up: the transfer waits among the dead letters.",
};
let shownStatus = "";

function append(list, className, ...children) {
  const item = document.createElement("li");
  item.className = className;
  item.append(...children);
  list.append(item);
}

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function showStatus(status) {
  if (status === shownStatus) return;
  byId("status").textContent = statusTexts[status] ?? "Over: start another transfer.";
  byId("status").dataset.status = status;
  byId("code-form").hidden = status !== "PENDING";
  if (status === "PENDING") byId("code").focus();
  else if (shownStatus) byId("confirm").focus();
  shownStatus = status;
}

function show(state) {
  showStatus(state.status);
  for (const code of state.codes.slice(byId("inbox").children.length)) {
    append(byId("inbox"), "mail", "Your code is ", element("strong", code));
  }
  for (const event of state.events.slice(byId("events").children.length)) {
    const time = element("time", new Date(event.at).toLocaleTimeString());
    append(byId("events"), event.name, time, element("span", event.text));
  }
  const last = state.events.at(-1)?.name;
  byId("end").textContent = ends[last] ?? "";
  const waiting = state.status === "PENDING" || (state.status === "SUCCESS" && !(last in ends));
  byId("events").classList.toggle("waiting", waiting);
  return waiting;
}

async function poll() {
  let waiting = true;
  try {
    const response = await fetch(urls.statusUrl);
    waiting = show(await response.json());
  } catch {
    byId("end").textContent = "The app does not answer. Trying again …";
  }
  if (waiting) setTimeout(poll, 700);
}

function say(text, good = false) {
  byId("message").textContent = text;
  byId("message").classList.toggle("bad", !good && text !== "");
  byId("message").classList.toggle("good", good);
}

async function post(url, body) {
  try {
    const response = await fetch(url, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    const answer = await response.json();
    if (response.status === 404) answer.title = "This is not your transfer any more: reload.";
    return { response, answer };
  } catch {
    return { response: { ok: false, headers: new Headers() }, answer: { title: "The app does not answer." } };
  }
}

byId("code-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  say("");
  const { response, answer } = await post(urls.verifyUrl, { method: "EMAIL", otp: byId("code").value });
  if (response.ok) return;
  say(answer.code === "invalid_request" ? "Type the 6 digits of the code." : answer.title);
  byId("code").select();
});

byId("resend").addEventListener("click", async () => {
  say("");
  const { response, answer } = await post(urls.resendUrl, { method: "EMAIL" });
  if (response.ok) {
    say(`Sent again. The next one can follow in ${answer.resend_after} s.`, true);
  } else {
    const wait = response.headers.get("Retry-After");
    say(wait ? `${answer.title} Try again in ${wait} s.` : answer.title);
  }
});

poll();
