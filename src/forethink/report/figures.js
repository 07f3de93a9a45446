// Curves, tables and what runs were made with; needs report.js before it.

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
const scroller = (table) => el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table" }, table);
const header = (...names) => el("thead", {}, el("tr", {}, ...names.map((name) => el("th", { scope: "col" }, name))));
const difference = (d) => {
  const td = el("td", {}, signed(d.difference));
  if (d.interval) td.append(el("small", {}, `${signed(d.interval[0])} … ${signed(d.interval[1])}`));
  return td;
};
// Differences on one scale about zero; reach: the largest end of an interval, as a share.
function zero(row, reach) {
  const x = (v) => 104 + (100 * v) / reach;
  const picture = svg("svg", { viewBox: "0 0 208 24", role: "img", "aria-label": "differences in plain and reasoning accuracy about zero, with intervals" });
  picture.append(svg("line", { class: "cursor", x1: 104, x2: 104, y1: 0, y2: 24 }));
  [["plain", 7, "hollow k0"], ["reasoning", 17, "f1"]].forEach(([name, y, kind], k) => {
    const d = row[name];
    if (d.interval) picture.append(svg("line", { class: "stroke k" + k, x1: x(d.interval[0]), x2: x(d.interval[1]), y1: y, y2: y }));
    picture.append(svg("circle", { class: kind, cx: x(d.difference), cy: y, r: 3.2 }));
  });
  return el("td", { class: "plot" }, picture);
}
function paired(rows) {
  const reach = Math.max(0.02, ...rows.flatMap((row) => ["plain", "reasoning"].flatMap((name) => [row[name].difference, ...(row[name].interval || [])].map(Math.abs))));
  const body = el("tbody");
  for (const row of rows) body.append(el("tr", {}, put(el("td"), row.split), el("td", {}, thousands(row.positions)), difference(row.plain), difference(row.reasoning), zero(row, reach)));
  return scroller(el("table", {}, header("split", "n", "plain", "reasoning", `−${percent(reach, 0)} … +${percent(reach, 0)}`), body));
}
// Any two evaluations that stand on the same positions.
function comparisons(made) {
  if (DATA.pairs.length) {
    made.append(el("h3", {}, "Compared on the same positions"), el("p", {}, "Percentage points, with paired 95 % intervals: documents are drawn anew, both sides alike. An interval without 0 is a difference beyond the draw of documents. Ring plain, dot reasoning."));
    const choose = el("select", { id: "pair", "aria-label": "Which evaluations are compared" });
    DATA.pairs.forEach((pair, i) => choose.append(put(el("option", { value: i }), `${pair.ours} less ${pair.theirs}`)));
    const place = el("div");
    const show = () => place.replaceChildren(paired(DATA.pairs[Number(choose.value)].rows));
    choose.addEventListener("change", show);
    const first = DATA.evaluations[0].title, last = DATA.evaluations.at(-1).title;
    const best = DATA.pairs.findIndex((pair) => pair.ours === last && pair.theirs === first);
    choose.value = String(best < 0 ? 0 : best);
    made.append(DATA.pairs.length > 1 ? el("div", { class: "tools" }, choose) : put(el("p", { class: "soft" }), choose.options[0].textContent), place);
    show();
  }
  const base = (path) => path.split("/").filter(Boolean).at(-1);
  for (const one of DATA.evaluations)
    for (const against of one.against || [])
      if (!DATA.pairs.some((pair) => pair.ours === one.title && base(pair.theirs) === base(against.folder)))
        made.append(put(el("h3"), `${one.title} less ${against.folder}`), el("p", { class: "soft" }, "Percentage points on the same positions, paired intervals."), paired(against.rows));
}
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
    made.append(el("h3", {}, title), scroller(el("table", {}, header("", "n", "plain", "reasoning", "0 … 100", "boxed", "own arg-max", "tokens"), body)));
  }
  comparisons(made);
  const body = el("tbody");
  for (const one of DATA.evaluations)
    body.append(el("tr", {}, put(el("td"), one.title), put(el("td"), String(one.model.name)), put(el("td"), one.template), el("td", {}, number(one.temperature)), el("td", {}, number(one.samples)), el("td", {}, thousands(one.documents)), el("td", {}, one.perplexity === null ? "–" : one.perplexity.toFixed(2))));
  made.append(el("h3", {}, "How they were made"), scroller(el("table", {}, header("", "model", "template", "temperature", "samples", "documents", "perplexity"), body)));
}

