"""Name the commands. Each one is imported and built when it is called: a call needs one of them, not all."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

import typer
from typer.core import TyperCommand
from typer.main import get_group

MARKUP: Final = "markdown"


@dataclass(frozen=True, slots=True)
class Place:
    """Say where a command is defined, and how the list of all commands describes it.

    The module has `app` for a group of commands; else a function of the command's name, its `EXAMPLES`, and
    `Command` if it has a class of its own.
    """

    module: str
    brief: str


PLACES: Final = {
    "serve": Place("serve", "Run the external processor until SIGTERM or Ctrl-C; then drain."),
    "apply": Place("apply", "Replace tenants' documents: a field that is missing in the new document is removed."),
    "export": Place(
        "export",
        "Write all tenants' documents as YAML. `tokenweir apply` takes them back, and then finds no difference.",
    ),
    "explain": Place(
        "explain", "Show the limits that bind a caller now, its last denials, and whether a request would pass."
    ),
    "erase": Place(
        "erase",
        "Replace a person's name by a random pseudonym in ledger, daily usage, closed months and audit log.",
    ),
    "doctor": Place(
        "doctor",
        "Check settings, Redis, MongoDB, clocks and Envoy; name each problem with its consequence and its fix.",
    ),
    "simulate": Place(
        "simulate", "Replay the ledger against proposed limits: show the denied callers, the times and the tokens."
    ),
    "config": Place("config", "Check and show the settings."),
    "tenant": Place("tenant", "Tenants and their limits."),
    "limit": Place("tenant_limit", "Limits in their general form."),
    "audit": Place("audit", "Who changed what, when, from where and why."),
    "usage": Place("usage", "Show usage and the ledger."),
    "request": Place("request", "Look up single requests."),
    "ledger": Place("ledger", "Entries that are not yet in the ledger."),
    "local": Place("local", "Run the whole stack on this machine, to try it out."),
    "message-dumper": Place("message_dumper", "Receive the messages of KServe's inference logger."),
    "admin": Place("admin", "The admin API, and its tokens for machines."),
    "model": Place("model", "One values file per model: draft, check, render, canary."),
}


class Commands(dict[str, Any]):
    """Map the names of all commands to commands, each of which is made when it is first asked for."""

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(PLACES))
        self._described = False

    @contextmanager
    def described(self) -> Iterator[None]:
        """Give stand-ins that have a description alone, while all commands are listed."""
        self._described = True
        try:
            yield
        finally:
            self._described = False

    def __getitem__(self, name: str) -> Any:
        found = super().__getitem__(name)
        if self._described:
            return TyperCommand(name, help=PLACES[name].brief)
        if found is None:
            self[name] = found = _made(name)
        return found

    def get(self, name: str, default: Any = None) -> Any:
        try:
            return self[name]
        except KeyError:
            return default

    def items(self) -> Any:
        return {name: self[name] for name in self}.items()

    def values(self) -> Any:
        return dict(self.items()).values()


def _made(name: str) -> Any:
    module = import_module(f"extproc.cli.{PLACES[name].module}")
    alone = typer.Typer(rich_markup_mode=MARKUP, add_completion=False)
    group = getattr(module, "app", None)
    if group is not None:
        alone.add_typer(group, name=name)
    else:
        alone.command(name, epilog=module.EXAMPLES, cls=getattr(module, "Command", None))(getattr(module, name))
    return get_group(alone).commands[name]
