"""Writes the tables of `docs/performance.md`, between its two markers: of `results.json`, and of those of GPUs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BEGIN, END = "<!-- results: written by benchmarks/page.py -->", "<!-- end of results -->"
MISSING = "not measured"


def _get(results: dict[str, Any], path: str) -> Any:
    found: Any = results
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _figure(results: dict[str, Any], path: str, form: str) -> str:
    value = _get(results, path)
    return MISSING if value is None else format(value, form)


# What is measured, ours, the other side, the ratio at the top level, its bar; figures as (path, format, unit).
ROWS: list[tuple[str, tuple[str, str, str], tuple[str, str, str], tuple[str, str], str]] = [
    ("training step, beside TRL", ("step.median_seconds.ours", ".1f", "s"),
     ("step.median_seconds.stock", ".1f", "s"), ("step_speedup", ".2f"), "≥ 10"),
    ("the same, some groups without signal", ("step_degenerate.median_seconds.ours", ".1f", "s"),
     ("step_degenerate.median_seconds.stock", ".1f", "s"), ("step_degenerate.ratio", ".2f"), ""),
    ("the same, natural endings", ("step_natural.median_seconds.ours", ".1f", "s"),
     ("step_natural.median_seconds.stock", ".1f", "s"), ("step_natural.ratio", ".2f"), ""),
    ("update alone, beside TRL", ("update.median_seconds.ours", ".1f", "s"),
     ("update.median_seconds.stock", ".1f", "s"), ("update_speedup", ".2f"), "≥ 4"),
    ("its peak memory", ("update.peak_gib.ours", ".2f", "GiB"), ("update.peak_gib.stock", ".2f", "GiB"), ("", ""),
     "lower"),
    ("gradient's cosine with TRL's, fp32", ("", "", ""), ("", "", ""), ("gradient_cosine", ".8f"), "≥ 0.9999"),
    ("rollout, beside `generate`", ("rollout.tokens_per_second.engine", ",.0f", "tokens/s"),
     ("rollout.tokens_per_second.generate", ",.0f", "tokens/s"), ("rollout_vs_generate", ".2f"), "≥ 4"),
    ("rollout, beside vLLM", ("rollout.tokens_per_second.engine", ",.0f", "tokens/s"),
     ("rollout.tokens_per_second.vllm", ",.0f", "tokens/s"), ("rollout_vs_vllm", ".2f"), "≥ 1.3"),
    ("rollout, share of the roofline", ("rollout.least_seconds", ".2f", "s at least"), ("", "", ""),
     ("rollout_roofline_fraction", ".1%"), ""),
    ("rollout, MFU", ("", "", ""), ("", "", ""), ("rollout.mfu", ".1%"), ""),
    ("rollout, peak memory", ("rollout.peak_gib.engine", ".2f", "GiB"), ("rollout.peak_gib.generate", ".2f", "GiB"),
     ("", ""), ""),
    ("update, share of the roofline (MFU)", ("", "", ""), ("update.roofline_fraction.stock", ".1%", "(TRL)"),
     ("update.roofline_fraction.ours", ".1%"), ""),
    ("scoring, beside a bare forward pass", ("scoring.tokens_per_second", ",.0f", "tokens/s"), ("", "", ""),
     ("scoring_fraction_of_forward", ".2f"), "≥ 0.85"),
    ("scoring, GiB above the weights, 262k vocabulary", ("", "", ""), ("", "", ""), ("scoring_peak_gib", ".2f"),
     "< 1.5"),
    ("evaluation of 64 positions, over its least", ("", "", ""), ("", "", ""), ("evaluation_cost_ratio", ".2f"),
     "< 1.5"),
    ("evaluation, beside a loop over positions", ("", "", ""), ("evaluation.loop_seconds", ".0f", "s"),
     ("evaluation.loop_over_ours", ".1f"), ""),
]  # fmt: skip


def table(results: dict[str, Any]) -> str:
    """The table in Markdown, with the machine it was measured on. Bars are for CPUs; so are rows without figures."""
    lines = ["| what | forethink | beside | ratio | bar |", "|---|---|---|---|---|"]
    gpu = results.get("machine", {}).get("gpu")
    for name, ours, other, (ratio, form), bar in ROWS:
        paths = (ours[0], other[0], ratio)
        if gpu and all(_get(results, path) is None for path in paths if path):
            continue
        cells = [
            "" if not path else f"{_figure(results, path, f)} {unit}".replace(f"{MISSING} {unit}", MISSING)
            for path, f, unit in (ours, other)
        ]
        lines.append(
            f"| {name} | {cells[0]} | {cells[1]} | {_figure(results, ratio, form) if ratio else ''} |"
            f" {'' if gpu else bar} |"
        )
    line, machine = results.get("roofline", {}), results.get("machine", {})
    if line:
        lines += [
            "",
            f"Model: {results.get('size', {}).get('model', 'smollm2')}. "
            f"Machine: {gpu or machine.get('cpu')}, {machine.get('threads')} threads; "
            f"{line['bf16_tflops']:.2f} TFLOP/s in bf16, {line['fp32_tflops']:.2f} in fp32, "
            f"{line['memory_gbs']:.1f} GB/s; {machine.get('date')}; "
            + ", ".join(f"{name} {number}" for name, number in sorted(machine.get("versions", {}).items()))
            + ".",
        ]
    return "\n".join(lines)


def main() -> None:
    """Rewrite the page's tables; other results files may be named."""
    own = [HERE / "results.json", *sorted(HERE.glob("results-cuda-*.json"))]
    sources = [Path(name) for name in sys.argv[1:]] or own
    page = HERE.parent / "docs" / "performance.md"
    for source in sources:
        if not source.exists():
            sys.exit(f"{source}: no such results; run `make bench` first.")
    text = page.read_text(encoding="utf-8")
    before, found, rest = text.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not (found and closed):
        sys.exit(f"{page}: its markers are gone; put back {BEGIN} and {END}.")
    tables = [table(json.loads(source.read_text(encoding="utf-8"))) for source in sources]
    page.write_text("\n".join([f"{before}{BEGIN}", "\n\n".join(tables), f"{END}{after}"]), encoding="utf-8")
    print(f"{page}: {len(tables)} table(s) written")


if __name__ == "__main__":
    main()
