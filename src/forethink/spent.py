"""What training took, read from run folders: FLOPs, tokens and seconds since a stage began.

Tokens are those generated and those that gradients were taken on. FLOPs are those of `flops`, summed over their kinds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forethink.types import ForethinkError

AXES = ("flops", "tokens", "seconds")
_TOKENS = ("tokens/generated", "tokens/update")


def totals(record: Mapping[str, Any]) -> dict[str, float]:
    """Cumulative figures of one line of a training run's metrics, of a ``spent.json`` or of a stage's result.

    Returns:
        ``flops``, ``tokens`` and ``seconds``, as far as the record tells them.
    """
    parts = [key for key in record if key.startswith("flops/") and key != "flops/total"]
    flops = record.get("flops/total", record.get("flops", sum(record[key] for key in parts) if parts else None))
    told = any(name in record for name in _TOKENS)
    tokens = sum(record.get(name, 0) for name in _TOKENS) if told else record.get("tokens")
    found = {"flops": flops, "tokens": tokens, "seconds": record.get("seconds")}
    return {key: value for key, value in found.items() if value is not None}


def stage_total(folder: Path, unit: str) -> float:
    """What a finished stage took in all, in one unit of `AXES`.

    Args:
        folder: the stage's folder, such as ``runs/omni_math/train``.
        unit: ``flops``, ``tokens`` or ``seconds``.

    Raises:
        ForethinkError: no such stage, one that has not ended, or one whose result does not tell this unit.
    """
    file = folder / "run.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        stage, status, result = record["stage"], record["status"], record.get("result", {})
    except FileNotFoundError:
        raise ForethinkError(f"{folder}: no stage's folder; name a finished one, such as runs/mine/train.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ForethinkError(f"{file}: cannot be read ({error}); run that stage again.") from None
    if status != "done":
        raise ForethinkError(f"{folder}: its {stage} has not ended; start it again to its end, then take its budget.")
    found = totals(result)
    if unit not in found:
        raise ForethinkError(
            f"{file}: the result of {stage} tells no {unit}; match another unit, or give the amount as a number."
        )
    return found[unit]
