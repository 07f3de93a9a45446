"""The stage ``forethink eval``: which positions, which model, and what is written where."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forethink.config import Config
from forethink.evaluate.tables import compare, draw, show, splits, tabulate
from forethink.recipe import stage_folder
from forethink.records import problems_metadata, read_problems
from forethink.rundir import RunDir, hash_inputs, read_jsonl, write_atomic
from forethink.templates import load_template
from forethink.types import ForethinkError, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from forethink.evaluate.accuracy import Plain
    from forethink.rollout import Engine

Record = dict[str, Any]
Advance = Callable[[int], object]


def _problems(config: Config) -> tuple[Path, str, list[Problem]]:
    """The problems to draw from: their file, split and records."""
    place = Path(config.eval.problems or stage_folder(config, "problems"))
    if place.is_file():
        return place, "file", read_problems(place)
    for split in ("validation", "train"):
        if (place / f"{split}.parquet").exists():
            problems = read_problems(place, split)
            if problems:
                return place / f"{split}.parquet", split, problems
    raise ForethinkError(f"{place}: holds no problems; run `forethink problems` first, or set eval.problems.")


def _load(config: Config, warn: Callable[[str], object]) -> tuple[Callable[[], PreTrainedModel], str]:
    """The evaluated model, loaded when called, and whose tokenizer it reads with.

    ``eval.model`` names a full model or the folder of a LoRA adapter; an adapter goes onto the model it was trained
    on where that is a folder of this machine, else onto ``model.name``.
    """
    from forethink.device import keep_memory
    from forethink.models import adapter_base, load_model

    knobs = config.model
    keep_memory(knobs.device)
    name, adapter, vocabulary = knobs.name, knobs.adapter, knobs.name
    if config.eval.model is not None:
        folder = Path(config.eval.model)
        if (folder / "adapter_config.json").is_file():
            name, adapter = adapter_base(folder, knobs.name, warn), str(folder)
        else:
            name, adapter = config.eval.model, None
            if not folder.is_dir() or (folder / "tokenizer_config.json").is_file():
                vocabulary = name

    def load() -> PreTrainedModel:
        return load_model(
            name,
            adapter=adapter,
            dtype=knobs.dtype,
            device=knobs.device,
            trust_remote_code=knobs.trust_remote_code,
        )

    return load, vocabulary


def _tokenizer(config: Config, vocabulary: str, known: str | None, file: Path) -> PreTrainedTokenizerBase:
    from forethink.models import fingerprint, load_tokenizer

    tokenizer = load_tokenizer(vocabulary, trust_remote_code=config.model.trust_remote_code)
    if known and fingerprint(tokenizer) != known:
        raise ForethinkError(
            f"{file}: made for another tokenizer than that of {vocabulary}; make problems with this model as policy."
        )
    return tokenizer


def _settings(config: Config) -> Config:
    """The configuration less what the figures do not depend on, so that asking for a comparison keeps the run."""
    rollout = config.rollout.model_copy(update={"group": config.eval.samples})
    return config.model_copy(update={"rollout": rollout, "eval": config.eval.model_copy(update={"against": ()})})


def _temperature(config: Config) -> float:
    """What completions are sampled at; 0 for the most probable token at each place."""
    knobs = config.eval
    if knobs.temperature == 0 and knobs.samples > 1:
        raise ForethinkError(
            f"eval.temperature=0 gives {knobs.samples} times the same reply; set eval.samples=1, or a higher one."
        )
    return config.rollout.temperature if knobs.temperature is None else knobs.temperature


def _inputs(config: Config, file: Path) -> dict[str, str]:
    """Hashes of the problems and of every model and template that is a file or folder of this machine."""
    found = hash_inputs(file)
    for name in (config.eval.model, config.eval.base, config.model.name, config.model.adapter, config.template.name):
        if name is not None and Path(name).exists():
            found |= hash_inputs(Path(name))
    return found


def _entropies(
    run: RunDir, config: Config, file: Path, problems: Sequence[Problem], metadata: Mapping[str, str]
) -> dict[str, float]:
    """Every problem's entropy under the base: as stored, or from ``eval.base`` (kept in the run folder)."""
    base = config.eval.base
    if base is None or base == metadata.get("proxy"):
        return {problem.id: problem.entropy for problem in problems}
    kept = run.path / "entropies.json"
    if not kept.exists():
        from forethink.evaluate.accuracy import plain_pass
        from forethink.models import load_model
        from forethink.tokens import document_start

        knobs = config.model
        tokenizer = _tokenizer(config, base, metadata.get("fingerprint"), file)
        model = load_model(base, dtype=knobs.dtype, device=knobs.device, trust_remote_code=knobs.trust_remote_code)
        with _progress(f"entropy under {base}", len(problems)) as advance:
            figures = plain_pass(model, problems, document_start(tokenizer), config.score.top_k, advance, run.warn)
        found = {problem.id: one.entropy for problem, one in zip(problems, figures, strict=True)}
        write_atomic(kept, json.dumps(found))
    return dict(json.loads(kept.read_text(encoding="utf-8")))


def _plain(
    run: RunDir, config: Config, problems: Sequence[Problem], model: PreTrainedModel, bos: Sequence[int]
) -> list[Plain]:
    """The plain figures of every position, kept in the run folder."""
    from forethink.evaluate.accuracy import Plain, plain_pass

    kept = run.path / "plain.json"
    if not kept.exists():
        with _progress("plain", len(problems)) as advance:
            figures = plain_pass(model, problems, bos, config.score.top_k, advance, run.warn)
        write_atomic(kept, json.dumps([asdict(one) for one in figures]))
    return [Plain(**one) for one in json.loads(kept.read_text(encoding="utf-8"))]


