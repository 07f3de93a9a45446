"""The trainer on TRL is held to the reference: advantages, loss, gradient. And it does nothing where it must not."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import reference_grpo as reference
from forethink.models import encode_document, token_bytes
from forethink.rewards import REWARDS, score_group
from forethink.rollout.scripted import ScriptedEngine
from forethink.rollout.transformers_engine import TransformersEngine
from forethink.templates import box_closed, load_template, read
from forethink.training.forward import inference_weights
from forethink.types import ForethinkError, PolicyScores, Status
from trainers import make_problems, trainer_of

G, TEMPERATURE = 4, 0.8


def answer_of(problem, kind: str) -> bytes:
    first = problem.next_token
    two = problem.target[: problem.token_ends[1]]
    return {
        "right": b"It goes on. \\boxed{" + first + b"}",
        "longer": b"Two words, I think: \\boxed{" + two + b"}",
        "wrong": b"Maybe a horse? \\boxed{ horse}",
        "none": b"I cannot say what comes next.",
        "empty": b"Nothing. \\boxed{}",
        "cut": b"This goes on and on and on and on and on and on and on and on and on and on and on and on",
    }[kind]


def scripts(problems, kinds):
    return {p.id: [answer_of(p, kind) for kind in own] for p, own in zip(problems, kinds, strict=True)}


MIXED = [
    ("right", "wrong", "none", "longer"),
    ("wrong", "none", "empty", "cut"),
    ("right", "longer", "right", "right"),
    ("cut", "right", "wrong", "wrong"),
]


@pytest.fixture(scope="module")
def problems(smollm2_tokenizer):
    return make_problems(smollm2_tokenizer)[:4]


def scripted(tokenizer, answers):
    return ScriptedEngine(answers, tokenizer, group=G, max_tokens=20, stop=lambda text: box_closed(text, False))


def plain_scores(model, tokenizer, problem, prompt, completions, answers):
    """PolicyScores by the model's own logits, one sequence at a time."""
    table = token_bytes(tokenizer)

    def after(ids):
        with torch.no_grad():
            return model(input_ids=torch.tensor([list(ids)])).logits[0, -1].log_softmax(-1)

    plain, embeddings = after(problem.context_ids), model.get_input_embeddings().weight
    scores = []
    for completion, answer in zip(completions, answers, strict=True):
        predicted = encode_document(tokenizer, answer.prediction.decode(), table)[0]
        boxed = answer.status is Status.BOXED
        thought, head = None, completion.text.partition(b"\\boxed{")
        if head[1]:
            ids, size = [], 0
            for token in completion.token_ids:
                if size + len(table[token]) > len(head[0] + head[1]):
                    break
                ids.append(token)
                size += len(table[token])
            ids += encode_document(tokenizer, completion.text[size : len(head[0] + head[1])].decode(), table)[0]
            thought = float(after([*prompt, *ids])[problem.target_ids[0]])
        means = [embeddings[list(i)].mean(0) for i in (predicted, problem.target_ids[: len(predicted)])]
        scores.append(
            PolicyScores(
                first_token_probability=float(plain[predicted[0]].exp()) if boxed else None,
                logprob_plain=float(plain[problem.target_ids[0]]),
                logprob_thought=thought,
                similarity=float(torch.cosine_similarity(*means, dim=0)) if boxed else None,
            )
        )
    return scores


def expected_groups(model, tokenizer, problems, answers, reward, masked):
    """The reference's groups: the same completions, rewarded with scores from plain forward passes."""
    sampled = scripted(tokenizer, answers).generate([[0]] * len(problems), [p.id for p in problems], 0)
    template, table, groups = load_template("v0"), token_bytes(tokenizer), []
    for problem, completions in zip(problems, sampled, strict=True):
        prompt = template.render(problem, tokenizer)
        found = [read(c.text, finish=c.finish, tokens=len(c.token_ids)) for c in completions]
        scores = plain_scores(model, tokenizer, problem, prompt, completions, found)
        masks = []
        for completion in completions:
            inside = completion.text.find(b"\\boxed{")
            ends = [0]
            for token in completion.token_ids:
                ends.append(ends[-1] + len(table[token] if token != tokenizer.eos_token_id else b""))
            masks.append([inside < 0 or start < inside + len(b"\\boxed{") for start in ends[:-1]])
        groups.append(
            reference.Group(
                prompt,
                [list(c.token_ids) for c in completions],
                score_group(REWARDS[reward], found, problem, scores),
                masks if masked else None,
            )
        )
    return groups


