"""The figure of each promise: one line, told at the end of the run whether its test passed or not."""

from .sizes import seed

_PROPERTY = "figure"


class Figures:
    """Takes the lines of one test."""

    def __init__(self, record_property):
        self._record = record_property

    def __call__(self, promise, text):
        """`promise` is its number, such as R1."""
        self._record(_PROPERTY, f"{promise}: {text}, seed {seed()}")


def lines_of(reports):
    """The lines that the tests told, in order of the promises; a failed test's are marked."""
    found = []
    for report in reports:
        if getattr(report, "when", None) == "call":
            failed = "" if report.passed else "  <- FAILED"
            found += [f"{text}{failed}" for name, text in report.user_properties if name == _PROPERTY]
    return sorted(found, key=_order)


def _order(line):
    name = line.partition(":")[0]
    return (int(name[1:]) if name[1:].isdigit() else 99, line)
