"use strict";
// Everything from a run is put on the page as text (textContent, text nodes) and never as markup.
const DATA = JSON.parse(document.getElementById("data").textContent);
const FOLD = 1500; // characters of a text shown before it is unfolded
const CONTEXT = 700; // characters of context shown before it is unfolded
const STEPS = [0.25, 0.5, 1, 1.5, 2, 3, 4]; // nats: lower ends of the colours

// ---- elements and text ----
function el(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === "class") made.className = value;
    else if (key === "on") for (const [name, run] of Object.entries(value)) made.addEventListener(name, run);
    else if (value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}
function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  made.append(...children);
  return made;
}
// Characters that hide, reorder or break text: controls but tab and newline, format characters, separators, private use,
// unpaired surrogates. U+DC80 … U+DCFF stand for bytes that are no UTF-8.
const ODD = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f]|[\p{Cf}\p{Zl}\p{Zp}\p{Cs}\p{Co}\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0\ufe00-\ufe0f]/gu;
const NAMES = { 0: "NUL", 8: "BS", 13: "CR", 27: "ESC", 127: "DEL" };
function oddName(character) {
  const code = character.codePointAt(0);
  if (code >= 0xdc80 && code <= 0xdcff) return "byte " + (code - 0xdc00).toString(16).toUpperCase();
  return NAMES[code] || "U+" + code.toString(16).toUpperCase().padStart(4, "0");
}
function put(target, text, spaces) {
  let from = 0;
  const plain = (part) => {
    if (!spaces) return target.append(part);
    for (const piece of part.split(/(\n|\t)/)) {
      if (piece === "\n") target.append(el("span", { class: "ws" }, "↵"), "\n");
      else if (piece === "\t") target.append(el("span", { class: "ws" }, "⇥"), "\t");
      else if (piece) target.append(piece);
    }
  };
  for (const found of text.matchAll(ODD)) {
    if (found.index > from) plain(text.slice(from, found.index));
    target.append(el("span", { class: "ctl" }, oddName(found[0])));
    from = found.index + found[0].length;
  }
  if (from < text.length) plain(text.slice(from));
  return target;
}
function quoted(text) { // a short string with its spaces to be seen
  const made = el("span", { class: "answer mono" });
  return put(made, text.replace(/ /g, "\u00a0"), true);
}
const thousands = (value) => value.toLocaleString("en-GB");
const safeCut = (text, at) => (text.charCodeAt(at - 1) >= 0xd800 && text.charCodeAt(at - 1) <= 0xdbff ? at - 1 : at);
function folded(text, limit, tail) { // a long text, folded; tail: keep the end
  const made = el("div", { class: "quote mono" });
  const show = (part, more) => {
    made.replaceChildren();
    if (tail && more) made.append("… ");
    put(made, part, true);
    if (!tail && more) made.append(" …");
  };
  if (text.length <= limit) { show(text, false); return made; }
  const short = tail ? text.slice(safeCut(text, text.length - limit)) : text.slice(0, safeCut(text, limit));
  show(short, true);
  const button = el("button", { type: "button", class: "more", "aria-expanded": "false" });
  const label = (open) => {
    button.textContent = open ? "show less" : `show all ${thousands(text.length)} characters`;
    button.setAttribute("aria-expanded", String(open));
  };
  let open = false;
  label(open);
  button.addEventListener("click", () => {
    open = !open;
    show(open ? text : short, !open);
    label(open);
  });
  return el("div", { class: "folded" }, made, button);
}
const number = (value) => {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 1e6) {
    const power = Math.floor(Math.log10(size) / 3) * 3;
    const names = { 6: " M", 9: " G", 12: " T", 15: " P", 18: " E" };
    return (value / 10 ** power).toFixed(size / 10 ** power >= 100 ? 0 : 1) + (names[power] || "e" + power);
  }
  if (size >= 100 || Number.isInteger(value)) return thousands(Math.round(value));
  return size >= 10 ? value.toFixed(1) : size >= 0.095 || !size ? value.toFixed(2) : value.toPrecision(2);
};
const percent = (value, digits = 1) => (value === null || value === undefined ? "–" : (100 * value).toFixed(digits));
const probability = (logprob) => (logprob === null || logprob === undefined ? "–" : percent(Math.exp(logprob)) + " %");
const nats = (value) => (value === null || value === undefined ? "–" : value.toFixed(2) + " nats");

