"""The spool: a real file on a real disk, and what a process leaves in it however it ends."""

import asyncio
import fcntl
import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from extproc.core.quota.costs import Cost
from extproc.core.quota.ledger import closed_entry
from extproc.core.quota.reservation import Reservation
from extproc.core.quota.settlement import Outcome, Settlement
from extproc.core.quota.usage import Usage
from extproc.core.request.endpoints import Endpoint
from extproc.core.request.identity import Identity
from extproc.ports.base import StoreError
from extproc.ports.counters import Closing
from extproc.stores import spool as spools
from extproc.stores.spool import FileSpool, NoSpool, SpoolError, SpoolOptions, left_behind
from tests.changing import replace

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def reservation(name="r1"):
    identity = Identity("acme", "sa", "10.0.0.1")
    return Reservation(
        id=name, request_id="q", identity=identity, endpoint=Endpoint.CHAT_COMPLETIONS, model="m", stream=True,
        cost=Cost(5, 5), buckets=(), admitted_at=NOW, date="2026-03-01", deadline=NOW.timestamp() + 900, local=True,
    )  # fmt: skip


def closing(name="r1", charge=7):
    of = reservation(name)
    settlement = Settlement(Outcome.SETTLED, Usage(charge - 1, 1, total=charge), charge, "usage", 200)
    return Closing(of, Outcome.SETTLED, (), (), closed_entry(of, settlement, NOW))


def opened(directory, name="here", max_bytes=1 << 20):
    return FileSpool(SpoolOptions(directory, max_bytes), name)


def found(directory):
    """What another process would find."""
    return [
        (each.path.name, [r.id for r in each.unended], [c.reservation.id for c in each.ended], each.unreadable)
        for each in left_behind(directory)
    ]


@contextmanager
def killed(spool):
    """Its process is gone: the kernel has let go of its file."""
    fcntl.flock(spool._file, fcntl.LOCK_UN)
    yield
    os.close(spool._file)


async def on_disk(spool):
    while spool._queue or (spool._flushing is not None and not spool._flushing.done()):  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def test_what_was_opened_ended_and_done_is_found_as_it_stood(tmp_path):
    spool = opened(tmp_path)
    for name in ("a", "b", "c"):
        await spool.opened(reservation(name))
    spool.ended(closing("b"))
    spool.ended(closing("c"))
    spool.done(["c"])
    await on_disk(spool)
    with killed(spool):
        (left,) = left_behind(tmp_path)
        assert left.unended == [reservation("a")]
        assert left.ended == [closing("b")]
        assert left.unreadable == 0


async def test_what_is_opened_is_on_disk_when_that_returns(tmp_path):
    spool = opened(tmp_path)
    await asyncio.gather(*(spool.opened(reservation(f"r{n}")) for n in range(50)))
    with killed(spool):
        ((_, unended, _, _),) = found(tmp_path)
    assert unended == [f"r{n}" for n in range(50)]


async def test_who_waits_for_the_disk_does_not_wait_for_what_comes_later(tmp_path):
    spool = opened(tmp_path)
    write, written = spool._write, []

    def endless(data, *, empty):
        write(data, empty=empty)
        written.append(data)
        if len(written) < 100:
            loop.call_soon_threadsafe(spool.ended, closing(f"later{len(written)}"))

    loop, spool._write = asyncio.get_running_loop(), endless
    await spool.opened(reservation())
    assert len(written) < 50
    await on_disk(spool)
    os.close(spool._file)


async def test_a_living_process_keeps_its_file_to_itself(tmp_path):
    spool = opened(tmp_path)
    await spool.opened(reservation())
    assert found(tmp_path) == []
    with killed(spool):
        assert found(tmp_path) == [("here.spool", ["r1"], [], 0)]


async def test_a_file_that_somebody_replays_is_left_alone_by_others(tmp_path):
    spool = opened(tmp_path)
    await spool.opened(reservation())
    with killed(spool):
        looking = left_behind(tmp_path)
        left = next(looking)
        assert found(tmp_path) == []
        left.remove()
        assert next(looking, None) is None
        assert found(tmp_path) == []


