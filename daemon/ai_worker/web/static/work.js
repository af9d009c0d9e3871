// The pages about tasks and items: keys for what is on the page, choosing rows, copying. Everything works without it, by mouse.
"use strict";
(() => {
  const { keys, actions, say, find, all } = window.aiWorker;

  // What carries data-key is done by that key, or one of several: a button is pressed, a link followed, a summary opened.
  const press = (name) => () => {
    const target = all("[data-key]").find((each) => each.dataset.key.split(" ").includes(name));
    if (!target || target.disabled) return;
    target.click();
    const details = target.closest("details");
    if (target.matches("summary") && details?.open) {
      const text = find("textarea", details);
      text?.focus();
      details.scrollIntoView({ block: "nearest" });
    }
  };
  const learn = () => {
    for (const element of all("[data-key]")) for (const name of element.dataset.key.split(" ")) keys[name] = press(name);
  };
  learn();

  // Ctrl+Enter sends the form of a text, Escape leaves it; the form is sent by its own button, so that its verdict goes along.
  addEventListener("keydown", (event) => {
    if (!event.target.matches?.("textarea[data-sent-by], .say input")) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      find("button", event.target.form)?.click();
    } else if (event.key === "Escape") {
      event.target.blur();
    }
  });

  // A verdict is given once, however often the key is hit while the next page is on its way.
  addEventListener("submit", (event) => {
    if (event.defaultPrevented) return;
    if (event.target.dataset.sent) {
      event.preventDefault();
      return;
    }
    event.target.dataset.sent = "yes";
    const busy = find("[data-busy]", event.target);
    if (busy) busy.textContent = busy.dataset.busy;
  });
  addEventListener("pageshow", () => { for (const form of all("form[data-sent]")) delete form.dataset.sent; });

  // A file that is too large is not sent at all: the server would hang up in the middle of it.
  addEventListener("change", ({ target }) => {
    if (!target.matches?.("input[type=file][data-bytes]")) return;
    const most = Number(target.dataset.bytes);
    const is_larger = (target.files[0]?.size ?? 0) > most;
    target.setCustomValidity(is_larger ? `The file is larger than ${most / 1e6} MB; ai-worker submit FILE takes files of any size.` : "");
    target.reportValidity();
  });

  // ----- rows that are chosen stay so when the list is brought up to date

  const chosen = new Set();
  addEventListener("change", ({ target }) => {
    if (target.name === "items") target.checked ? chosen.add(target.value) : chosen.delete(target.value);
  });
  const choose_again = () => {
    for (const box of all("input[name=items]")) box.checked = chosen.has(box.value);
    for (const box of all("input[data-do=choose-all]")) box.hidden = false;
  };
  addEventListener("DOMContentLoaded", () => document.addEventListener("htmx:after:swap", () => { choose_again(); learn(); }));
  choose_again();
  actions["choose-all"] = ({ target }) => {
    for (const box of all("input[name=items]")) {
      box.checked = target.checked;
      box.checked ? chosen.add(box.value) : chosen.delete(box.value);
    }
  };
  actions.copy = async ({ target }) => {
    try {
      await navigator.clipboard.writeText(target.closest("[data-text]").dataset.text);
      say("copied");
    } catch {
      say("the browser does not let this page copy");
    }
  };

  // A menu closes when something else is done.
  addEventListener("click", ({ target }) => {
    for (const menu of all("details.confirm[open]")) if (!menu.contains(target)) menu.open = false;
  });
  addEventListener("keydown", ({ key }) => {
    if (key === "Escape") for (const menu of all("details.confirm[open]")) menu.open = false;
  });
})();