// ---- theme ----
const dark = window.matchMedia("(prefers-color-scheme: dark)");
let chosen = null; // until the button is used, the system's own
function applyTheme() {
  const name = chosen || (dark.matches ? "dark" : "light");
  document.documentElement.dataset.theme = name;
  document.getElementById("theme").textContent = name === "dark" ? "Light theme" : "Dark theme";
}
document.getElementById("theme").addEventListener("click", () => {
  chosen = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  applyTheme();
});
dark.addEventListener("change", applyTheme);
applyTheme();

// ---- sections ----
const main = document.getElementById("main");
function section(id, title) {
  const made = el("section", { id }, el("h2", {}, title));
  main.append(made);
  document.getElementById("nav").append(el("a", { href: "#" + id }, title));
  return made;
}
put(document.getElementById("title"), DATA.runs.join(", "));

const mean = (part) => part.reduce((a, b) => a + b, 0) / part.length;
const signed = (value, digits = 1) => (value === null || value === undefined ? "–" : (value >= 0 ? "+" : "−") + percent(Math.abs(value), digits));
function overview() {
  const made = section("overview", "Overview");
  const tiles = el("div", { class: "tiles" });
  const tile = (value, ...texts) => tiles.append(el("div", { class: "tile" }, el("b", {}, value), ...texts.map((text) => put(el("span"), text))));
  for (const run of DATA.runs) {
    const own = DATA.evaluations.filter((one) => one.run === run && one.rows.length && one.rows[0].plain.value !== null);
    const name = DATA.runs.length > 1 ? run + ", " : "";
    if (!own.length) continue;
    const first = own[0], last = own.at(-1), row = last.rows[0];
    const span = (key) => (first === last ? percent(row[key].value) : `${percent(first.rows[0][key].value)} → ${percent(row[key].value)}`) + " %";
    const whose = first === last ? first.name : `${first.name} → ${last.name}`;
    tile(span("reasoning"), `${name}reasoning accuracy, ${row.split}`, `${whose}, n = ${thousands(row.positions)}`);
    tile(span("plain"), `${name}plain accuracy, ${row.split}`, whose);
    const pair = DATA.pairs.find((one) => one.ours === last.title && one.theirs === first.title);
    if (pair) {
      const d = pair.rows[0].reasoning;
      tile(`${signed(d.difference)} points`, `${name}reasoning, on the same positions`, d.interval ? `95 %: ${signed(d.interval[0])} … ${signed(d.interval[1])}` : "too few documents for an interval");
    }
  }
  for (const one of DATA.training) {
    const values = (one.columns.reward || []).filter((v) => v !== null);
    if (!values.length) continue;
    const size = Math.max(1, Math.floor(values.length / 4));
    tile(`${number(mean(values.slice(0, size)))} → ${number(mean(values.slice(-size)))}`, `${one.title}: mean reward`, `first → last quarter of ${thousands(one.steps.at(-1))} steps`);
  }
  if (tiles.children.length) made.append(tiles);
  const warnings = DATA.stages.flatMap((stage, i) => (stage.warnings || []).map((text) => [stage, i, text]));
  if (warnings.length) {
    const box = el("div", { class: "warnings", id: "warnings", role: "region", "aria-label": "Warnings" }, el("h3", {}, warnings.length === 1 ? "1 warning" : `${warnings.length} warnings`));
    for (const [stage, i, text] of warnings) {
      const link = put(el("a", { href: "#stage-" + i, on: { click: () => { document.getElementById("stage-" + i).open = true; } } }), `${stage.run}/${stage.name}`);
      box.append(el("p", { class: "warn" }, link, put(el("span"), ": " + text)));
    }
    made.append(box);
    document.getElementById("nav").append(el("a", { href: "#warnings", class: "alarm" }, `Warnings (${warnings.length})`));
  } else made.append(el("p", { class: "soft" }, "No stage raised a warning."));
  const going = DATA.stages.filter((stage) => stage.status !== "done");
  if (going.length) made.append(put(el("p", { class: "soft" }), "Not finished: " + going.map((s) => `${s.run}/${s.name}`).join(", ") + "."));
  for (const note of DATA.notes) made.append(put(el("p", { class: "soft" }), note));
}

// ---- documents ----
const level = (entropy) => (entropy === null ? 0 : STEPS.filter((low) => entropy >= low).length);
const reader = { document: null, tokens: [], chosen: [], at: 0, open: null, shown: new Set() };

