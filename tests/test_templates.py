"""The seven designs, a user's own template, what is refused. The prompts' bytes: tests/contracts/test_prompts.py."""

from __future__ import annotations

import subprocess
import sys

import pytest

from forethink.templates import TEMPLATES, Template, load_template
from forethink.types import ForethinkError, Problem

FENCED = ("v1", "v2", "v5", "v6")


def problem(ids: tuple[int, ...]) -> Problem:
    return Problem("d:1", "d", 1, "train", b"", ids, b"x", (0,), (1,), 1.0, 1.0, 1.0, -1.0, b"x")


def words(name: str) -> str:
    return "\n".join(message["content"] for message in load_template(name).messages("CONTEXT"))


def test_there_are_seven_designs_and_no_two_alike():
    assert sorted(TEMPLATES) == [f"v{i}" for i in range(7)]
    assert all(template.name == name for name, template in TEMPLATES.items())
    assert len({words(name) for name in TEMPLATES}) == 7


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_every_design_shows_a_box_with_a_leading_space_and_the_context_once(name):
    assert r"\boxed{ " in words(name)
    assert words(name).count("CONTEXT") == 1


def test_the_designs_are_what_the_paper_lists():
    assert "step by step" in words("v0") and "Spaces count" in words("v0")
    assert [name for name in TEMPLATES if "```CONTEXT```" in words(name)] == list(FENCED)
    first, second = load_template("v1").messages("c"), load_template("v2").messages("c")
    assert second[1:] == first and second[0]["role"] == "system"
    assert "several tokens" in words("v3") and load_template("v3").style == "candidates"
    assert words("v4").count("Thought:") == 3 and words("v4").count(r"\boxed{") == 3
    assert "step by step" in words("v5")
    assert words("v6").startswith("```CONTEXT```") and words("v6").endswith("?") and "several tokens" in words("v6")


@pytest.mark.parametrize("name", [name for name in sorted(TEMPLATES) if name not in FENCED])
def test_the_context_ends_the_message_where_the_design_allows(name):
    assert words(name).endswith("CONTEXT")


def test_the_default_design_in_full():
    assert load_template("v0").messages("Some text ") == [
        {
            "role": "user",
            "content": (
                "Predict how the text below goes on. Think step by step, then write only the next word or symbol in "
                r"\boxed{}. Spaces count: if it begins with a space, so does the box, as in \boxed{ the}. Write a "
                "line break as \\boxed{\\n}.\n\nText:\nSome text "
            ),
        }
    ]


def test_the_default_design_is_short(smollm2_tokenizer):
    assert len(load_template("v0").render(problem(()), smollm2_tokenizer)) < 120


def test_pieces_are_made_once_per_template_and_chat_template(smollm2_tokenizer):
    template = load_template("v0")
    prefix, suffix = template.pieces(smollm2_tokenizer)
    assert template.pieces(smollm2_tokenizer)[0] is prefix
    assert load_template("v2").pieces(smollm2_tokenizer)[0] != prefix
    own = smollm2_tokenizer.chat_template
    try:
        smollm2_tokenizer.chat_template = "{{ messages[0]['content'] }}<|im_end|>\n<think>"
        assert template.pieces(smollm2_tokenizer)[0] != prefix
        assert template.opens_thought(smollm2_tokenizer)
    finally:
        smollm2_tokenizer.chat_template = own
    assert template.pieces(smollm2_tokenizer) == (prefix, suffix)
    assert not template.opens_thought(smollm2_tokenizer)


def test_a_chat_template_that_drops_the_message_is_refused(smollm2_tokenizer):
    own = smollm2_tokenizer.chat_template
    try:
        for broken, reason in (("hello", "0 times"), ("{{ messages[0]['content'] * 2 }}", "2 times")):
            smollm2_tokenizer.chat_template = broken
            with pytest.raises(ForethinkError, match=reason):
                load_template("v0").render(problem((1,)), smollm2_tokenizer)
        smollm2_tokenizer.chat_template = "{{ raise_exception('no users here') }}"
        with pytest.raises(ForethinkError, match="no users here"):
            load_template("v0").render(problem((1,)), smollm2_tokenizer)
    finally:
        smollm2_tokenizer.chat_template = own


