"""Sampling with vLLM, on a GPU or with its CPU build: prefix cache on, dropped at every change of weights."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from forethink.rollout.rows import Ending, Row, check_prompts, key, stop_ids
from forethink.types import Completion, ForethinkError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SHARE = 0.3  # of the memory


class VllmEngine:
    """Samples groups of completions with vLLM; see `rollout.Engine` for the protocol.

    Prompts go in as token ids, in the order of their ids, so that neighbours share the longest prefixes. vLLM's own
    stop strings know nothing of nested braces, so every new token is looked at here: a completion is ended at its
    closing box and its place goes to the next one. Random numbers depend on (seed, problem, sample) alone.

    Args:
        model: the policy, or its folder or hub id. A model in memory is written to a temporary folder once.
        tokenizer: the policy's tokenizer.
        group, temperature, max_tokens, batch, stop, greedy, fixed_length: as for the transformers engine; ``batch``
            bounds the sequences vLLM runs at once.
        version: version of the given weights.
        options: passed on to ``vllm.LLM`` (``max_model_len`` and the like). Without ``gpu_memory_utilization``, vLLM
            takes three tenths of the device's memory, since a trainer shares it; on a CPU, three tenths of what is
            free for keys and values, unless ``kv_cache_memory_bytes`` says otherwise.

    Raises:
        ForethinkError: vLLM is not installed.
    """

    def __init__(
        self,
        model: PreTrainedModel | str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        group: int = 8,
        temperature: float = 0.8,
        max_tokens: int = 64,
        batch: int = 128,
        stop: Callable[[bytes], bool] | None = None,
        greedy: bool = False,
        fixed_length: bool = False,
        version: int = 0,
        **options: Any,
    ) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise ForethinkError(
                "rollout.engine=vllm: vLLM is not installed; `pip install vllm`, or set rollout.engine=transformers."
            )
        # In this process: new weights are handed over as tensors, which cannot be sent to another one.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        # Else its CPU build binds this process's threads to fewer cores, training's too.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        from vllm import LLM
        from vllm.platforms import current_platform

        from forethink.tokens import token_bytes

        self.group, self.temperature, self.greedy = group, temperature, greedy
        self._stop_ids = stop_ids(tokenizer, None if isinstance(model, str) else model)
        self._ending = Ending(token_bytes(tokenizer), self._stop_ids, stop, max_tokens, fixed_length)
        settings: dict[str, Any] = {
            "enable_prefix_caching": True,
            "skip_tokenizer_init": True,
            "max_num_seqs": batch,
            "gpu_memory_utilization": _SHARE,
            "logprobs_mode": "processed_logprobs",  # those of the sampling distribution, temperature applied
            **options,
        }
        if current_platform.is_cpu():
            # After a part of a prompt, vLLM turns a request's random numbers back, which a CPU's generator cannot do.
            settings.setdefault("enable_chunked_prefill", False)
            if not {"gpu_memory_utilization", "kv_cache_memory_bytes"} & options.keys():
                import psutil

                # Its share would be of all memory, less whatever this process holds already: the trainer, too.
                settings["kv_cache_memory_bytes"] = int(_SHARE * psutil.virtual_memory().available)
        # Names that share a weight: {"lm_head.weight": "model.embed_tokens.weight"} and the like.
        self._tied: dict[str, str] = dict(_shell(model).all_tied_weights_keys)
        with tempfile.TemporaryDirectory() as folder:
            if not isinstance(model, str):
                model.save_pretrained(folder)
                settings.setdefault("dtype", str(model.dtype).removeprefix("torch."))
            self._llm: Any = LLM(model=model if isinstance(model, str) else folder, **settings)
        self._version = version

    @property
    def version(self) -> int:
        return self._version

    def load(self, weights: Mapping[str, Tensor] | PreTrainedModel, version: int) -> None:
        """Hand new weights to vLLM's own layer-wise loader, by their checkpoint names; drop its prefix cache."""
        state: Mapping[str, Tensor] = weights if isinstance(weights, Mapping) else weights.state_dict()

        def items() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in state.items():
                yield name, tensor.detach()
            # A head that is tied to the embeddings has a packed copy of its own in the CPU build, which only its own
            # name renews; a model's parameters are named once.
            for name, source in self._tied.items():
                if name not in state:
                    yield name, state[source].detach()

        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": items(), "is_checkpoint_format": True})
        self.forget()
        self._version = version

    def forget(self) -> None:
        """Drop the prefix cache.

        Raises:
            RuntimeError: vLLM keeps it, and samples would come from old weights.
        """
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not drop its prefix cache after the weights changed: samples would be stale")

    def generate(self, prompts: Sequence[Sequence[int]], problems: Sequence[str], seed: int) -> list[list[Completion]]:
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        check_prompts(prompts, problems)
        rows = [[Row(index, sample) for sample in range(self.group)] for index in range(len(prompts))]
        engine, running = self._llm.llm_engine, {}
        try:
            for index in sorted(range(len(prompts)), key=lambda i: list(prompts[i])):
                for row in rows[index]:
                    parameters = SamplingParams(
                        n=1,
                        temperature=0.0 if self.greedy else self.temperature,
                        top_p=1.0,
                        top_k=0,
                        max_tokens=self._ending.max_tokens,
                        seed=int(key(seed, problems[index], row.sample)[0] >> 1),
                        logprobs=0,  # the sampled token's alone
                        detokenize=False,
                        ignore_eos=self._ending.fixed_length,
                        stop_token_ids=[] if self._ending.fixed_length else sorted(self._stop_ids),
                        output_kind=RequestOutputKind.DELTA,  # each step tells its new tokens only
                    )
                    name = f"{index}-{row.sample}"
                    engine.add_request(name, TokensPrompt(prompt_token_ids=list(prompts[index])), parameters)
                    running[name] = row
            while running:
                ended = [cut for output in engine.step() if (cut := self._take(output, running)) is not None]
                if ended:
                    engine.abort_request(ended)
        finally:
            if running:  # stopped by an error or by hand: nothing of this call may turn up in the next one
                engine.abort_request(list(running))
        return [[row.completion(problems[row.prompt], self._version) for row in group] for group in rows]

    def _take(self, output: Any, running: dict[str, Row]) -> str | None:
        """Add a step's new tokens to their completion; its name where we end it before vLLM does."""
        row = running.get(output.request_id)
        if row is None:
            return None
        for token, found in zip(output.outputs[0].token_ids, output.outputs[0].logprobs, strict=True):
            self._ending.push(row, token, found[token].logprob)
            if row.finish is not None:
                break
        if row.finish is None and not output.finished:
            return None
        del running[output.request_id]
        return None if output.finished else str(output.request_id)


def _shell(model: PreTrainedModel | str) -> PreTrainedModel:
    """The model, or one of its kind without weights."""
    if not isinstance(model, str):
        return model
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        made: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    return made
