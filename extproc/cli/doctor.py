"""Define `tokenweir doctor`."""

import asyncio
import json as jsonlib
from typing import Annotated, Final
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

import typer

from extproc import app as composition
from extproc.admin.doctor import is_sound
from extproc.admin.doctor_envoy import Expected
from extproc.admin.errors import AdminError
from extproc.admin.findings import Finding, Level, error
from extproc.cli import output
from extproc.cli.building import build_doctor
from extproc.cli.doctor_settings import PART, judged_settings
from extproc.cli.root import FAULT, Json, settings_of
from extproc.settings.load import SettingsError
from extproc.settings.model import Settings
from extproc.terminal.tables import visible

EXAMPLES = """
Examples:

    tokenweir -c tokenweir.yaml doctor

    tokenweir -c tokenweir.yaml doctor --envoy-admin http://127.0.0.1:9901 --json

Exit codes: 0 no errors, 1 there are some, 2 wrong use.
"""
_TIMEOUT_S: Final = 10.0
_MAX_BYTES: Final = 256 << 20  # a gateway of many routes has a large dump


def doctor(
    context: typer.Context,
    envoy_admin: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Check Envoy too, by its admin port; may be repeated."),
    ] = None,
    json: Json = False,
) -> None:
    """Check settings, Redis, MongoDB, clocks and Envoy; name each problem with its consequence and its fix.

    Changes nothing.
    """
    for url in envoy_admin or ():
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise AdminError(f"--envoy-admin must be a URL such as http://127.0.0.1:9901, not {url[:80]!r}")
    try:
        settings = settings_of(context)
    except SettingsError as problem:
        findings = [
            error(PART, line, "no process starts with them", "correct it; docs/settings.md lists all settings")
            for line in str(problem).splitlines()
        ]
    else:
        findings = [*judged_settings(settings), *asyncio.run(_checked(settings, envoy_admin or []))]
    if json:
        output.as_json({"sound": is_sound(findings), "findings": findings})
    else:
        _print(findings)
    if not is_sound(findings):
        raise typer.Exit(FAULT)


async def _checked(settings: Settings, envoys: list[str]) -> list[Finding]:
    stores = composition.build_stores(settings)
    try:
        doctor = build_doctor(stores)
        findings = await doctor.stores()
        identity = settings.identity
        headers = (identity.service_account_header, identity.tenant_header)
        expected = Expected(
            jwt_namespace=identity.jwt_namespace,
            identity_headers=tuple(header for header in headers if header is not None),
            max_body_bytes=settings.server.max_body_bytes,
            decision_timeout_s=settings.reservation.decision_timeout_s,
        )
        for url in envoys:
            findings += await doctor.envoy(lambda path, url=url: asyncio.to_thread(_get, url, path), expected)  # type: ignore[misc]
        return findings
    finally:
        await stores.aclose()


def _get(url: str, path: str) -> object:
    """Return the JSON behind a path of Envoy's admin port. Raise OSError or ValueError."""
    opener = build_opener(ProxyHandler({}))  # an admin port is no matter for a proxy
    try:
        with opener.open(url.rstrip("/") + path, timeout=_TIMEOUT_S) as answer:
            text = answer.read(_MAX_BYTES + 1)
    except URLError as problem:
        raise OSError(f"{url}: {problem.reason}") from None
    if len(text) > _MAX_BYTES:
        raise ValueError(f"{url}: more than {_MAX_BYTES} bytes")
    try:
        return jsonlib.loads(text)
    except RecursionError:
        raise ValueError(f"{url}: no JSON of a config_dump") from None


def _print(findings: list[Finding]) -> None:
    for finding in findings:
        typer.echo(visible(f"{finding.level.value:<8} {finding.part}: {finding.what}"))
        if finding.consequence:
            typer.echo(visible(f"         consequence: {finding.consequence}"))
        if finding.fix:
            typer.echo(visible(f"         fix: {finding.fix}"))
    counts = {level: sum(finding.level is level for finding in findings) for level in Level}
    told = ", ".join(f"{count} {level.value}" for level, count in counts.items() if count)
    typer.echo(f"\n{told}")
