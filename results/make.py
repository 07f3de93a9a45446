"""Rewrite the tables of docs/results.md from the committed summaries: `make results`.

The page says itself where a table goes and of what: between ``<!-- table KIND NAME … -->`` and ``<!-- end -->``, with
the kinds of `KINDS`. NAME is a summary, results/NAME.json (see collect.py), or several joined by ``+``; what follows
picks evaluations, e.g. ``"after RPT=run/rpt"`` (a label, the run, the evaluation). What no run has given yet reads
"not yet run".
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cells import NOT_YET, Record, grid, number, percent, picked, seed_of, share
from unseen import unseen

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "results.md"
_BLOCK = re.compile(r"(<!-- table (?P<spec>.+?) -->\n)(?P<body>.*?)(?P<end>^<!-- end -->$)", re.M | re.S)


def accuracy(data: Record, *arms: str) -> str:
    """Plain and reasoning accuracy of evaluations on the nested splits."""
    chosen = picked(data, "evals", arms)
    there = [record for *_, record in chosen if record is not None]
    if not there:
        return NOT_YET
    splits = [row["split"] for row in there[0]["rows"] if row["kind"] == "nested"]
    rows = []
    for label, run, _, record in chosen:
        if record is None:
            rows.append([label, "–", "–", *[NOT_YET] * (len(splits) + 1)])
            continue
        by_split = {row["split"]: row for row in record["rows"]}
        asked = f"{record['samples']} sample(s), temperature {record['temperature']:g}"
        for metric, how in (("plain", ""), ("reasoning", f", {asked}")):
            cells = [
                f"{share(by_split[s][metric])}; n = {by_split[s]['positions']}" if s in by_split else "–"
                for s in splits
            ]
            box = share(by_split[splits[0]]["box"]) if metric == "reasoning" else "–"
            rows.append([label, seed_of(run, record), metric + how, *cells, box])
    return grid(["model", "seed", "accuracy, %", *splits, f"replies with an answer, % ({splits[0]})"], rows)


def differences(data: Record, *arms: str) -> str:
    """Paired differences that evaluations were held against; reasoning less the other's plain where counted."""
    found = []
    for label, run, _, record in picked(data, "evals", arms):
        if record is None:
            found.append(([label, "–", "–", "–", "–"], None))
            continue
        for other in record.get("against", []):
            for row in other["rows"]:
                if row["kind"] == "nested":
                    against = Path(other["folder"]).name
                    found.append(([label, against, seed_of(run, record), row["split"], str(row["positions"])], row))
    names = {"plain": "plain, points", "reasoning": "reasoning, points"}
    if any(row and "reasoning_less_plain" in row for _, row in found):
        names["reasoning_less_plain"] = "reasoning less the other's plain, points"
    rows = []
    for cells, row in found:
        shown = [NOT_YET if row is None else _difference(row.get(name)) for name in names]
        rows.append([*cells, *shown])
    return grid(["model", "less", "seed", "split", "n", *names.values()], rows)


def _difference(cell: Record | None) -> str:
    return "–" if cell is None else percent(cell["difference"], cell.get("interval"), "+")


def cost(data: Record) -> str:
    """What every stage took, and by which command."""
    rows = []
    for name, run in data["runs"].items():
        for one in run["stages"]:
            spent = one.get("so_far") or one["result"]
            total = spent.get("flops") or sum(
                v for k, v in spent.items() if k.startswith("flops/") and k != "flops/total"
            )
            status = "" if one["status"] == "done" else f" ({one['status']})"
            steps = spent.get("steps") or spent.get("step")
            generated = spent.get("tokens/generated")
            where = f"{name}/{one['folder']}{status}"
            # A record's seconds are those of its last process; what was spent is kept over an interruption.
            seconds = max(filter(None, (one["seconds"], spent.get("seconds"))), default=None)
            rows.append(
                [where, one["stage"], str(one["seed"]), number(steps), number(total or None), number(generated),
                 number(seconds)]
            )  # fmt: skip
    head = ["folder", "stage", "seed", "steps", "FLOPs", "tokens generated", "seconds"]
    return grid(head, rows)


