"""A very short run of the measurement of many streams on a real processor."""

import pytest

from benchmarks import many_streams
from benchmarks.errors import CannotRunError
from tests.missing import missing, needing_parts

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("as_before"), pytest.mark.timeout(300)]


async def test_all_streams_are_opened_have_their_chunks_and_end():
    flags = ["--streams", "40", "--opened", "200", "--chunks", "200", "--seconds", "0.4"]
    with needing_parts():
        try:
            result = await many_streams.run(many_streams.parser().parse_args(flags))
        except CannotRunError as error:
            missing(str(error))
    done = {phase.name: (len(phase.took_ms), phase.failed) for phase in result.phases}
    if not any(failed for _, failed in done.values()):  # on a busy machine a request may get 503
        assert done == {"open": (40, 0), "first chunk": (40, 0), "chunk": (80, 0), "end": (40, 0)}
    assert sum(done["open"]) == sum(done["end"]) == 40
    assert all(count for count, _ in done.values())
    assert result.stream_bytes > 0
    assert all(phase.cpu_s > 0 for phase in result.phases)
