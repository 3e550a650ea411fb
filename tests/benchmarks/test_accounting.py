import os
import subprocess
import sys
import time

from benchmarks.accounting import descendants, machine_cpu_s, used

BURN = "import time\nwhile time.process_time() < 0.2: pass\n"


def run(script):
    return subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_a_process_is_charged_the_time_that_it_ran():
    with run(BURN + "print(flush=True); input()") as child:
        child.stdout.readline()
        spent = used(child.pid)
        child.communicate(b"\n")
    assert 0.2 <= spent.cpu_s < 5
    assert spent.rss_bytes > 1 << 20


def test_threads_that_ended_are_charged_too():
    script = (
        "import threading, time\n"
        "def burn():\n while time.thread_time() < 0.2: pass\n"
        "t = threading.Thread(target=burn); t.start(); t.join(); print(flush=True); input()"
    )
    with run(script) as child:
        child.stdout.readline()
        spent = used(child.pid)
        child.communicate(b"\n")
    assert spent.cpu_s >= 0.2


def test_children_are_charged_to_their_parent():
    inner = BURN + "print(flush=True); input()"
    script = (
        "import subprocess, sys\n"
        f"with subprocess.Popen([sys.executable, '-c', {inner!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as c:\n"
        " c.stdout.readline(); print(flush=True); input(); c.communicate(b'\\n')"
    )
    with run(script) as child:
        child.stdout.readline()
        assert len(descendants(child.pid)) == 1
        assert used(child.pid).cpu_s >= 0.2
        child.communicate(b"\n")


def test_a_difference_is_what_was_used_between():
    before = used(os.getpid())
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    spent = used(os.getpid()).since(before)
    assert 0.05 <= spent.cpu_s < 5


def test_the_machine_was_busy_at_least_as_long_as_this_process():
    before, own = machine_cpu_s(), time.process_time()
    while time.process_time() < own + 0.1:
        pass
    # Both count in hundredths of a second.
    assert machine_cpu_s() - before >= 0.1 - 0.03
