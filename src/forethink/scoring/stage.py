"""The stage ``score``: a corpus into Parquet shards of scored documents, resumable shard by shard."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forethink.config import Config
from forethink.corpus import corpus_inputs, read_corpus
from forethink.device import keep_memory
from forethink.models import fingerprint, load_model, load_tokenizer, model_inputs
from forethink.records import scored_metadata, write_scored
from forethink.rundir import RunDir
from forethink.scoring.local import Scorer
from forethink.tokens import LossyTokenizerError, encode_document
from forethink.types import Document, ForethinkError

if TYPE_CHECKING:
    from rich.progress import Progress


def run_score(config: Config) -> Path:
    """Score the corpus under ``score.proxy`` (the policy when absent).

    Writes ``<run>/score/shards/00000.parquet`` and on, ``score.shard_documents`` documents each. A shard is written
    whole or not at all, and its bytes depend on nothing but its documents, the model and the settings: a run that was
    killed and started again ends with the same files.

    Returns:
        The stage's run folder.

    Raises:
        ForethinkError: as the corpus, the model and the scorer do; or the folder belongs to another run.
    """
    own_proxy = config.score.proxy is not None
    name = config.score.proxy or config.model.name
    sections = ("corpus", "score") if own_proxy else ("corpus", "score", "model")
    adapter = None if own_proxy else config.model.adapter
    inputs = corpus_inputs(config.corpus) | model_inputs(name, adapter)
    run = RunDir(Path(config.run) / "score", "score", config, sections, inputs)
    if run.done:
        return run.path
    keep_memory(config.model.device)
    trust = config.model.trust_remote_code
    tokenizer = load_tokenizer(name, trust_remote_code=trust)
    model = load_model(
        name,
        adapter=adapter,
        dtype=config.model.dtype,
        device=config.model.device,
        trust_remote_code=trust,
    )
    metadata = {
        "proxy": name,
        "fingerprint": fingerprint(tokenizer),
        "top_k": str(config.score.top_k),
        "window": str(config.score.window),
        "overlap": str(config.score.overlap),
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    dropped: Counter[str] = Counter()
    scorer = Scorer(model, tokenizer, config.score, name)
    documents = _readable(read_corpus(config.corpus, dropped), scorer, dropped)
    _write_shards(run, scorer, documents, metadata)
    run.dropped(dropped)
    run.finish(_totals(run.path / "shards"))
    return run.path


def _readable(documents: Iterable[Document], scorer: Scorer, dropped: Counter[str]) -> Iterator[Document]:
    """The documents whose every byte the tokenizer keeps; the others are counted.

    They are found before shards are formed, and again on a restart: a thousandth of the time that scoring takes.
    """
    kept, last = 0, None
    for document in documents:
        try:
            encode_document(scorer.tokenizer, document.text, scorer.table)
        except LossyTokenizerError as error:
            dropped["characters that the tokenizer lacks"] += 1
            last = error
        else:
            kept += 1
            yield document
    if not kept and last is not None:
        raise last


def _write_shards(run: RunDir, scorer: Scorer, documents: Iterable[Document], metadata: dict[str, str]) -> None:
    waiting = iter(documents)
    for left in (run.path / "shards").glob(".*.parquet.*"):
        left.unlink()  # half a shard, of a writer that was killed
    with _progress() as progress:
        bar = progress.add_task("score", total=None, documents=0)
        count = 0
        for number in itertools.count():
            shard = list(itertools.islice(waiting, scorer.config.shard_documents))
            if not shard:
                break
            count += len(shard)
            path = run.path / "shards" / f"{number:05d}.parquet"
            if path.exists():
                if scored_metadata(path) != metadata:
                    raise ForethinkError(
                        f"{path}: scored under other settings or on a machine with another precision; remove "
                        f"{run.path}, or choose another folder with run=…."
                    )
                progress.update(bar, documents=count)
                continue
            started = time.monotonic()
            result = scorer(shard, lambda tokens: progress.advance(bar, tokens))
            write_scored(path, result, metadata)
            seconds = time.monotonic() - started
            tokens = sum(len(document.token_ids) for document in result)
            progress.update(bar, documents=count)
            record = {"shard": number, "documents": len(shard), "tokens": tokens, "seconds": round(seconds, 3)}
            run.append("metrics", [{**record, "tokens_per_second": round(tokens / seconds, 1)}])


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed or 0:,.0f} tokens/s")

    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}  {task.fields[documents]:,} documents  {task.completed:,.0f} tokens"),
        Speed(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)


def _totals(folder: Path) -> dict[str, Any]:
    """What the shards hold: documents, tokens, bytes, and the shares of positions above the usual entropies."""
    import numpy as np
    import pyarrow.parquet as pq

    totals: Counter[str] = Counter()
    entropy_sum = 0.0
    paths = sorted(folder.glob("*.parquet"))
    for path in paths:
        table = pq.read_table(path, columns=["text", "entropy"])
        entropy = np.concatenate([chunk.flatten().to_numpy() for chunk in table.column("entropy").chunks])
        scored = entropy[np.isfinite(entropy)]
        totals.update(documents=table.num_rows, tokens=len(entropy), positions=len(scored))
        totals.update(bytes=sum(len(value.as_py()) for value in table.column("text")))
        totals.update({f"above {limit}": int((scored > limit).sum()) for limit in (0.5, 1.0, 1.5)})
        entropy_sum += float(scored.sum(dtype=np.float64))
    positions = totals["positions"]
    shares = {f"share_above_{limit}": totals.pop(f"above {limit}") / max(positions, 1) for limit in (0.5, 1.0, 1.5)}
    return {"shards": len(paths), **totals, "mean_entropy": entropy_sum / max(positions, 1), **shares}
