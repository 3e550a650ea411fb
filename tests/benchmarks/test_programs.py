"""The C programs: they compile without a warning, and the load generator notices every wrong answer."""

import socketserver
import subprocess
import threading

import bson
import pytest
from pymongo import MongoClient
from pymongo.errors import OperationFailure

from benchmarks import programs as module
from benchmarks.counts import Recorded, SinkCounts, get_json
from benchmarks.errors import CannotRunError
from benchmarks.histogram import percentile, total
from benchmarks.litellm_proxy import installed
from benchmarks.machine import two_cores
from benchmarks.measuring import PLAIN_ANSWER
from benchmarks.programs import NAMES, SOURCES, compiled
from extproc.local.parts import MissingPartError, start_valkey
from extproc.local.ports import free_ports
from tests.changing import replace
from tests.missing import missing

from .conftest import PLAIN, STREAM

# Compiling.


@pytest.mark.parametrize("name", NAMES)
def test_a_program_compiles_without_a_warning(programs, tmp_path, name):
    argv = ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-std=gnu11", "-o", tmp_path / name, SOURCES / f"{name}.c"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_a_compiler_the_benchmark_says_which_package_has_one(tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda _name: None)
    with pytest.raises(CannotRunError, match="apt-get install gcc"):
        compiled(tmp_path)


def test_with_one_core_the_benchmark_refuses(monkeypatch):
    monkeypatch.setattr("benchmarks.machine.os.sched_getaffinity", lambda _pid: {0})
    with pytest.raises(CannotRunError, match="2 cores"):
        two_cores()


def test_an_environment_that_can_not_be_installed_is_a_reason_and_no_crash(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess((), 1, "", "no such package")
    monkeypatch.setattr("benchmarks.litellm_proxy.subprocess.run", lambda *_args, **_kwargs: failed)
    with pytest.raises(CannotRunError, match="no such package"):
        installed(tmp_path)


# Load and upstream.


def test_right_answers_are_counted_and_timed(programs, serving, load, tmp_path):
    (tmp_path / "answer").write_bytes(PLAIN_ANSWER)
    with serving(programs.upstream) as port:
        result = load(port, PLAIN, tmp_path / "answer")
        served = get_json(port, "/stats")
    assert result["failed"] == 0
    assert result["ok"] == result["begun"] == served["requests"] > 0
    assert total(result["latency"]) == result["ok"]
    assert served["tokens"] == 33 * result["ok"]


def test_a_stream_has_all_its_chunks_and_their_times(programs, serving, load):
    with serving(programs.upstream) as port:
        result = load(port, STREAM)
        served = get_json(port, "/stats")
    assert (result["failed"], result["chunks"]) == (0, 5 * result["ok"])
    assert served["chunks"] == result["chunks"]
    assert total(result["first_token"]) == result["ok"]
    assert total(result["gap"]) == 4 * result["ok"]
    # A chunk leaves each 5 ms, the second one earlier; none arrives before it was sent.
    assert percentile(result["latency"], 0) > 10_000
    assert percentile(result["way"], 0) >= 0


def test_the_open_loop_sends_what_the_rate_says(programs, serving, load):
    with serving(programs.upstream) as port:
        result = load(port, replace(PLAIN, rate=100, seconds=0.3))
    assert (result["begun"], result["ok"], result["unsent"]) == (30, 30, 0)


def test_a_byte_that_is_missing_in_an_answer_is_noticed(programs, serving, load, tmp_path):
    (tmp_path / "answer").write_bytes(PLAIN_ANSWER)
    with serving(programs.upstream, "broken") as port:
        result = load(port, PLAIN, tmp_path / "answer")
    assert (result["ok"], result["failed"]) == (0, result["begun"])
    assert result["first_error"].startswith("another body")


def test_a_chunk_that_is_missing_in_a_stream_is_noticed(programs, serving, load):
    with serving(programs.upstream, "broken") as port:
        result = load(port, STREAM)
    assert (result["ok"], result["failed"]) == (0, result["begun"])
    assert result["first_error"] == "a chunk is missing, or out of order, after 3"


EVENT = b'data: {"choices":[{"delta":{"content":"%d:00000000 "}}]}\n\n'
EVENTS = b"".join(EVENT % index for index in range(5))
HEAD = b"HTTP/1.1 %s\r\ncontent-type: any\r\n"
CHUNKED = HEAD % b"200 OK" + b"transfer-encoding: chunked\r\n\r\n"


def chunked(*chunks):
    return CHUNKED + b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in chunks) + b"0\r\n\r\n"


def plain(status, body, length=None):
    return HEAD % status + b"content-length: %d\r\n\r\n%s" % (len(body) if length is None else length, body)