TOML = """
system = "You guess."
user = \"\"\"{% for i in range(2) %}Look. {% endfor %}Text: {{ context }}\"\"\"
plain = "Text: {{ context }}|| Next, in \\\\boxed{}:"
style = "candidates"
"""


def test_a_template_file(tmp_path, smollm2_tokenizer):
    path = tmp_path / "mine.toml"
    path.write_text(TOML)
    template = load_template(str(path))
    assert (template.name, template.system, template.style) == (str(path), "You guess.", "candidates")
    assert template.messages("a ")[1]["content"] == "Look. Look. Text: a "
    decoded = smollm2_tokenizer.decode(template.render(problem((28,)), smollm2_tokenizer))
    assert "system\nYou guess.<|im_end|>" in decoded and "Look. Look. Text: " in decoded
    own = smollm2_tokenizer.chat_template
    try:
        smollm2_tokenizer.chat_template = None
        ids = template.render(problem(tuple(smollm2_tokenizer("so ")["input_ids"])), smollm2_tokenizer)
        assert smollm2_tokenizer.decode(ids) == r"Text: so || Next, in \boxed{}:"
    finally:
        smollm2_tokenizer.chat_template = own


def test_a_jinja_file_and_a_function(tmp_path):
    (tmp_path / "mine.jinja").write_text("Go on:\n{{ context }}\n")
    assert load_template(str(tmp_path / "mine.jinja")).messages("x")[0]["content"] == "Go on:\nx\n"
    (tmp_path / "mine.py").write_text(
        "from forethink.templates import Template\n"
        "def short():\n    return Template('short', 'Next? {{ context }}')\n"
        "def wrong():\n    return 'Next? {{ context }}'\n"
    )
    assert load_template(f"{tmp_path}/mine.py:short").messages("x")[0]["content"] == "Next? x"
    with pytest.raises(ForethinkError, match="returns str"):
        load_template(f"{tmp_path}/mine.py:wrong")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('user = "no place"', "0 times"),
        ('user = "{{ context }} {{ context }}"', "2 times"),
        ('user = "{{ context | upper }}"', "0 times"),
        ('user = "{{ context | lower }}"', "0 times"),
        ('user = "{{ contex }}"', "contex.* is undefined"),
        ('user = "{% if %}{{ context }}"', "not a Jinja template"),
        ('user = "{{ context }}"\nplain = "nothing"', "plain: holds the context 0 times"),
        ('user = "{{ context }}"\nstyle = "wild"', "no style 'wild'"),
        ('user = "{{ context }}"\nassistant = "x"', "unknown key 'assistant'"),
        ("user = 3", "'user' is no text"),
        ('system = "x"', "no key 'user'"),
        ("user = ", "not a TOML file"),
    ],
)
def test_template_files_that_are_refused(tmp_path, text, reason):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ForethinkError, match=reason) as error:
        load_template(str(path))
    assert "bad.toml" in str(error.value)


def test_names_that_are_refused(tmp_path):
    for name, reason in (("v7", "choose one of v0"), (f"{tmp_path}/absent.toml", "cannot be read")):
        with pytest.raises(ForethinkError, match=reason):
            load_template(name)
    (tmp_path / "latin.toml").write_bytes('user = "é {{ context }}"'.encode("latin-1"))
    with pytest.raises(ForethinkError, match="UTF-8"):
        load_template(str(tmp_path / "latin.toml"))


def test_a_users_template_cannot_reach_out_of_its_sandbox():
    with pytest.raises(ForethinkError, match="not a Jinja template"):
        Template("evil", "{{ ''.__class__.__mro__[1].__subclasses__() }} {{ context }}")


def test_importing_templates_and_rewards_loads_nothing_heavy():
    code = (
        "import sys, forethink.templates, forethink.rewards, forethink.rescore\n"
        "print([m for m in ('torch', 'transformers', 'trl', 'vllm', 'pyarrow') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
