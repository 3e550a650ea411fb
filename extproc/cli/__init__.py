"""Define the command `tokenweir`: thin commands over the use cases.

Exit codes: 0 done, 1 a fault (for example a store can't be reached), 2 wrong use (an option, a setting, a value),
3 not found, 4 changed by somebody else meanwhile.
"""

import sys
from io import TextIOWrapper

from extproc.admin.errors import AdminError, NotFoundError, StaleVersionError
from extproc.cli import output, root
from extproc.cli.root import FAULT, NOT_FOUND, STALE, WRONG_USE, CommandError
from extproc.envoy.serving import BindError
from extproc.onboarding.errors import HelmMissing, OnboardingError, PartMissing
from extproc.ports.base import StoreError
from extproc.settings.load import SettingsError

app = root.app


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
    except (StoreError, BindError, CommandError, HelmMissing, PartMissing) as error:
        _fail(error, FAULT)
    except (AdminError, SettingsError, OnboardingError) as error:
        _fail(error, WRONG_USE)


def _fail(error: Exception, code: int) -> None:
    for line in str(error).splitlines():
        output.note(f"tokenweir: {line}")
    sys.exit(code)