def commands(data: Record) -> str:
    """The commands, in the order they were given, and where they ran."""
    given = [one for run in data["runs"].values() for one in run["stages"] if one["command"]]
    if not given:
        return NOT_YET
    lines = list(dict.fromkeys(one["command"] for one in given))
    shas = sorted({one["git"][:7] for one in given if one.get("git")})
    machines = sorted({f"{m['system']}, {m['cores']} cores" for one in given if (m := one.get("machine"))})
    about = [f"Code: {', '.join(shas)}." if shas else "", f"Machine: {'; '.join(machines)}." if machines else ""]
    return "\n".join(["```sh", *lines, "```", *[line for line in about if line]])


def fit(data: Record, *names: str) -> str:
    """The scaling law of every split and axis."""
    rows = []
    for name, run in data["runs"].items():
        if names and name not in names:
            continue
        for one in run.get("fit", {}).get("fits", []):
            which = [name, one["split"], one["axis"], str(one["points"])]
            r2 = f"{one['r2']:.3f}" if "r2" in one else "–"
            if one["refused"]:
                why = one["refused"].removeprefix(f"{one['split']} against {one['axis']}: ")
                rows.append([*which, "–", "–", "–", r2, why])
                continue

            def spread(key: str, scale: float = 1.0, own: Record = one) -> str:
                ends = own[key]["residuals"]
                shown = ["open" if end is None else f"{scale * end:.3g}" for end in ends or []]
                return f"{scale * own[key]['value']:.3g}" + (f" ({' … '.join(shown)})" if shown else "")

            hold = one["hold_out"]
            held = "–" if hold is None else f"{percent(hold['predicted'])} for {percent(hold['observed'])}"
            rows.append([*which, spread("A"), spread("alpha"), spread("p_star", 100), r2, held])
    head = [
        "run",
        "split",
        "against",
        "n",
        "A",
        "α",
        "P*, %",
        "R²",
        "last point, predicted for observed, %; or why not",
    ]
    return grid(head, rows)


def tasks(data: Record, *arms: str) -> str:
    """End tasks by mode, all categories together."""
    rows = []
    for label, _, _, record in picked(data, "tasks", arms):
        if record is None:
            rows.append([label, "–", "–", NOT_YET, "–", "–"])
            continue
        for row in record["rows"]:
            if row["category"] == "all":
                where = f"{row['task']}, {row['mode']}"
                rows.append(
                    [label, where, str(row["n"]), share(row["accuracy"]), percent(row["chance"]),
                     percent(row["lm_eval"])]
                )  # fmt: skip
    return grid(["model", "questions", "n", "right, %", "chance, %", "lm-eval's own figure, %"], rows)


def categories(data: Record, *arms: str) -> str:
    """End tasks by category: a row a category, a column a model and mode."""
    columns: list[str] = []
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for label, _, _, record in picked(data, "tasks", arms):
        for row in record["rows"] if record is not None else []:
            if row["category"] != "all":
                columns.append(f"{label}, {row['mode']}")
                key = (row["task"], row["category"], str(row["n"]))
                cells.setdefault(key, {})[columns[-1]] = percent(row["accuracy"]["value"])
    columns = list(dict.fromkeys(columns))
    rows = [[*key, *(own.get(column, "–") for column in columns)] for key, own in cells.items()]
    return grid(["questions", "category", "n", *(f"{column}, %" for column in columns)], rows)


def questions(data: Record, *arms: str) -> str:
    """Questions with checkable answers, e.g. before and after fine-tuning."""
    rows = []
    for label, run, _, record in picked(data, "questions", arms):
        if record is None:
            rows.append([label, "–", "–", NOT_YET, NOT_YET, "–", "–", "–"])
            continue
        cells = [share(record.get(key)) for key in ("accuracy", "greedy", "box")]
        other = next(iter(record.get("against", [])), None)  # after fine-tuning: before it
        less = [
            "–" if other is None else percent(other[key]["difference"], other[key]["interval"], "+")
            for key in ("accuracy", "greedy")
        ]
        rows.append([label, seed_of(run, record), str(record["questions"]), *cells, *less])
    head = ["right, sampled, %", "right, greedy, %", "replies with an answer, %", "less before, sampled, points",
            "less before, greedy, points"]  # fmt: skip
    return grid(["model", "seed", "n", *head], rows)