function documents() {
  if (!DATA.documents.length) return;
  const made = section("documents", "Documents");
  made.append(el("p", {}, "Each token is coloured by how uncertain the scoring model was before it. Underlined tokens were chosen as positions; a blue line means that there are completions. Click one, or use the keys: ← → for the previous and next position, with Shift for every token, Enter to open, Esc to close."));
  const scale = el("span", { class: "scale", role: "img", "aria-label": "colour scale of entropy in nats" });
  ["0", ...STEPS.map(String)].forEach((low, i) => scale.append(el("i", { class: "e" + i }, i === STEPS.length ? low + "+" : low)));
  made.append(el("div", { class: "legend" }, "entropy in nats, over the 16 likeliest tokens", scale,
    el("span", {}, el("span", { class: "tok pos" }, "chosen"), "  ", el("span", { class: "tok seen" }, "with completions"))));
  const choose = el("select", { id: "document", "aria-label": "Document", on: { change: () => openDocument(Number(choose.value)) } });
  DATA.documents.forEach((one, i) => {
    const start = one.tokens.join("").slice(0, 60).replace(/\s+/g, " ").replace(ODD, "·");
    choose.append(el("option", { value: i }, `${i + 1}. ${one.split === "validation" ? "held out" : one.split || "no positions"}: ${start}…`));
  });
  const turn = (by) => () => { choose.value = (Number(choose.value) + by + DATA.documents.length) % DATA.documents.length; openDocument(Number(choose.value)); };
  made.append(el("div", { class: "tools" }, choose,
    el("button", { type: "button", on: { click: turn(-1) } }, "Previous"), el("button", { type: "button", on: { click: turn(1) } }, "Next"),
    el("span", { class: "soft", id: "about" })));
  const text = el("div", { class: "text", id: "text", "aria-label": "The document's tokens", role: "group", on: { click: clicked, keydown: pressed } });
  const panel = el("aside", { class: "panel empty", id: "panel", "aria-label": "The position", on: { keydown: (event) => event.key === "Escape" && closePosition() } });
  made.append(el("div", { class: "reader" }, text, panel), el("p", { id: "said", class: "hidden", role: "status" }));
  defaults();
  openDocument(0);
}

// Of many sets of completions the first and the last evaluation and the training are shown, the rest at a press.
function defaults() {
  const at = [...DATA.sources.keys()];
  const evaluations = at.filter((i) => DATA.sources[i].kind === "eval");
  const few = at.length <= 3 ? at : [evaluations[0], evaluations.at(-1), ...at.filter((i) => DATA.sources[i].kind !== "eval")];
  reader.shown = new Set(few.filter((i) => i !== undefined));
}

