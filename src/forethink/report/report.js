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

function overview() {
  const made = section("overview", "Overview");
  const tiles = el("div", { class: "tiles" });
  const tile = (value, text) => tiles.append(el("div", { class: "tile" }, el("b", {}, value), put(el("span"), text)));
  for (const one of DATA.evaluations) {
    const row = one.rows[0];
    if (row && row.plain.value !== null)
      tile(`${percent(row.plain.value)} → ${percent(row.reasoning.value)} %`, `${one.title}: plain → reasoning, n = ${thousands(row.positions)}`);
  }
  for (const one of DATA.training) {
    if (!one.columns.reward) continue;
    const values = one.columns.reward.filter((v) => v !== null);
    const size = Math.max(1, Math.floor(values.length / 4));
    const mean = (part) => part.reduce((a, b) => a + b, 0) / part.length;
    tile(`${number(mean(values.slice(0, size)))} → ${number(mean(values.slice(-size)))}`, `${one.title}: reward, first → last quarter of ${thousands(one.steps.at(-1))} steps`);
  }
  if (tiles.children.length) made.append(tiles);
  const warnings = DATA.stages.flatMap((stage) => (stage.warnings || []).map((text) => [stage, text]));
  for (const [stage, text] of warnings) made.append(put(el("p", { class: "warn" }), `${stage.run}/${stage.name}: ${text}`));
  if (!warnings.length) made.append(el("p", { class: "soft" }, "No stage raised a warning."));
  const going = DATA.stages.filter((stage) => stage.status !== "done");
  if (going.length) made.append(put(el("p", { class: "soft" }), "Not finished: " + going.map((s) => `${s.run}/${s.name}`).join(", ") + "."));
  for (const note of DATA.notes) made.append(put(el("p", { class: "soft" }), note));
}

// ---- documents ----
const level = (entropy) => (entropy === null ? 0 : STEPS.filter((low) => entropy >= low).length);
const reader = { document: null, tokens: [], chosen: [], at: 0, open: null };

