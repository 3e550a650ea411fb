"""Define the root command: the options before every command, and the functions that commands share."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer
from typer.core import TyperGroup

import extproc
from extproc.cli.commands import MARKUP, Commands
from extproc.settings.load import SettingsError, load, load_to_serve
from extproc.settings.model import Settings
from extproc.stores.urls import StoreURL

if TYPE_CHECKING:
    from extproc import app as composition
    from extproc.admin.closing import Closing
    from extproc.admin.journal import JournalAdmin
    from extproc.admin.service import Admin
    from extproc.admin.usage import UsageAdmin

T = TypeVar("T")

FAULT, WRONG_USE, NOT_FOUND, STALE = 1, 2, 3, 4
# Of `apply --dry-run`, where wrong use is 1.
DIFFERENCES = 2


class CommandError(Exception):
    """Report a fault of a command itself. The message says what to do."""


class _Root(TyperGroup):
    """Group all commands. Messages about a wrong value never mention the library that found it."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes | {"commands": Commands()})

    def format_help(self, ctx: Any, formatter: Any) -> None:
        with cast(Commands, self.commands).described():
            super().format_help(ctx, formatter)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")
            raise


app = typer.Typer(
    name="tokenweir",
    cls=_Root,
    help="Manage token quotas and usage for LLMs behind Envoy.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=MARKUP,
    epilog="""
Exit codes: 0 done, 1 a fault such as a store that can't be reached, 2 wrong use, 3 not found, 4 changed by
somebody else meanwhile. `apply --dry-run`: 0 no difference, 2 some differences, 1 any error.

Example: tokenweir -c tokenweir.yaml usage top --since 2026-01-01
""",
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tokenweir {extproc.__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", envvar="TOKENWEIR_CONFIG", help="Settings file (YAML)."),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Manage token quotas and usage for LLMs behind Envoy."""
    del version
    context.obj = config


def settings_of(context: typer.Context) -> Settings:
    """Return the settings of the root's --config. Raise `SettingsError`."""
    path: Path | None = context.find_root().obj
    return load(path)


def serving_settings_of(context: typer.Context) -> Settings:
    """Return the settings of a process that serves: plaintext that others can reach is refused."""
    path: Path | None = context.find_root().obj
    return load_to_serve(path)


def refuse_memory(name: str, url: StoreURL) -> None:
    """Raise `SettingsError` for a store in memory: this process would have an empty one of its own."""
    if url.in_memory:
        raise SettingsError(f"{name}: memory:// is inside the serving process; this command can't see it")


def with_admin(context: typer.Context, use: "Callable[[Admin], Awaitable[T]]") -> T:
    """Run one use case on the stores of the settings."""
    from extproc.cli.use_cases import build_admin

    settings = settings_of(context)
    return on_stores(settings, lambda stores: use(build_admin(settings, stores)))


def with_usage(context: typer.Context, use: "Callable[[UsageAdmin], Awaitable[T]]") -> T:
    """Run one use case on usage reports."""
    from extproc.cli.use_cases import build_usage

    settings = settings_of(context)
    return on_stores(settings, lambda stores: use(build_usage(settings, stores)))


def with_closing(context: typer.Context, use: "Callable[[Closing], Awaitable[T]]") -> T:
    """Run one use case on closed months."""
    from extproc.cli.use_cases import build_closing

    settings = settings_of(context)
    refuse_memory("redis.url", settings.redis.url)
    return on_stores(settings, lambda stores: use(build_closing(settings, stores)))


def with_journal(context: typer.Context, use: "Callable[[JournalAdmin], Awaitable[T]]") -> T:
    """Run one use case on the entries that wait for the ledger."""
    from extproc.admin.journal import JournalAdmin

    settings = settings_of(context)
    refuse_memory("redis.url", settings.redis.url)
    return on_stores(settings, lambda stores: use(JournalAdmin(stores.counters, stores.ledger)))


def with_stores(context: typer.Context, use: "Callable[[composition.Stores], Awaitable[T]]") -> T:
    """Run one use case on the stores of the settings, of which MongoDB is asked."""
    return on_stores(settings_of(context), use)


def on_stores(settings: Settings, use: "Callable[[composition.Stores], Awaitable[T]]") -> T:
    """Run one use case on the stores."""
    # With the stores' drivers: most of the time that a command takes to start.
    from extproc import app as composition

    refuse_memory("mongo.url", settings.mongo.url)

    async def run() -> T:
        stores = composition.build_stores(settings)
        try:
            return await use(stores)
        finally:
            await stores.aclose()

    return asyncio.run(run())
