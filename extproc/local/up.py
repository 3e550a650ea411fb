"""Implement `tokenweir local up`: start the stack, play the story, print what to try, then stay or exit."""

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console

from extproc.app import build_stores
from extproc.local import stack as stacks
from extproc.local.errors import LocalError
from extproc.local.ports import HOST
from extproc.local.stack import Stack, StackOptions
from extproc.settings.load import load
from extproc.settings.model import Settings
from extproc.stores.urls import masked
from extproc.web.listening import ListenError, listen

# Not the story's account, because daily usage is kept per account, whatever its tenant is.
_ACCOUNT = "console@zone-test.example.com"
_SETTINGS = {
    # The sample model answers briefly: a hold of 256 tokens would not fit the story's limit of 400.
    "TOKENWEIR_COST__TYPICAL_OUTPUT_TOKENS": "64",
    # All parts run on this machine. While it is busy, no decision of the story may be refused.
    "TOKENWEIR_RESERVATION__DECISION_TIMEOUT_S": "0.5",
}


@dataclass(frozen=True, slots=True)
class UpOptions:
    """Hold the command's options."""

    upstream: str | None
    model: str | None
    redis: str | None
    mongo: str | None
    port: int | None
    story: bool
    stay: bool
    workers: int
    http_1_0: bool = False


async def run(options: UpOptions) -> int:
    """Return the exit code: 0, 1 if a check of the story failed, 130 if interrupted.

    Raise `LocalError`, `StoreError`, and `SettingsError` for an invalid store URL.
    """
    console = _Console(highlight=False, soft_wrap=True)
    _check_urls(options)
    interrupted, staying = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, interrupted.set)
    with tempfile.TemporaryDirectory(prefix="tokenweir-") as folder:
        work = asyncio.create_task(_up(options, Path(folder), console, interrupted, staying))
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


def _check_urls(options: UpOptions) -> None:
    """Check the URLs before anything starts, so that the user gets the processor's complaint at once, in one
    line.
    """
    _base_url(options.upstream)
    settings = _store_settings(options)
    if settings.redis.url.in_memory or settings.mongo.url.in_memory:
        raise LocalError("memory:// can't be shared with the processor; leave the option out")


def _store_settings(options: UpOptions) -> Settings:
    urls = {"TOKENWEIR_REDIS__URL": options.redis, "TOKENWEIR_MONGO__URL": options.mongo}
    return load(environment={name: url for name, url in urls.items() if url is not None})


async def _check_what_is_there(options: UpOptions) -> None:
    """Check the parts that run already before anything starts. Raise `LocalError` or `StoreError`, in one line."""
    if options.port is not None:
        try:
            listen(f"{HOST}:{options.port}").close()
        except ListenError as error:
            raise LocalError(f"--port: {error}") from None
    stores = build_stores(_store_settings(options))
    try:
        if options.redis is not None:
            await stores.counters.ping()
        if options.mongo is not None:
            await stores.tenants.documents()
    finally:
        await stores.aclose()


async def _up(
    options: UpOptions, folder: Path, console: Console, interrupted: asyncio.Event, staying: asyncio.Event
) -> int:
    await _check_what_is_there(options)
    upstream = _base_url(options.upstream)
    model = options.model or (stacks.SAMPLE_MODEL if upstream is None else await _first_model(upstream))
    started = time.monotonic()
    console.print("[bold]Starting the stack on 127.0.0.1[/bold]")
    stack_options = StackOptions(
        upstream=upstream,
        redis=options.redis,
        mongo=options.mongo,
        settings=_SETTINGS,
        processors=options.workers,
        gateway_port=options.port,
        envoy={"accept_http_1_0": options.http_1_0},
    )
    async with stacks.running(stack_options, folder, lambda part: console.print(f"  {part}")) as stack:
        console.print(f"  ready after {time.monotonic() - started:.1f} s: {stack.gateway}\n")
        good = True
        if options.story:
            from extproc.local.story import Caller, play

            # In stores that belong to others, the demo must not change their limits, and must work twice a day.
            own = options.redis is None and options.mongo is None
            good = await play(stack, model, Caller.talk() if own else Caller.unique(), console)
        _print_what_to_try(stack, model, console)
        if options.stay:
            staying.set()
            console.print("\n[bold]The stack is up. Ctrl-C ends it.[/bold]")
            await interrupted.wait()
        console.print("\nStopping …")
    console.print("Everything is stopped; nothing is left behind.")
    console.print(f"To call the command again: {this_command()} --help", markup=False)
    return 0 if good else 1


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

Metrics: {" ".join(stack.metrics)}""",
        markup=False,
    )


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
