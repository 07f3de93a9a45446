"""What a recipe would take: memory, FLOPs and GPU-hours of ``forethink train``, from shapes and lengths alone.

No weights are loaded. The formulas are those of :mod:`forethink.flops` and :mod:`forethink.packing`, so a finished
run's own count can be held against them; docs/dry_run.md writes them out. Sizes are in bytes, GB are 10⁹ bytes.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from forethink.config import Config
from forethink.types import ForethinkError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from forethink.flops import Flops

_PACK = 4096  # tokens of a prefix tree, as in training.forward.Packer


@dataclass(frozen=True)
class Lengths:
    """Tokens of a mean prompt and a mean completion, and of the longest ones, which memory must hold."""

    prompt: int
    response: int
    longest_prompt: int
    longest_response: int


@dataclass(frozen=True)
class Sizes:
    """What is needed of a model: its price a token, parameters, and bytes kept a token.

    Attributes:
        flops: see `forethink.flops.Flops`.
        parameters: number of weights, tied ones once.
        trained: number of weights with a gradient.
        cache: bytes of keys and values a token, all layers, in bf16.
        activations: bytes that a token of the update leaves for the backward pass, all layers, without checkpointing.
        hidden: width of the model.
        vocabulary: rows of the head.
        source: where the shape came from.
    """

    flops: Flops
    parameters: int
    trained: int
    cache: int
    activations: int
    hidden: int
    vocabulary: int
    source: str


_SHAPE = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "intermediate": "intermediate_size",
    "vocabulary": "vocab_size",
}
_OPTIONAL = {"head_size": "head_dim", "tied": "tie_word_embeddings"}


def _from_shape(shape: dict[str, int | bool]) -> PretrainedConfig:
    """A decoder with a gated feed-forward part, as Llama and Qwen have."""
    from transformers import LlamaConfig

    known = _SHAPE | _OPTIONAL
    wrong = [key for key in _SHAPE if key not in shape] + [key for key in shape if key not in known]
    if wrong:
        raise ForethinkError(
            f"[dry_run] shape: {wrong[0]!r} is {'missing' if wrong[0] in known else 'unknown'}; it has "
            f"{', '.join(_SHAPE)}, and where needed {', '.join(_OPTIONAL)}."
        )
    sizes: dict[str, Any] = {"tie_word_embeddings": False} | {known[key]: value for key, value in shape.items()}
    return LlamaConfig(**sizes)


def _architecture(config: Config) -> tuple[PretrainedConfig, str]:
    """The model's configuration: the recipe's own shape, else that of the model's folder or of the hub."""
    if config.dry_run.shape is not None:
        return _from_shape(config.dry_run.shape), "[dry_run] shape"
    from forethink.models import model_config

    name = config.train.start or config.model.name
    try:
        return model_config(name, trust_remote_code=config.model.trust_remote_code), name
    except ForethinkError as error:
        raise ForethinkError(
            f"{str(error).rstrip('.')}; or write its sizes into the recipe, as [dry_run] shape."
        ) from None


