"""Problems: which positions are chosen, what is counted, and that every byte of a problem is the document's."""

from __future__ import annotations

import itertools
import math
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forethink.config import Config, load_config
from forethink.problems import SELECTORS, TokenizerTools, build_problems, read_problems, run_problems, split_of
from forethink.records import (
    problems_metadata,
    read_scored,
    scored_metadata,
    scored_shards,
    write_problems,
    write_scored,
)
from forethink.rundir import RunDir
from forethink.selectors import exclusions, positions
from forethink.types import ForethinkError, Problem, ScoredDocument

TABLE = [bytes([n]) for n in range(256)] + [b" the", b"\xc3\xa9", "👩‍🔬".encode()]  # a byte-level toy vocabulary


def _scored(tokens: Sequence[bytes], name: str = "doc", entropy: Sequence[float] | None = None) -> ScoredDocument:
    """A document of these tokens; token t's id is the number of its first byte, its entropy t / 10."""
    values = list(entropy) if entropy is not None else [t / 10 for t in range(len(tokens))]
    if values:
        values[0] = math.nan
    return ScoredDocument(
        id=name,
        text=b"".join(tokens),
        token_ids=[token[0] if token else 0 for token in tokens],
        byte_ends=list(itertools.accumulate(map(len, tokens))),
        entropy=values,
        entropy_raw=[value / 2 for value in values],
        entropy_full=[value * 2 for value in values],
        argmax=[-1 if t == 0 else ord("a") for t in range(len(tokens))],
        logprob=[-value for value in values],
        short=[t < 2 for t in range(len(tokens))],
    )


def _bytewise(text: str) -> tuple[list[int], list[int]]:
    data = text.encode()
    return list(data), list(range(1, len(data) + 1))


def _wordwise(text: str) -> tuple[list[int], list[int]]:
    tokens = [word.encode() for word in text.replace(" ", "\0 ").split("\0")]
    return list(range(len(tokens))), list(itertools.accumulate(map(len, tokens)))


SAME = TokenizerTools("proxy", _bytewise, TABLE)


def _config(*overrides: str) -> Config:
    return load_config(None, ["problems.min_context=2", *overrides])


def _build(
    documents: Sequence[ScoredDocument], *overrides: str, tools: TokenizerTools = SAME
) -> tuple[list[Problem], Counter[str]]:
    dropped: Counter[str] = Counter()
    return build_problems(documents, _config(*overrides), tools, "proxy", dropped), dropped


def _indices(*overrides: str, document: ScoredDocument | None = None) -> list[int]:
    return [problem.index for problem in _build([document or LONG], *overrides)[0]]


LONG = _scored([b"a", b" b"] * 50)  # 100 tokens, entropy 0.1·t, every second arg-max right


def test_a_problem_holds_the_documents_own_bytes_and_figures():
    document = _scored([b"The", b" first", b" caf", b"\xc3", b"\xa9xyz", b" end"])
    problems, dropped = _build([document], "problems.threshold=0.25")
    assert problems[0] == Problem(
        id="doc:3",
        document="doc",
        index=3,
        split="train",
        context=b"The first caf",
        context_ids=tuple(b"T  "),
        target=b"\xc3\xa9xyz end",
        target_ids=(0xC3, 0xA9, ord(" ")),
        token_ends=(1, 5, 9),  # the first token ends inside a character
        entropy=0.3,
        entropy_raw=0.15,
        entropy_full=0.6,
        logprob=-0.3,
        argmax_bytes=b"a",
    )
    assert [problem.index for problem in problems] == [3, 5]
    assert dropped == {
        "no entropy: nothing precedes": 1,
        "scored on a short context": 1,
        "starts inside a UTF-8 character": 1,
        "not selected": 1,
    }


def test_every_exclusion_has_its_reason():
    tokens = [b"aa", b"b", b"c", b"d", b"", b"\xf0\x9f", b"\x98\x80", b"e", b"f"]
    document = replace(_scored(tokens), entropy=[math.nan, 1, 1, 1, 1, 1, 1, math.nan, 1])
    knobs = _config("problems.min_context=4").problems
    assert exclusions(document, knobs) == {
        0: "no entropy: nothing precedes",
        1: "scored on a short context",
        2: "fewer than min_context tokens before",
        3: "fewer than min_context tokens before",
        4: "no byte follows",
        6: "starts inside a UTF-8 character",
        7: "no entropy: nothing precedes",
    }
    assert positions(document, knobs) == [5, 8]
    assert exclusions(_scored([]), knobs) == {}