async def test_a_file_that_goes_while_one_looks_is_not_replayed_again(tmp_path, monkeypatch):
    """Opened here, then replayed and removed by another, and only then locked here."""
    spool = opened(tmp_path)
    await spool.opened(reservation())
    with killed(spool):
        flock = fcntl.flock

        def late(file, how):
            spool.path.unlink()
            flock(file, how)

        monkeypatch.setattr(spools.fcntl, "flock", late)
        assert found(tmp_path) == []


async def test_a_file_has_its_name_only_when_it_is_locked(tmp_path, monkeypatch):
    flock, seen = fcntl.flock, []
    monkeypatch.setattr(spools.fcntl, "flock", lambda *given: (seen.append(found(tmp_path)), flock(*given)))
    with monkeypatch.context() as patched:
        patched.setattr(spools, "_read", lambda *_: pytest.fail("it belongs to somebody"))
        spool = opened(tmp_path)
    assert seen[-1] == []
    await spool.aclose()


async def test_nothing_is_left_where_nothing_is_needed_any_more(tmp_path):
    spool = opened(tmp_path)
    await spool.opened(reservation())
    spool.done(["r1"])
    await spool.aclose()
    assert list(tmp_path.iterdir()) == []


async def test_what_is_needed_stays_when_it_is_closed(tmp_path):
    spool = opened(tmp_path)
    await spool.opened(reservation())
    spool.ended(closing())
    await spool.aclose()
    assert found(tmp_path) == [("here.spool", [], ["r1"], 0)]


async def test_the_file_is_emptied_when_nothing_in_it_is_needed_any_more(tmp_path):
    spool = opened(tmp_path)
    for name in ("a", "b"):
        await spool.opened(reservation(name))
    spool.done(["a", "unknown"])
    await on_disk(spool)
    assert spool.size == spool.path.stat().st_size > 0
    spool.done(["b"])
    await on_disk(spool)
    assert spool.size == spool.path.stat().st_size == 0
    assert spool._promised == 0
    await spool.opened(reservation("c"))
    with killed(spool):
        assert found(tmp_path) == [("here.spool", ["c"], [], 0)]


async def test_it_never_grows_beyond_its_bound_even_when_all_that_was_opened_ends(tmp_path):
    spool = opened(tmp_path, max_bytes=20_000)
    admitted = []
    with suppress(StoreError):
        while len(admitted) < 1000:
            await spool.opened(reservation(f"r{len(admitted)}"))
            admitted.append(f"r{len(admitted)}")
    with pytest.raises(StoreError, match="the spool is full") as raised:
        await spool.opened(reservation("one more"))
    assert raised.value.transient
    assert len(admitted) > 5
    for name in admitted:
        spool.ended(closing(name))
    await on_disk(spool)
    assert spool.path.stat().st_size <= 20_000
    with killed(spool):
        assert found(tmp_path) == [("here.spool", [], admitted, 0)]


async def test_of_what_is_kept_at_the_end_as_much_is_kept_as_there_is_room_for(tmp_path):
    spool = opened(tmp_path, max_bytes=5000)
    with pytest.raises(StoreError, match=r"the spool is full: \d+ ends did not fit"):
        await spool.keep([closing(f"r{n}") for n in range(100)])
    assert 1000 < spool.path.stat().st_size <= 5000
    await spool.keep([])
    await spool.aclose()
    ((_, _, ended, unreadable),) = found(tmp_path)
    assert ended == [f"r{n}" for n in range(len(ended))]
    assert unreadable == 0


async def test_a_line_that_was_torn_by_a_kill_is_left_out(tmp_path):
    spool = opened(tmp_path)
    await spool.opened(reservation("a"))
    await spool.opened(reservation("b"))
    with killed(spool):
        os.truncate(spool.path, spool.path.stat().st_size - 20)
        assert found(tmp_path) == [("here.spool", ["a"], [], 1)]


@contextmanager
def full_disk(size):
    """No file can grow beyond `size`."""
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


