"""Define the command `tokenweir`: thin commands over the use cases.

Exit codes: 0 done, 1 a fault (for example a store can't be reached), 2 wrong use (an option, a setting, a value),
3 not found, 4 changed by somebody else meanwhile.
"""

import sys
from io import TextIOWrapper

from extproc.admin.errors import AdminError, NotFoundError, StaleVersionError
from extproc.cli import (
    admin,
    apply,
    audit,
    config,
    doctor,
    erase,
    explain,
    export,
    ledger,
    local,
    message_dumper,
    model,
    output,
    request,
    root,
    serve,
    simulate,
    tenant,
    tenant_limit,
    usage,
)
from extproc.cli.root import FAULT, NOT_FOUND, STALE, WRONG_USE
from extproc.envoy.serving import BindError
from extproc.onboarding.errors import HelmMissing, OnboardingError, PartMissing
from extproc.ports.base import StoreError
from extproc.settings.load import SettingsError

app = root.app
app.add_typer(config.app, name="config")
app.add_typer(tenant.app, name="tenant")
app.add_typer(tenant_limit.app, name="limit")
app.add_typer(audit.app, name="audit")
app.add_typer(usage.app, name="usage")
app.add_typer(request.app, name="request")
app.add_typer(ledger.app, name="ledger")
app.add_typer(local.app, name="local")
app.add_typer(message_dumper.app, name="message-dumper")
app.add_typer(admin.app, name="admin")
app.add_typer(model.app, name="model")
app.command("serve", epilog=serve.EXAMPLES)(serve.serve)
app.command("apply", epilog=apply.EXAMPLES, cls=apply.Command)(apply.apply)
app.command("export", epilog=export.EXAMPLES)(export.export)
app.command("explain", epilog=explain.EXAMPLES)(explain.explain)
app.command("erase", epilog=erase.EXAMPLES)(erase.erase)
app.command("doctor", epilog=doctor.EXAMPLES)(doctor.doctor)
app.command("simulate", epilog=simulate.EXAMPLES)(simulate.simulate)


def main() -> None:
    """Run the command. A user's mistake becomes one line on stderr, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # Escape characters in names that the terminal's encoding can't show.
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except NotFoundError as error:
        _fail(error, NOT_FOUND)
    except StaleVersionError as error:
        _fail(error, STALE)
    except (StoreError, BindError, local.LocalFault, HelmMissing, PartMissing) as error:
        _fail(error, FAULT)
    except apply.DryRunError as error:
        _fail(error, FAULT)
    except (AdminError, SettingsError, OnboardingError) as error:
        _fail(error, WRONG_USE)


def _fail(error: Exception, code: int) -> None:
    for line in str(error).splitlines():
        output.note(f"tokenweir: {line}")
    sys.exit(code)
