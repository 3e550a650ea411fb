"""A very short run of the measurement of two tenants on a real processor."""

import pytest

from benchmarks import fairness
from benchmarks.errors import CannotRunError
from tests.missing import missing, needing_parts
from tests.sizes import is_thorough

pytestmark = [
    pytest.mark.system,
    pytest.mark.usefixtures("as_before"),
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]
CAP = 20


async def test_a_tenant_with_ten_times_its_cap_has_its_cap_and_another_tenant_is_served():
    flags = ["--cap", str(CAP), "--wait", "0.1", "--rounds", "1", "--seconds", "1", "--settle", "0.7"]
    options = fairness._parser().parse_args([*flags, "--uncapped" if is_thorough() else "--no-uncapped"])
    with needing_parts():
        try:
            rows = await fairness._run(options)
        except CannotRunError as error:
            missing(str(error))
    (alone,), (capped,), *others = rows.values()
    for row in (alone, capped, *(row for (row,) in others)):
        # On a busy machine a request may get 503, or the quiet tenant may meet the cap itself.
        assert len(row.quiet.admission) + row.quiet.failed == 100
        assert len(row.quiet.admission) == len(row.quiet.piece) > 0
        assert row.cores > 0
    assert capped.noisy.most == CAP
    assert capped.noisy.refused > 0
    assert len(others) == is_thorough()
    for (uncapped,) in others:
        assert uncapped.noisy.most > CAP
        assert uncapped.noisy.refused == 0