// ---- scaling ----
const AXES = [["flops", "FLOPs"], ["tokens", "tokens"], ["seconds", "seconds"]];
const SW = 340, SH = 220;
const tenth = (v) => { // a value on a logarithmic axis
  const power = Math.floor(Math.log10(v) + 1e-9), lead = v / 10 ** power;
  return power >= 0 && power < 6 ? number(v) : `${Math.round(lead) === 1 ? "" : Math.round(lead) + "·"}10${[...String(power)].map((c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c] || "⁻").join("")}`;
};
function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const lead of high / low > 30 ? [1] : high / low > 4 ? [1, 2, 5] : [1, 1.5, 2, 3, 5, 7]) if (lead * 10 ** power >= low && lead * 10 ** power <= high) found.push(lead * 10 ** power);
  return found;
}
// Points of one curve against one axis, the law and its band where it was fitted.
function scatter(curve, metric, axis, title) {
  const splits = curve.splits.filter((one) => one.kind === "nested");
  const points = curve.points.filter((point) => point[axis] > 0);
  const fits = new Map(curve.fits.filter((one) => one.metric === metric && one.axis === axis).map((one) => [one.split, one]));
  const values = points.flatMap((point) => splits.flatMap((one) => point.accuracy[one.split]?.[metric] || [])).filter((v) => v !== null);
  if (!points.length || !values.length) return null;
  const xs = points.map((point) => point[axis]), low = Math.min(...xs) / 1.15, high = Math.max(...xs) * 1.15;
  const bottom = Math.max(0, Math.min(...values) - 0.02), top = Math.min(1, Math.max(...values) + 0.02);
  const x = (v) => 38 + ((SW - 44) * Math.log(v / low)) / Math.log(high / low);
  const y = (v) => 8 + ((SH - 38) * (top - Math.min(top, Math.max(bottom, v)))) / (top - bottom);
  const picture = svg("svg", { viewBox: `0 0 ${SW} ${SH}`, role: "img", "aria-label": `${metric} accuracy against ${title}` });
  const write = (px, py, anchor, text) => { const made = svg("text", { x: px, y: py, "text-anchor": anchor }); made.textContent = text; picture.append(made); };
  for (const v of ticks(bottom, top)) { picture.append(svg("line", { class: "grid", x1: 38, x2: SW - 6, y1: y(v), y2: y(v) })); write(33, y(v) + 3, "end", percent(v, 0) + "%"); }
  for (const v of logTicks(low, high)) { picture.append(svg("line", { class: "grid", x1: x(v), x2: x(v), y1: 8, y2: SH - 30 })); write(x(v), SH - 17, "middle", tenth(v)); }
  write(SW - 6, SH - 3, "end", title);
  splits.forEach((one, k) => {
    const law = fits.get(one.split);
    if (law && !law.refused) {
      const { compute, accuracy: mean, low: under, high: over } = law.curve;
      const path = (ys, back) => { const order = compute.map((_, i) => (back ? compute.length - 1 - i : i)); return order.map((i) => `${x(compute[i]).toFixed(1)} ${y(ys[i]).toFixed(1)}`).join("L"); };
      picture.append(svg("path", { class: "band f" + k, d: `M${path(over)}L${path(under, true)}Z` }), svg("path", { class: "curve k" + k, d: "M" + path(mean) }));
    }
  });
  splits.forEach((one, k) => {
    for (const point of points) {
      const v = point.accuracy[one.split]?.[metric];
      if (!v) continue;
      const cx = x(point[axis]) + (k - (splits.length - 1) / 2) * 2.5;
      if (v[1] !== null) picture.append(svg("line", { class: "whisker k" + k, x1: cx, x2: cx, y1: y(v[1]), y2: y(v[2]) }));
      const dot = svg("circle", { class: "f" + k, cx, cy: y(v[0]), r: 3.4 }), label = svg("title");
      label.textContent = `${point.title}, ${one.split}: ${percent(v[0])} % at ${number(point[axis])} ${title}`;
      dot.append(label);
      picture.append(dot);
    }
  });
  const keys = el("div", { class: "keys" }, ...splits.map((one, k) => el("span", {}, el("i", { class: "f" + k }), put(el("span"), one.split))));
  return el("figure", {}, el("figcaption", {}, el("b", {}, "against " + title), el("span", {}, [...fits.values()].some((one) => !one.refused) ? "law and 95 % band" : "points only")), picture, keys);
}
const ends = (pair, form) => (pair ? pair.map((end) => (end === null ? "open" : form(end))).join(" … ") : "–");
function lawTable(curve, metric) {
  const body = el("tbody");
  const place = (law) => AXES.findIndex((axis) => axis[0] === law.axis);
  for (const one of curve.fits.filter((law) => law.metric === metric && !law.refused).sort((a, b) => place(a) - place(b))) {
    const cell = (estimate, form) => el("td", {}, form(estimate.value), el("small", {}, ends(estimate.residuals, form)));
    const hold = one.hold_out;
    body.append(el("tr", {}, put(el("td"), `${one.split}, ${AXES[place(one)][1]}`), el("td", {}, one.points),
      cell(one.alpha, (v) => v.toPrecision(2)), cell(one.p_star, (v) => percent(v)), el("td", {}, el("small", {}, ends(one.p_star.documents, (v) => percent(v)))),
      el("td", {}, one.A.value.toPrecision(3)), el("td", {}, one.r2.toFixed(3)),
      hold ? el("td", {}, `${percent(hold.predicted)} for ${percent(hold.observed)}`, el("small", {}, ends(hold.interval, (v) => percent(v)))) : el("td", {}, "–")));
  }
  if (!body.children.length) return "";
  return scroller(el("table", {}, header("split, axis", "points", "α", "P* in %", "P*, other documents", "A", "R²", "last point, held out: predicted for observed"), body));
}
function scaling() {
  const { curves, left_out: left } = DATA.scaling;
  if (!curves.length && !DATA.evaluations.length) return;
  const made = section("scaling", "Scaling");
  made.append(el("p", {}, "Accuracy of the evaluated checkpoints against what their training had taken, C, counted from its start. The law is P(C) = A / C", el("sup", {}, "α"), " + P*; bands and intervals are 95 %."));
  if (!curves.length) made.append(el("p", { class: "note" }, "No curve: none of the evaluations is of a training's checkpoint. `train.keep_every` keeps models to evaluate."));
  for (const curve of curves) {
    const cost = Object.values(curve.before)[0];
    made.append(put(el("h3"), `${curve.run}/${curve.training}, ${curve.points.length} ${curve.points.length === 1 ? "checkpoint" : "checkpoints"}`));
    const place = el("div");
    const draw = (metric) => {
      const charts = el("div", { class: "charts wide" });
      for (const [axis, title] of AXES) { const one = scatter(curve, metric, axis, title); if (one) charts.append(one); }
      const reasons = new Map();
      for (const one of curve.fits) if (one.metric === metric && one.refused) {
        const why = one.refused.replace(`${one.split} against ${one.axis}: `, "");
        reasons.set(why, [...(reasons.get(why) || []), `${one.split} (${AXES.find((axis) => axis[0] === one.axis)[1]})`]);
      }
      const all = curve.fits.filter((one) => one.metric === metric).length;
      place.replaceChildren(charts, lawTable(curve, metric), ...[...reasons].map(([why, which]) => put(el("p", { class: "note" }), `Not fitted${which.length === all ? "" : ", " + which.join(", ")}: ${why}`)));
      for (const button of tools.children) button.setAttribute("aria-pressed", String(button.dataset.metric === metric));
    };
    const tools = el("div", { class: "chips", role: "group", "aria-label": "Accuracy shown" }, ...["reasoning", "plain"].map((metric) => el("button", { type: "button", "data-metric": metric, on: { click: () => draw(metric) } }, `${metric} accuracy`)));
    made.append(tools, place);
    draw("reasoning");
    if (cost) made.append(el("p", { class: "note" }, `Not in C: the warm start's ${number(cost.flops)} FLOPs.`));
  }
  if (left.length) {
    const list = el("ul", { class: "note" }, ...left.map((one) => put(el("li"), `${one.evaluation}: ${one.reason}`)));
    made.append(el("details", {}, el("summary", {}, left.length === 1 ? "1 evaluation is no point of a curve" : `${left.length} evaluations are no points of a curve`), list));
  }
}

