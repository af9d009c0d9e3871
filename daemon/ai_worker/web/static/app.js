// What the pages do beyond links and forms: live updates, keys, the theme, times in the reader's zone. All pages work without it.
"use strict";
(() => {
  const find = (selector, from = document) => from.querySelector(selector);
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];

  // ----- theme: as the system, then the opposite of that, so that the first change is seen, then the same by choice

  const THEMES = matchMedia("(prefers-color-scheme: dark)").matches ? ["", "light", "dark"] : ["", "dark", "light"];
  const themed = (theme) => {
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
  };
  themed(localStorage.getItem("theme") || "");
  const next_theme = () => {
    const now = localStorage.getItem("theme") || "";
    const next = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
    localStorage.setItem("theme", next);
    themed(next);
    say(`theme: ${next || "as the system"}`);
  };

  // ----- times

  const LONG = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
  const localise = (root) => {
    for (const time of all("time[datetime]", root)) {
      const moment = new Date(time.dateTime);
      if (isNaN(moment)) continue;
      const text = LONG.format(moment);
      if (time.textContent !== text) time.textContent = text;
      time.title = time.dateTime;
    }
  };

  // ----- a word in passing, for eyes and for screen readers

  let fading;
  const say = (text) => {
    let toast = find("#toast");
    if (!toast) {
      toast = document.createElement("p");
      toast.id = "toast";
      toast.setAttribute("role", "status");
      document.body.append(toast);
    }
    toast.textContent = text;
    toast.classList.add("shown");
    clearTimeout(fading);
    fading = setTimeout(() => toast.classList.remove("shown"), 2500);
  };

  // ----- live updates: a stream while the page is seen, fragments morphed in so that focus and selection stay

  const live = () => {
    const topic = document.body.dataset.live;
    const light = find("#live");
    if (!topic || !light) return;
    const [name, key] = topic.split("?");
    const address = `/ui/events/${name}` + (key ? `?key=${encodeURIComponent(key)}` : "");
    let source, later, wait = 2000;
    const show = (state, text) => {
      light.hidden = false;
      light.dataset.state = state;
      light.textContent = text;
    };
    const stop = () => {
      clearTimeout(later);
      source?.close();
      source = undefined;
    };
    const start = () => {
      stop();
      source = new EventSource(address);
      source.onopen = () => { wait = 2000; show("on", "live"); };
      source.onmessage = async ({ data }) => {
        show("on", "live");
        await htmx.swap({ text: data, swap: "none", sourceElement: document.body, target: document.body });
      };
      source.addEventListener("away", ({ data }) => { show("away", "no database"); light.title = data; });
      source.addEventListener("back", () => { show("on", "live"); light.title = ""; });
      source.addEventListener("reload", () => location.reload());
      source.onerror = () => {
        show("off", "not live");
        if (source.readyState !== EventSource.CLOSED) return; // it tries again by itself
        stop();
        later = setTimeout(start, wait);
        wait = Math.min(wait * 2, 60000);
      };
    };
    document.addEventListener("visibilitychange", () => (document.hidden ? stop() : start()));
    addEventListener("pagehide", stop);
    if (!document.hidden) start();
  };

  // ----- keys

  const KEYS = {
    "?": () => find("#help")?.showModal(),
    t: next_theme,
    j: () => step(1),
    k: () => step(-1),
    "/": () => find("input[type=search]")?.focus(),
  };
  const GO = { o: "/", t: "/ui/tasks", n: "/ui/submit", m: "/ui/models", w: "/ui/workers", s: "/ui/schedules" };

  // The rows of a page's list are what carries data-row: a link or an element with one in it. The one with the focus is the current.
  const step = (by) => {
    const rows = all("[data-row]").filter((row) => row.offsetParent !== null);
    if (!rows.length) return;
    const at = rows.findIndex((row) => row.contains(document.activeElement));
    const row = rows[at < 0 ? (by > 0 ? 0 : rows.length - 1) : Math.min(rows.length - 1, Math.max(0, at + by))];
    const target = row.matches("a[href]") ? row : find("a[href]", row) || row;
    target.focus();
    row.scrollIntoView({ block: "nearest" });
  };

  const is_typing = (target) => target.closest?.("input, textarea, select, [contenteditable]");
  let going = -Infinity;
  addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || is_typing(event.target)) return;
    if (find("dialog[open]")) return;
    if (event.timeStamp - going < 1500 && GO[event.key]) {
      const link = find(`nav a[href="${GO[event.key]}"]`);
      going = -Infinity;
      if (link) link.click();
      event.preventDefault();
    } else if (event.key === "g") {
      going = event.timeStamp;
    } else if (KEYS[event.key]) {
      event.preventDefault();
      KEYS[event.key](event);
    }
  });

  const DO = { theme: next_theme, help: KEYS["?"] };
  addEventListener("click", (event) => {
    const button = event.target.closest?.("[data-do]");
    if (button && DO[button.dataset.do]) DO[button.dataset.do](event);
  });

  // Other scripts of ours add to these.
  window.aiWorker = { keys: KEYS, actions: DO, say, find, all };

  addEventListener("DOMContentLoaded", () => {
    for (const button of all("[data-do][hidden]")) button.hidden = false;
    localise(document);
    document.addEventListener("htmx:after:swap", () => localise(document));
    live();
  });
})();
