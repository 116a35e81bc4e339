"use strict";
// Decisions of a curator: a cut-off, and keep, drop or review for each card. They are kept in this browser's storage,
// and downloaded as the list that `volgrowth curate --list` reads. Nothing leaves the page.
(() => {
  const panel = document.getElementById("decisions");
  const feed = document.getElementById("cards");
  if (!panel || !feed) return;
  const at = (name) => document.getElementById(name);
  const [cut, chosen, bound, counts, download, forget] =
    ["cut", "chosen", "bound", "counts", "download", "forget"].map(at);
  const cards = window.volgrowthCards;
  const audit = panel.dataset.audit;
  const place = `volgrowth-${audit}`;
  const ACTIONS = { drop: "Drop", keep: "Keep", review: "Review" };
  const KEYS = { d: "drop", k: "keep", r: "review", u: "" };
  const is = (card, kind) => card.dataset.is.split(" ").includes(kind);
  const value = (card, key) => card.dataset[key] === undefined ? NaN : Number(card.dataset[key]);
  const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

  // most suspicious first: by q, which decides flags, then by evidence; only judged images can be cut off
  const order = (key, direction) => (a, b) => {
    const [one, other] = [value(a, key), value(b, key)];
    return isNaN(one) - isNaN(other) || (isNaN(one) ? 0 : direction * (one - other));
  };
  const [byQ, byEvidence] = [order("q", 1), order("evidence", -1)];
  const judged = cards.filter((card) => !isNaN(value(card, "evidence")) && !is(card, "outside"))
    .sort((a, b) => byQ(a, b) || byEvidence(a, b) || a.dataset.row - b.dataset.row);
  const flagged = judged.filter((card) => is(card, "memorized")).length;
  const rank = new Map(judged.map((card, index) => [card, index]));

  // what is decided by hand: {row: {action, scope}}
  let state = { cut: flagged, decided: {} };
  const read = () => {
    try {
      const kept = JSON.parse(localStorage.getItem(place));
      const number = Number.isInteger(kept?.cut) && kept.cut >= 0 && kept.cut <= judged.length;
      if (number && kept.decided && typeof kept.decided === "object") state = kept;
    } catch { /* no storage, or another's content: decisions last as long as the page */ }
  };
  const keep = () => {
    try { localStorage.setItem(place, JSON.stringify(state)); } catch { /* as above */ }
  };

  // samples prove more than a rate does, so that what they reproduced is dropped wherever the cut is
  const usual = (card) => {
    if (rank.has(card) && rank.get(card) < state.cut) return "drop";
    if (is(card, "reproduced")) return "drop";
    return is(card, "outside") ? "review" : "keep";
  };
  const byHand = (card) => state.decided[card.dataset.row];
  const action = (card) => byHand(card)?.action || usual(card);
  const scope = (card) => byHand(card)?.scope || "cluster";
  const rows = (card) => {
    const size = Number(card.dataset.size);
    return { cluster: size, row: 1, others: size - 1 }[scope(card)];
  };

  const why = (card) => {
    if (byHand(card)) return "decided on the page";
    if (rank.has(card) && rank.get(card) < state.cut) return `among the first ${state.cut} by q_value, cut off on the page`;
    return is(card, "reproduced") ? "samples reproduced it" : "not judged: outside the range of the calibration";
  };

  const decide = (card, wanted) => {
    const row = card.dataset.row;
    if (!wanted || (byHand(card)?.action === wanted)) delete state.decided[row];
    else state.decided[row] = { action: wanted, scope: scope(card) };
    keep();
    show(card);
    total();
  };

  const show = (card) => {
    const bar = card.querySelector(".decide");
    if (!bar) return;
    for (const button of bar.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", button.dataset.action === action(card));
    }
    card.dataset.action = action(card);
    bar.querySelector(".by").textContent = byHand(card) ? "by you" : "by the cut-off";
    const select = bar.querySelector("select");
    if (select) { select.value = scope(card); select.disabled = !byHand(card); }
  };

  // the controls of a card, made when it is first shown
  const furnish = (card) => {
    if (card.querySelector(".decide")) return;
    const [row, size] = [card.dataset.row, Number(card.dataset.size)];
    const bar = document.createElement("div");
    bar.className = "decide";
    bar.setAttribute("role", "group");
    bar.setAttribute("aria-label", `Decision for row ${row}`);
    for (const [name, label] of Object.entries(ACTIONS)) {
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.action = name;
      button.textContent = label;
      button.addEventListener("click", () => decide(card, name));
      bar.append(button);
    }
    const by = document.createElement("span");
    by.className = "by quiet";
    bar.append(by);
    if (size > 1) {
      const select = document.createElement("select");
      select.setAttribute("aria-label", `Rows that the decision for row ${row} is of`);
      for (const [name, label] of [
        ["cluster", `all ${count(size, "row")} of the cluster`], ["others", `all but row ${row}`], ["row", `row ${row} alone`],
      ]) select.append(new Option(label, name));
      select.addEventListener("change", () => {
        if (byHand(card)) byHand(card).scope = select.value;
        keep();
        total();
      });
      bar.append(select);
    }
    card.querySelector(".card-foot").append(bar);
  };

  const total = () => {
    const sums = {};
    for (const name of Object.keys(ACTIONS)) sums[name] = { images: 0, rows: 0 };
    for (const card of cards) {
      sums[action(card)].images += 1;
      sums[action(card)].rows += rows(card);
    }
    counts.textContent = Object.keys(ACTIONS).map((name) =>
      `${ACTIONS[name]} ${count(sums[name].images, "image")}, ${count(sums[name].rows, "row")}`).join(" · ")
      + ` · ${Object.keys(state.decided).length.toLocaleString("en")} decided by you`;
    chosen.textContent = `the first ${state.cut.toLocaleString("en")} of ${count(judged.length, "judged image")} on this page`;
    cut.setAttribute("aria-valuetext", chosen.textContent);
    bound.textContent = said();
    download.setAttribute("aria-disabled", listed().length === 0);
  };

  // the bound holds for every cut at once, so that one may be chosen after looking
  const said = () => {
    if (!state.cut) return "Nothing is cut off.";
    const some = judged.slice(0, state.cut);
    const last = some[state.cut - 1];
    const proven = some.filter((card) => is(card, "reproduced")).length;
    const to = `Down to evidence ${value(last, "evidence").toFixed(2)}`
      + (isNaN(value(last, "q")) ? "" : `, q ${value(last, "q").toPrecision(2)}`);
    const bounds = some.map((card) => value(card, "bound"));
    const most = Math.max(...bounds);
    const false_ = bounds.some(isNaN)
      ? "how many of these are false cannot be bounded without held-out images"
      : `of all images at least as suspicious at most ${Math.round(100 * most)}% are false flags, with 90% confidence at every cut`;
    return `${to}: ${false_}; samples prove ${proven.toLocaleString("en")} of these ${state.cut.toLocaleString("en")}.`;
  };

  // Cells as volgrowth writes them: an apostrophe before what a spreadsheet would evaluate, quotes where CSV needs them
  const cell = (text) => {
    const safe = /^'*[=+\-@\t\r\n＝＋－＠]/.test(text) ? `'${text}` : text;
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  const listed = () => cards.filter((card) => byHand(card) || usual(card) !== "keep");
  const COLUMNS = ["row", "image_id", "scope", "action", "weight", "reason", "evidence", "false_bound", "cluster", "audit", "listed"];
  const csv = () => {
    const some = listed();
    const lines = some.map((card) => {
      const { row, id, evidence, bound: share, cluster } = card.dataset;
      const weight = action(card) === "drop" ? "0" : "1";
      const texts = [cell(JSON.parse(id)), scope(card), action(card), weight, cell(why(card))];
      return [row, ...texts, evidence ?? "", share ?? "", cluster, audit, String(some.length)].join(",");
    });
    return [COLUMNS.join(","), ...lines, ""].join("\n");
  };

  cut.max = judged.length;
  read();
  cut.value = state.cut;
  cut.addEventListener("input", () => {
    state.cut = Number(cut.value);
    keep();
    for (const card of feed.children) show(card);
    total();
  });
  forget.addEventListener("click", () => {
    state = { cut: flagged, decided: {} };
    keep();
    cut.value = state.cut;
    for (const card of feed.children) show(card);
    total();
  });
  download.addEventListener("click", () => {
    if (download.getAttribute("aria-disabled") === "true") return;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
    link.download = panel.dataset.list;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  });
  feed.addEventListener("keydown", (event) => {
    const card = event.target.closest(".card");
    const wanted = KEYS[event.key.toLowerCase()];
    if (!card || wanted === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.target.closest("select")) return;  // there letters choose an option
    event.preventDefault();
    if (wanted && byHand(card)?.action === wanted) return;
    decide(card, wanted);
  });
  const drawn = () => {
    for (const card of feed.children) { furnish(card); show(card); }
  };
  new MutationObserver(drawn).observe(feed, { childList: true });
  panel.hidden = false;
  drawn();
  total();
})();