function openDocument(index) {
  const one = DATA.documents[index];
  const text = document.getElementById("text");
  text.replaceChildren();
  reader.document = one;
  reader.chosen = one.positions.map((position) => position.token);
  const byToken = new Map(one.positions.map((position) => [position.token, position]));
  reader.tokens = one.tokens.map((token, i) => {
    const position = byToken.get(i);
    const seen = position && Object.keys(position.completions).length;
    const kind = position ? (seen ? " pos seen" : " pos") : "";
    const title = one.entropy[i] === null ? null : `entropy ${nats(one.entropy[i])}`;
    const made = el("span", { class: `tok e${level(one.entropy[i])}${kind}`, tabindex: "-1", role: position ? "button" : null, title, "data-i": i });
    if (token === "") made.append(el("span", { class: "ctl", title: "part of a character" }, "·"));
    else put(made, token, true);
    return made;
  });
  if (one.first) text.append(el("span", { class: "soft" }, `… ${thousands(one.first)} tokens before … `));
  text.append(...reader.tokens);
  const after = one.total - one.first - one.tokens.length;
  if (after > 0) text.append(el("span", { class: "soft" }, ` … ${thousands(after)} tokens after …`));
  const sampled = one.positions.filter((position) => Object.keys(position.completions).length).length;
  const about = document.getElementById("about");
  about.replaceChildren();
  put(about, `${thousands(one.total)} tokens, ${one.positions.length} positions, ${sampled} with completions · ${one.id}`);
  const first = one.positions.find((position) => Object.keys(position.completions).length) || one.positions[0];
  focusToken(first ? first.token : 0, false);
  closePosition(true);
}
function focusToken(index, move = true) {
  if (!reader.tokens.length) return;
  reader.tokens[reader.at]?.setAttribute("tabindex", "-1");
  reader.at = index;
  reader.tokens[index].setAttribute("tabindex", "0");
  if (move) reader.tokens[index].focus();
}
function clicked(event) {
  const token = event.target.closest("[data-i]");
  if (!token) return;
  focusToken(Number(token.dataset.i));
  openPosition(reader.at);
}
function pressed(event) {
  const last = reader.tokens.length - 1;
  const stops = event.shiftKey || !reader.chosen.length ? reader.tokens.map((_, i) => i) : reader.chosen;
  let to = null;
  if (event.key === "ArrowRight" || event.key === "ArrowDown") to = stops.find((i) => i > reader.at);
  else if (event.key === "ArrowLeft" || event.key === "ArrowUp") to = stops.findLast((i) => i < reader.at);
  else if (event.key === "Home") to = stops[0];
  else if (event.key === "End") to = stops.at(-1);
  else if (event.key === "Enter" || event.key === " ") openPosition(reader.at);
  else if (event.key === "Escape") closePosition();
  else return;
  event.preventDefault();
  if (to === undefined || to === null || to > last) return;
  focusToken(to);
  if (reader.open !== null) openPosition(to);
}
function closePosition(silent) {
  mark(false);
  reader.open = null;
  const panel = document.getElementById("panel");
  panel.className = "panel empty";
  panel.replaceChildren(el("p", { class: "soft" }, "Open a position to read what comes before it, what the text says, and what the policy thought and answered."));
  if (!silent) focusToken(reader.at);
}
function mark(open) {
  const token = reader.tokens[reader.open];
  token?.classList.toggle("open", open);
  if (open) token?.setAttribute("aria-current", "true");
  else token?.removeAttribute("aria-current");
}
function facts(rows) {
  const made = el("dl", { class: "facts" });
  for (const [name, ...value] of rows) made.append(put(el("dt"), name), el("dd", {}, ...value));
  return made;
}
function openPosition(index) {
  const one = reader.document;
  const panel = document.getElementById("panel");
  mark(false);
  reader.open = index;
  mark(true);
  const position = one.positions.find((p) => p.token === index);
  panel.className = "panel";
  const close = el("button", { type: "button", class: "close", on: { click: () => closePosition() } }, "Close");
  const title = (position ? "Position " : "Token ") + thousands(one.first + index);
  const step = (text, label, to) => el("button", { type: "button", "aria-label": label, disabled: to === undefined, on: { click: () => { focusToken(to, false); openPosition(to); } } }, text);
  const before = reader.chosen.findLast((i) => i < index), after = reader.chosen.find((i) => i > index);
  panel.replaceChildren(el("div", { class: "head" }, el("h3", {}, title),
    el("span", { class: "steps" }, step("‹", "Previous position", before), step("›", "Next position", after), close)));
  document.getElementById("said").textContent = position ? `${title}, ${Object.values(position.completions).flat().length} completions` : title;
  if (position) showPosition(panel, one, position);
  else
    panel.append(facts([
      ["token", quoted(one.tokens[index])], ["its probability", probability(one.logprob[index])],
      ["entropy", nats(one.entropy[index])],
      ["plain arg-max", one.argmax[index] === null ? "–" : quoted(one.argmax[index])],
    ]), el("p", { class: "soft" }, "Not chosen as a position."));
  panel.scrollTop = 0;
  const place = reader.tokens[index].getBoundingClientRect(), head = document.getElementById("top").offsetHeight;
  const free = getComputedStyle(panel).position === "fixed" ? panel.getBoundingClientRect().top : window.innerHeight;
  if (place.top < head || place.bottom > free) window.scrollBy(0, place.top - (head + free) / 2 + 12); // not behind the sheet
}
function showPosition(panel, one, position) {
  const context = position.context ?? one.tokens.slice(position.from, position.token).join("");
  const target = el("div", { class: "quote mono" });
  position.target.forEach((token, i) => target.append(put(el("span", { class: i ? "piece" : "piece next" }), token || "·", true)));
  panel.append(el("h4", {}, "Context"), folded(context, CONTEXT, true), el("h4", {}, "True continuation, token by token"), target);
  panel.append(el("h4", {}, "The scoring model"), el("p", { class: "line" }, `entropy ${nats(position.entropy[0])} (${nats(position.entropy[2])} over the whole vocabulary), true token ${probability(position.logprob)}, plain arg-max `, quoted(position.argmax)));
  const keys = [...new Set([...Object.keys(position.completions), ...Object.keys(position.plain)].map(Number))].sort((a, b) => a - b);
  if (!keys.length) return panel.append(el("p", { class: "soft" }, "No completion of this position is at hand."));
  const sides = el("div", { class: "sides" });
  const draw = () => {
    let chosen = keys.filter((key) => reader.shown.has(key));
    if (!chosen.length) chosen = keys.slice(0, 1);
    sides.replaceChildren(...chosen.map((key) => side(key, position)));
    for (const chip of chips.children) chip.setAttribute("aria-pressed", String(chosen.includes(Number(chip.dataset.key))));
  };
  const chips = el("div", { class: "chips", role: "group", "aria-label": "Which completions are shown" });
  for (const key of keys) {
    const press = () => { if (!reader.shown.delete(key)) reader.shown.add(key); draw(); };
    chips.append(put(el("button", { type: "button", "data-key": key, on: { click: press } }), DATA.sources[key].label));
  }
  panel.append(el("h4", {}, "The policy, without and with a thought"));
  if (keys.length > 1) panel.append(chips);
  panel.append(sides);
  draw();
}
function side(key, position) {
  const source = DATA.sources[key], completions = position.completions[key] || [], plain = position.plain[key];
  const right = completions.filter((c) => c.outcome === "right").length;
  const dots = el("span", { class: "dots", "aria-hidden": "true" });
  completions.slice(0, 32).forEach((c) => dots.append(el("i", { class: kindOf(c) })));
  const made = el("div", { class: "side" }, el("h4", {}, put(el("span"), source.label), dots, el("small", {}, completions.length ? `${right} of ${completions.length} right` : "no completion")));
  if (plain) made.append(likeliest(plain, position));
  for (const one of completions) made.append(card(source, one));
  return made;
}
function likeliest(plain, position) { // the likeliest next tokens without a thought; what has no probability was not stored
  const made = el("div", { class: "top" }, el("div", { class: "verdict" }, el("span", {}, "without a thought: "), el("b", { class: plain.right ? "good" : "bad" }, plain.right ? "right" : "wrong"), el("span", {}, `true token ${probability(plain.logprob)}`)));
  for (const [token, share] of plain.top || [[plain.argmax, null]]) {
    const row = el("div", { class: "likely" + (token === position.target[0] ? " true" : "") }, quoted(token));
    if (share !== null) {
      const bar = svg("svg", { viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("rect", { class: "back", width: 100, height: 6 }), svg("rect", { class: "f0", width: 100 * share, height: 6 }));
      row.append(bar, el("span", {}, percent(share) + " %"));
    }
    made.append(row);
  }
  return made;
}
const kindOf = (one) => (["right", "wrong", "missing", "cut_off"].includes(one.outcome) ? one.outcome : "missing");
const STATUS = { empty: "empty box", several: "several boxes", unclosed: "box not closed", missing: "no box", cut_off: "cut off" };
function card(source, one) {
  const outcome = kindOf(one);
  const verdict = el("div", { class: "verdict" }, el("b", {}, String(one.outcome).replace("_", " ")));
  verdict.append(el("span", {}, one.reward === null ? "not scored" : "reward " + number(one.reward)));
  verdict.append(el("span", {}, `${thousands(one.tokens || 0)} tokens`));
  if (source.kind === "train") verdict.append(el("span", {}, `step ${thousands(one.step)}`));
  if (one.finish === "length") verdict.append(el("span", {}, "token limit"));
  const thought = typeof one.thought === "string" ? one.thought : one.text.slice(one.thought[0], one.thought[1]);
  const made = el("div", { class: "card " + outcome }, verdict);
  made.append(thought ? folded(thought, FOLD) : el("p", { class: "soft" }, "no thought"));
  made.append(one.answer === undefined ? el("p", { class: "soft" }, STATUS[one.status] || String(one.status))
    : el("div", {}, el("span", { class: "soft" }, "answers "), one.answer.length > FOLD ? folded(one.answer, FOLD) : quoted(one.answer)));
  if (one.cut) made.append(el("p", { class: "soft" }, `${thousands(one.cut)} more characters are in samples.jsonl.`));
  const whole = el("details", {}, el("summary", {}, "as written"));
  whole.addEventListener("toggle", () => { if (whole.open && whole.children.length === 1) whole.append(folded(one.text, FOLD)); });
  made.append(whole);
  return made;
}