def family(data: Record, *names: str) -> str:
    """Runs side by side, as `forethink compare` has them, with differences to its baseline."""
    rows = []
    for name, run in data["runs"].items():
        whole = run.get("compare")
        if whole is None or (names and name not in names):
            continue
        for one in whole["runs"]:
            nested = [row for row in one.get("accuracy") or [] if row["kind"] == "nested"]
            cells = [f"{row['split']} {share(row['reasoning'])}" for row in nested]
            less = [
                f"{row['split']} {percent(row['reasoning']['difference'], row['reasoning'].get('interval'), '+')}"
                for row in one.get("against") or []
                if row["kind"] == "nested"
            ]
            flops = (one.get("spent") or {}).get("flops")
            setting = ", ".join(str(one[k]) for k in ("reward", "selector") if one.get(k))
            label = str(one["label"])
            rows.append([label, setting, number(flops), "<br>".join(cells) or "–", "<br>".join(less) or "–"])
    return grid(["run", "reward, selector", "FLOPs", "reasoning, %", "less the baseline, points"], rows)


def _patterns(data: Record, names: Sequence[str]) -> list[tuple[str, Record]]:
    """(run, what `forethink patterns` found) of the runs named, or of all."""
    return [
        (name, run["patterns"])
        for name, run in data["runs"].items()
        if "patterns" in run and (not names or name in names)
    ]


def patterns(data: Record, *names: str) -> str:
    """The share of responses that show a reasoning pattern, by keyword."""
    found = [found for _, found in _patterns(data, names)]
    groups = list(found[0]["keywords"]) if found else []
    rows = [
        [Path(row["source"]).parent.name, number(row["responses"]), *(share(row["groups"][one]) for one in groups)]
        for one in found
        for row in one["rows"]
    ]
    return grid(["responses of", "n", *(f"{one}, %" for one in groups)], rows)


def diversity(data: Record, *names: str) -> str:
    """Thoughts over the steps of a training: do they become all the same?"""
    rows = []
    for name, found in _patterns(data, names):
        windows = [one for watched in found["watch"] for one in watched["windows"]]
        for one in windows:
            if not one["to"]:  # an evaluation
                continue
            grams = " ".join(percent(one["distinct"][n]) for n in "123")
            rows.append(
                [name, f"{one['from']}–{one['to']}", number(one["thoughts"]), number(one["characters"]), grams,
                 percent(one["distinct_thoughts"]), number(one["compression"], 1)]
            )  # fmt: skip
    head = ["run", "steps", "thoughts", "characters", "distinct 1-, 2-, 3-grams, %", "distinct thoughts, %"]
    return grid([*head, "bytes a compressed byte"], rows)


def note(data: Record) -> str:
    """The sentence given to collect.py."""
    return data["note"] or NOT_YET


_KINDS = [
    accuracy, differences, unseen, cost, commands, fit, tasks, categories, questions, family, patterns, diversity,
    note,
]  # fmt: skip
KINDS: dict[str, Callable[..., str]] = {one.__name__: one for one in _KINDS}


def render(spec: str, folder: Path) -> str:
    """The text of one table: KIND NAME and what picks its rows."""
    kind, name, *rest = shlex.split(spec)
    if kind not in KINDS:
        raise SystemExit(f"{PAGE.name}: no table {kind!r}; choose one of {', '.join(KINDS)}.")
    paths = [folder / f"{one}.json" for one in name.split("+")]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]
    if not found:
        return NOT_YET
    runs = {run: record for data in found for run, record in data["runs"].items()}
    if len(runs) < sum(len(data["runs"]) for data in found):
        raise SystemExit(f"{PAGE.name}: {name}: two summaries have a run of one name; collect one of them anew.")
    return KINDS[kind]({**found[0], "runs": runs}, *rest)


def rewrite(page: str, folder: Path = HERE) -> str:
    """The page with every table made anew."""
    return _BLOCK.sub(lambda m: f"{m[1]}\n{render(m['spec'], folder)}\n\n{m['end']}", page)


def main() -> None:
    old = PAGE.read_text(encoding="utf-8")
    new = rewrite(old)
    if new != old:
        PAGE.write_text(new, encoding="utf-8")
    print(f"{PAGE.relative_to(HERE.parent)}: {'written' if new != old else 'unchanged'}", file=sys.stderr)


if __name__ == "__main__":
    main()