function documents() {
  if (!DATA.documents.length) return;
  const made = section("documents", "Documents");
  made.append(el("p", {}, "Each token is coloured by how uncertain the scoring model was before it. Underlined tokens were chosen as positions; a blue line means that there are completions. Click one, or use the keys: ← → to the previous and next position, Shift for every token, Enter to open, Esc to close."));
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
  const panel = el("aside", { class: "panel empty", id: "panel", "aria-label": "The position", "aria-live": "polite", on: { keydown: (event) => event.key === "Escape" && closePosition() } });
  made.append(el("div", { class: "reader" }, text, panel));
  openDocument(0);
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
    const made = el("span", { class: `tok e${level(one.entropy[i])}${kind}`, tabindex: "-1", role: position ? "button" : null, "data-i": i });
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
  reader.tokens[reader.open]?.classList.remove("open");
  reader.open = null;
  const panel = document.getElementById("panel");
  panel.className = "panel empty";
  panel.replaceChildren(el("p", { class: "soft" }, "Open a position to read what comes before it, what the text says, and what the policy thought and answered."));
  if (!silent) focusToken(reader.at);
}
function facts(rows) {
  const made = el("dl", { class: "facts" });
  for (const [name, ...value] of rows) made.append(put(el("dt"), name), el("dd", {}, ...value));
  return made;
}
function openPosition(index) {
  const one = reader.document;
  const panel = document.getElementById("panel");
  reader.tokens[reader.open]?.classList.remove("open");
  reader.open = index;
  reader.tokens[index].classList.add("open");
  const position = one.positions.find((p) => p.token === index);
  panel.className = "panel";
  const close = el("button", { type: "button", class: "close", on: { click: () => closePosition() } }, "Close");
  const title = position ? "Position " : "Token ";
  panel.replaceChildren(el("div", { class: "head" }, el("h3", {}, title + thousands(one.first + index)), close));
  if (position) showPosition(panel, one, position);
  else
    panel.append(facts([
      ["token", quoted(one.tokens[index])], ["its probability", probability(one.logprob[index])],
      ["entropy", nats(one.entropy[index])],
      ["plain arg-max", one.argmax[index] === null ? "–" : quoted(one.argmax[index])],
    ]), el("p", { class: "soft" }, "Not chosen as a position."));
  panel.scrollTop = 0;
}
function showPosition(panel, one, position) {
  const context = position.context ?? one.tokens.slice(position.from, position.token).join("");
  const target = el("div", { class: "quote mono" });
  position.target.forEach((token, i) => target.append(put(el("span", { class: i ? "piece" : "piece next" }), token || "·", true)));
  panel.append(el("h4", {}, "Context"), folded(context, CONTEXT, true), el("h4", {}, "True continuation, token by token"), target);
  const rows = [
    ["scoring model", "entropy ", nats(position.entropy[0]), `, whole vocabulary ${nats(position.entropy[2])}; true token ${probability(position.logprob)}`],
    ["its arg-max", quoted(position.argmax)],
  ];
  for (const [key, plain] of Object.entries(position.plain))
    rows.push([DATA.sources[key].label, "plain arg-max ", quoted(plain.argmax), plain.right ? " right" : " wrong", `; true token ${probability(plain.logprob)}`]);
  panel.append(el("h4", {}, "Without a thought"), facts(rows));
  const keys = Object.keys(position.completions).map(Number).sort((a, b) => a - b);
  if (!keys.length) return panel.append(el("p", { class: "soft" }, "No completion of this position is at hand."));
  const sides = el("div", { class: "sides" });
  for (const key of keys) sides.append(side(DATA.sources[key], position.completions[key]));
  panel.append(el("h4", {}, "With a thought"), sides);
}
function side(source, completions) {
  const right = completions.filter((c) => c.outcome === "right").length;
  const made = el("div", { class: "side" }, put(el("h4"), `${source.label}: ${right} of ${completions.length} right`));
  for (const one of completions) made.append(card(source, one));
  return made;
}
const STATUS = { empty: "empty box", several: "several boxes", unclosed: "box not closed", missing: "no box", cut_off: "cut off" };
function card(source, one) {
  const outcome = ["right", "wrong", "missing", "cut_off"].includes(one.outcome) ? one.outcome : "missing";
  const verdict = el("div", { class: "verdict" }, el("b", {}, String(one.outcome).replace("_", " ")));
  verdict.append(el("span", {}, one.reward === null ? "not scored" : "reward " + number(one.reward)));
  verdict.append(el("span", {}, `${thousands(one.tokens || 0)} tokens`));
  if (source.kind === "train") verdict.append(el("span", {}, `step ${thousands(one.step)}`));
  if (one.finish === "length") verdict.append(el("span", {}, "token limit"));
  const thought = typeof one.thought === "string" ? one.thought : one.text.slice(one.thought[0], one.thought[1]);
  const made = el("div", { class: "card " + outcome }, verdict);
  made.append(thought ? folded(thought, FOLD) : el("p", { class: "soft" }, "no thought"));
  made.append(one.answer === undefined ? el("p", { class: "soft" }, STATUS[one.status] || String(one.status))
    : el("div", {}, el("span", { class: "soft" }, "answer "), one.answer.length > FOLD ? folded(one.answer, FOLD) : quoted(one.answer)));
  if (one.cut) made.append(el("p", { class: "soft" }, `${thousands(one.cut)} more characters are in samples.jsonl.`));
  const whole = el("details", {}, el("summary", {}, "as written"));
  whole.addEventListener("toggle", () => { if (whole.open && whole.children.length === 1) whole.append(folded(one.text, FOLD)); });
  made.append(whole);
  return made;
}

