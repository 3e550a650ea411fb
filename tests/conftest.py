"""What a run says at its end: which tests were not run, and why. Nothing that was skipped counts as passed."""

from collections import Counter

import hypothesis

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("tokenweir", deadline=None)
hypothesis.settings.load_profile("tokenweir")


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", [])
    terminalreporter.section("not run")
    if not skipped:
        terminalreporter.write_line("nothing: every part was there")
    reasons = Counter(report.longrepr[2] for report in skipped if isinstance(report.longrepr, tuple))
    for reason, tests in reasons.most_common():
        terminalreporter.write_line(f"{tests} tests: {reason.removeprefix('Skipped: ')}")
