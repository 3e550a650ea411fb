"""Define `tokenweir config check|show`."""

import typer
import yaml

from extproc.cli import output
from extproc.cli.root import WRONG_USE, Json, serving_settings_of, settings_of
from extproc.settings.load import SettingsError

app = typer.Typer(help="Check and show the settings.", no_args_is_help=True)

_EXAMPLES = """
Examples:

    tokenweir -c tokenweir.yaml config check

    TOKENWEIR_REDIS__URL=redis://redis:6379 tokenweir config show --json
"""


@app.command(epilog=_EXAMPLES)
def check(context: typer.Context, json: Json = False) -> None:
    """Check file and environment, and name each problem. Connects to nothing."""
    try:
        serving_settings_of(context)
    except SettingsError as error:
        if not json:
            raise
        output.as_json({"valid": False, "problems": str(error).splitlines()})
        raise typer.Exit(WRONG_USE) from None
    if json:
        output.as_json({"valid": True, "problems": []})
    else:
        typer.echo("The settings are valid.")


@app.command(epilog=_EXAMPLES)
def show(context: typer.Context, json: Json = False) -> None:
    """Show the settings in effect, defaults included. Passwords are masked."""
    values = settings_of(context).model_dump(mode="json")
    if json:
        output.as_json(values)
    else:
        typer.echo(yaml.safe_dump(values, sort_keys=False).rstrip())
