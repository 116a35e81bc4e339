"use strict";
// Finds, filters, sorts and pages the cards, which are all in the page. Without this script it shows the first of them.
(() => {
  const feed = document.getElementById("cards");
  if (!feed) return;
  const more = document.getElementById("more");
  const all = [...feed.children, ...(more ? more.content.children : [])];
  const size = Number(feed.dataset.size);
  const find = document.getElementById("find");
  const show = document.getElementById("show");
  const sort = document.getElementById("sort");
  const copy = document.getElementById("copy");
  const said = document.getElementById("copied");
  const words = new Map(all.map((card) => [card, card.querySelector(".origin").textContent.toLowerCase()]));
  window.volgrowthCards = all;  // decisions.js, which follows in the same page, decides about these
  let passing = all;
  let page = 0;

  const matches = (card) => {
    const wanted = find.value.trim().toLowerCase();
    const kinds = card.dataset.is.split(" ");
    return (!show.value || kinds.includes(show.value))
      && (!wanted || card.dataset.row === wanted || words.get(card).includes(wanted));
  };

  // what has no value comes last, whatever the direction
  const order = () => {
    const [key, direction] = sort.value.split(":");
    const value = new Map(all.map((card) => [card, card.dataset[key] === undefined ? NaN : Number(card.dataset[key])]));
    return (a, b) => {
      const [one, other] = [value.get(a), value.get(b)];
      return isNaN(one) - isNaN(other) || direction * (one - other) || a.dataset.row - b.dataset.row;
    };
  };

  const draw = () => {
    const pages = Math.max(1, Math.ceil(passing.length / size));
    page = Math.min(Math.max(page, 0), pages - 1);
    const first = page * size;
    const cards = passing.slice(first, first + size);
    feed.replaceChildren(...cards);
    cards.forEach((card, index) => {
      card.tabIndex = index ? -1 : 0;
      card.setAttribute("aria-posinset", first + index + 1);
      card.setAttribute("aria-setsize", passing.length);
    });
    const range = passing.length
      ? `Images ${first + 1} to ${first + cards.length} of ${passing.length}`
      : "No image passes";
    for (const place of document.querySelectorAll(".range")) place.textContent = range;
    for (const button of document.querySelectorAll("[data-step]")) {
      const to = page + Number(button.dataset.step);
      button.setAttribute("aria-disabled", to < 0 || to >= pages);
    }
  };

  const choose = () => {
    passing = all.filter(matches).sort(order());
    page = 0;
    draw();
  };

  const focus = (card) => {
    if (!card) return;
    for (const other of feed.children) other.tabIndex = other === card ? 0 : -1;
    card.focus();
  };

  // The keys of a feed in WAI-ARIA: from card to card, on to the next page behind the last.
  const step = (card, by) => {
    const at = passing.indexOf(card) + by;
    if (at < 0 || at >= passing.length) return;
    if (Math.floor(at / size) !== page) {
      page = Math.floor(at / size);
      draw();
    }
    focus(passing[at]);
  };

  feed.addEventListener("keydown", (event) => {
    const card = event.target.closest(".card");
    const inside = event.target !== card;  // a control of the card has its own keys, and Escape leads out of it
    const [on, back] = [() => step(card, 1), () => step(card, -1)];
    if (event.target.closest("select") && event.key !== "Escape") return;
    const go = inside ? { Escape: () => focus(card), PageDown: on, PageUp: back }[event.key] : {
      PageDown: on, ArrowDown: on, ArrowRight: on,
      PageUp: back, ArrowUp: back, ArrowLeft: back,
      Home: () => focus(feed.firstElementChild),
      End: () => focus(feed.lastElementChild),
    }[event.key];
    if (!go || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    go();
  });

  for (const button of document.querySelectorAll("[data-step]")) {
    button.addEventListener("click", () => {
      if (button.getAttribute("aria-disabled") === "true") return;
      page += Number(button.dataset.step);
      draw();
      // the buttons below the cards lead back to the first of them
      if (feed.compareDocumentPosition(button) & Node.DOCUMENT_POSITION_FOLLOWING) focus(feed.firstElementChild);
    });
  }

  // report.html#row-12 opens the page of the gallery that has the card
  const follow = () => {
    const wanted = all.find((card) => `#${card.id}` === location.hash);
    if (!wanted) return;
    if (!passing.includes(wanted)) {
      find.value = show.value = "";
      choose();
    }
    page = Math.floor(passing.indexOf(wanted) / size);
    draw();
    focus(wanted);
  };

  const toClipboard = async (text) => {
    if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text);
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    copy.focus();
    if (!copied) throw new Error("the browser refused");
  };
  copy.addEventListener("click", async () => {
    try {
      await toClipboard(passing.map((card) => card.dataset.row).join("\n"));
      said.textContent = `${passing.length} row numbers copied.`;
      copy.textContent = "Copied";
    } catch {
      said.textContent = "The browser did not allow copying.";
      copy.textContent = "Not copied";
    }
    setTimeout(() => { copy.textContent = "Copy row numbers"; }, 2000);
  });

  feed.setAttribute("role", "feed");
  feed.setAttribute("aria-label", "Images");
  feed.setAttribute("aria-describedby", "keys");
  for (const hidden of document.querySelectorAll("#tools, .pager, #keys")) hidden.hidden = false;
  document.getElementById("unscripted")?.remove();
  find.addEventListener("input", choose);
  find.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    find.value = "";
    choose();
  });
  show.addEventListener("change", choose);
  sort.addEventListener("change", choose);
  window.addEventListener("hashchange", follow);
  find.value = show.value = "";
  sort.selectedIndex = 0;
  choose();
  follow();
})();