// ---- curves ----
const W = 300, H = 130, LEFT = 34, RIGHT = 4, TOP = 8, BOTTOM = 18;
function ticks(low, high) {
  const rough = (high - low) / 3 || 1;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * unit).find((s) => s >= rough * 0.99);
  const found = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-6; v += step) found.push(Math.abs(v) < step * 1e-6 ? 0 : v);
  return found;
}
function smooth(values) {
  const half = Math.floor(values.length / 16);
  return values.map((_, i) => {
    const part = values.slice(Math.max(0, i - half), i + half + 1).filter((v) => v !== null);
    return part.length ? part.reduce((a, b) => a + b, 0) / part.length : null;
  });
}
// lines: {label, steps, values, k}; options: {unit, share, stack, noisy}
function chart(title, lines, options = {}) {
  const steps = lines.flatMap((line) => line.steps);
  const low = Math.min(...steps), high = Math.max(...steps);
  let values = lines.flatMap((line) => line.values).filter((v) => v !== null);
  const bottom = Math.min(0, ...values), top = options.stack ? 1 : Math.max(...values, options.share ? 0.05 : 1e-9);
  const x = (step) => LEFT + ((W - LEFT - RIGHT) * (step - low)) / (high - low || 1);
  const y = (value) => TOP + ((H - TOP - BOTTOM) * (top - value)) / (top - bottom || 1);
  const picture = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": title });
  for (const v of ticks(bottom, top)) {
    picture.append(svg("line", { class: "grid", x1: LEFT, x2: W - RIGHT, y1: y(v), y2: y(v) }));
    const label = svg("text", { x: LEFT - 4, y: y(v) + 3, "text-anchor": "end" });
    label.textContent = options.share ? Math.round(100 * v) + "%" : number(v);
    picture.append(label);
  }
  for (const [step, anchor] of low === high ? [[low, "start"]] : [[low, "start"], [high, "end"]]) {
    const label = svg("text", { x: x(step), y: H - 4, "text-anchor": anchor });
    label.textContent = anchor === "end" ? "step " + thousands(step) : thousands(step);
    picture.append(label);
  }
  const path = (xs, ys) => xs.map((step, i) => (ys[i] === null ? "" : `${i && ys[i - 1] !== null ? "L" : "M"}${x(step).toFixed(1)} ${y(ys[i]).toFixed(1)}`)).join("");
  const base = options.stack ? lines[0].steps.map(() => 0) : null;
  for (const line of lines) {
    if (options.stack) {
      const below = [...base];
      line.values.forEach((v, i) => { base[i] += v || 0; });
      const back = [...line.steps.keys()].reverse().map((i) => `L${x(line.steps[i]).toFixed(1)} ${y(below[i]).toFixed(1)}`).join("");
      picture.append(svg("path", { class: "f" + line.k, d: path(line.steps, base) + back + "Z" }));
    } else if (options.noisy && line.values.length > 7) {
      picture.append(svg("path", { class: "raw k" + line.k, d: path(line.steps, line.values) }));
      picture.append(svg("path", { class: "curve k" + line.k, d: path(line.steps, smooth(line.values)) }));
    } else if (line.values.length === 1) picture.append(svg("circle", { class: "f" + line.k, cx: x(line.steps[0]), cy: y(line.values[0]), r: 3 }));
    else picture.append(svg("path", { class: "curve k" + line.k, d: path(line.steps, line.values) }));
  }
  const cursor = svg("line", { class: "cursor", y1: TOP, y2: H - BOTTOM, visibility: "hidden" });
  picture.append(cursor);
  const format = (v) => (v === null || v === undefined ? "–" : options.share ? percent(v, 0) + " %" : number(v) + (options.unit || ""));
  const readout = el("span"), keys = el("div", { class: "keys" });
  const show = (step) => {
    const at = (line) => line.steps.reduce((best, s, i) => (Math.abs(s - step) < Math.abs(line.steps[best] - step) ? i : best), 0);
    readout.textContent = lines.length === 1 ? `${format(lines[0].values[at(lines[0])])} at ${thousands(lines[0].steps[at(lines[0])])}` : "step " + thousands(lines[0].steps[at(lines[0])]);
    keys.replaceChildren(...(lines.length === 1 ? [] : lines.map((line) => el("span", {}, el("i", { class: "f" + line.k }), put(el("span"), line.label), " " + format(line.values[at(line)])))));
  };
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const step = low + ((((event.clientX - box.left) / box.width) * W - LEFT) / (W - LEFT - RIGHT)) * (high - low);
    const nearest = steps.reduce((best, s) => (Math.abs(s - step) < Math.abs(best - step) ? s : best), steps[0]);
    cursor.setAttribute("x1", x(nearest)); cursor.setAttribute("x2", x(nearest)); cursor.setAttribute("visibility", "visible");
    show(nearest);
  });
  picture.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); show(high); });
  show(high);
  return el("figure", {}, el("figcaption", {}, put(el("b"), title), readout), picture, keys);
}
const ONE = [ // [title, column, options]: one line a run
  ["reward", "reward", { noisy: true }], ["accuracy", "accuracy", { noisy: true, share: true }],
  ["thought, characters", "thought_characters", { noisy: true }], ["completion, tokens", "completion_tokens", { noisy: true }],
  ["distinct thoughts", "distinct_thoughts", { noisy: true, share: true }],
  ["entropy, nats a token", "entropy", { noisy: true }], ["seconds a step", "step_seconds", { noisy: true }],
  ["seconds in all", "seconds", {}], ["loss", "loss", { noisy: true }], ["FLOPs in all", "flops", {}],
];
const SEVERAL = [ // [title, columns with names, options]: one picture a run
  ["outcomes", [["outcome/right", "right", 2], ["outcome/wrong", "wrong", 5], ["outcome/missing", "missing", 4], ["outcome/cut_off", "cut off", 3]], { stack: true, share: true }],
  ["degenerate groups", [["groups/degenerate", "all", 0], ["groups/all_right", "all right", 2], ["groups/all_wrong", "all wrong", 5]], { share: true, noisy: true }],
  ["tokens in all", [["tokens/generated", "generated", 0], ["tokens/update", "trained on", 1]], {}],
  ["FLOPs in all", [["flops/total", "total", 0], ["flops/rollout", "rollout", 1], ["flops/scores", "scores", 3], ["flops/update", "update", 2]], {}],
  ["probe", [["probe/box", "boxed", 0], ["probe/agree", "own arg-max", 1], ["probe/right", "right", 2]], { share: true }],
];
const dense = (one, name) => { // the steps at which a column holds a value
  const at = one.columns[name].map((v, i) => (v === null ? -1 : i)).filter((i) => i >= 0);
  return { steps: at.map((i) => one.steps[i]), values: at.map((i) => one.columns[name][i]) };
};
function training() {
  if (!DATA.training.length) return;
  const made = section("training", "Training");
  for (const stage of [...new Set(DATA.training.map((one) => one.stage))]) {
    const runs = DATA.training.filter((one) => one.stage === stage);
    made.append(put(el("h3"), runs.map((one) => one.title).join(", ")));
    const place = el("div", { class: "charts" });
    const single = (row) => {
      const lines = runs.filter((one) => one.columns[row[1]]).map((one) => ({ label: one.title, k: runs.indexOf(one) % 6, ...dense(one, row[1]) })).filter((line) => line.steps.length);
      if (lines.length) place.append(chart(row[0], lines, row[2]));
    };
    const several = (row) => {
      for (const one of runs) {
        const lines = row[1].filter((c) => one.columns[c[0]]).map((c) => ({ label: c[1], k: c[2], ...dense(one, c[0]) })).filter((line) => line.steps.length);
        if (lines.length) place.append(chart(runs.length > 1 ? `${row[0]}, ${one.title}` : row[0], lines, row[2]));
      }
    };
    ONE.slice(0, 2).forEach(single);
    SEVERAL.forEach(several);
    ONE.slice(2).forEach(single);
    made.append(place);
  }
  if (DATA.training.some((one) => one.columns.reward)) made.append(el("p", { class: "soft" }, "Faint lines are single steps, strong ones a moving mean over an eighth of them."));
}

