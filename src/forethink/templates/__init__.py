r"""How to ask for the next token (:class:`Template`), how to read the answer back (:mod:`forethink.templates.box`).

Seven designs after the paper's seven (appendix on prompts), in our own words:

====  ==========================================================================
v0    step by step, with a note on leading spaces; the default, used in training
v1    the context in backticks
v2    v1 with a role
v3    list several candidates, then pick one
v4    three worked examples
v5    v0 with the context in backticks
v6    the context first, in backticks; list candidates; the question again at the end
====  ==========================================================================

Where a design allows, nothing but the chat template's own characters follows the context, so that positions of one
document share as long a prefix as they can.

The context is never part of a text that is rendered or tokenised here: the chat template is applied to a sentinel in
its place, the rendering is split there, and the context's own token ids are put between the ids of the two pieces.
So a chat template that trims its messages cannot touch the context's white space, and what looks like a special
token in a document cannot become one.
"""

from __future__ import annotations

import tomllib
import weakref
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forethink.functions import load_function
from forethink.templates.box import box_closed, box_opens, expressible, inexpressible, read, read_last, write
from forethink.templates.designs import DESIGNS, QUESTION, QUESTION_EXAMPLE, QUESTION_PLAIN
from forethink.types import ForethinkError, Problem, Question, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "QUESTION_TEMPLATES",
    "TEMPLATES",
    "Template",
    "box_closed",
    "box_opens",
    "expressible",
    "inexpressible",
    "load_template",
    "read",
    "read_last",
    "write",
]

_CONTEXT = "Zq7vContextXk3Wm"  # letters of both cases and digits: no filter changes it unseen
_DATE = "01 Jan 2025"  # some chat templates write today's date, and a prompt must not change overnight
_STYLES = ("steps", "candidates")


@lru_cache(maxsize=64)
def _split(source: str, where: str) -> tuple[str, str]:
    """Render a Jinja source and split it at the context."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    try:
        text = environment.from_string(source).render(context=_CONTEXT)
    except jinja2.TemplateError as error:
        raise ForethinkError(f"{where}: not a Jinja template ({first_line(error)}); mend it.") from None
    return _cut(text, where, "write {{ context }} exactly once, without a filter")


def _cut(text: str, where: str, remedy: str) -> tuple[str, str]:
    pieces = text.split(_CONTEXT)
    if len(pieces) != 2:
        raise ForethinkError(f"{where}: holds the context {len(pieces) - 1} times; {remedy}.")
    return pieces[0], pieces[1]


@dataclass(frozen=True, slots=True)
class _Pieces:
    """A template under one tokenizer: what comes before and after the context."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    opens_thought: bool


