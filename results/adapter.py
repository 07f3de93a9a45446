"""An adapter small enough to commit: `.venv/bin/python results/adapter.py FOLDER NAME [--model smollm2]`.

Writes results/adapters/NAME: the adapter of a run's ``model`` folder in bf16, with the model named as users name it
(`forethink eval --model smollm2 --adapter results/adapters/NAME …`) instead of by a folder of the machine it was
trained on. bf16 is what the policy is evaluated in; the rounding is far below a training step.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
MOST = 20 * 2**20  # bytes


def shrink(folder: Path, out: Path, model: str) -> int:
    """Write the small copy; returns its bytes."""
    whole = load_file(folder / "adapter_model.safetensors")
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in whole.items()}
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, out / "adapter_model.safetensors", metadata={"format": "pt"})
    text = json.dumps(config | {"base_model_name_or_path": model}, indent=1, sort_keys=True)
    (out / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
    return sum(file.stat().st_size for file in out.iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="an adapter's folder, such as runs/NAME/train/model")
    parser.add_argument("name", help="the copy's name: results/adapters/NAME")
    parser.add_argument("--model", default="smollm2", help="what it belongs on (smollm2)")
    parser.add_argument("--out", type=Path, default=HERE / "adapters", metavar="DIR", help="(results/adapters)")
    args = parser.parse_args()
    if not (args.folder / "adapter_model.safetensors").is_file():
        raise SystemExit(f"{args.folder}: holds no adapter_model.safetensors; name a LoRA adapter's folder.")
    size = shrink(args.folder, args.out / args.name, args.model)
    print(f"done: {args.out / args.name}, {size / 2**20:.1f} MiB{', too much: lower its rank' if size > MOST else ''}")


if __name__ == "__main__":
    main()