// ---- accuracy ----
const bounds = (share) => share.wilson || share.bootstrap;
function shareCell(share) {
  const made = el("td", {}, percent(share.value));
  const b = bounds(share);
  if (b) made.append(el("small", {}, `${percent(b[0])} … ${percent(b[1])}`));
  return made;
}
function forest(row) {
  const x = (v) => 4 + 200 * v;
  const picture = svg("svg", { viewBox: "0 0 208 24", role: "img", "aria-label": "plain and reasoning accuracy with intervals" });
  for (const v of [0, 0.25, 0.5, 0.75, 1]) picture.append(svg("line", { class: "grid", x1: x(v), x2: x(v), y1: 0, y2: 24 }));
  [["plain", 7, "hollow k0"], ["reasoning", 17, "f1"]].forEach(([name, y, kind], k) => {
    const share = row[name], b = bounds(share);
    if (share.value === null) return;
    if (b) picture.append(svg("line", { class: "stroke k" + k, x1: x(b[0]), x2: x(b[1]), y1: y, y2: y }));
    picture.append(svg("circle", { class: kind, cx: x(share.value), cy: y, r: 3.2 }));
  });
  return el("td", { class: "plot" }, picture);
}
const header = (...names) => el("thead", {}, el("tr", {}, ...names.map((name) => el("th", { scope: "col" }, name))));
function accuracy() {
  if (!DATA.evaluations.length) return;
  const made = section("accuracy", "Accuracy");
  made.append(el("p", {}, "Next-token accuracy in per cent, with 95 % intervals. Plain is the arg-max without a thought; reasoning is the answer after one. On the scale from 0 to 100: ring plain, dot reasoning."));
  for (const [kind, title] of [["nested", "Nested splits"], ["disjoint", "Disjoint splits"]]) {
    const rows = DATA.evaluations.flatMap((one) => one.rows.filter((row) => row.kind === kind).map((row) => ({ one, row })));
    const body = el("tbody");
    for (const name of new Set(rows.map(({ row }) => row.split))) {
      const own = rows.filter(({ row }) => row.split === name);
      body.append(el("tr", { class: "group" }, put(el("td", { colspan: 8 }), name + (kind === "nested" && own[0].row.above !== undefined ? `: entropy above ${own[0].row.above} nats` : " nats"))));
      for (const { one, row } of own)
        body.append(el("tr", {}, put(el("td"), one.title), el("td", {}, thousands(row.positions)), shareCell(row.plain), shareCell(row.reasoning),
          forest(row), el("td", {}, percent(row.box.value)), el("td", {}, percent(row.agree.value)), el("td", {}, number(row.completion_tokens))));
    }
    made.append(el("h3", {}, title), el("div", { class: "scroll", tabindex: "0" }, el("table", {}, header("", "n", "plain", "reasoning", "", "boxed", "own arg-max", "tokens"), body)));
  }
  for (const one of DATA.evaluations)
    for (const against of one.against || []) {
      const body = el("tbody");
      for (const row of against.rows) {
        const cell = (d) => {
          const td = el("td", {}, (d.difference >= 0 ? "+" : "") + percent(d.difference));
          if (d.interval) td.append(el("small", {}, `${percent(d.interval[0])} … ${percent(d.interval[1])}`));
          return td;
        };
        body.append(el("tr", {}, put(el("td"), row.split), el("td", {}, thousands(row.positions)), cell(row.plain), cell(row.reasoning)));
      }
      made.append(put(el("h3"), `${one.title} less ${against.folder}`), el("p", { class: "soft" }, "Percentage points on the same positions, paired intervals."),
        el("div", { class: "scroll", tabindex: "0" }, el("table", {}, header("split", "n", "plain", "reasoning"), body)));
    }
  const body = el("tbody");
  for (const one of DATA.evaluations)
    body.append(el("tr", {}, put(el("td"), one.title), put(el("td"), String(one.model.name)), put(el("td"), one.template), el("td", {}, number(one.temperature)), el("td", {}, number(one.samples)), el("td", {}, thousands(one.documents)), el("td", {}, one.perplexity === null ? "–" : one.perplexity.toFixed(2))));
  made.append(el("h3", {}, "How they were made"), el("div", { class: "scroll", tabindex: "0" }, el("table", {}, header("", "model", "template", "temperature", "samples", "documents", "perplexity"), body)));
}

