"""Ask ledgers, stores and Redis what they counted."""

import http.client
import json
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pymongo import MongoClient

from extproc.local.ports import HOST

_DATABASE: Final = "modelToken"


@dataclass(frozen=True, slots=True)
class Recorded:
    """Hold what was recorded since the start: admitted requests, their tokens, operations at the store.

    None: not known.
    """

    admitted: int | None
    tokens: int
    operations: int | None = None


class Counts(Protocol):
    """Tell what was recorded."""

    def read(self) -> Recorded:
        """Ask now."""

    def close(self) -> None:
        """Give connections back."""


class MeterCounts:
    """Ask the service of the compared design."""

    def __init__(self, port: int) -> None:
        self._port = port

    def read(self) -> Recorded:
        counted = get_json(self._port, "/stats")
        return Recorded(counted["inserts"], counted["tokens"])

    def close(self) -> None:
        """Do nothing: no connection is kept."""


class SinkCounts:
    """Ask the sink that stands for MongoDB."""

    def __init__(self, url: str) -> None:
        self._client: MongoClient[dict[str, Any]] = MongoClient(url)

    def read(self) -> Recorded:
        counted = self._client.admin.command("benchstats")
        return Recorded(counted["admitted"], counted["charged"], counted["operations"])

    def close(self) -> None:
        self._client.close()


class StoreCounts:
    """Ask the embedded store, by the ledger's documents."""

    def __init__(self, url: str) -> None:
        self._client: MongoClient[dict[str, Any]] = MongoClient(url)
        self._database = self._client[_DATABASE]

    def write_tenants(self, documents: list[dict[str, Any]]) -> None:
        self._database["tenantLimitation"].insert_many(documents)

    def read(self) -> Recorded:
        sums = {"_id": None, "entries": {"$sum": 1}, "tokens": {"$sum": "$charge"}}
        steps: list[dict[str, Any]] = [{"$match": {"state": {"$ne": "denied"}}}, {"$group": sums}]
        (found,) = [*self._database["token_ledger"].aggregate(steps)] or [{"entries": 0, "tokens": 0}]
        return Recorded(found["entries"], found["tokens"])

    def close(self) -> None:
        self._client.close()


@dataclass(frozen=True, slots=True)
class Wire:
    """Hold Redis's own counts since its start.

    `reads`: how often it read from a connection; several commands in one read are one round trip. `command_s`: the
    seconds that scripts took, with the commands that they call.
    """

    reads: int
    scripts: int
    bytes_in: int
    bytes_out: int
    command_s: float

    def since(self, before: "Wire") -> "Wire":
        return Wire(
            self.reads - before.reads,
            self.scripts - before.scripts,
            self.bytes_in - before.bytes_in,
            self.bytes_out - before.bytes_out,
            self.command_s - before.command_s,
        )


def redis_wire(port: int) -> Wire:
    """Ask Redis. A script's time holds that of the commands that it calls."""
    import redis

    with redis.Redis(host=HOST, port=port) as client:
        stats: dict[str, Any] = client.info("stats")
        commands: dict[str, dict[str, Any]] = client.info("commandstats")
    scripts = [
        commands[f"cmdstat_{name}"] for name in ("evalsha", "eval", "fcall") if f"cmdstat_{name}" in commands
    ]
    return Wire(
        reads=int(stats.get("total_reads_processed", 0)),
        scripts=sum(int(each["calls"]) for each in scripts),
        bytes_in=int(stats["total_net_input_bytes"]),
        bytes_out=int(stats["total_net_output_bytes"]),
        command_s=sum(float(each["usec"]) for each in scripts) / 1e6,
    )


def processor_messages(admin_port: int) -> int:
    """Ask Envoy how many messages it sent to its processor and got from it; 0 without one."""
    answer = get_json(admin_port, "/stats?format=json&filter=ext_proc.*stream_msgs")
    return sum(int(each["value"]) for each in answer["stats"] if "name" in each)


def get_json(port: int, path: str) -> dict[str, Any]:
    """Return the JSON of a GET on this machine. Raise OSError."""
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", path)
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
    except http.client.HTTPException as error:
        raise OSError(str(error)) from error
    else:
        return answer
    finally:
        connection.close()
