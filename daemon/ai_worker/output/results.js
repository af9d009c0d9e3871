"use strict";
// Filters and sorts the items of the page. Texts are read as text only: nothing of them is ever made markup again.
(() => {
  const main = document.querySelector("main");
  const form = document.getElementById("choose");
  const output = form.querySelector("output");
  const number = (text) => (text === "" ? null : Number(text));
  const items = [...main.children].map((element, place) => ({
    element,
    place,
    id: Number(element.dataset.id),
    status: element.dataset.status,
    review: element.dataset.review,
    cost: number(element.dataset.cost),
    ratio: number(element.dataset.ratio),
    count: Number(element.dataset.count),
    kinds: element.dataset.kinds.split(" "),
    isChanged: element.classList.contains("changed"),
    text: null,
  }));
  const folded = (text) => text.normalize("NFC").toLocaleLowerCase();
  // Read at the first search, not before: a big page opens without it.
  const textOf = (item) => (item.text ??= folded(item.element.textContent));

  let order = "id";
  const sort = (by) => {
    if (by === order) return;
    order = by;
    const down = by.startsWith("-") ? -1 : 1;
    const key = by.replace("-", "");
    const compare = (a, b) => {
      const [x, y] = [a[key], b[key]];
      if (x === y) return a.place - b.place;
      if (x === null) return 1; // what is not known stands last, whichever way
      if (y === null) return -1;
      return x < y ? -down : down;
    };
    items.sort(compare);
    main.replaceChildren(); // all at once: to move thousands one by one takes seconds
    const sorted = document.createDocumentFragment();
    for (const item of items) sorted.append(item.element);
    main.append(sorted);
  };

  const apply = () => {
    const chosen = Object.fromEntries(new FormData(form));
    const wanted = folded(chosen.text.trim());
    const least = number(chosen.ratio);
    let shown = 0;
    for (const item of items) {
      const fits =
        (!chosen.status || item.status === chosen.status) &&
        (!chosen.review || item.review === chosen.review) &&
        (!chosen.kind ||
          (chosen.kind === "changed" ? item.isChanged : chosen.kind === "same" ? !item.isChanged : item.kinds.includes(chosen.kind))) &&
        (least === null || (item.ratio !== null && item.ratio * 100 >= least)) &&
        (!wanted || textOf(item).includes(wanted));
      item.element.hidden = !fits;
      shown += fits;
    }
    sort(chosen.sort);
    output.textContent = `${shown.toLocaleString("en")} of ${items.length.toLocaleString("en")} items`;
  };

  let waiting = 0;
  const now = () => {
    clearTimeout(waiting);
    apply();
  };
  const soon = () => {
    clearTimeout(waiting);
    waiting = setTimeout(apply, 150);
  };

  const step = (down) => {
    const visible = [...main.children].filter((element) => !element.hidden);
    const here = visible.indexOf(document.activeElement.closest("article"));
    const next = visible[here < 0 ? (down ? 0 : visible.length - 1) : here + (down ? 1 : -1)];
    if (next) {
      next.focus({ preventScroll: true });
      next.scrollIntoView({ block: "nearest" });
    }
  };

  form.addEventListener("input", (event) => event.target.matches("input") && soon()); // while somebody is typing
  form.addEventListener("change", now); // a choice, or Enter
  form.addEventListener("reset", () => setTimeout(now));
  form.addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target.closest("input, select, textarea")) return;
    if (event.key === "/") {
      event.preventDefault();
      form.elements.text.focus();
    } else if (event.key === "j" || event.key === "k") {
      step(event.key === "j");
    }
  });

  document.getElementById("all").checked = true; // as the browser may have kept another: the form takes its place
  document.getElementById("plain").hidden = true;
  form.hidden = false;
  apply();
})();
