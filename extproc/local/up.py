"""Implement `tokenweir local up`: start the stack, play the story, print what to try, then stay or exit."""

import asyncio
import importlib
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel
from rich.console import Console

from extproc.app import build_stores
from extproc.local import running
from extproc.local import stack as stacks
from extproc.local.errors import LocalError
from extproc.local.ports import HOST
from extproc.local.process import Child, ChildError
from extproc.local.stack import Stack, StackOptions
from extproc.settings.load import load
from extproc.settings.model import Settings
from extproc.stores.urls import masked
from extproc.web.listening import ListenError, listen

T = TypeVar("T")

# Not the story's account, because daily usage is kept per account, whatever its tenant is.
_ACCOUNT = "console@zone-test.example.com"
_LOG_LINES = 10
# Settings of a file that do not apply to a stack on this machine.
_NOT_HERE = (
    "TOKENWEIR_SERVER__TLS__CERTIFICATE_FILE",
    "TOKENWEIR_SERVER__TLS__KEY_FILE",
    "TOKENWEIR_SERVER__TLS__CLIENT_CA_FILE",
    "TOKENWEIR_SERVER__TLS__ALLOWED_SANS",
    "TOKENWEIR_REDIS__URL_FILE",
    "TOKENWEIR_MONGO__URL_FILE",
)
_SETTINGS = {
    # The sample model answers briefly: a hold of 256 tokens would not fit the story's limit of 400.
    "TOKENWEIR_COST__TYPICAL_OUTPUT_TOKENS": "64",
    # All parts run on this machine. While it is busy, no decision of the story may be refused.
    "TOKENWEIR_RESERVATION__DECISION_TIMEOUT_S": "0.5",
}


@dataclass(frozen=True, slots=True)
class UpOptions:
    """Hold the command's options. `config` is a settings file, which the processor gets too."""

    upstream: str | None
    model: str | None
    redis: str | None
    mongo: str | None
    port: int | None
    story: bool
    stay: bool
    workers: int
    http_1_0: bool = False
    config: Path | None = None


async def run(options: UpOptions) -> int:
    """Return the exit code: 0, 1 if a check of the story failed, 130 if interrupted.

    Raise `LocalError`, `StoreError`, and `SettingsError` for an invalid store URL.
    """
    console = _Console(highlight=False, soft_wrap=True)
    settings = _checked(options)
    for pid in running.clean_up():
        console.print(f"Cleaned up what process {pid} left, which was killed.")
    interrupted, staying = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, interrupted.set)
    with tempfile.TemporaryDirectory(prefix=running.FOLDER_PREFIX) as folder:
        running.write_note(Path(folder))
        work = asyncio.create_task(_up(options, settings, Path(folder), console, interrupted, staying))
        stop = asyncio.create_task(interrupted.wait())
        await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        # Abort the start and the story. Staying ends by itself, and stopping may take its time.
        if not staying.is_set():
            work.cancel()
        try:
            return await work
        except asyncio.CancelledError:
            console.print("Interrupted; everything is stopped.")
            return 130
        except BrokenPipeError:  # the reader has gone, as with `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # the default SystemExit would not end the tasks in order


def _checked(options: UpOptions) -> Settings:
    """Check file and URLs before anything starts, so that the user gets the processor's complaint at once, in one
    line. Return the settings.
    """
    _base_url(options.upstream)
    settings = _settings(options)
    if settings.redis.url.in_memory or settings.mongo.url.in_memory:
        raise LocalError("memory:// can't be shared with the processor; leave the option out")
    return settings


def _settings(options: UpOptions) -> Settings:
    urls = {
        "TOKENWEIR_REDIS__URL": (options.redis, "TOKENWEIR_REDIS__URL_FILE"),
        "TOKENWEIR_MONGO__URL": (options.mongo, "TOKENWEIR_MONGO__URL_FILE"),
    }
    given = {name: each for name, each in urls.items() if each[0] is not None}
    instead = {file: "null" for _, file in given.values()}
    return load(options.config, {**{name: str(url) for name, (url, _) in given.items()}, **instead})


def _with_stores(options: UpOptions, settings: Settings) -> UpOptions:
    """Return the options with the stores that the settings file names, unless the command line names others."""
    redis, mongo = settings.redis, settings.mongo
    return replace(
        options,
        redis=redis.url.get_secret_value() if "url" in redis.model_fields_set else options.redis,
        mongo=mongo.url.get_secret_value() if "url" in mongo.model_fields_set else options.mongo,
    )


