"""The words of the seven designs; :mod:`forethink.templates` says what each is for."""

from __future__ import annotations

_SPACES = (
    r"Spaces count: if it begins with a space, so does the box, as in \boxed{ the}. Write a line break as \boxed{\n}."
)
_STEPS = r"Think step by step, then write only the next word or symbol in \boxed{}. " + _SPACES
_TICKED = "```{{ context }}```"
_ASK = (
    "Which token comes next after the text between the backticks? Reason about it first, then give that token alone "
    r"in \boxed{}, with its leading space if it has one, as in \boxed{ the}."
    f"\n\n{_TICKED}"
)
_LIST = (
    "First name several tokens that could come next and say what speaks for each of them. Then decide for the most "
    r"likely one and write it alone in \boxed{}. "
)
_EXAMPLES = r"""Say which token comes next in a text. Three examples of how to go about it:

Text: The capital of France is
Thought: A capital is asked for, and that of France is Paris. The text ends with a whole word, so a space comes first.
\boxed{ Paris}

Text: Adding both sides gives $2x = 10$, hence $x =
Thought: Half of 10 is 5. The equals sign before had a space behind it, so this one has too.
\boxed{ 5}

Text: She went to the wind
Thought: The last word is not finished: "wind" is to become "window", so the rest of it follows without a space.
\boxed{ow}

"""

_TEXT = "\n\nText:\n{{ context }}"

# name: (system, user, style of thought)
DESIGNS: dict[str, tuple[str | None, str, str]] = {
    "v0": (None, f"Predict how the text below goes on. {_STEPS}{_TEXT}", "steps"),
    "v1": (None, _ASK, "steps"),
    "v2": ("You are a careful reader who knows how texts of every kind go on.", _ASK, "steps"),
    "v3": (None, f"Which token comes next in the text below? {_LIST}{_SPACES}{_TEXT}", "candidates"),
    "v4": (None, f"{_EXAMPLES}Now the same for this text.{_TEXT}", "steps"),
    "v5": (None, f"Predict how the text between the backticks goes on. {_STEPS}\n\nText:\n{_TICKED}", "steps"),
    "v6": (
        None,
        f"{_TICKED}\n\nThis is the beginning of a text, between backticks. {_LIST}{_SPACES} So: which token comes "
        "right after the text?",
        "candidates",
    ),
}

# For questions with checkable answers: the context is the question.
QUESTION = "{{ context }}\n\nThink step by step, then write the final answer, and nothing else, in \\boxed{}."
QUESTION_EXAMPLE = (  # for models that do not box on an instruction alone
    "Question: What is 20 plus 15?\nAnswer: 20 plus 15 is 35. So the answer is \\boxed{35}.\n\n"
    "Question: {{ context }}\nAnswer:"
)
QUESTION_PLAIN = f"Question: {QUESTION}\n\nAnswer:"

# Other things one may ask of a policy about a piece of text, for the warm start's replay: None is the bare text, as a
# language model reads it. The rest are user's messages.
OTHER_PROMPTS: tuple[str | None, ...] = (
    None,
    "{{ context }}",
    "What is this about?\n\n{{ context }}",
    "{{ context }}\n\nPut this into plain words, please.",
    "Say in one sentence what is written here: {{ context }}",
    "{{ context }}\n\nWhat would you ask about it, and what is the answer?",
    "Write something of your own that begins like this.\n\n{{ context }}",
    QUESTION,
    QUESTION_EXAMPLE,
)
