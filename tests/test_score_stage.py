"""The scoring stage: shards, totals, what it drops, refusals, and shards against kill -9."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from forethink import config as settings
from forethink.records import read_scored, scored_metadata
from forethink.scoring import run_score, score_documents
from forethink.tokens import fingerprint
from forethink.types import Document, ForethinkError
from test_scoring import NAMES, words


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_llama, smollm2_tokenizer):
    """A configuration over a tiny model and a corpus of 22 documents, one of them twice."""
    folder = tmp_path_factory.mktemp("score")
    tiny_llama.save_pretrained(folder / "model")
    smollm2_tokenizer.save_pretrained(folder / "model")
    texts = [words(i, 20 + 7 * i) for i in range(22)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in [*texts, texts[3]]))

    def make(run: str, **score: object) -> settings.Config:
        data = {"window": 64, "overlap": 16, "batch_tokens": 256, "shard_documents": 4, **score}
        return settings.Config.model_validate(
            {
                "run": str(folder / run),
                "corpus": {"path": str(folder / "corpus.jsonl")},
                "model": {"name": str(folder / "model"), "dtype": "float32", "device": "cpu"},
                "score": data,
            }
        )

    make.texts = texts
    return make


def shards(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "shards").iterdir())}


def test_the_stage_writes_shards_totals_and_what_it_dropped(recipe, tiny_llama, smollm2_tokenizer, capfd):
    config = recipe("plain")
    run = run_score(config)
    assert capfd.readouterr() == ("", "")  # quiet where nobody watches
    assert run == Path(config.run) / "score" and sorted(shards(run)) == [f"0000{i}.parquet" for i in range(6)]
    scored = list(read_scored(run))
    assert [d.text.decode() for d in scored] == recipe.texts
    metadata = scored_metadata(run)
    assert metadata["proxy"] == config.model.name and metadata["fingerprint"] == fingerprint(smollm2_tokenizer)
    assert (metadata["top_k"], metadata["window"], metadata["overlap"]) == ("16", "64", "16")
    record = json.loads((run / "run.json").read_text())
    tokens = sum(len(d.token_ids) for d in scored)
    assert record["status"] == "done" and record["result"]["tokens"] == tokens
    assert record["result"]["positions"] == tokens - 22 and record["result"]["documents"] == 22
    high = sum(value > 1.0 for d in scored for value in d.entropy)
    assert record["result"]["share_above_1.0"] == pytest.approx(high / (tokens - 22))
    assert json.loads((run / "dropped.json").read_text()) == {"duplicate": 1}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["shard"] for line in lines] == list(range(6)) and sum(line["tokens"] for line in lines) == tokens
    shard = [Document(d.id, d.text.decode()) for d in scored[4:8]]
    again = score_documents(tiny_llama, smollm2_tokenizer, shard, config.score)
    for a, b in zip(again, scored[4:8], strict=True):
        for name in NAMES:
            assert getattr(b, name)[1:] == pytest.approx(getattr(a, name)[1:], rel=1e-6)
        assert a.argmax == b.argmax


def test_a_finished_run_is_left_alone_and_a_lost_shard_made_again(recipe):
    config = recipe("again")
    run = run_score(config)
    before = shards(run)
    times = [path.stat().st_mtime_ns for path in sorted((run / "shards").iterdir())]
    run_score(config)
    assert times == [path.stat().st_mtime_ns for path in sorted((run / "shards").iterdir())]
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "status": "running"}))
    (run / "shards" / "00002.parquet").unlink()
    (run / "shards" / ".00002.parquet.abcd").write_bytes(b"half")
    run_score(config)
    assert shards(run) == before
    after = json.loads((run / "run.json").read_text())
    assert after["status"] == "done" and after["result"] == record["result"] and after["resumed"] == 1


def test_documents_that_the_tokenizer_cannot_hold_are_counted(recipe, tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    texts = [words(1, 20), "a control character: \x13", words(2, 20), "plane 4: \U00040000"]
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = recipe("lossy", shard_documents=1)
    config = config.model_copy(update={"corpus": config.corpus.model_copy(update={"path": str(corpus)})})
    run = run_score(config)
    assert [d.text.decode() for d in read_scored(run)] == texts[::2]
    assert json.loads((run / "dropped.json").read_text()) == {"characters that the tokenizer lacks": 2}
    corpus.write_text(json.dumps({"text": texts[1]}))
    with pytest.raises(ForethinkError, match="changes or drops characters of the document that starts 'a control"):
        run_score(config.model_copy(update={"run": str(tmp_path / "none")}))


def test_a_folder_of_another_configuration_is_refused(recipe):
    run = run_score(recipe("other"))
    with pytest.raises(ForethinkError, match="belongs to another configuration"):
        run_score(recipe("other", window=32))
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "done"


def test_the_policys_name_does_not_matter_where_a_proxy_is_named(recipe):
    config = recipe("proxy")
    proxied = config.model_copy(update={"score": config.score.model_copy(update={"proxy": config.model.name})})
    run = run_score(proxied)
    other = proxied.model_copy(update={"model": config.model.model_copy(update={"name": "no/such-policy"})})
    assert run_score(other) == run
    assert scored_metadata(run)["proxy"] == config.model.name


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from forethink.config import load_config
from forethink.scoring import run_score

def start(path):
    child = os.fork()  # nothing but imports has happened here: no threads to lose
    if child == 0:
        try:
            run_score(load_config(path))
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return child

def shards(run):
    return len(list((run / "score" / "shards").glob("*.parquet")))

whole, killed = sys.argv[1:3]
rng = random.Random(int(sys.argv[3]))
assert os.waitpid(start(whole), 0)[1] == 0
run = Path(load_config(killed).run)
for _ in range(3):
    ahead = rng.choice([0, 1, 2])
    goal = shards(run) + ahead
    child = start(killed)
    while shards(run) < goal:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended before it was killed"
        time.sleep(0.002)
    time.sleep(rng.random() * (0.01 if ahead else 0.3))  # 0.3: while it loads
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    print("killed" if os.WIFSIGNALED(status) else "ended", shards(run))
assert os.waitpid(start(killed), 0)[1] == 0
"""


def test_kill_9_three_times_leaves_the_same_shards(recipe, tmp_path):
    from forethink.recipe import config_toml

    paths = []
    for name in ("whole", "killed"):
        config = recipe(f"kill-{name}", shard_documents=1)
        paths.append(tmp_path / f"{name}.toml")
        paths[-1].write_text(config_toml(config))
    seed = random.randrange(10**6)
    command = [sys.executable, "-c", KILLED, *map(str, paths), str(seed)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, (seed, result.stderr)
    print(f"seed {seed}: {result.stdout.split()}")
    assert result.stdout.split()[::2] == ["killed"] * 3
    runs = [Path(recipe(f"kill-{name}").run) / "score" for name in ("whole", "killed")]
    assert shards(runs[0]) == shards(runs[1]) and len(shards(runs[0])) == 22
    records = [json.loads((run / "run.json").read_text()) for run in runs]
    assert records[0]["result"] == records[1]["result"] and records[1]["resumed"] >= 1
