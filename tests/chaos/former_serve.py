"""Run `tokenweir serve` of version 0.1 with longer bounds than its settings allow, as tests/patient.py does.

The first argument is the folder of its code, which PYTHONPATH has to name first.
"""

import os
import sys
from functools import partial
from pathlib import Path

import extproc
from extproc import app
from extproc.cli import main
from extproc.cli import serve as command
from extproc.serve import serve
from extproc.stores.redis import RedisOptions

DECISION_S = 30.0
REDIS_S = 30.0
# What a whole run of the tests may be given, and version 0.1 does not know.
UNKNOWN = ("TOKENWEIR_SERVER__TRANSPORT",)


def serve_patiently(settings):
    """Serve with a bound of `DECISION_S` on each decision."""
    reservation = settings.reservation.model_copy(update={"decision_timeout_s": DECISION_S})
    return serve(settings.model_copy(update={"reservation": reservation}))


if __name__ == "__main__":
    code = Path(sys.argv.pop(1))
    if extproc.__version__ != "0.1.0" or not Path(extproc.__file__).is_relative_to(code):
        sys.exit(f"not version 0.1 of {code}: {extproc.__version__} of {extproc.__file__}")
    assert command.run is serve
    assert app.RedisOptions is RedisOptions
    command.run = serve_patiently
    app.RedisOptions = partial(
        RedisOptions, connect_timeout_s=REDIS_S, command_timeout_s=REDIS_S, batch_timeout_s=REDIS_S
    )
    for name in UNKNOWN:
        os.environ.pop(name, None)
    main()
