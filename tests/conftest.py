"""What a run says at its end: which tests were not run, and why. Nothing that was skipped counts as passed."""

import os
from collections import Counter

import hypothesis

# Before anything imports grpc: its handlers crash some of the children that are started while it is in use. None of
# them uses gRPC before it is another program.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

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
