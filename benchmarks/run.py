"""`make bench`: the parts one after another, each in a process of its own; one results.json, merged part by part."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PARTS = {
    "rollout": "benchmarks.steps:rollout",
    "scoring": "benchmarks.scoring:run",
    "evaluation": "benchmarks.evaluation:run",
    "gradient": "benchmarks.steps:gradient",
    "step": "benchmarks.steps:step",  # the longest
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", help=f"parts, joined by commas: {', '.join(PARTS)}")
    parser.add_argument("--pairs", type=int, help="pairs of every comparison (3)")
    parser.add_argument("--corpus", help="JSONL with problem and solution, or text (CPython's documentation)")
    parser.add_argument("--model", help="path, hub id, alias, random-1.5b or random-tiny (smollm2)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--degenerate", type=float, help="share of groups without signal in the second measurement")
    parser.add_argument("--micro", type=int, help="completions a backward pass of TRL's (8; more where they fit)")
    parser.add_argument("--vllm", help="interpreter of an environment with vLLM (benchmarks/.venv-vllm where made)")
    parser.add_argument("--tiny", action="store_true", help="a random model and tiny sizes: does everything run?")
    parser.add_argument("--out", type=Path, help="results (benchmarks/results.json)")
    return parser.parse_args()


def _size(given: argparse.Namespace, folder: Path) -> Any:
    from benchmarks.common import Size

    corpus = given.corpus
    if corpus is None:
        from forethink.demo import write_corpus

        corpus = str(folder / ".topics.jsonl")
        write_corpus(Path(corpus))
    own = HERE / ".venv-vllm" / "bin" / "python"
    named: dict[str, Any] = {
        "pairs": given.pairs, "corpus": corpus, "model": given.model, "device": given.device,
        "degenerate": given.degenerate, "micro": given.micro,
        "vllm": given.vllm or (str(own) if own.exists() and not given.tiny else None),
    }  # fmt: skip
    named = {name: value for name, value in named.items() if value is not None}
    return Size.tiny(**named) if given.tiny else Size(**named)


def _machine(device: str) -> dict[str, Any]:
    import torch

    packages = ("torch", "transformers", "trl")
    model = [x.split(":")[1].strip() for x in _lines("/proc/cpuinfo") if x.startswith("model name")]
    return {
        "cpu": model[0] if model else platform.processor(), "cores": os.cpu_count(),
        "threads": torch.get_num_threads(), "load_before": os.getloadavg()[0],
        "gpu": torch.cuda.get_device_name() if device.startswith("cuda") else None,
        "versions": {name: version(name) for name in packages}, "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _child(name: str, size: str, line: str, out: str) -> None:
    """One part: its figures into a file."""
    import importlib

    from benchmarks.common import Size, roofline

    chosen = Size(**json.loads(size))
    if name == "roofline":
        found: dict[str, Any] = {
            "roofline": roofline(chosen.device, chosen.model == "random-tiny"), "machine": _machine(chosen.device)
        }  # fmt: skip
    else:
        module, _, function = PARTS[name].partition(":")
        found = getattr(importlib.import_module(module), function)(chosen, json.loads(line))
    Path(out).write_text(json.dumps(found))


def _table(results: dict[str, Any]) -> str:
    bars = {
        "step_speedup": "≥ 10", "update_speedup": "≥ 4", "gradient_cosine": "≥ 0.9999",
        "rollout_vs_generate": "≥ 4", "rollout_vs_vllm": "≥ 1.3", "rollout_roofline_fraction": "",
        "scoring_fraction_of_forward": "≥ 0.85", "scoring_peak_gib": "< 1.5", "evaluation_cost_ratio": "< 1.5",
    }  # fmt: skip
    rows = [f"{name:30} {results[name]:>10.4g}   {bar}" for name, bar in bars.items() if name in results]
    return "\n".join(rows)


def main() -> None:
    """Run the chosen parts; whatever was measured before stays in the results."""
    given = _arguments()
    if given.device.startswith("cuda"):
        import torch

        if not torch.cuda.is_available():
            sys.exit("--device cuda: this machine or this torch has no CUDA device; use --device cpu.")
    chosen = given.only.split(",") if given.only else list(PARTS)
    unknown = set(chosen) - set(PARTS)
    if unknown:
        sys.exit(f"--only: there is no part {sorted(unknown)[0]!r}; the parts are {', '.join(PARTS)}.")
    name = "results.json" if given.device == "cpu" else f"results-{given.device}-{given.model or 'smollm2'}.json"
    out = given.out or HERE / name
    out.parent.mkdir(parents=True, exist_ok=True)
    size = _size(given, out.parent)
    results: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    results["size"] = {k: v for k, v in asdict(size).items() if k not in ("corpus", "vllm")}
    scratch = out.with_suffix(".part")
    for part in ["roofline", *chosen]:
        print(f"{part} …", file=sys.stderr, flush=True)
        line = json.dumps(results.get("roofline", {}))
        code = f"from benchmarks.run import _child; _child({part!r}, {size.text()!r}, {line!r}, {str(scratch)!r})"
        subprocess.run([sys.executable, "-c", code], check=True)
        results |= json.loads(scratch.read_text())
        scratch.unlink()
        out.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    print(_table(results))
    print(f"written to {out}")


if __name__ == "__main__":
    main()