// ---- patterns ----
function bar(share, reach, k) {
  const x = (v) => (200 * Math.min(v, reach)) / reach, range = share.bootstrap || share.wilson;
  const picture = svg("svg", { viewBox: "0 0 200 14", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("rect", { class: "back", y: 1, width: 200, height: 12 }), svg("rect", { class: "f" + k, y: 1, width: x(share.value), height: 12 }));
  if (range && range[1] > range[0]) for (const [x1, x2, y1, y2] of [[x(range[0]), x(range[1]), 7, 7], [x(range[0]), x(range[0]), 4, 10], [x(range[1]), x(range[1]), 4, 10]]) picture.append(svg("line", { class: "range", x1, x2, y1, y2 }));
  return picture;
}
function patterns() {
  if (!DATA.patterns) return;
  const { keywords, rows, watch } = DATA.patterns;
  const made = section("patterns", "Reasoning patterns");
  made.append(put(el("p"), `Share of replies that hold a keyword of each group, in per cent, with 95 % intervals over documents; in brackets the change against ${rows[0].source}. Keywords count words, not thoughts.`));
  const reach = Math.min(1, Math.max(0.05, ...rows.flatMap((row) => Object.values(row.groups).map((one) => (one.bootstrap || one.wilson || [0, one.value])[1]))));
  const place = el("div", { class: "charts" });
  for (const name of Object.keys(keywords)) {
    const figure = el("figure", {}, el("figcaption", {}, el("b", {}, name)));
    rows.forEach((row) => {
      const one = row.groups[name];
      const change = one.change === null ? "" : ` (${signed(one.change, 0)} %)`;
      figure.append(el("div", { class: "row" }, put(el("span", { title: row.source }), row.source), bar(one, reach, row.kind === "train" ? 1 : 0), el("span", {}, percent(one.value) + change)));
    });
    place.append(figure);
  }
  made.append(place, el("p", { class: "soft" }, `Every bar ends at ${percent(reach, 0)} %. ${rows.map((row) => `${row.source}: ${thousands(row.responses)} replies`).join("; ")}.`));
  made.append(el("details", {}, el("summary", {}, "The keywords of each group"), pairs("", keywords)));
  for (const one of watch.filter((own) => own.windows.length > 1)) collapse(made, one, Object.keys(keywords));
}
function collapse(made, one, names) {
  const parts = one.windows, steps = parts.map((part) => part.to);
  const column = (pick) => ({ steps, values: parts.map((part) => pick(part) ?? null) });
  made.append(put(el("h3"), `Do thoughts collapse? ${one.label}`), el("p", {}, "Over windows of steps with as many thoughts each. Falling shares of distinct words and thoughts, a rising compression ratio and one opening line for all mean that the policy says one thing."));
  const place = el("div", { class: "charts" });
  const add = (title, lines, options) => { const own = lines.filter((line) => line.values.some((v) => v !== null)); if (own.length) place.append(chart(title, own, options)); };
  add("distinct n-grams", ["1", "2", "3"].map((n, k) => ({ label: `${n} ${n === "1" ? "word" : "words"}`, k, ...column((part) => part.distinct[n]) })), { share: true });
  add("distinct thoughts", [{ label: "thoughts", k: 0, ...column((part) => part.distinct_thoughts) }], { share: true });
  add("top opening line", [{ label: "share", k: 3, ...column((part) => part.openings[0]?.share) }], { share: true });
  add("compression ratio", [{ label: "zlib", k: 2, ...column((part) => part.compression) }], {});
  add("thought, mean characters", [{ label: "characters", k: 0, ...column((part) => part.characters) }], {});
  add("patterns, share of replies", names.map((name, k) => ({ label: name, k, ...column((part) => part.share[name]) })), { share: true });
  made.append(place);
  const body = el("tbody");
  for (const part of [parts[0], parts.at(-1)])
    for (const opening of part.openings) body.append(el("tr", {}, el("td", {}, `steps ${part.from}–${part.to}`), el("td", {}, percent(opening.share)), el("td", { class: "line" }, quoted(opening.line))));
  made.append(el("h4", {}, "Most frequent opening lines, first and last window, in %"), scroller(el("table", {}, header("steps", "share", "line"), body)));
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
  return el("div", {}, title ? el("h4", {}, title) : "", el("table", { class: "kv" }, body));
}
function configuration() {
  const made = section("configuration", "Configuration");
  made.append(el("p", {}, "Every stage with its command, versions, git commit, hashes of what it read, what it left out, and the whole recipe."));
  DATA.stages.forEach((stage, i) => {
    const summary = el("summary", {}, put(el("b"), `${stage.run}/${stage.name}`),
      put(el("span"), `${stage.status}, ${number(stage.seconds || 0)} s, ${stage.created || ""}${stage.git ? ", git " + String(stage.git).slice(0, 10) : ""}`));
    if ((stage.warnings || []).length) summary.append(el("em", {}, stage.warnings.length === 1 ? "1 warning" : `${stage.warnings.length} warnings`));
    const { stage: _, ...settings } = stage.settings || {};
    const command = (stage.command || []).map((part) => (/^[\w./:=,+-]+$/.test(part) ? part : "'" + part.replaceAll("'", "'\\''") + "'")).join(" ");
    made.append(el("details", { class: "stage", id: "stage-" + i }, summary,
      el("h4", {}, "Command"), put(el("pre"), command),
      ...(stage.warnings || []).map((text) => put(el("p", { class: "warn" }), text)),
      pairs("Made with", { git: stage.git, resumed: stage.resumed, ...stage.versions, ...stage.machine }),
      pairs("Inputs, SHA-256", stage.inputs), pairs("Result", stage.result), pairs("Left out, by reason", stage.dropped),
      pairs("Settings that the result depends on", settings),
      stage.config ? el("details", {}, el("summary", {}, "config.toml"), put(el("pre"), stage.config)) : ""));
  });
}

overview();
documents();
training();
accuracy();
scaling();
patterns();
configuration();
main.append(el("p", { class: "soft" }, `forethink ${DATA.version}`));