// ---- configuration ----
function flat(value, at = "") {
  if (value === null || typeof value !== "object") return [[at, value === null ? "none" : String(value)]];
  if (Array.isArray(value)) return [[at, value.map((v) => (v !== null && typeof v === "object" ? JSON.stringify(v) : String(v))).join(", ") || "none"]];
  return Object.entries(value).flatMap(([key, one]) => flat(one, at ? at + "." + key : key));
}
function pairs(title, value) {
  const rows = value ? flat(value) : [];
  if (!rows.length) return "";
  const body = el("tbody", {}, ...rows.map(([key, one]) => el("tr", {}, put(el("td"), key), put(el("td"), one))));
  return el("div", {}, el("h4", {}, title), el("table", { class: "kv" }, body));
}
function configuration() {
  const made = section("configuration", "Configuration");
  for (const stage of DATA.stages) {
    const summary = el("summary", {}, put(el("b"), `${stage.run}/${stage.name}`),
      put(el("span"), `${stage.status}, ${number(stage.seconds || 0)} s, ${stage.created || ""}`));
    const { stage: _, ...settings } = stage.settings || {};
    const command = (stage.command || []).map((part) => (/^[\w./:=,+-]+$/.test(part) ? part : "'" + part.replaceAll("'", "'\\''") + "'")).join(" ");
    made.append(el("details", { class: "stage" }, summary,
      el("h4", {}, "Command"), put(el("pre"), command),
      ...(stage.warnings || []).map((text) => put(el("p", { class: "warn" }), text)),
      pairs("Made with", { git: stage.git, resumed: stage.resumed, ...stage.versions, ...stage.machine }),
      pairs("Inputs, SHA-256", stage.inputs), pairs("Result", stage.result), pairs("Left out, by reason", stage.dropped),
      pairs("Settings that the result depends on", settings),
      stage.config ? el("details", {}, el("summary", {}, "config.toml"), put(el("pre"), stage.config)) : ""));
  }
}

overview();
documents();
training();
accuracy();
configuration();
main.append(el("p", { class: "soft" }, `forethink ${DATA.version}`));
