"""The scaling law: known laws found again, what cannot be fitted refused, points read from run folders."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forethink import cli
from forethink.evaluated import document_draws, read_points
from forethink.scaling import NoLaw, fit
from forethink.types import ForethinkError

COMPUTE = np.geomspace(1e14, 3e16, 8)


def law(compute: np.ndarray, a: float, alpha: float, p_star: float) -> np.ndarray:
    return a / compute**alpha + p_star


def test_known_laws_lie_in_their_intervals_in_ninety_of_a_hundred_trials() -> None:
    alpha, p_star = 0.4, 0.45
    a = -0.12 * COMPUTE[0] ** alpha
    hits = {"a": 0, "alpha": 0, "p_star": 0}
    widths = []
    for trial in range(100):
        noise = np.random.default_rng(trial).normal(0, 0.003, len(COMPUTE))
        found = fit(list(zip(COMPUTE, law(COMPUTE, a, alpha, p_star) + noise, strict=True)), resamples=150, seed=trial)
        for name, true in (("a", a), ("alpha", alpha), ("p_star", p_star)):
            low, high = getattr(found, name).residuals
            hits[name] += low <= true <= high
        widths.append(found.p_star.residuals[1] - found.p_star.residuals[0])
    assert min(hits.values()) >= 90, hits
    assert np.median(widths) < 0.1  # and they say something


def test_a_law_without_noise_is_found_exactly_in_any_unit() -> None:
    for unit in (1.0, 1e-12):
        compute = COMPUTE * unit
        a = -0.2 * compute[0] ** 0.7
        found = fit(list(zip(compute, law(compute, a, 0.7, 0.6), strict=True)), resamples=100)
        assert found.alpha.value == pytest.approx(0.7, rel=1e-3)
        assert found.p_star.value == pytest.approx(0.6, abs=1e-4)
        assert found.a.value == pytest.approx(a, rel=2e-2)
        assert found.r2 == pytest.approx(1, abs=1e-9)
        assert found.at(float(compute[3])) == pytest.approx(law(compute, a, 0.7, 0.6)[3], abs=1e-6)
        assert found.hold_out is not None
        assert found.hold_out["predicted"] == pytest.approx(found.hold_out["observed"], abs=1e-4)


def test_residuals_keep_the_order_of_the_points_and_the_last_point_is_the_largest() -> None:
    accuracy = law(COMPUTE, -0.12 * COMPUTE[0] ** 0.4, 0.4, 0.45)
    accuracy[5] += 0.004
    points = list(zip(COMPUTE, accuracy, strict=True))
    straight, turned = fit(points, resamples=100), fit(points[::-1], resamples=100)
    assert int(np.argmax(straight.residuals)) == 5
    assert turned.residuals[::-1] == pytest.approx(straight.residuals, abs=1e-9)
    assert straight.hold_out is not None and turned.hold_out is not None
    assert straight.hold_out["compute"] == turned.hold_out["compute"] == COMPUTE[-1]
    assert straight.hold_out["error"] == pytest.approx(
        straight.hold_out["observed"] - straight.hold_out["predicted"], abs=1e-12
    )


def test_four_points_are_fitted_without_a_hold_out() -> None:
    accuracy = law(COMPUTE[::2], -0.12 * COMPUTE[0] ** 0.4, 0.4, 0.45)
    found = fit(list(zip(COMPUTE[::2], accuracy, strict=True)), resamples=100)
    assert found.hold_out is None
    assert found.chance == pytest.approx(1 / 24)


def test_an_accuracy_that_never_levels_off_leaves_p_star_open_up_to_one() -> None:
    accuracy = 0.1 + 0.03 * np.log(COMPUTE / COMPUTE[0]) + np.random.default_rng(0).normal(0, 0.002, len(COMPUTE))
    found = fit(list(zip(COMPUTE, accuracy, strict=True)), resamples=100)
    assert found.p_star.residuals[1] == 1.0


@pytest.mark.parametrize(
    ("accuracy", "reason"),
    [
        ([0.3, 0.4], "2 different amounts of compute are too few"),
        ([0.3, 0.35, 0.37], "3 different amounts of compute are too few"),
        ([0.3] * 6, "flat"),
        ([0.301, 0.299, 0.302, 0.2995, 0.3005, 0.3], "noise|does not grow"),
        ([0.4, 0.38, 0.35, 0.33, 0.31, 0.3], "does not grow"),
        ([0.3, 0.35, math.nan, 0.37, 0.38], "no number"),
    ],
)
def test_what_cannot_be_fitted_is_refused_with_the_reason(accuracy: list[float], reason: str) -> None:
    with pytest.raises(ForethinkError, match=reason):
        fit(list(zip(COMPUTE, accuracy, strict=False)))


def test_a_refused_law_says_what_it_would_explain() -> None:
    points = list(zip(COMPUTE[:5], [0.30, 0.34, 0.32, 0.31, 0.33], strict=True))
    with pytest.raises(NoLaw) as told:
        fit(points)
    # The best law of rising and falling points is that of the best alpha: no other explains more of them.
    values = np.array([y for _, y in points])
    best = max(
        np.corrcoef(COMPUTE[:5] ** -alpha, values)[0, 1] ** 2
        for alpha in np.geomspace(0.01, 10, 400)
        if np.corrcoef(COMPUTE[:5] ** -alpha, values)[0, 1] < 0  # accuracy grows with compute
    )
    assert told.value.r2 == pytest.approx(best, abs=1e-3) and 0.1 < told.value.r2 < 0.9


def test_noise_alone_is_refused_nearly_always() -> None:
    refused = 0
    for trial in range(40):
        accuracy = 0.3 + np.random.default_rng(trial).normal(0, 0.01, 6)
        try:
            fit(list(zip(COMPUTE, accuracy, strict=False)), resamples=100)
        except ForethinkError:
            refused += 1
    assert refused >= 34


def write_run(run: Path, steps: dict[str, int | None], accuracy: dict[str, float], documents: int = 10) -> None:
    """A training of 12 steps with cumulative figures, and one evaluation a name, of 10 positions a document."""
    train = run / "train"
    train.mkdir(parents=True)
    (train / "run.json").write_text(json.dumps({"stage": "train"}))
    lines = [
        {"step": s, "flops/rollout": s * 6e12, "flops/total": s * 1e13, "seconds": s * 2.0, "tokens/generated": s * 30,
         "tokens/update": s * 10}
        for s in range(1, 13)
    ]  # fmt: skip
    (train / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, step in steps.items():
        folder = run / name
        folder.mkdir()
        model = f"/elsewhere/{run.name}/train/" + ("model" if step is None else f"checkpoints/checkpoint-{step}")
        right = round(accuracy[name] * 10)
        row: dict[str, Any] = {"split": "easy", "kind": "nested", "reasoning": {"value": accuracy[name]}}
        result = {"model": {"name": model, "adapter": None}, "template": "v0", "samples": 1, "rows": [row]}
        (folder / "eval.json").write_text(json.dumps(result))
        positions = [
            {"document": f"d{d}", "splits": ["easy"], "band": "x", "plain": True, "right": int(p < right + d % 2),
             "samples": 1}
            for d in range(documents)
            for p in range(10)
        ]  # fmt: skip
        (folder / "positions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in positions))


STEPS: dict[str, int | None] = {"s1": 1, "s2": 2, "s4": 4, "s8": 8, "end": None}
ACCURACY = {"s1": 0.2, "s2": 0.3, "s4": 0.4, "s8": 0.4, "end": 0.5}


def test_points_carry_what_training_had_taken(tmp_path: Path) -> None:
    write_run(tmp_path / "run", STEPS, ACCURACY)
    points, left_out = read_points([tmp_path / "run"])
    assert [point.step for point in points] == [1, 2, 4, 8, 12] and not left_out
    assert points[2].spent == {"flops": 4e13, "tokens": 160, "seconds": 8.0}
    assert points[2].accuracy("easy", "reasoning") == 0.4
    assert [point.step for point in read_points([tmp_path / "run"], "s?")[0]] == [1, 2, 4, 8]


def test_other_models_are_left_out_and_other_ways_of_asking_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run, STEPS, ACCURACY)
    file = run / "s1" / "eval.json"
    result = json.loads(file.read_text())
    file.write_text(json.dumps(result | {"model": {"name": "smollm2", "adapter": None}}))
    points, left_out = read_points([run])
    assert len(points) == 4
    assert left_out == [(str(run / "s1"), "smollm2 is no checkpoint of a training run")]
    file.write_text(json.dumps(result | {"template": "v6"}))
    with pytest.raises(ForethinkError, match="template is"):
        read_points([run])


def test_documents_are_drawn_alike_for_every_checkpoint(tmp_path: Path) -> None:
    write_run(tmp_path / "run", STEPS, ACCURACY)
    points, _ = read_points([tmp_path / "run"])
    draws = document_draws(points, "easy", "nested", "reasoning", 250, seed=0)
    assert draws is not None and draws.shape == (250, 5)
    assert draws.mean(axis=0) == pytest.approx([0.25, 0.35, 0.45, 0.45, 0.55], abs=0.01)
    assert np.ptp(draws - draws[:, :1], axis=0) == pytest.approx(np.zeros(5), abs=1e-12)  # one draw, one shift
    (tmp_path / "run" / "s1" / "positions.jsonl").unlink()
    assert document_draws(points, "easy", "nested", "reasoning", 250, seed=0) is None


def test_the_command_writes_fit_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    write_run(run, STEPS, ACCURACY)
    assert cli.main(["fit", str(run), "--resamples", "100"]) == 0
    printed = capsys.readouterr().out
    assert "alpha" in printed and str(run / "fit.json") in printed
    result = json.loads((run / "fit.json").read_text())
    assert [one["axis"] for one in result["fits"]] == ["flops", "tokens", "seconds"]
    flops, tokens, seconds = result["fits"]
    assert flops["points"] == 5 and 0.5 <= flops["p_star"]["value"] <= 1 and flops["r2"] > 0.9
    assert tokens["alpha"]["value"] == pytest.approx(flops["alpha"]["value"], rel=0.02)  # all three grow with the step
    assert len(seconds["p_star"]["documents"]) == 2


def test_the_command_refuses_two_points_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run", {"s1": 1, "end": None}, ACCURACY)
    assert cli.main(["fit", str(tmp_path / "run")]) == 2
    assert "2 different amounts of compute are too few" in capsys.readouterr().err
    assert not (tmp_path / "run" / "fit.json").exists()
    assert cli.main(["fit", str(tmp_path / "nothing")]) == 2
