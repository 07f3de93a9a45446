"""The figures of a report as files for papers: SVG and PNG of each, drawn by matplotlib from the same data."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forethink.report.page import visible
from forethink.report.samples import Record
from forethink.rundir import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#1f5fa8", "#c4621a", "#2b8a57", "#8a4fa3", "#8c8c2a", "#b23a5e")
DPI = 200
AXES = (("flops", "FLOPs"), ("tokens", "tokens"), ("seconds", "seconds"))
# Of a training: title, columns with their names, whether they are shares.
_PANELS: tuple[tuple[str, dict[str, str], bool], ...] = (
    ("reward", {"reward": ""}, False),
    ("accuracy, %", {"accuracy": ""}, True),
    ("outcomes, %", {"outcome/right": "right", "outcome/wrong": "wrong", "outcome/missing": "missing",
                     "outcome/cut_off": "cut off"}, True),
    ("degenerate groups, %", {"groups/degenerate": "all", "groups/all_right": "all right",
                              "groups/all_wrong": "all wrong"}, True),
    ("probe, %", {"probe/box": "boxed", "probe/agree": "own arg-max", "probe/right": "right"}, True),
    ("thought, characters", {"thought_characters": ""}, False),
    ("entropy, nats a token", {"entropy": ""}, False),
    ("loss", {"loss": ""}, False),
    ("tokens", {"tokens/generated": "generated", "tokens/update": "trained on"}, False),
    ("FLOPs", {"flops/total": "total", "flops/rollout": "rollout", "flops/update": "update", "flops": ""}, False),
    ("seconds", {"seconds": ""}, False),
)  # fmt: skip


def _text(name: str) -> str:
    """A name for matplotlib, which would read what stands between dollar signs as mathematics."""
    return visible(name).replace("$", r"\$")


def _new(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _grid(count: int, columns: int = 3) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` panels and their axes."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = _new(3.2 * columns, 2.4 * rows)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.remove()
    for axis in axes[:count]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(True, color="#e3e5e7", linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes[:count]


def _training(one: Mapping[str, Any]) -> Figure | None:
    columns = one["columns"]
    panels = [panel for panel in _PANELS if any(name in columns for name in panel[1])]
    if not panels:
        return None
    figure, axes = _grid(len(panels))
    for axis, (title, names, share) in zip(axes, panels, strict=True):
        drawn = [(label, columns[name]) for name, label in names.items() if name in columns]
        for (label, values), colour in zip(drawn, COLOURS, strict=False):
            points = [
                (s, v * (100 if share else 1)) for s, v in zip(one["steps"], values, strict=True) if v is not None
            ]
            mark = "o" if len(points) == 1 else ""
            axis.plot(*zip(*points, strict=True), color=colour, label=label, linewidth=1.1, marker=mark)
        axis.set_title(title)
        axis.set_xlabel("step")
        if len(drawn) > 1:
            axis.legend(frameon=False)
    return figure


def _accuracy(evaluations: Sequence[Record]) -> Figure | None:
    """Plain and reasoning accuracy with intervals, one panel a nested split."""
    splits = list(dict.fromkeys(r["split"] for one in evaluations for r in one["rows"] if r["kind"] == "nested"))
    if not splits:
        return None
    figure = _new(2.7 * len(splits) + 1.4, 0.34 * len(evaluations) + 1.1)
    axes = figure.subplots(1, len(splits), squeeze=False, sharey=True)[0]
    for axis, split in zip(axes, splits, strict=True):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(True, axis="x", color="#e3e5e7", linewidth=0.6)
        for k, (name, shift) in enumerate((("plain", -0.14), ("reasoning", 0.14))):
            for number, one in enumerate(evaluations):
                share = next((r[name] for r in one["rows"] if r["split"] == split and r["kind"] == "nested"), None)
                if share is None or share["value"] is None:
                    continue
                ends = share.get("wilson") or share.get("bootstrap")
                if ends:
                    axis.plot([100 * end for end in ends], [number + shift] * 2, color=COLOURS[k], linewidth=1.2)
                face = "white" if name == "plain" else COLOURS[k]
                label = name if number == 0 else None
                axis.plot(
                    100 * share["value"], number + shift, "o", color=COLOURS[k], markerfacecolor=face, label=label
                )
        axis.set_title(_text(split))
        axis.set_xlabel("accuracy, %")
        axis.set_yticks(range(len(evaluations)), [_text(one["title"]) for one in evaluations])
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def _scaling(curve: Mapping[str, Any], metric: str) -> Figure | None:
    """Points, law and band of the nested splits against FLOPs, tokens and seconds."""
    from matplotlib.ticker import LogFormatterSciNotation, LogLocator

    axes_known = [(a, t) for a, t in AXES if any(point.get(a, 0) > 0 for point in curve["points"])]
    splits = [one["split"] for one in curve["splits"] if one["kind"] == "nested"]
    if not axes_known or not splits:
        return None
    figure, axes = _grid(len(axes_known))
    for axis, (name, title) in zip(axes, axes_known, strict=True):
        for split, colour in zip(splits, COLOURS, strict=False):
            points = [
                (point[name], point["accuracy"][split][metric])
                for point in curve["points"]
                if point.get(name, 0) > 0 and point["accuracy"].get(split, {}).get(metric)
            ]
            for x, (_, low, high) in points:
                if low is not None:
                    axis.plot([x, x], [100 * low, 100 * high], color=colour, linewidth=0.9, alpha=0.6)
            axis.plot(
                [x for x, _ in points],
                [100 * own[0] for _, own in points],
                "o",
                color=colour,
                label=_text(split),
                markersize=4,
            )
            for law in curve["fits"]:
                if (law["split"], law["axis"], law["metric"]) == (split, name, metric) and not law["refused"]:
                    drawn = {key: [100 * v for v in law["curve"][key]] for key in ("accuracy", "low", "high")}
                    axis.plot(law["curve"]["compute"], drawn["accuracy"], color=colour, linewidth=1.3)
                    axis.fill_between(
                        law["curve"]["compute"], drawn["low"], drawn["high"], color=colour, alpha=0.15, linewidth=0
                    )
        axis.set_xscale("log")
        axis.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))  # else labels run into each other
        axis.xaxis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(math.inf, math.inf)))
        axis.set_xlabel(title)
        axis.set_ylabel(f"{metric} accuracy, %")
    axes[0].legend(frameon=False)
    return figure


def _patterns(found: Mapping[str, Any]) -> Figure:
    names, rows = list(found["keywords"]), found["rows"]
    figure = _new(9.0, 3.4)
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    width = 0.8 / len(rows)
    for number, row in enumerate(rows):
        at = [k + (number - (len(rows) - 1) / 2) * width for k in range(len(names))]
        own = [row["groups"][name] for name in names]
        values = [100 * one["value"] for one in own]
        ranges = [one["bootstrap"] or one["wilson"] or [one["value"]] * 2 for one in own]
        below = [max(0.0, v - 100 * ends[0]) for v, ends in zip(values, ranges, strict=True)]
        above = [max(0.0, 100 * ends[1] - v) for v, ends in zip(values, ranges, strict=True)]
        axis.bar(
            at, values, width * 0.92, yerr=[below, above], label=_text(row["source"]), ecolor="#333333",
            color=COLOURS[number % len(COLOURS)], alpha=1 - 0.5 * (number // len(COLOURS) % 2),
            error_kw={"linewidth": 0.8},
        )  # fmt: skip
    axis.set_xticks(range(len(names)), names)
    axis.set_ylabel("replies with a keyword, %")
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def _collapse(watch: Mapping[str, Any]) -> Figure:
    windows = watch["windows"]
    steps = [part["to"] for part in windows]
    figure, axes = _grid(4, 4)

    def draw(axis: Axes, label: str, values: Sequence[float | None], colour: str, scale: float = 100) -> None:
        points = [(s, scale * v) for s, v in zip(steps, values, strict=True) if v is not None]
        if points:
            axis.plot(*zip(*points, strict=True), color=colour, label=label, linewidth=1.2)

    for n, colour in zip(("1", "2", "3"), COLOURS, strict=False):
        draw(axes[0], f"{n}-grams", [part["distinct"][n] for part in windows], colour)
    axes[0].legend(frameon=False)
    draw(axes[1], "", [part["distinct_thoughts"] for part in windows], COLOURS[0])
    draw(axes[2], "", [part["openings"][0]["share"] if part["openings"] else None for part in windows], COLOURS[0])
    draw(axes[3], "", [part["compression"] for part in windows], COLOURS[0], 1)
    titles = ("distinct n-grams, %", "distinct thoughts, %", "most frequent opening, %", "compression ratio")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title)
        axis.set_xlabel("step")
    return figure


def _all(data: Record) -> Iterator[tuple[str, Figure | None]]:
    for one in data["training"]:
        yield f"training-{one['title']}", _training(one)
    yield "accuracy", _accuracy(data["evaluations"])
    for curve in data["scaling"]["curves"]:
        for metric in ("reasoning", "plain"):
            yield f"scaling-{curve['run']}-{curve['training']}-{metric}", _scaling(curve, metric)
    if data["patterns"]:
        yield "patterns", _patterns(data["patterns"])
        for watch in data["patterns"]["watch"]:
            if len(watch["windows"]) > 1:
                yield f"collapse-{watch['label']}", _collapse(watch)


def write_figures(data: Record, folder: Path) -> list[Path]:
    """Write every figure of a report as ``<name>.svg`` and ``<name>.png`` (200 dots an inch).

    Args:
        data: what `collect` found.
        folder: made where absent; files of the same names are replaced.

    Returns:
        The files written.
    """
    import matplotlib

    style: Any = {"svg.hashsalt": "forethink", "font.size": 8, "axes.titlesize": 9,
             "axes.titlelocation": "left", "legend.fontsize": 7, "lines.markersize": 4}  # fmt: skip
    written = []
    with matplotlib.rc_context(style):
        for name, figure in _all(data):
            for kind in ("svg", "png") if figure is not None else ():
                buffer = io.BytesIO()
                same = {"Date": None} if kind == "svg" else {"Software": None}  # the same run, the same file
                figure.savefig(buffer, format=kind, dpi=DPI, metadata=same)  # type: ignore[union-attr]
                file = folder / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name).strip('-')}.{kind}"
                write_atomic(file, buffer.getvalue())
                written.append(file)
    return written
