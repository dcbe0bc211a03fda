// What saves the reload. Every page works without it.
//
// When something happens, the page itself is asked for again (`fragment=main`) and laid over the one shown, part by
// part: what did not change stays the same element, so that focus, ticked boxes and animations stay as well. No text
// becomes markup here: the server has rendered it.
"use strict";

const body = document.body;
const $ = (id) => document.getElementById(id);

// --- Theme -------------------------------------------------------------------------------------------------------

const themes = ["auto", "light", "dark"];
const button = $("theme");
function theme() {
  return document.documentElement.dataset.theme ?? "auto";
}
function sayTheme() {
  button.textContent = `Theme: ${theme()}`;
}
if (button) {
  button.hidden = false;
  sayTheme();
  button.addEventListener("click", () => {
    const next = themes[(themes.indexOf(theme()) + 1) % themes.length];
    if (next === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    try {
      if (next === "auto") localStorage.removeItem("theme");
      else localStorage.setItem("theme", next);
    } catch {
      // It holds until the page is left.
    }
    sayTheme();
  });
}

// --- Laying a new rendering over the page ------------------------------------------------------------------------

// Set by whoever looks, and not the server's to take back.
const kept = new Set(["hidden", "open", "data-fine"]);

function lay(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName || (old.id ?? "") !== (fresh.id ?? "")) {
    old.replaceWith(document.adoptNode(fresh));
    return;
  }
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE || old.isEqualNode(fresh)) return;
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !kept.has(name)) old.removeAttribute(name);
  }
  for (const { name, value } of [...fresh.attributes]) {
    if (!kept.has(name) && old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  layChildren(old, fresh);
}

function layChildren(old, fresh) {
  // Elements with an id keep their identity when rows come, go and change places.
  const known = new Map();
  for (const child of old.children) if (child.id) known.set(child.id, child);
  let place = old.firstChild;
  for (const next of [...fresh.childNodes]) {
    const same = next.id ? known.get(next.id) : undefined;
    if (same) {
      if (same !== place) old.insertBefore(same, place);
      else place = place.nextSibling;
      lay(same, next);
    } else if (place && !(place.id && (next.id || fresh.querySelector(`:scope > [id="${CSS.escape(place.id)}"]`))) && place.nodeName === next.nodeName && !next.id) {
      const after = place.nextSibling;
      lay(place, next);
      place = after;
    } else {
      old.insertBefore(document.adoptNode(next), place);
    }
  }
  while (place) {
    const after = place.nextSibling;
    place.remove();
    place = after;
  }
}

// --- Refreshing --------------------------------------------------------------------------------------------------

const PAUSE_MIN = 400;
let wanted = false;
let busy = false;
let paused = false;
let patience = PAUSE_MIN;

function fragmentUrl() {
  const url = new URL(location.href);
  url.hash = "";
  url.searchParams.delete("done");
  url.searchParams.set("fragment", "main");
  return url;
}

async function refresh() {
  if (busy || paused || document.hidden) {
    wanted = true;
    return;
  }
  busy = true;
  wanted = false;
  const began = performance.now();
  try {
    const answer = await fetch(fragmentUrl(), { credentials: "same-origin", cache: "no-store" });
    if (answer.redirected || answer.status === 401) return location.reload();
    if (answer.ok) {
      const told = Date.parse(answer.headers.get("date") ?? "");
      // The header has whole seconds.
      if (Math.abs(told - Date.now() - skew) > 1500) skew = told - Date.now();
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const part of fresh.querySelectorAll("[data-live]")) {
        const shown = $(part.id);
        if (shown) lay(shown, part);
      }
      tellTimes();
      body.dataset.refreshed = String(Number(body.dataset.refreshed ?? 0) + 1);
    }
  } catch {
    // The appliance is away; the event stream says so, and says when it is back.
  }
  // A page that takes long to make is asked for less often.
  patience = Math.max(PAUSE_MIN, (performance.now() - began) * 3);
  setTimeout(() => {
    busy = false;
    if (wanted) refresh();
  }, patience);
}

function say(text, state) {
  const connection = $("connection");
  if (!connection || connection.textContent === text) return;
  connection.textContent = text;
  connection.className = `connection ${state}`;
}

