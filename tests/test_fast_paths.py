"""The whole update, fast as it is, has the plain path's gradient on both families, padded and not."""

from __future__ import annotations

import copy
import math
import shutil
import sysconfig
import warnings
from pathlib import Path

import pytest
import torch

import reference_grpo as reference
from forethink.packing import pack
from forethink.rollout.scripted import ScriptedEngine
from forethink.templates import load_template
from forethink.training.groups import Scored
from trainers import make_problems, trainer_of

LONG = b"I think that it goes on and on and on, and then a little further, and then on again until the end of it all"
COMPILER = any(map(shutil.which, ("g++", "clang++"))) and Path(sysconfig.get_path("include"), "Python.h").exists()
COMPILED = pytest.param(True, True, marks=pytest.mark.skipif(not COMPILER, reason="needs a C++ compiler and Python.h"))


def made() -> int:
    """Graphs compiled in this process so far."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize(("padded", "compiled"), [(True, False), (False, False), COMPILED])
@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_gemma"])
def test_the_update_has_the_plain_gradient(kind, padded, compiled, tmp_path, request, smollm2_tokenizer) -> None:
    """Prompts of nested positions; completions of one length, or of four; layers as they are, or compiled."""
    model = request.getfixturevalue(kind)
    problems = make_problems(smollm2_tokenizer, documents=2)[3:7]
    told = [bytes([65 + i]) + b" " + (LONG[: 12 + 25 * i] if padded else LONG) for i in range(4)]  # cut at 20 tokens
    engine = ScriptedEngine({p.id: told for p in problems}, smollm2_tokenizer, group=4, max_tokens=20)
    trainer, watch = trainer_of(tmp_path, model, smollm2_tokenizer, problems, engine, "train.micro_batch=2",
                                "train.dynamic_sampling_from=none", f"model.compile={compiled}".lower())  # fmt: skip
    before = made()
    rewards = [0.0, 1.0, 1.0, 3.0]
    trainer.hooks = trainer.hooks._replace(score=lambda replies: ([Scored(list(rewards)) for _ in replies], 0))
    seen: list = []
    trainer.on_groups = lambda step, groups: seen.extend(groups)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*layers are not compiled")
        trainer.train()
    assert (made() > before) == compiled
    lengths = {len(c.token_ids) for group in seen for c in group.completions}
    assert len(lengths) == (4 if padded else 1)
    assert trainer.packer.tiled  # the fastest path, not a fallback
    plain = copy.deepcopy(model)
    groups = [reference.Group(g.prompt, [list(c.token_ids) for c in g.completions], rewards, None) for g in seen]
    reference.policy_loss(plain, groups, 0.8).backward()
    squares = [0.0, 0.0]
    for name, parameter in plain.named_parameters():
        squares[0] += float((watch.gradients[0][name] - parameter.grad).double().square().sum())
        squares[1] += float(parameter.grad.double().square().sum())
    assert squares[1] > 0 and math.sqrt(squares[0] / squares[1]) < 1e-5


def test_problems_of_one_document_share_its_text(smollm2_tokenizer) -> None:
    problems = make_problems(smollm2_tokenizer)[:5]
    template = load_template("v0")
    prompts = [template.render(problem, smollm2_tokenizer) for problem in problems]
    longest = problems[-1].context_ids
    (one,) = pack([[*prompt, 9] for prompt in prompts], [len(prompt) for prompt in prompts], tiled=True)
    begins = next(i for i in range(len(prompts[0])) if tuple(prompts[0][i : i + 4]) == longest[:4])
    behind = [len(prompt) - begins - len(p.context_ids) for prompt, p in zip(prompts, problems, strict=True)]
    assert len(one.ids_t) <= begins + len(longest) + sum(behind) + len(prompts)
    assert one.unpacked == sum(map(len, prompts)) + len(prompts)
