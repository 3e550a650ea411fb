"""Define `tokenweir model init|validate|render|explain|diff|canary|ui`."""

import typer

from extproc.cli import model_canary, model_init, model_look, model_ui, model_validate

app = typer.Typer(help="One values file per model: draft, check, render, canary.", no_args_is_help=True)
app.command("init", epilog=model_init.EXAMPLES)(model_init.init)
app.command("validate", epilog=model_validate.EXAMPLES)(model_validate.validate)
app.command("render", epilog=model_look.RENDER_EXAMPLES)(model_look.render)
app.command("explain", epilog=model_look.EXPLAIN_EXAMPLES)(model_look.explain)
app.command("diff", epilog=model_look.DIFF_EXAMPLES)(model_look.diff)
app.add_typer(model_canary.app, name="canary")
app.command("ui", epilog=model_ui.EXAMPLES)(model_ui.ui)