function listen() {
  const events = new EventSource("/api/v1/events");
  const node = body.dataset.node;
  events.addEventListener("open", () => {
    say("live", "is-live");
    refresh();
  });
  events.addEventListener("timeline", (message) => {
    if (node && !message.data.includes(node)) return;
    refresh();
  });
  events.addEventListener("bridge", refresh);
  events.addEventListener("lagged", refresh);
  events.addEventListener("error", () => {
    say("connection lost", "is-lost");
    // The browser tries again by itself unless it was refused.
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, 5000);
  });
}

const POLL_EVERY = 5000;
if (body.dataset.live === "events") listen();
if (body.dataset.live) {
  setInterval(() => {
    if (!document.hidden) refresh();
  }, POLL_EVERY);
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && wanted) refresh();
  });
}

const pause = $("pause");
if (pause) {
  pause.hidden = false;
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    pause.textContent = paused ? "Go on" : "Pause";
    if (!paused && wanted) refresh();
  });
}

// --- Times -------------------------------------------------------------------------------------------------------

// The appliance's clock, not this machine's, is what its times are told by.
let skew = 0;
function tellTimes() {
  for (const time of document.querySelectorAll("time[data-ago]")) {
    const secs = Math.max(0, Math.floor((Date.now() + skew - Date.parse(time.dateTime)) / 1000));
    const words = ago(secs);
    if (time.textContent !== words) time.textContent = words;
  }
}
function ago(secs) {
  if (secs < 1) return "now";
  if (secs < 60) return `${secs}s ago`;
  const two = (number) => String(number).padStart(2, "0");
  if (secs < 3600) return `${Math.floor(secs / 60)}m ${two(secs % 60)}s ago`;
  if (secs < 86400) return `${Math.floor(secs / 3600)}h ${two(Math.floor((secs % 3600) / 60))}m ago`;
  return `${Math.floor(secs / 86400)}d ${Math.floor((secs % 86400) / 3600)}h ago`;
}
setInterval(() => {
  if (!document.hidden && !paused) tellTimes();
}, 1000);

// --- Filters, selections, forms ----------------------------------------------------------------------------------

for (const form of document.querySelectorAll("form[data-submit-on-input]")) {
  let timer = 0;
  const apply = () => {
    const url = new URL(form.action);
    for (const [name, value] of new FormData(form)) if (value) url.searchParams.set(name, value);
    history.replaceState(null, "", url);
    busy = false;
    refresh();
  };
  form.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(apply, 150);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(timer);
    apply();
  });
}

document.addEventListener("change", (event) => {
  const name = event.target.dataset?.pickAll;
  if (!name) return;
  const form = event.target.closest("form");
  for (const box of form.querySelectorAll(`input[type=checkbox][name="${CSS.escape(name)}"]`)) {
    box.checked = event.target.checked;
  }
});
const pickAll = $("pick-all");
if (pickAll) pickAll.hidden = false;

// Said beside the field while one types; the appliance has the last word.
const complaints = {
  mac: "This is no MAC address yet: six pairs of hexadecimal digits are wanted, as in 52:54:00:12:34:56",
  name: "A name has lower-case letters, digits and inner hyphens only, 63 at most",
  address: "This is no IPv4 address yet",
};
for (const form of document.querySelectorAll("form[data-validate]")) {
  const judge = (input, whole) => {
    const wrong = $(`${input.name}-wrong`);
    if (!wrong) return true;
    const bad = !input.checkValidity() && (input.value !== "" || whole);
    wrong.textContent = bad ? complaints[input.name] ?? input.validationMessage : "";
    if (bad) input.setAttribute("aria-invalid", "true");
    else input.removeAttribute("aria-invalid");
    input.toggleAttribute("data-fine", !bad && input.value !== "");
    return !bad;
  };
  form.addEventListener("input", (event) => judge(event.target, false));
  form.addEventListener("submit", (event) => {
    const wrong = [...form.querySelectorAll("input[pattern]")].filter((input) => !judge(input, true));
    if (wrong.length > 0) {
      event.preventDefault();
      wrong[0].focus();
    }
  });
}