@pytest.fixture
def answering():
    """Give a server that answers each request with the same bytes, and then hangs up if told so."""
    servers = []

    def start(answer, *, hang_up=False):
        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                while self.request.recv(65536):
                    self.request.sendall(answer)
                    if hang_up:
                        return

        server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server.server_address[1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


RIGHT_STREAM = (EVENTS, b"data: [DONE]\n\n")
WRONG = {
    "a denial": (PLAIN, plain(b"429 Too Many Requests", b"{}"), "status 429: {}"),
    "no usage": (PLAIN, plain(b"200 OK", b"{}"), "an answer without usage"),
    "half a body": (
        PLAIN,
        plain(b"200 OK", b'{"usage":1}', 20),
        "the connection ended in the middle of an answer",
    ),
    "no length": (PLAIN, HEAD % b"200 OK" + b'\r\n{"usage":1}', "an answer that is no HTTP, or has no end"),
    "no end of a stream": (STREAM, chunked(EVENTS), "a stream without [DONE]"),
    "chunks in disorder": (
        STREAM,
        chunked(EVENT % 1, *RIGHT_STREAM),
        "a chunk is missing, or out of order, after 5",
    ),
    "a chunk twice": (
        STREAM,
        chunked(EVENTS, EVENT % 4, b"data: [DONE]\n\n"),
        "a chunk is missing, or out of order, after 5",
    ),
    "a stream that breaks off": (
        STREAM,
        chunked(*RIGHT_STREAM)[:-10],
        "the connection ended in the middle of an answer",
    ),
}


@pytest.mark.parametrize(("step", "answer", "error"), WRONG.values(), ids=WRONG)
def test_a_wrong_answer_is_noticed(answering, load, step, answer, error):
    result = load(answering(answer, hang_up=True), step)
    assert result["ok"] == 0
    assert result["failed"] == result["begun"] > 0
    assert result["first_error"] == error


def test_the_same_answers_without_the_fault_are_right(answering, load):
    assert load(answering(plain(b"200 OK", b'{"usage":1}')), PLAIN)["failed"] == 0
    assert load(answering(chunked(*RIGHT_STREAM)), STREAM)["failed"] == 0


def test_events_may_be_cut_anywhere(answering, load):
    whole = b"".join(RIGHT_STREAM)
    result = load(answering(chunked(*(whole[at : at + 7] for at in range(0, len(whole), 7)))), STREAM)
    assert (result["failed"], result["chunks"]) == (0, 5 * result["ok"])


# The service of the compared design.


def post(port, path, body):
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", path, body)
    answer = connection.getresponse()
    status, text = answer.status, answer.read()
    connection.close()
    return status, text


CALLER = '{"serviceAccount":"a@b","clientIP":"10.0.0.1","path":"/v1"'


def test_the_service_counts_what_is_inserted(programs, serving):
    with serving(programs.meter) as port:
        assert post(port, "/checkLimit", CALLER + "}") == (200, b"ok")
        assert post(port, "/insert", CALLER + ',"tokenTotal":33}') == (200, b"ok")
        assert get_json(port, "/stats") == {"checks": 1, "inserts": 1, "tokens": 33}


def test_the_service_denies_what_is_over_its_limit(programs, serving):
    with serving(programs.meter) as port:
        post(port, "/insert", CALLER + ',"tokenTotal":1000000000000000}')
        assert post(port, "/checkLimit", CALLER + "}")[0] == 400


@pytest.mark.system
@pytest.mark.real_time
async def test_the_service_keeps_its_counts_in_redis(programs, serving, tmp_path):
    import redis

    (redis_port,) = free_ports(1)
    try:
        part = await start_valkey(tmp_path, redis_port)
    except MissingPartError as error:
        missing(str(error))
    try:
        with serving(programs.meter, redis_port) as port, redis.Redis(port=redis_port) as client:
            for _ in range(3):
                assert post(port, "/checkLimit", CALLER + "}") == (200, b"ok")
                assert post(port, "/insert", CALLER + ',"tokenTotal":33}') == (200, b"ok")
            assert [client.get(key) for key in client.scan_iter()] == [b"99", b"99"]
            assert all(client.ttl(key) > 0 for key in client.scan_iter())
            post(port, "/insert", CALLER + ',"tokenTotal":1000000000000000}')
            assert post(port, "/checkLimit", CALLER + "}")[0] == 400
    finally:
        await part.process.stop()


# The sink.


def test_the_sink_acknowledges_and_counts_each_entry_once(programs, serving, tmp_path):
    tenant = {"_id": "a", "tenant_id": "a", "sa_limit": 5}
    (tmp_path / "tenants").write_bytes(bson.encode(tenant))
    entries = [{"_id": f"id-{n}", "state": "settled", "charge": 33} for n in range(50)]
    with serving(programs.sink, tmp_path / "tenants") as port:
        url = f"mongodb://127.0.0.1:{port}/?directConnection=true"
        with MongoClient(url) as client:
            database = client["modelToken"]
            assert list(database["tenantLimitation"].find()) == [tenant]
            with client.start_session() as session:
                session.with_transaction(lambda s: database["token_ledger"].insert_many(entries, session=s))
            database["token_ledger"].insert_many(entries)
            database["token_ledger"].insert_one({"_id": "no", "state": "denied", "charge": 0})
            database["token_replicas"].update_one({"_id": {"$eq": "me"}}, {"$inc": {"beats": 1}}, upsert=True)
            assert list(database["token_replicas"].find()) == [{"_id": "me", "beats": 1}]
            with pytest.raises(OperationFailure, match="change streams"):
                database["tenantLimitation"].watch()
        counts = SinkCounts(url)
        recorded = counts.read()
        counts.close()
    assert Recorded(recorded.admitted, recorded.tokens) == Recorded(50, 50 * 33)
    assert recorded.operations > 5