def model_sizes(config: Config) -> Sizes:
    """Build the model without memory (torch's meta device) and read its sizes off.

    Raises:
        ForethinkError: neither the recipe nor the model's name gives a shape.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from forethink.flops import Flops
    from forethink.training.checkpoints import lora_config

    architecture, source = _architecture(config)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(architecture, dtype=torch.float32)
    parameters = sum(p.numel() for p in model.parameters())
    if config.train.lora_rank:
        from peft import get_peft_model

        model = get_peft_model(model, lora_config(config.train.lora_rank))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    base = model.get_base_model() if config.train.lora_rank else model
    text = architecture.get_text_config()
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = text.num_attention_heads
    kv = getattr(text, "num_key_value_heads", None) or heads
    layers, hidden, inner = text.num_hidden_layers, text.hidden_size, text.intermediate_size
    # A decoder layer keeps, in bf16: the residual twice, two normed copies, q, k, v, attention's output; and of a
    # gated feed-forward part its two halves, the gate after its non-linearity and their product.
    kept = 2 * layers * (4 * hidden + (2 * heads + 2 * kv) * size + 4 * inner)
    return Sizes(
        Flops.of(base), parameters, trained, 2 * 2 * layers * kv * size, kept, hidden, text.vocab_size, source
    )


def lengths_of(config: Config, prompt: int | None = None, response: int | None = None) -> Lengths:
    """Lengths of prompts and completions in tokens: as given, else the longest that the recipe allows.

    The template's words are counted at four bytes a token: no tokenizer is loaded.
    """
    from forethink.templates import load_template

    words = "\n".join(message["content"] for message in load_template(config.template.name).messages(""))
    longest = config.problems.max_context + math.ceil(len(words.encode()) / 4)
    allowed = config.rollout.max_tokens
    return Lengths(min(prompt or longest, longest), min(response or allowed, allowed), longest, allowed)


def group_packs(prompt: int, response: int, group: int, hidden: int, most: int = _PACK) -> list[tuple[int, int]]:
    """(tokens, completions) of every prefix tree that the update makes of one group; see `packing.pack`."""
    packs: list[tuple[int, int]] = []
    tokens = members = 0
    for _ in range(group):
        added = (tokens + response) ** 2 - tokens**2 - (prompt + response) ** 2
        if members and (tokens + response > most or added > prompt * 2 * hidden):
            packs.append((tokens, members))
            tokens = members = 0
        tokens += response if members else prompt + response
        members += 1
    return [*packs, (tokens, members)]


def sampled_groups(config: Config, step: int, degenerate: float) -> tuple[float, float]:
    """Expected groups (sampled, trained) of a step, counted from 0, if ``degenerate`` of them have no signal.

    Refilling samples whole batches more, until the batch is full or ``train.refill`` is used up.
    """
    knobs = config.train
    wanted = float(knobs.problems)
    sampled, kept = wanted, wanted * (1 - degenerate)
    if knobs.dynamic_sampling_from is not None and step >= knobs.dynamic_sampling_from:
        for _ in range(knobs.refill):
            if kept >= wanted:
                break
            sampled, kept = sampled + wanted, kept + wanted * (1 - degenerate)
    return sampled, min(kept, wanted)


def count_flops(
    config: Config, sizes: Sizes, lengths: Lengths, degenerate: float, corpus_tokens: int = 0
) -> dict[str, float]:
    """Operations of the whole training by what they are for, and the tokens they are spent on.

    Returns:
        ``rollout`` (of groups that train), ``discarded`` (rollouts of groups without a signal), ``scores`` (policy
        scores that the reward asks for), ``update``, ``entropy`` (scoring the corpus once, at the policy's own price:
        an upper bound where the proxy is smaller), ``total``; ``sampled`` and ``trained`` groups; ``generated`` and
        ``updated`` tokens.
    """
    from forethink.rewards import load_reward, needs

    cost, group, p, r = sizes.flops, config.rollout.group, lengths.prompt, lengths.response
    steps = [sampled_groups(config, step, degenerate) for step in range(config.train.steps)]
    sampled, trained = sum(s for s, _ in steps), sum(t for _, t in steps)
    rollout = cost.decode([p], [[r] * group])
    packs = group_packs(p, r, group, sizes.hidden)
    update = sum(cost.train(tokens, tokens * tokens, r * members) for tokens, members in packs)
    asked = needs(load_reward(config.reward)) - {"group"}
    scores = sum(cost.forward(tokens, tokens * tokens, members) for tokens, members in packs) if asked else 0
    found: dict[str, float] = {
        "rollout": trained * rollout,
        "discarded": (sampled - trained) * rollout,
        "scores": sampled * scores,
        "update": trained * update,
        "entropy": cost.forward(corpus_tokens, corpus_tokens * config.score.window, corpus_tokens),
    }
    found["total"] = sum(found.values())
    return found | {
        "sampled": sampled,
        "trained": trained,
        "generated": sampled * group * r,
        "updated": trained * sum(tokens for tokens, _ in packs),
    }


def count_memory(config: Config, sizes: Sizes, lengths: Lengths) -> dict[str, int]:
    """Bytes that are held at once, over all GPUs together.

    Weights, gradients and Adam's two moments, the copy that samples, keys and values of the completions decoded at
    once (every group's prompt once), activations of the largest prefix tree, a chunk of logits with its gradient.
    """
    from forethink.head import HEAD_CHUNK

    master = 2 if config.train.precision == "pure_bf16" else 4
    sampling = 4 if config.train.precision == "fp32" else 2
    group = config.rollout.group
    rows = max(config.rollout.batch // group, 1) * group
    p, r = lengths.longest_prompt, lengths.longest_response
    largest = max(tokens for tokens, _ in group_packs(p, r, group, sizes.hidden))
    wide = 2 if config.train.precision == "fp32" else 1
    autocast = 2 * sizes.parameters if config.train.precision in ("auto", "bf16") else 0
    return {
        "master weights": master * sizes.parameters,
        "bf16 copy under autocast": autocast,
        "gradients": master * sizes.trained,
        "Adam's two moments": 2 * master * sizes.trained,
        "weights that sample": sampling * sizes.parameters,
        "keys and values": sampling // 2 * sizes.cache * (rows // group * p + rows * r),
        "activations of the largest tree": wide * sizes.activations * largest,
        "a chunk of logits and its gradient": 2 * 4 * HEAD_CHUNK * sizes.vocabulary,
    }


def run_dry(config: Config, args: argparse.Namespace) -> None:
    """Print memory, FLOPs and GPU-hours of ``forethink train`` with this recipe; see ``flags.train_flags``.

    Raises:
        ForethinkError: a figure supposed is out of range, or the model's shape is not known.
    """
    if not 0 <= args.degenerate < 1 or not 0 < args.mfu <= 1:
        raise ForethinkError("--degenerate is a share from 0 to below 1, --mfu one above 0 up to 1; mend them.")
    for flag in ("gpus", "gpu_tflops", "gpu_memory", "prompt_tokens", "response_tokens"):
        value = getattr(args, flag)
        if value is not None and value <= 0:
            raise ForethinkError(f"--{flag.replace('_', '-')} is {value}; give a number above 0.")
    sizes = model_sizes(config)
    lengths = lengths_of(config, args.prompt_tokens, args.response_tokens)
    flops = count_flops(config, sizes, lengths, args.degenerate, args.corpus_tokens)
    memory = count_memory(config, sizes, lengths)
    print("\n".join(_lines(config, sizes, lengths, flops, memory, args)))


def _lines(
    config: Config,
    sizes: Sizes,
    lengths: Lengths,
    flops: dict[str, float],
    memory: dict[str, int],
    args: argparse.Namespace,
) -> list[str]:
    names = {
        "rollout": "rollout: prefill once a group, then forward a token",
        "discarded": f"rollouts discarded ({args.degenerate:.0%} of groups without a signal)",
        "scores": "policy scores of the reward",
        "update": "update: forward and backward of packed groups",
        "entropy": f"entropy of {args.corpus_tokens:,} corpus tokens",
    }
    hours = flops["total"] / (args.gpu_tflops * 1e12 * args.mfu) / 3600
    total, problems, group = sum(memory.values()), config.train.problems, config.rollout.group
    return [
        f"model: {sizes.parameters / 1e9:.2f} billion weights, {sizes.trained / 1e9:.2f} trained (of {sizes.source})",
        f"work: {config.train.steps} steps of {problems} problems, {group} completions each; "
        f"prompts of {lengths.prompt} tokens, completions of {lengths.response}",
        f"groups: {flops['sampled']:,.0f} sampled, {flops['trained']:,.0f} trained; {flops['generated']:.3g} tokens "
        f"generated, {flops['updated']:.3g} updated",
        "",
        "memory, over all GPUs together, in GB",
        *(f"  {name:<55} {size / 1e9:>10.1f}" for name, size in memory.items()),
        f"  {'sum':<55} {total / 1e9:>10.1f}",
        f"  at least {math.ceil(total / (args.gpu_memory * 1e9))} GPUs of {args.gpu_memory:g} GB, if all of it is "
        f"spread evenly; {args.gpus} given",
        "",
        "floating-point operations",
        *(f"  {text:<55} {flops[name]:>10.3g}" for name, text in names.items() if flops[name]),
        f"  {'total':<55} {flops['total']:>10.3g}",
        "",
        f"time = FLOPs / (peak x MFU) = {flops['total']:.3g} / ({args.gpu_tflops:g}e12 x {args.mfu:g})",
        f"  {hours:,.1f} GPU-hours; {hours / args.gpus:,.1f} hours on {args.gpus} GPU(s)",
        "an estimate: decoding is bound by memory, not by arithmetic, and reaches a smaller share of the peak",
    ]