def test_selectors_by_a_table():
    free = "problems.per_document=none"
    assert _indices(free, "problems.threshold=9.05") == list(range(91, 100))
    assert _indices(free, "problems.selector=band", "problems.threshold=0.95", "problems.upper=1.2") == [10, 11, 12]
    top = ["problems.selector=top_fraction", "problems.fraction=0.1"]
    assert _indices(free, *top) == list(range(90, 100))  # a tenth of 98, rounded up
    assert _indices("problems.per_document=3", *top) == [97, 98, 99]
    wrong = _indices(free, "problems.selector=no_think_error", "problems.threshold=9.05")
    assert wrong == [91, 93, 95, 97, 99]  # " b", where the arg-max is "a"
    tied = _scored([b"a"] * 30, entropy=[1.0] * 30)
    assert _indices("problems.per_document=3", *top, document=tied) == [2, 3, 4]


def test_threshold_is_strict_and_takes_entropies_as_they_are():
    document = _scored([b"a"] * 8, entropy=[0, 0, 0, 0.5, 0.5000001, math.inf, 0.4, 0.6])
    assert _indices(document=document) == [4, 5, 7]
    banded = ["problems.selector=band", "problems.upper=0.6"]
    assert _indices(*banded, document=document) == [4, 7]  # the upper bound belongs to the band