_cache: weakref.WeakKeyDictionary[Any, dict[tuple[Template, str], _Pieces]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Template:
    """A wording of the task.

    Args:
        name: how it is called in configurations and records.
        user: the user's message, a Jinja template with ``{{ context }}`` exactly once.
        system: the system message, if any. For chat templates that know none it is put before the user's message.
        plain: the whole prompt for tokenizers without a chat template, a Jinja template with ``{{ context }}`` exactly
            once. Made of the messages when absent.
        style: the thoughts that suit it, for the warm start: "steps" or "candidates" (several are listed).

    Raises:
        ForethinkError: a text is no Jinja template or holds the context not exactly once, or the style is unknown.
    """

    name: str
    user: str
    system: str | None = None
    plain: str | None = None
    style: str = "steps"

    def __post_init__(self) -> None:
        if self.style not in _STYLES:
            raise ForethinkError(f"template {self.name}: no style {self.style!r}; choose one of {', '.join(_STYLES)}.")
        _split(self.user, f"template {self.name}, user")
        if self.plain is not None:
            _split(self.plain, f"template {self.name}, plain")

    def messages(self, context: str) -> list[dict[str, str]]:
        """The chat messages with the context in place, for engines that apply a chat template themselves.

        Those may trim the context or take parts of it for special tokens; :meth:`render` cannot.
        """
        before, after = _split(self.user, f"template {self.name}, user")
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": before + context + after}]

    def render(self, problem: Problem | Question, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Token ids of the prompt: the words before the context, ``problem.context_ids`` verbatim, the words after.

        Raises:
            ForethinkError: the tokenizer's chat template refuses the messages or drops the context.
        """
        pieces = self._pieces(tokenizer)
        return [*pieces.prefix, *problem.context_ids, *pieces.suffix]

    def pieces(self, tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Token ids before and after the context, the same for every problem."""
        pieces = self._pieces(tokenizer)
        return pieces.prefix, pieces.suffix

    def opens_thought(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether the prompt ends with an opened ``<think>``, as R1's chat template does."""
        return self._pieces(tokenizer).opens_thought

    def _pieces(self, tokenizer: PreTrainedTokenizerBase) -> _Pieces:
        known = _cache.setdefault(tokenizer, {})
        key = (self, repr(tokenizer.chat_template))
        if key not in known:
            before, after = self._texts(tokenizer)
            known[key] = _Pieces(
                prefix=(*([] if tokenizer.chat_template else _bos(tokenizer)), *_ids(tokenizer, before)),
                suffix=tuple(_ids_after(tokenizer, after)),
                opens_thought=after.rstrip().endswith("<think>"),
            )
        return known[key]

    def _texts(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
        messages = self.messages(_CONTEXT)
        where = f"template {self.name}"
        if tokenizer.chat_template:
            text = _chat(tokenizer, messages, where)
            return _cut(
                text, f"{where}: the tokenizer's chat template", "choose a policy whose template keeps messages"
            )
        if self.plain is not None:
            return _split(self.plain, f"{where}, plain")
        text = _merged(messages)[0]["content"]
        # Where the context ends the message, an end mark keeps its last space or newline apart from ours.
        end = "[end of text]" if text.endswith(_CONTEXT) else ""
        return _cut(f"{text}{end}\n\nThought:", where, "write {{ context }} exactly once")


def _merged(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"role": "user", "content": "\n\n".join(message["content"] for message in messages)}]


def _chat(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], where: str) -> str:
    import jinja2

    def apply(conversation: list[dict[str, str]]) -> str:
        text = tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=True, date_string=_DATE
        )
        return str(text)

    try:
        text = apply(messages)
        if messages[0]["content"].strip() in text:
            return text
    except jinja2.TemplateError as error:
        if len(messages) == 1:
            raise ForethinkError(
                f"{where}: the tokenizer's chat template fails ({first_line(error)}); choose another policy."
            ) from None
    # A chat template that knows no system message refuses it or leaves it out.
    return apply(messages) if len(messages) == 1 else _chat(tokenizer, _merged(messages), where)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def _bos(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before a text of its own accord, usually one id or none."""
    bare, whole = _ids(tokenizer, "a"), list(tokenizer("a")["input_ids"])
    starts = [i for i in range(len(whole)) if whole[i : i + len(bare)] == bare]
    return whole[: starts[0]] if starts else []


def _ids_after(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text that follows another: no space is put before it, as SentencePiece does at the start of a text."""

    def spaced(ids: list[int]) -> bool:
        return bool(ids) and str(tokenizer.convert_ids_to_tokens(ids[0])).startswith("\u2581") and text[0] != " "

    ids = _ids(tokenizer, text)
    for anchor in ("\n", ".", "a", tokenizer.eos_token or "\n") if spaced(ids) else ():
        head, whole = _ids(tokenizer, anchor), _ids(tokenizer, anchor + text)
        if whole[: len(head)] == head and not spaced(whole[len(head) :]):
            return whole[len(head) :]
    return ids


TEMPLATES: dict[str, Template] = {
    name: Template(name, user, system, style=style) for name, (system, user, style) in DESIGNS.items()
}

# For questions, by [questions] template: the context is the question.
QUESTION_TEMPLATES: dict[str, Template] = {
    "question": Template("question", QUESTION, plain=QUESTION_PLAIN),
    "question_example": Template("question_example", QUESTION_EXAMPLE, plain=QUESTION_EXAMPLE),
}


def load_template(name: str) -> Template:
    """A template by name.

    Args:
        name: ``v0`` … ``v6``, or one for questions; a TOML file with the keys ``user`` and, as wanted, ``system``,
            ``plain``, ``style`` (see :class:`Template`); a ``.jinja``, ``.j2`` or ``.txt`` file that holds the
            user's message; or ``module:function`` or ``path/to/file.py:function``, a function without arguments
            that returns a :class:`Template`.

    Raises:
        ForethinkError: there is no such template, or the file holds none.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    if name in QUESTION_TEMPLATES:
        return QUESTION_TEMPLATES[name]
    if name.endswith((".toml", ".jinja", ".j2", ".txt")):
        return _from_file(Path(name))
    if ":" in name:
        made = load_function(name)()
        if not isinstance(made, Template):
            raise ForethinkError(f"{name}: returns {type(made).__name__}; return a forethink.templates.Template.")
        return made
    raise ForethinkError(
        f"no template {name!r}; choose one of {', '.join(TEMPLATES)}, or name a .toml or .jinja file."
    )


def _from_file(path: Path) -> Template:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ForethinkError(f"{path}: cannot be read ({first_line(error)}); name a UTF-8 file.") from None
    if path.suffix != ".toml":
        return Template(str(path), text)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ForethinkError(f"{path}: not a TOML file ({first_line(error)}); mend that line.") from None
    allowed = ("user", "system", "plain", "style")
    for key, value in data.items():
        if key not in allowed:
            raise ForethinkError(f"{path}: unknown key {key!r}; a template has {', '.join(allowed)}.")
        if not isinstance(value, str):
            raise ForethinkError(f"{path}: {key!r} is no text; write it in quotes.")
    if "user" not in data:
        raise ForethinkError(f"{path}: has no key 'user'; write the message with {{{{ context }}}} in it.")
    return Template(str(path), **data)
