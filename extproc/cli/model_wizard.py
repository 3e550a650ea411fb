"""Ask the questions of `tokenweir model init` on stderr, and read the answers from stdin."""

import sys
from typing import Any, Final

import typer

from extproc.cli import output
from extproc.onboarding import drafting
from extproc.onboarding.errors import OnboardingError
from extproc.onboarding.questions import QUESTIONS, Question

_YES: Final = {"y": True, "yes": True, "n": False, "no": False}


def asked(given: dict[str, Any]) -> dict[str, Any]:
    """Return the answers, added to those that were given. Raise `OnboardingError` if stdin ends."""
    output.note("Enter takes what stands in brackets, '-' is none; Ctrl-C ends it and writes nothing.")
    answers = {**given}
    topic = ""
    for question in QUESTIONS:
        if not question.is_asked(answers):
            continue
        if question.about != topic:
            topic = question.about
            typer.secho(f"\n{topic.capitalize()}", bold=True, err=True)
        answers[question.name] = _ask(question, answers)
    return answers


def _ask(question: Question, answers: dict[str, Any]) -> object:
    """Ask until there is a usable answer."""
    suggestion = question.suggestion(answers)
    for number, (choice, about) in enumerate(question.choices.items(), 1):
        typer.echo(f"  {number:>2} {choice:<12} {about}", err=True)
    shown = "" if suggestion is None and question.required else _shown(suggestion)
    hint = f" ({question.help})" if question.help else ""
    while True:
        typer.echo(f"{question.text}{hint}{shown}: ", nl=False, err=True)
        line = sys.stdin.readline()
        if not line:
            raise OnboardingError("no more answers; nothing was written")
        text = line.strip()
        if not text and not (question.required and suggestion is None):
            return suggestion
        if text == "-" and not question.required:
            return None
        try:
            return _read(question, text)
        except OnboardingError as wrong:
            output.note(f"  {wrong}")


def _shown(suggestion: object) -> str:
    if isinstance(suggestion, bool):
        return " [Y/n]" if suggestion else " [y/N]"
    return f" [{'none' if suggestion is None else suggestion}]"


def _read(question: Question, text: str) -> object:
    match question.type:
        case "yes_no":
            if text.lower() not in _YES:
                raise OnboardingError("y for yes, or n for no")
            return _YES[text.lower()]
        case "integer" | "number":
            return _number(question, text)
        case "choice":
            return _choice(list(question.choices), text)
        case "list":
            found = [each for each in text.replace(",", " ").split() if each]
            for each in found:
                drafting.check_answer(question.name, each)
            return found
    drafting.check_answer(question.name, text)
    return text


def _number(question: Question, text: str) -> float:
    whole = question.type == "integer"
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        raise OnboardingError(f"'{text[:80]}' is no {'whole ' if whole else ''}number") from None
    drafting.check_number(question.name, value)
    return value


def _choice(choices: list[str], text: str) -> str:
    if text.isdecimal() and 0 < int(text) <= len(choices):
        return choices[int(text) - 1]
    if text not in choices:
        raise OnboardingError(f"one of {', '.join(choices)}, or its number")
    return text