def difference(gradients, model):
    """Relative distance of the trainer's gradient to the reference's."""
    squares = [0.0, 0.0]
    for name, parameter in model.named_parameters():
        squares[0] += float((gradients[name] - parameter.grad).double().square().sum())
        squares[1] += float(parameter.grad.double().square().sum())
    assert squares[1] > 0
    return math.sqrt(squares[0] / squares[1])


@pytest.mark.parametrize("micro_batch", [1, 4])
@pytest.mark.parametrize("reward", sorted(REWARDS))
def test_loss_and_gradient_are_the_references(
    tmp_path, tiny_llama, smollm2_tokenizer, problems, reward, micro_batch
) -> None:
    answers = scripts(problems, MIXED)
    trainer, watch = trainer_of(
        tmp_path, tiny_llama, smollm2_tokenizer, problems, scripted(smollm2_tokenizer, answers),
        f"reward.name={reward}", f"train.micro_batch={micro_batch}", "train.dynamic_sampling_from=none",
    )  # fmt: skip
    seen: list = []
    trainer.on_groups = lambda step, groups: seen.extend(groups)
    trainer.train()
    plain = copy.deepcopy(tiny_llama)
    groups = expected_groups(plain, smollm2_tokenizer, problems, answers, reward, reward == "information_gain")
    for mine, group in zip(seen, groups, strict=True):
        torch.testing.assert_close(mine.advantages, torch.tensor(reference.advantages(group.rewards)),
                                   rtol=1e-4, atol=2e-4)  # fmt: skip
    loss = reference.policy_loss(plain, groups, TEMPERATURE)
    loss.backward()
    assert difference(watch.gradients[0], plain) < 1e-5
    assert trainer.state.log_history[0]["loss"] == pytest.approx(float(loss), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("scorer", ["policy", "start"])
def test_who_scores(tmp_path, tiny_llama, smollm2_tokenizer, problems, scorer) -> None:
    """A policy that is paid for what it finds likely moves its own scores, unless the start's are asked."""
    answers = scripts(problems, MIXED)
    trainer, watch = trainer_of(
        tmp_path, tiny_llama, smollm2_tokenizer, problems, scripted(smollm2_tokenizer, answers), "reward.name=dense",
        f"reward.scorer={scorer}", "train.steps=2", "train.learning_rate=1e-2", "train.dynamic_sampling_from=none",
        order=[*range(len(problems))] * 2,
    )  # fmt: skip
    rewards: list = []
    trainer.on_groups = lambda step, groups: rewards.append([r for group in groups for r in group.rewards])
    trainer.train()
    assert not torch.equal(watch.weights[0]["model.norm.weight"], tiny_llama.model.norm.weight)
    same = torch.allclose(torch.tensor(rewards[0]), torch.tensor(rewards[1]), atol=1e-6)
    assert same == (scorer == "start") and sum(0 < r < 1 for r in rewards[0]) > 0


@pytest.mark.parametrize("dynamic", ["none", "0"])
def test_groups_without_signal_change_nothing_but_the_count(
    tmp_path, tiny_llama, smollm2_tokenizer, problems, dynamic
) -> None:
    answers = scripts(problems, MIXED)
    trainer, watch = trainer_of(
        tmp_path, tiny_llama, smollm2_tokenizer, problems, scripted(smollm2_tokenizer, answers),
        f"train.dynamic_sampling_from={dynamic}", "train.refill=1",
    )  # fmt: skip
    trainer.train()
    plain = copy.deepcopy(tiny_llama)
    groups = expected_groups(plain, smollm2_tokenizer, problems, answers, "prefix_match", False)
    if dynamic == "0":  # the two mixed groups alone
        groups = reference.dynamic(groups, [[r == 1 for r in group.rewards] for group in groups])
        assert len(groups) == 2
    reference.policy_loss(plain, groups, TEMPERATURE).backward()
    assert difference(watch.gradients[0], plain) < 1e-5


def test_refill_samples_other_problems_until_the_batch_is_full(tmp_path, tiny_llama, smollm2_tokenizer) -> None:
    problems = make_problems(smollm2_tokenizer, documents=2)
    dull = {p.id for p in problems[:2]}
    kinds = [MIXED[2] if p.id in dull else MIXED[0] for p in problems]
    trainer, _ = trainer_of(
        tmp_path, tiny_llama, smollm2_tokenizer, problems, scripted(smollm2_tokenizer, scripts(problems, kinds)),
        "train.problems=4", "train.refill=2", order=range(4),
    )  # fmt: skip
    seen: list = []
    trainer.on_groups = lambda step, groups: seen.extend(groups)
    trainer.train()
    ids = [group.problem.id for group in seen]
    assert len(ids) == len(set(ids)) == 8  # one refill of four, none of them sampled twice
    log = trainer.state.log_history[0]
    assert (log["groups/sampled"], log["groups/kept"]) == (8, 4)
    assert log["tokens/generated"] == sum(len(c.token_ids) for group in seen for c in group.completions)
    assert log["flops/rollout"] > 0 and log["flops/update"] > 0


def test_an_empty_batch_moves_no_weight_and_no_optimiser_state(
    tmp_path, tiny_llama, smollm2_tokenizer, problems
) -> None:
    answers = scripts(problems, [MIXED[0], MIXED[3], MIXED[1], MIXED[2]])
    trainer, watch = trainer_of(
        tmp_path, tiny_llama, smollm2_tokenizer, problems, scripted(smollm2_tokenizer, answers),
        "train.problems=2", "train.steps=2", "train.learning_rate=1e-3", "train.dynamic_sampling_from=none",
        "train.weight_decay=0.1", "train.micro_batch=1",
    )  # fmt: skip
    trainer.train()
    assert any(g is not None and g.any() for g in watch.gradients[0].values())
    assert all(gradient is None for gradient in watch.gradients[1].values())
    before, after = watch.weights
    assert not torch.equal(before["model.norm.weight"], tiny_llama.model.norm.weight)
    assert all(torch.equal(before[name], after[name]) for name in before)
    for number, state in watch.optimizer[0]["state"].items():
        assert all(torch.equal(state[key], watch.optimizer[1]["state"][number][key]) for key in state)


def test_next_token_loss_is_the_references(tmp_path, tiny_llama, smollm2_tokenizer) -> None:
    problems = make_problems(smollm2_tokenizer, documents=2)[4:8]
    answers = scripts(problems, MIXED)
    trainer, watch = trainer_of(
        tmp_path, tiny_llama, smollm2_tokenizer, problems, scripted(smollm2_tokenizer, answers),
        "train.ntp_weight=0.5", "train.dynamic_sampling_from=none", "train.micro_batch=2",
    )  # fmt: skip
    trainer.train()
    plain = copy.deepcopy(tiny_llama)
    groups = expected_groups(plain, smollm2_tokenizer, problems, answers, "prefix_match", False)
    longest = {p.document: p for p in sorted(problems, key=lambda p: len(p.context_ids))}  # the others are in it
    targets = {(p.document, p.index) for p in problems}
    texts = [p.context_ids for p in longest.values()]
    learnt = [[(p.document, j) not in targets for j in range(1, len(p.context_ids))] for p in longest.values()]
    assert len(texts) == 2 and not all(map(all, learnt))
    loss = reference.policy_loss(plain, groups, TEMPERATURE)
    loss = loss + 0.5 * reference.next_token_loss(plain, texts, learnt)
    loss.backward()
    assert difference(watch.gradients[0], plain) < 1e-5
    assert trainer.state.log_history[0]["loss"] == pytest.approx(float(loss), rel=1e-5)


class Noting(ScriptedEngine):
    """Remembers which weights it was given."""

    given: list

    def load(self, weights, version) -> None:
        super().load(weights, version)
        self.given = [*getattr(self, "given", []), (version, weights["model.norm.weight"].clone())]


class Stale(ScriptedEngine):
    """Forgets to take new weights."""

    def load(self, weights, version) -> None:
        pass


def test_the_engine_gets_the_weights_of_every_step(tmp_path, tiny_llama, smollm2_tokenizer, problems) -> None:
    answers = scripts(problems, [MIXED[0]] * 4)
    engine = Noting(answers, smollm2_tokenizer, group=G, max_tokens=20)
    extra = ("train.problems=2", "train.steps=2", "train.learning_rate=1e-3")
    trainer, watch = trainer_of(tmp_path, tiny_llama, smollm2_tokenizer, problems, engine, *extra)
    trainer.train()
    assert [version for version, _ in engine.given] == [0, 1]
    assert torch.equal(engine.given[0][1], tiny_llama.model.norm.weight)
    assert torch.equal(engine.given[1][1], watch.weights[0]["model.norm.weight"])
    stale = Stale(answers, smollm2_tokenizer, group=G, max_tokens=20)
    trainer, _ = trainer_of(tmp_path, tiny_llama, smollm2_tokenizer, problems, stale, *extra)
    with pytest.raises(RuntimeError, match="sampled from weights 0, not from the trainer's 1"):
        trainer.train()


def test_a_gradient_that_is_no_number_stops_before_the_weights(
    tmp_path, tiny_llama, smollm2_tokenizer, problems
) -> None:
    model = copy.deepcopy(tiny_llama)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    engine = scripted(smollm2_tokenizer, scripts(problems, MIXED))
    trainer, watch = trainer_of(tmp_path, model, smollm2_tokenizer, problems, engine)
    with pytest.raises(ForethinkError, match=r"step 1: the gradient is nan"):
        trainer.train()
    assert not watch.weights


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_gemma"])
def test_rollout_logprobs_are_those_of_a_teacher_forced_pass(kind, request, smollm2_tokenizer, problems) -> None:
    model = request.getfixturevalue(kind)
    engine = TransformersEngine(copy.deepcopy(model), smollm2_tokenizer, group=2, temperature=0.8, max_tokens=12)
    template = load_template("v0")
    prompts = [template.render(problem, smollm2_tokenizer) for problem in problems[:2]]
    for prompt, group in zip(prompts, engine.generate(prompts, ["a", "b"], 3), strict=True):
        for completion in group:
            with torch.no_grad():
                forced = reference.logprobs(model, prompt, completion.token_ids, 0.8)
            torch.testing.assert_close(torch.tensor(completion.logprobs), forced, rtol=0, atol=1e-4)


def test_fresh_adapters_begin_from_the_runs_seed(tmp_path, tiny_llama, smollm2_tokenizer, problems) -> None:
    def begun(name: str, seed: int, drawn_before: int) -> torch.Tensor:
        torch.rand(drawn_before)  # whatever else the process drew
        engine = TransformersEngine(copy.deepcopy(tiny_llama), smollm2_tokenizer, group=G, max_tokens=4)
        settings = ("train.lora_rank=4", f"seed={seed}")
        trainer, _ = trainer_of(tmp_path / name, tiny_llama, smollm2_tokenizer, problems, engine, *settings)
        return torch.cat([p.detach().flatten() for n, p in trainer.model.named_parameters() if "lora_A" in n])

    first = begun("first", 5, 1)
    assert torch.equal(begun("again", 5, 7), first) and not torch.equal(begun("other", 6, 7), first)


def test_lora_weights_reach_the_engine_merged(tmp_path, tiny_llama, smollm2_tokenizer, problems) -> None:
    engine = TransformersEngine(copy.deepcopy(tiny_llama), smollm2_tokenizer, group=G, max_tokens=4)
    trainer, _ = trainer_of(tmp_path, tiny_llama, smollm2_tokenizer, problems, engine, "train.lora_rank=4")
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    weights = inference_weights(trainer.model)
    assert weights.keys() == dict(tiny_llama.named_parameters()).keys()
    engine.load(weights, 7)
    ids = torch.tensor([problems[3].context_ids])
    with torch.no_grad():
        adapted = trainer.model(input_ids=ids).logits
        assert (adapted - tiny_llama(input_ids=ids).logits).abs().max() > 0.1
        torch.testing.assert_close(engine.model(input_ids=ids).logits, adapted, rtol=1e-4, atol=1e-4)