def _environment(options: UpOptions, settings: Settings) -> dict[str, str]:
    """Return the variables of the processor: what the stack decides, over the settings file."""
    given = {
        f"TOKENWEIR_{section.upper()}__{name.upper()}"
        for section in type(settings).model_fields
        if isinstance(inner := getattr(settings, section), BaseModel)
        for name in inner.model_fields_set
    }
    variables = {name: text for name, text in _SETTINGS.items() if name not in given}
    if options.config is not None:
        # Envoy is on this machine; and each store is named by its URL.
        variables |= {name: "null" for name in _NOT_HERE if name in given or "TLS" in name}
        variables["TOKENWEIR_CONFIG"] = str(options.config.resolve())
    return variables


def _by(port: int) -> str:
    holder = running.holder_of(port)
    return f" (by {holder})" if holder is not None else ""


async def _check_what_is_there(options: UpOptions, settings: Settings) -> None:
    """Check the parts that run already before anything starts. Raise `LocalError` or `StoreError`, in one line."""
    if options.port is not None:
        try:
            listen(f"{HOST}:{options.port}").close()
        except ListenError as error:
            raise LocalError(f"--port: {error}{_by(options.port)}") from None
    stores = build_stores(settings)
    try:
        if options.redis is not None:
            await stores.counters.ping()
        if options.mongo is not None:
            await stores.tenants.documents()
    finally:
        await stores.aclose()


async def _up(  # noqa: PLR0917
    options: UpOptions,
    settings: Settings,
    folder: Path,
    console: Console,
    interrupted: asyncio.Event,
    staying: asyncio.Event,
) -> int:
    await _check_what_is_there(options, settings)
    options = _with_stores(options, settings)
    upstream = _base_url(options.upstream)
    model = options.model or (stacks.SAMPLE_MODEL if upstream is None else await _first_model(upstream))
    started = time.monotonic()
    console.print("[bold]Starting the stack on 127.0.0.1[/bold]")
    stack_options = StackOptions(
        upstream=upstream,
        redis=options.redis,
        mongo=options.mongo,
        settings=_environment(options, settings),
        processors=options.workers,
        gateway_port=options.port,
        envoy={
            "accept_http_1_0": options.http_1_0,
            "share_port": False,
            "max_body_bytes": settings.server.max_body_bytes,
            "identity_headers": _identity_headers(settings),
        },
        admin_api=_has_admin_api(),
    )
    async with _started(stack_options, folder, lambda part: console.print(f"  {part}")) as stack:
        running.write_note(
            folder, gateway=stack.gateway, admin_port=stack.admin_port, issuer_key=stack.issuer.private_pem()
        )
        console.print(f"  ready after {time.monotonic() - started:.1f} s: {stack.gateway}\n")
        good = True
        if options.story:
            from extproc.local.story import Caller, play

            # In stores that belong to others, the demo must not change their limits, and must work twice a day.
            own = options.redis is None and options.mongo is None
            playing = play(stack, model, Caller.talk() if own else Caller.unique(), console)
            good = await _unless_a_part_ends(stack, playing)
        _print_what_to_try(stack, model, console)
        if options.stay:
            staying.set()
            console.print("\n[bold]The stack is up. Ctrl-C ends it.[/bold]")
            await _unless_a_part_ends(stack, interrupted.wait())
        console.print("\nStopping …")
    console.print("Everything is stopped; nothing is left behind.")
    console.print(f"To call the command again: {this_command()} --help", markup=False)
    return 0 if good else 1


@asynccontextmanager
async def _started(options: StackOptions, folder: Path, report: Callable[[str], None]) -> AsyncIterator[Stack]:
    """Run the stack. Name who has the gateway's port if it was taken since it was looked at."""
    try:
        async with stacks.running(options, folder, report) as stack:
            yield stack
    except ChildError as error:
        if options.gateway_port is None or "ddress already in use" not in str(error):
            raise
        port = options.gateway_port
        raise LocalError(f"--port: {HOST}:{port} was taken meanwhile{_by(port)}") from None