@pytest.mark.parametrize("selector", ["threshold", "band", "no_think_error"])
def test_a_budget_does_not_turn_a_threshold_into_the_top_entropies(selector: str):
    chosen: Counter[int] = Counter()
    for seed in range(40):
        chosen.update(_indices(f"problems.selector={selector}", "problems.upper=99", f"seed={seed}"))
    assert sum(chosen.values()) == 40 * 16
    above = [t for t in range(6, 100) if selector != "no_think_error" or t % 2]
    assert set(chosen) == set(above)
    lower_half = sum(chosen[t] for t in above[: len(above) // 2])
    assert 0.4 < lower_half / (40 * 16) < 0.6


def test_random_ignores_entropy():
    chosen: Counter[int] = Counter()
    for seed in range(40):
        picked = _indices("problems.selector=random", "problems.fraction=0.1", f"seed={seed}")
        assert len(picked) == 10
        chosen.update(picked)
    assert 0.4 < sum(chosen[t] for t in range(2, 51)) / 400 < 0.6


def test_choice_follows_from_seed_and_document_alone():
    documents = [replace(LONG, id=f"d{n}") for n in range(8)]
    forward, _ = _build(documents, "problems.validation=0.3")
    backward, _ = _build(documents[::-1], "problems.validation=0.3")
    alone, _ = _build(documents[3:4], "problems.validation=0.3")
    key = lambda problem: (problem.document, problem.index)  # noqa: E731
    assert sorted(backward, key=key) == sorted(forward, key=key)
    assert alone == [problem for problem in forward if problem.document == "d3"]
    assert _build(documents, "problems.validation=0.3", "seed=1")[0] != forward
    by_document = {name: [p.index for p in forward if p.document == name] for name in ("d0", "d1")}
    assert by_document["d0"] != by_document["d1"]  # documents do not share one stream of numbers
    assert forward == sorted(forward, key=key)


def test_splits_are_by_document_and_of_the_asked_size():
    names = [f"doc{n}" for n in range(2000)]
    for share in (0.0, 0.1, 0.5, 1.0):
        inside = [name for name in names if split_of(name, 0, share) == "validation"]
        assert abs(len(inside) / 2000 - share) < 0.03
    small = {name for name in names if split_of(name, 0, 0.1) == "validation"}
    assert small < {name for name in names if split_of(name, 0, 0.2) == "validation"}  # a larger share only adds
    assert small != {name for name in names if split_of(name, 1, 0.1) == "validation"}
    problems, _ = _build([replace(LONG, id=name) for name in names[:40]], "problems.validation=0.5")
    splits: dict[str, set[str]] = {}
    for problem in problems:
        splits.setdefault(problem.document, set()).add(problem.split)
    assert all(len(found) == 1 for found in splits.values())
    assert {"train", "validation"} == set.union(*splits.values())


def test_contexts_are_cut_from_the_left_to_whole_characters():
    tokens = [b"x", b"\xc3", b"\xa9", b"\xf0", b"\x9f\x98", b"\x80", b"y", b"z"]
    document = _scored(tokens)
    knobs = ["problems.threshold=0.65", "problems.min_context=1"]
    contexts = {n: _build([document], *knobs, f"problems.max_context={n}")[0][0] for n in range(1, 8)}
    # Position 7; cuts fall on multiples of half of n (rounded down, at least 1), then on a character's end.
    assert [contexts[n].context.decode() for n in range(1, 8)] == ["y", "y", "y", "y", "😀y", "😀y", "xé😀y"]
    assert contexts[7].context_ids == tuple(document.token_ids[:7])
    assert contexts[6].context_ids == tuple(document.token_ids[3:7])
    # Where not one whole token of a character is left, there is no problem.
    one = _scored([b"x", b"x", b"\xc3", b"\xa9", b"z"])
    with pytest.raises(ForethinkError, match="fewer than min_context tokens before: 1"):
        _build([one], "problems.threshold=0.35", "problems.min_context=1", "problems.max_context=1")


def test_targets_are_bounded():
    problem = _build([LONG], "problems.max_target=3", "problems.threshold=9.65")[0][0]
    assert (problem.index, problem.target, problem.token_ends) == (97, b" ba b", (2, 3, 5))
    assert problem.next_token == b" b"
    last = _build([LONG], "problems.max_target=3", "problems.threshold=9.85")[0][0]
    assert (last.index, last.target, last.token_ends) == (99, b" b", (2,))


@st.composite
def _documents(draw: st.DrawFn) -> ScoredDocument:
    text = draw(st.text(st.sampled_from("ab é三😀\u0301\u200d\n{"), min_size=1, max_size=25)).encode()
    cuts = sorted(draw(st.sets(st.integers(1, len(text)), max_size=20)) | {0, len(text)})
    tokens = [text[a:b] for a, b in itertools.pairwise(cuts)]
    entropy = draw(st.lists(st.floats(0, 2, width=32), min_size=len(tokens), max_size=len(tokens)))
    return _scored(tokens, entropy=entropy)


@settings(max_examples=300, deadline=None)
@given(_documents(), st.sampled_from(sorted(SELECTORS)), st.integers(1, 6), st.integers(1, 4), st.booleans())
def test_every_position_is_a_problem_or_counted_and_bytes_agree(document, selector, max_context, max_target, same):
    tools = SAME if same else TokenizerTools("other", _bytewise, TABLE)
    dropped: Counter[str] = Counter()
    config = _config(
        f"problems.selector={selector}", "problems.min_context=1", f"problems.max_context={max_context}",
        f"problems.max_target={max_target}", "problems.per_document=3",
    )  # fmt: skip
    try:
        problems = build_problems([document], config, tools, "proxy", dropped)
    except ForethinkError:
        problems = []
    assert sum(dropped.values()) + len(problems) == len(document.token_ids)
    assert all(count > 0 for count in dropped.values())
    assert len(problems) <= 3
    ids, ends = (document.token_ids, document.byte_ends) if same else _bytewise(document.text.decode())
    for problem in problems:
        start = ends[problem.index - 1]
        problem.context.decode()
        assert document.text[:start].endswith(problem.context)
        assert document.text[start:].startswith(problem.target)
        assert problem.target
        size = len(problem.context_ids)
        assert 0 < size <= max_context
        assert ids[problem.index - size : problem.index] == list(problem.context_ids)
        count = len(problem.target_ids)
        assert count == min(max_target, len(ids) - problem.index)
        assert list(problem.target_ids) == ids[problem.index : problem.index + count]
        assert [start + end for end in problem.token_ends] == ends[problem.index : problem.index + count]
        assert problem.token_ends[-1] == len(problem.target)


def test_another_policy_tokenizer_maps_positions_by_bytes():
    document = _scored([bytes([byte]) for byte in b"one two three four five six"])
    tools = TokenizerTools("words", _wordwise, TABLE)
    problems, dropped = _build([document], "problems.per_document=none", "problems.min_context=1", tools=tools)
    assert [(p.index, p.context, p.next_token) for p in problems] == [
        (2, b"one two", b" three"), (3, b"one two three", b" four"), (4, b"one two three four", b" five"),
        (5, b"one two three four five", b" six"),
    ]  # fmt: skip
    assert [p.entropy for p in problems] == [0.7, 1.3, 1.8, 2.3]  # the proxy's figures, at the proxy's index
    assert problems[0].target_ids == (2, 3, 4, 5)
    assert dropped["no token of the policy starts here"] == 21 - 4
    # min_context counts the policy's tokens, and positions that map to nothing use up no budget.
    problems, dropped = _build([document], "problems.per_document=2", "problems.min_context=3", tools=tools)
    assert len(problems) == 2
    assert dropped["over the document's budget"] == 1
    assert dropped["fewer than min_context tokens before"] == 2  # index 2 of the proxy, and index 2 of the policy


def test_a_policy_whose_tokens_start_nowhere_is_refused():
    document = _scored([bytes([byte]) for byte in b"abcdefghijklmnopqrstuvwxyz" * 2])
    whole = TokenizerTools("whole", lambda text: ([0], [len(text.encode())]), TABLE)
    with pytest.raises(ForethinkError, match=r"at only 0 of 46 chosen positions.*proxy of the policy's tokenizer"):
        _build([document], tools=whole)


def test_no_position_left_names_reasons_and_remedy():
    with pytest.raises(ForethinkError, match=r"not selected: 98.*lower problems\.threshold") as caught:
        _build([LONG], "problems.threshold=50")
    assert "\n" not in str(caught.value)
    with pytest.raises(ForethinkError, match=r"lower problems\.min_context"):
        _build([LONG], "problems.min_context=300")
    with pytest.raises(ForethinkError, match="no document"):
        _build([])
    with pytest.raises(ForethinkError, match=r"problems\.max_context is 4, less than problems\.min_context, 8"):
        _build([LONG], "problems.max_context=4", "problems.min_context=8")


def test_own_selector(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from forethink.selectors import positions\n"
        "def last(document, config, rng):\n"
        "    return positions(document, config)[::-1]\n"
        "def careless(document, config, rng):\n"
        "    import numpy as np\n"
        "    return np.array([50, 0, 50, 7])\n"
        "def beyond(document, config, rng):\n"
        "    return [100]\n"
        "def words(document, config, rng):\n"
        "    return ['3']\n"
    )
    assert _indices(f"problems.selector={file}:last", "problems.per_document=2") == [98, 99]
    problems, dropped = _build([LONG], f"problems.selector={file}:careless")
    assert [problem.index for problem in problems] == [7, 50]  # what is excluded stays excluded
    assert dropped["no entropy: nothing precedes"] == 1
    assert dropped["not selected"] == 96
    for name, words in (("beyond", "gave index 100"), ("words", "return a list of token indices")):
        with pytest.raises(ForethinkError, match=words):
            _build([LONG], f"problems.selector={file}:{name}")
    with pytest.raises(ForethinkError, match="there is no 'treshold'; name one of threshold, top_fraction"):
        _build([LONG], "problems.selector=treshold")


def test_scored_documents_as_files(tmp_path: Path):
    documents = [
        LONG,
        _scored([]),
        _scored([b"\xff", b"\x00"], "bad"),
        *(replace(LONG, id=f"d{n}") for n in range(150)),
    ]
    path = tmp_path / "score" / "shards" / "00000.parquet"
    write_scored(path, documents, {"proxy": "p", "top_k": "16"})
    first = path.read_bytes()
    write_scored(path, documents, {"proxy": "p", "top_k": "16"})
    assert path.read_bytes() == first
    back = list(read_scored(tmp_path / "score"))
    assert [d.id for d in back] == [d.id for d in documents]
    for ours, theirs in zip(documents, back, strict=True):
        assert (ours.text, ours.token_ids, ours.byte_ends) == (theirs.text, theirs.token_ids, theirs.byte_ends)
        assert (ours.argmax, ours.short) == (theirs.argmax, theirs.short)
        for name in ("entropy", "entropy_raw", "entropy_full", "logprob"):
            np.testing.assert_array_equal(np.float32(getattr(ours, name)), getattr(theirs, name))
    write_scored(path.with_name("00001.parquet"), documents[:1], {"proxy": "q", "top_k": "16"})
    assert [p.name for p in scored_shards(tmp_path / "score")] == ["00000.parquet", "00001.parquet"]
    with pytest.raises(ForethinkError, match=r"00001\.parquet: scored otherwise"):
        scored_metadata(tmp_path / "score")
    path.with_name("00001.parquet").unlink()
    assert scored_metadata(tmp_path / "score") == {"proxy": "p", "top_k": "16"}
    with pytest.raises(ForethinkError, match="holds no Problem records"):
        read_problems(path)
    path.write_bytes(first[: len(first) // 2])
    with pytest.raises(ForethinkError, match="not a readable Parquet file"):
        next(read_scored(tmp_path / "score"))
    with pytest.raises(ForethinkError, match="run `forethink score`"):
        next(read_scored(tmp_path / "nowhere"))


def test_problems_as_files(tmp_path: Path):
    problems = [replace(p, entropy=0.5, entropy_raw=0.25, entropy_full=1.5, logprob=-2.0) for p in _build([LONG])[0]]
    problems.append(replace(problems[0], id="é:1", argmax_bytes=b"\xff", token_ends=(), target_ids=(), target=b""))
    write_problems(tmp_path / "validation.parquet", problems, {"seed": "0"})
    assert read_problems(tmp_path, "validation") == problems
    assert read_problems(tmp_path / "validation.parquet") == problems
    assert problems_metadata(tmp_path, "validation") == {"seed": "0"}
    write_problems(tmp_path / "train.parquet", [], {})
    assert read_problems(tmp_path) == []
    with pytest.raises(ForethinkError, match="run `forethink problems`"):
        read_problems(tmp_path / "nowhere")


def _score_folder(run: Path, documents: Sequence[ScoredDocument], fingerprint: str = "proxy") -> None:
    metadata = {"proxy": "p", "fingerprint": fingerprint, "top_k": "16"}
    write_scored(run / "score" / "shards" / "00000.parquet", documents[:20], metadata)
    write_scored(run / "score" / "shards" / "00001.parquet", documents[20:], metadata)


def test_stage(tmp_path: Path):
    documents = [replace(LONG, id=f"d{n:02d}") for n in range(30)]
    _score_folder(tmp_path, documents)
    config = _config(f"run={tmp_path}", "problems.validation=0.3", "model.name=policy")
    folder = run_problems(config, SAME)
    assert folder == tmp_path / "problems"
    train, validation = read_problems(folder), read_problems(folder, "validation")
    assert len(train) + len(validation) == 30 * 16
    assert {p.split for p in train} == {"train"}
    assert {p.split for p in validation} == {"validation"}
    assert not {p.document for p in train} & {p.document for p in validation}
    assert problems_metadata(folder) == {"policy": "policy", "fingerprint": "proxy", "proxy": "p", "seed": "0"}
    again = RunDir(folder, "problems", config, ("problems", "model"), _inputs(tmp_path))
    assert again.done
    assert again.record["result"] == {"documents": 30, "train": len(train), "validation": len(validation)}
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert set(before) == {"run.json", "config.toml", "dropped.json", "train.parquet", "validation.parquet"}
    run_problems(config, SAME)  # finished: nothing is done again
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    with pytest.raises(ForethinkError, match=r"threshold was 0\.5, now 0\.7"):
        run_problems(_config(f"run={tmp_path}", "problems.validation=0.3", "problems.threshold=0.7"), SAME)
    shutil.rmtree(folder)
    run_problems(config, SAME)
    assert (folder / "train.parquet").read_bytes() == before["train.parquet"]


def _inputs(run: Path) -> dict[str, str]:
    from forethink.rundir import hash_file

    return {str(shard): hash_file(shard) for shard in scored_shards(run / "score")}


def test_stage_that_leaves_nothing_can_be_tried_again_with_other_knobs(tmp_path: Path):
    _score_folder(tmp_path, [LONG])
    with pytest.raises(ForethinkError, match="no position is left"):
        run_problems(_config(f"run={tmp_path}", "problems.threshold=50"), SAME)
    assert '"not selected": 98' in (tmp_path / "problems" / "dropped.json").read_text()
    folder = run_problems(_config(f"run={tmp_path}"), SAME)
    assert len(read_problems(folder)) == 16


def test_stage_refuses_unfinished_scores_and_warns_of_an_empty_split(tmp_path: Path):
    with pytest.raises(ForethinkError, match="run `forethink score`"):
        run_problems(_config(f"run={tmp_path}"), SAME)
    config = _config(f"run={tmp_path}", "problems.validation=0.0001")
    run = RunDir(tmp_path / "score", "score", config, ("corpus",))
    _score_folder(tmp_path, [LONG])
    with pytest.raises(ForethinkError, match="not scored to the end"):
        run_problems(config, SAME)
    run.finish()
    folder = run_problems(config, SAME)
    assert read_problems(folder, "validation") == []
    assert "no document fell into the validation split" in (folder / "run.json").read_text()


def test_a_changed_own_selector_is_another_configuration(tmp_path: Path):
    _score_folder(tmp_path, [LONG])
    file = tmp_path / "mine.py"
    file.write_text("def pick(document, config, rng):\n    return [5]\n")
    config = _config(f"run={tmp_path}", f"problems.selector={file}:pick")
    assert [p.index for p in read_problems(run_problems(config, SAME))] == [5]
    file.write_text("def pick(document, config, rng):\n    return [65]\n")
    with pytest.raises(ForethinkError, match="another configuration"):
        run_problems(config, SAME)