@contextmanager
def _progress(what: str, total: int) -> Iterator[Advance]:
    """A bar over positions on standard error; nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(what, total=total)
        yield lambda count: progress.advance(bar, count)


def _evaluate(
    run: RunDir, config: Config, file: Path, split: str, problems: list[Problem], engine: Engine | None
) -> Record:
    """Everything but the comparisons: positions, completions, figures."""
    from forethink.evaluate.accuracy import perplexity, position_records, sample_positions
    from forethink.rollout import make_engine
    from forethink.tokens import document_start, token_bytes

    metadata = problems_metadata(file)
    problems = sorted(problems, key=lambda problem: (problem.document, problem.index))
    load, vocabulary = _load(config, run.warn)
    tokenizer = _tokenizer(config, vocabulary, metadata.get("fingerprint"), file)
    template = load_template(config.template.name)
    entropies = _entropies(run, config, file, problems, metadata)
    drawn = draw(entropies, config)
    _report_draw(run, config, entropies, drawn)
    problems = [problem for problem in problems if problem.id in drawn]
    model = load()
    figures = _plain(run, config, problems, model, document_start(tokenizer))

    asked = _temperature(config)

    def sampler() -> Engine:
        opened = template.opens_thought(tokenizer)
        rollout = config.rollout.model_copy(update={"temperature": asked or config.rollout.temperature})
        return engine or make_engine(rollout, model, tokenizer, thought_open=opened, greedy=asked == 0)

    with _progress("reasoning", len(problems)) as advance:
        sample_positions(run, config, problems, template, tokenizer, sampler, advance)
    records = position_records(
        problems, figures, entropies, token_bytes(tokenizer), read_jsonl(run.path / "samples.jsonl")
    )
    for record in records:
        record["splits"], record["band"] = drawn[record["problem"]]
    write_atomic(run.path / "positions.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    knobs = config.eval
    fluency, tokens = perplexity(figures)
    unsaid = Counter(record["inexpressible"] for record in records if record["inexpressible"] is not None)
    return {
        "model": {"name": knobs.model or config.model.name, "adapter": None if knobs.model else config.model.adapter},
        "problems": {"file": str(file), "split": split, "entropy": knobs.base or metadata.get("proxy", "")},
        "seed": config.seed,
        "template": config.template.name,
        "temperature": asked,
        "max_tokens": config.rollout.max_tokens,
        "samples": knobs.samples,
        "thresholds": list(knobs.thresholds),
        "per_split": knobs.per_split,
        "positions": len(records),
        "documents": len({record["document"] for record in records}),
        "perplexity": fluency,
        "context_tokens": tokens,
        "inexpressible": dict(sorted(unsaid.items())),
        "intervals": "95 %; wilson: binomial; bootstrap: documents drawn anew, all their positions together",
        "rows": tabulate(records, knobs.thresholds, knobs.samples, knobs.bootstrap, config.seed),
        "against": [],
    }


def _report_draw(
    run: RunDir, config: Config, entropies: Mapping[str, float], drawn: Mapping[str, tuple[list[str], str]]
) -> None:
    lowest = config.eval.thresholds[0]
    above = sum(value > lowest for value in entropies.values())
    run.dropped({f"entropy not above {lowest:g}": len(entropies) - above, "not drawn": above - len(drawn)})
    for name in [split.name for split in splits(config.eval.thresholds) if split.kind == "nested"]:
        count = sum(name in own for own, _ in drawn.values())
        if count < config.eval.positions and (config.eval.per_split or count == len(drawn)):
            run.warn(
                f"eval: {count} positions in the split {name!r}, fewer than eval.positions={config.eval.positions}"
            )


def run_eval(config: Config, engine: Engine | None = None) -> Path:
    """The stage: plain and reasoning accuracy of one model on the same positions, into ``<run>/<eval.name>``.

    The positions come from ``eval.problems``, else the run's own problems: the validation split where it holds any.
    Difficulty is the problems' own entropy, or that under ``eval.base`` where this is another model than the one that
    scored them. Finished work is kept: a stopped run goes on at the chunk where it stopped, a finished one only adds
    the comparisons with ``eval.against`` and prints its table.

    Args:
        config: ``eval``, ``model``, ``template``, ``rollout``, ``run`` and ``seed`` count.
        engine: samples ``eval.samples`` completions a prompt; made from ``rollout`` and the model when absent.

    Returns:
        The run folder; see the package's docstring for its files.

    Raises:
        ForethinkError: no problems, no position above the lowest threshold, a model that reads another tokenizer, or
            evaluations to compare with that stand on other positions.
    """
    _temperature(config)  # refused before anything is read
    file, split, problems = _problems(config)
    run = RunDir(
        Path(config.run) / config.eval.name,
        "eval",
        _settings(config),
        ("eval", "model", "template", "rollout"),
        _inputs(config, file),
    )
    if not run.done:
        if split == "train":
            run.warn(f"{file.parent}: has no validation positions; evaluated on the training split")
        result = _evaluate(run, _settings(config), file, split, problems, engine)
        write_atomic(run.path / "eval.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    result = json.loads((run.path / "eval.json").read_text(encoding="utf-8"))
    if config.eval.against:
        result["against"] = [
            compare(run.path, folder, config.eval.bootstrap, config.seed) for folder in config.eval.against
        ]
        write_atomic(run.path / "eval.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    if config.eval.against or not run.done:
        run.finish(result)
    show(result)
    return run.path
