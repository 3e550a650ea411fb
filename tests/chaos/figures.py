"""The figure of each promise: one line, told at the end of the run whether its test passed or not."""

from .sizes import seed

_PROPERTY = "figure"
_AGAIN = "serving again"


class Figures:
    """Takes the lines of one test."""

    def __init__(self, record_property):
        self._record = record_property

    def __call__(self, promise, text):
        """`promise` is its number, such as R1."""
        self._record(_PROPERTY, f"{promise}: {text}, seed {seed()}")

    def served_again(self, median_s, worst_s):
        """Take the seconds until service of one run, for the line over all runs."""
        self._record(_AGAIN, [median_s, worst_s])


def lines_of(reports):
    """The lines that the tests told, in order of the promises; a failed test's are marked."""
    found, again = [], []
    for report in reports:
        if getattr(report, "when", None) == "call":
            failed = "" if report.passed else "  <- FAILED"
            found += [f"{text}{failed}" for name, text in report.user_properties if name == _PROPERTY]
            again += [text for name, text in report.user_properties if name == _AGAIN]
    return sorted(found, key=_order) + (_over_all(again) if again else [])


def _over_all(again):
    """Return one line over all runs: the seconds from the last needed store's answer until decisions are made again."""
    medians, worst = (sorted(values) for values in zip(*again, strict=True))
    told = [
        f"{what} p50 {_at(values, 50):.2f} s, p90 {_at(values, 90):.2f} s, max {values[-1]:.2f} s"
        for what, values in (("medians", medians), ("worst", worst))
    ]
    return [f"R11: serving again over all {len(again)} cases: {'; '.join(told)}"]


def _at(values, percent):
    """Return a percentile of sorted values: the smallest one that so many percent of them do not exceed."""
    return values[max(0, -(-len(values) * percent // 100) - 1)]


def _order(line):
    name = line.partition(":")[0]
    return (int(name[1:]) if name[1:].isdigit() else 99, line)
