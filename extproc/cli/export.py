"""Define `tokenweir export`: all tenants as files that `apply` takes back."""

import hashlib
import os
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import quote

import typer
import yaml

from extproc.admin.errors import AdminError
from extproc.admin.exporting import Exported
from extproc.admin.service import Admin
from extproc.cli import output
from extproc.cli.root import with_admin
from extproc.ports.documents import Document
from extproc.terminal.tables import visible

EXAMPLES: Final = """
Examples:

    tokenweir export > tenants.yaml

    tokenweir export --to tenants/ && tokenweir apply -f tenants/ --dry-run
"""

# Most file systems take names of 255 bytes.
_NAME_BYTES: Final = 200
_NAMED: Final = 5
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def export(
    context: typer.Context,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="DIR", help="A folder: one YAML file a tenant. Default: all to stdout."),
    ] = None,
) -> None:
    """Write all tenants' documents as YAML. `tokenweir apply` takes them back, and then finds no difference.

    Versions, dates and fields of other programs are left out.
    """
    if to is None:
        with_admin(context, _to_stdout)
        return
    folder = _Folder(to)

    async def export_all(admin: Admin) -> None:
        async for each in admin.export():
            folder.write(each)

    with_admin(context, export_all)
    folder.note_others()
    typer.echo(visible(f"Exported {len(folder.written):,} tenants to {to}."))


async def _to_stdout(admin: Admin) -> None:
    async for each in admin.export():
        typer.echo("---\n" + _text(each.document), nl=False)


class _Folder:
    """Write a file for each tenant."""

    def __init__(self, path: Path) -> None:
        self.written: set[str] = set()
        self._path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._fault(error) from None

    def write(self, exported: Exported) -> None:
        """Write a file whole or not at all; one that is as wanted stays untouched. Raise `AdminError`."""
        name, text = file_name(exported.tenant), _text(exported.document).encode()
        self.written.add(name)
        path, aside = self._path / name, self._path / f".{name}.{os.getpid()}"
        try:
            if not path.exists() or path.read_bytes() != text:
                aside.write_bytes(text)
                aside.replace(path)
        except OSError as error:
            raise self._fault(error) from None

    def note_others(self) -> None:
        """Print a note of files of tenants that are gone: applying the folder would make them again."""
        others = sorted(path.name for path in self._path.glob("*.yaml") if path.name not in self.written)
        if others:
            more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
            output.note(
                f"{self._path} has files of no tenant that there is now: {', '.join(others[:_NAMED])}{more}"
            )

    def _fault(self, error: OSError) -> AdminError:
        return AdminError(f"{self._path}: can't be written: {error.strerror or error}")


def file_name(tenant: str) -> str:
    """Return the name of a tenant's file: no two tenants share one, and none is hidden."""
    name = quote(tenant, safe="@+,=")
    name = name.replace(".", "%2E", 1) if name.startswith(".") else name
    if len(name) > _NAME_BYTES:
        name = f"{name[:_NAME_BYTES]}~{hashlib.sha256(tenant.encode()).hexdigest()[:16]}"
    return f"{name}.yaml"


def _text(document: Document) -> str:
    return yaml.dump(dict(document), Dumper=_DUMPER, sort_keys=False, allow_unicode=True, width=110)