async def test_a_full_disk_admits_nothing_and_spoils_nothing(tmp_path, caplog):
    spool = opened(tmp_path)
    await spool.opened(reservation("a"))
    with full_disk(spool.size + 30):
        with pytest.raises(StoreError, match="the spool can't be written to: File too large") as raised:
            await spool.opened(reservation("b"))
        assert raised.value.transient
        spool.done(["b"])
        spool.ended(closing("a"))
        await on_disk_or_failed(spool)
    assert "spool: write failed: records stay queued for the next write" in caplog.messages
    await spool.opened(reservation("c"))  # there is room again
    await on_disk(spool)
    with killed(spool):
        assert found(tmp_path) == [("here.spool", ["c"], ["a"], 0)]


async def on_disk_or_failed(spool):
    while not spool._flushing.done():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def test_who_came_while_a_write_failed_is_told_too(tmp_path):
    spool = opened(tmp_path)
    with full_disk(10):
        async with asyncio.timeout(5):
            told = await asyncio.gather(
                *(spool.opened(reservation(f"r{n}")) for n in range(5)), return_exceptions=True
            )
    assert {type(each) for each in told} == {StoreError}
    os.close(spool._file)


CHILD = """
import asyncio, sys
sys.path.insert(0, {tests!r})
from test_spool import closing, opened, reservation
from pathlib import Path

async def main():
    spool = opened(Path({directory!r}), "child")
    n = 0
    while True:
        await asyncio.gather(*(spool.opened(reservation(f"r{{n + i}}")) for i in range(20)))
        print(n + 20, flush=True)
        for i in range(0, 20, 2):
            spool.ended(closing(f"r{{n + i}}"))
        n += 20

asyncio.run(main())
"""


def test_what_a_process_said_was_written_survives_its_kill_in_the_middle_of_a_write(tmp_path):
    program = CHILD.format(tests=str(Path(__file__).parent), directory=str(tmp_path))
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        said = [int(child.stdout.readline()) for _ in range(5)]
        assert found(tmp_path) == []
        child.kill()
        said += [int(line) for line in child.stdout.read().split()]
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    ((name, unended, ended, unreadable),) = found(tmp_path)
    assert name == "child.spool"
    assert {f"r{n}" for n in range(max(said))} <= {*unended, *ended}
    assert unreadable <= 1


@pytest.mark.parametrize(
    ("mode", "message"), [(0o777, "others may write there"), (0o770, "others may write there")]
)
def test_a_directory_that_others_can_write_to_is_refused(tmp_path, mode, message):
    tmp_path.chmod(mode)
    with pytest.raises(SpoolError, match=message):
        opened(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_of_another_user_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(spools.os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(SpoolError, match="others may write there"):
        opened(tmp_path)


def test_a_directory_that_cant_be_written_to_is_refused():
    with pytest.raises(SpoolError, match="/proc/self/spool can't be written to: No such file"):
        opened(Path("/proc/self/spool"))


def test_what_is_no_directory_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(
        SpoolError, match=rf"spool.directory: {path} can't be written to: .*; it must be a directory"
    ):
        opened(path)


async def test_a_directory_that_is_missing_is_made_for_this_user_alone(tmp_path):
    directory = tmp_path / "a" / "spool"
    spool = opened(directory)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert spool.path.stat().st_mode & 0o777 == 0o600
    await spool.aclose()


def test_where_there_is_no_directory_nothing_was_left_behind(tmp_path):
    assert found(tmp_path / "none") == []


async def test_without_a_spool_nothing_is_kept():
    spool = NoSpool()
    spool.ended(closing())
    spool.done(["r1"])
    await spool.keep([])
    for refused in (spool.opened(reservation()), spool.keep([closing()])):
        with pytest.raises(StoreError, match=r"set spool.directory") as raised:
            await refused
        assert not raised.value.transient


def test_an_end_stays_within_the_room_that_it_is_promised():
    opened_line = spools._encoded(spools._Line(opened=reservation()))
    ended_line = spools._encoded(spools._Line(ended=replace(closing(), watched=())))
    assert len(ended_line) <= spools._END * len(opened_line)
