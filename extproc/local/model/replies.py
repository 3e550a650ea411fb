"""Choose the sample model's text: fitting answers to a few prompts, sentences about rivers for all others."""

import operator
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random

    from extproc.local.model.tokenizer import SampleTokenizer

# Sentences are added until a text has at least a drawn number of tokens. No sentence is longer than 15 tokens (a
# test checks it), so a text has between 8 and 60.
_SHORTEST = 8
_LONGEST_DRAW = 45

_OPERATORS: "dict[str, Callable[[int, int], int]]" = {"+": operator.add, "-": operator.sub, "*": operator.mul}
# Six digits at most, to keep the answer short.
_SUM = re.compile(r"(?<![\w.])(\d{1,6})\s*([-+*])\s*(\d{1,6})(?![\w.])(?:\s*=)?")
_COUNT = re.compile(r"\bcount (?:up )?(?:from 1 )?to (\d{1,3})\b")

_CANNED = (
    (re.compile(r"\bcapital of france\b"), "The capital of France is Paris."),
    (re.compile(r"\bcapital of (?:germany|deutschland)\b"), "The capital of Germany is Berlin."),
    (re.compile(r"\bsay (?:that )?this is a test\b"), "This is a test."),
    (re.compile(r"^ping\W*$"), "pong"),
    (re.compile(r"^(?:hello|hi|hey)\b[\s\w]{0,20}\W*$"), "Hello! How can I help you today?"),
    (re.compile(r"\bwho are you\b"), "I am a sample model: I have no weights, only a tokenizer."),
    (re.compile(r"\bmeaning of life\b"), "42"),
)

SENTENCES = (
    "The river rises in spring.",
    "A weir holds the water back.",
    "What flows over it can be measured.",
    "Nothing is lost on the way down.",
    "The miller opens the gate at dawn.",
    "Every drop is counted twice.",
    "Rain in the hills arrives a day later.",
    "The gauge shows two metres and falling.",
    "Below the dam the valley is dry.",
    "Fish climb the ladder in the dark.",
    "A full reservoir makes no promises.",
    "The keeper writes the level in a book.",
    "Fields take their share first.",
    "What remains belongs to the town.",
    "In August the mill stands still.",
    "Then the gates stay closed for a week.",
    "Old maps show another bed.",
    "The canal is older than the bridge.",
    "Nobody asks who dug it.",
    "A heron stands in the shallows.",
    "The café by the lock is open. ☕",
    "Children race paper boats 🛶 to the sea.",
    "Im Fluß spiegelt sich der Himmel.",
    "水は低きに流れる。",
)


def known_answer(question: str) -> str | None:
    """Return the fitting answer if the model knows the question."""
    asked = question.strip().lower()
    if found := _SUM.search(asked):
        left, sign, right = found.groups()
        return f"{left} {sign} {right} = {_OPERATORS[sign](int(left), int(right))}"
    if found := _COUNT.search(asked):
        return ", ".join(str(number) for number in range(1, int(found[1]) + 1))
    return next((answer for pattern, answer in _CANNED if pattern.search(asked)), None)


def sentences(draw: "Random") -> "Iterator[str]":
    """Yield sentences without end, never the same one twice in a row."""
    last = ""
    while True:
        last = draw.choice([sentence for sentence in SENTENCES if sentence != last])
        yield last


def opening_tokens(question: str, draw: "Random", tokenizer: "SampleTokenizer") -> list[int]:
    """Return the tokens of the model's text, if nothing but its own end stops it."""
    answer = known_answer(question)
    if answer is not None:
        return tokenizer.encode(answer)
    wanted = draw.randint(_SHORTEST, _LONGEST_DRAW)
    tokens: list[int] = []
    for sentence in sentences(draw):
        tokens += tokenizer.encode(f" {sentence}" if tokens else sentence)
        if len(tokens) >= wanted:
            break
    return tokens