async def _unless_a_part_ends(stack: Stack, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of the work. If a part of the stack ends before, cancel it and raise `LocalError`."""
    doing = asyncio.ensure_future(work)
    ends = {asyncio.ensure_future(child.wait()): child for child in stack.children}
    try:
        await asyncio.wait({doing, *ends}, return_when=asyncio.FIRST_COMPLETED)
        ended = [child for end, child in ends.items() if end.done()]
        if ended:
            raise LocalError(_how_it_ended(ended[0]))
        return await doing
    finally:
        for task in (doing, *ends):
            task.cancel()
        await asyncio.wait({doing, *ends})


def _how_it_ended(child: Child) -> str:
    status = child.returncode or 0
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    log = child.log_tail(_LOG_LINES)
    return f"the part {child.name} {how}, so the stack is stopped. " + (
        f"Its last lines:\n{log}" if log else "It wrote nothing."
    )


def _identity_headers(settings: Settings) -> tuple[str, ...]:
    headers = (settings.identity.service_account_header, settings.identity.tenant_header)
    return tuple(dict.fromkeys(("oc_sa", *(header for header in headers if header is not None))))


def _has_admin_api() -> bool:
    """Return whether the admin API is installed here."""
    try:
        return importlib.util.find_spec("extproc.admin_app") is not None and bool(
            importlib.import_module("extproc.admin_app")
        )
    except ImportError:
        return False


def _base_url(url: str | None) -> str | None:
    """Return the URL without a trailing /v1, which people add because OpenAI's clients need it."""
    if url is None:
        return None
    base = url.rstrip("/").removesuffix("/v1")
    if not _is_base_url(base):
        raise LocalError(f"--upstream must be http(s)://host[:port], not '{url}'")
    return base


def _is_base_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        in_range = parts.port != 0  # raises for an invalid port
    except ValueError:
        return False
    further = parts.path or parts.query or parts.fragment or parts.username is not None
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and in_range and not further


async def _first_model(upstream: str) -> str:
    import httpx

    try:
        async with httpx.AsyncClient(timeout=10, trust_env=False) as client:
            listed = (await client.get(f"{upstream}/v1/models")).json()
        return str(listed["data"][0]["id"])
    except httpx.HTTPError as error:
        raise LocalError(f"--upstream {upstream} does not answer: {error}") from None
    except (ValueError, KeyError, IndexError, TypeError):
        raise LocalError(f"{upstream}/v1/models lists no model: give --model") from None


def _print_what_to_try(stack: Stack, model: str, console: Console) -> None:
    token = stack.issuer.issue(_ACCOUNT, tenant="tenant02", ttl_s=86_400)
    # Don't print the password of a store that belongs to others.
    environment = " ".join(f"{name}='{masked(value)}'" for name, value in stack.environment.items())
    command = this_command()
    json = '-H "Authorization: Bearer $TOKEN" -H "Content-Type: application/json"'
    console.print("\n[bold]Try it[/bold] (tenant02 has no limits of its own: the defaults bind it)")
    console.print(
        f"""
TOKEN={token}

curl {stack.gateway}/v1/chat/completions {json} \\
  -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "1 + 1 =?"}}]}}'

curl -N {stack.gateway}/v1/chat/completions {json} \\
  -d '{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": "1 + 1 =?"}}]}}'

curl {stack.gateway}/v1/quota -H "Authorization: Bearer $TOKEN"

export {environment}
{command} usage daily
{command} explain tenant02 {_ACCOUNT} 127.0.0.1
{command} tenant set tenant02 --sa-limit 500 --mode strict
{command} usage export > ledger.jsonl

{command} local token {_ACCOUNT} --tenant tenant01
{command} doctor --envoy-admin http://{HOST}:{stack.admin_port}

Metrics: {" ".join(stack.metrics)}"""
        + (_about_the_admin_api(stack.admin_api, command) if stack.admin_api is not None else ""),
        markup=False,
    )


def _about_the_admin_api(url: str, command: str) -> str:
    return f"\nAdmin API: {url} (a token for it: {command} admin token issue --name me --role admin)"


def this_command() -> str:
    """Return the command as a shell in this folder takes it: its path, unless it is on the PATH."""
    called = Path(sys.argv[0])
    if called.name != "tokenweir":
        return f"{sys.executable} -m extproc"
    found = shutil.which("tokenweir")
    if found is not None and called.exists() and called.samefile(found):
        return "tokenweir"
    here = Path.cwd()
    absolute = here / called
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)
