"""`make bench` runs from end to end at a tiny size and writes what it promises. No time is looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import page

ROOT = Path(__file__).parent.parent


def _bench(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.run", "--tiny", "--out", str(out), *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_part_writes_its_figures(tmp_path, smollm2_tokenizer):
    out = tmp_path / "results.json"
    done = _bench(out, "--only", "gradient,rollout")
    assert done.returncode == 0, done.stderr
    before = json.loads(out.read_text())
    assert before["gradient_cosine"] > 0.9999
    assert before["rollout"]["tokens_per_second"].keys() == {"engine", "generate"}
    done = _bench(out, "--only", "step,scoring,evaluation")
    assert done.returncode == 0, done.stderr
    after = json.loads(out.read_text())
    assert after["rollout"] == before["rollout"]  # parts measured before stay
    assert {"step_speedup", "update_speedup", "rollout_vs_generate", "rollout_roofline_fraction",
            "scoring_fraction_of_forward", "scoring_peak_gib", "evaluation_cost_ratio", "gradient_cosine", "roofline",
            "machine"} <= after.keys()  # fmt: skip
    assert len(after["step"]["ratios"]) == 1
    for side in ("ours", "stock"):
        assert 0 < after["update"]["seconds"][side][0] < after["step"]["seconds"][side][0]
        assert 0 < after["update"]["peak_gib"][side] <= after["step"]["peak_gib"][side]
    assert after["step"]["sampled_tokens"] == {"ours": [2 * 2 * 8], "stock": [2 * 2 * 8]}
    shown = page.table(after)
    assert shown.count(page.MISSING) == 2  # vLLM's two cells
    assert f"{after['update_speedup']:.2f}" in shown
    # A GPU's table holds what was measured there, and no bars.
    some = {name: after[name] for name in ("rollout", "rollout_vs_generate", "roofline")}
    gpu = page.table({**some, "machine": {**after["machine"], "gpu": "NVIDIA X"}, "size": {"model": "random-1.5b"}})
    assert "NVIDIA X" in gpu and "random-1.5b" in gpu and "≥" not in gpu
    assert "beside `generate`" in gpu and "training step" not in gpu and "scoring" not in gpu


def test_a_part_that_is_none_is_named(tmp_path):
    done = _bench(tmp_path / "results.json", "--only", "rollouts")
    assert done.returncode == 1
    assert "no part 'rollouts'" in done.stderr and "Traceback" not in done.stderr
