"""What the doctor says of stores and of Envoy, and that it takes nothing else down with it."""

import copy
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from extproc.admin.doctor import Doctor, is_sound
from extproc.admin.doctor_envoy import Expected
from extproc.admin.findings import Level
from extproc.local.envoy_config import EnvoyOptions, render
from extproc.local.issuer import TokenIssuer
from extproc.ports.base import StoreError
from extproc.ports.inspection import CounterFacts, CounterServer, DatabaseFacts
from extproc.ports.journal import Backlog
from tests.changing import replace

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SERVER = CounterServer(
    partitions=tuple(range(16)),
    version="7.2.4",
    eviction="noeviction",
    max_memory=1 << 30,
    used_memory=1 << 20,
    append_only=True,
    replicas=0,
    clock_ahead_s=0.001,
)
DATABASE = DatabaseFacts(
    version="8.0.1",
    transactions=True,
    members=3,
    arbiters=0,
    primary=True,
    authenticated=True,
    clock_ahead_s=-0.2,
    replicas=2,
    last_heartbeat=NOW - timedelta(seconds=2),
)


class Told:
    """Stores that tell what they are given, or raise it."""

    def __init__(self, counters=None, database=DATABASE, backlog=None):
        self._told = {
            "counters": counters or CounterFacts((SERVER,)),
            "database": database,
            "backlog": backlog or Backlog(3, 0.2, 0),
        }

    async def _tell(self, what):
        told = self._told[what]
        if isinstance(told, Exception):
            raise told
        return told

    async def counters(self):
        return await self._tell("counters")

    async def database(self):
        return await self._tell("database")

    async def backlog(self):
        return await self._tell("backlog")


async def stores(**told):
    world = Told(**told)
    return await Doctor(world, world, lambda: NOW).stores()


def faults(findings):
    return [(each.level, each.part, each.what) for each in findings if each.level not in (Level.OK, Level.NOTE)]


async def test_sound_stores_have_no_fault():
    findings = await stores()
    assert faults(findings) == []
    assert is_sound(findings)
    assert {each.part for each in findings} == {
        "redis", "redis clock", "epochs", "mongodb", "mongodb clock", "replicas", "journal",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "level", "words"),
    [
        ({"version": "6.2.14"}, Level.ERROR, "the version is 6.2.14"),
        ({"eviction": "allkeys-lru"}, Level.ERROR, "maxmemory-policy is allkeys-lru"),
        ({"append_only": False}, Level.WARNING, "neither an append-only file nor a replica"),
        ({"used_memory": 1 << 30}, Level.WARNING, "100 % of maxmemory"),
        ({"scripts_fail": "NOPERM"}, Level.ERROR, "a Lua script can't run: NOPERM"),
        ({"cluster_state": "fail", "slots_assigned": 16_000}, Level.ERROR, "16000 of 16384 slots"),
        ({"clock_ahead_s": 5.0}, Level.WARNING, "5.0 s ahead of"),
        ({"clock_ahead_s": -3600.0}, Level.ERROR, "3600.0 s behind"),
        ({"problem": "refused"}, Level.ERROR, "does not answer: refused"),
    ],
)
async def test_each_fault_of_a_redis_is_told_with_its_fix(change, level, words):
    findings = await stores(counters=CounterFacts((replace(SERVER, **change),)))
    ((found, _, what),) = faults(findings)
    assert found is level
    assert words in what
    assert all(each.fix and each.consequence for each in findings if each.level in (Level.ERROR, Level.WARNING))


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (CounterFacts((SERVER,), nowhere=(3, 4)), "partitions 3, 4 are on no server"),
        (CounterFacts((SERVER,), not_ready=(5,)), "partitions 5 are being rebuilt"),
    ],
)
async def test_partitions_that_do_not_serve_are_named(facts, words):
    ((_, _, what),) = faults(await stores(counters=facts))
    assert words in what


async def test_counters_that_nobody_used_yet_are_no_fault():
    findings = await stores(counters=CounterFacts((SERVER,), no_epoch=tuple(range(16))))
    assert faults(findings) == []
    assert any("have no counters yet" in each.what for each in findings)


@pytest.mark.parametrize(
    ("change", "level", "words"),
    [
        ({"transactions": False, "members": None}, Level.WARNING, "standalone"),
        ({"arbiters": 1}, Level.WARNING, "1 arbiter"),
        ({"missing_indexes": ("token_ledger (request_id)",)}, Level.ERROR, "token_ledger (request_id)"),
        ({"missing_rights": ("insert",)}, Level.ERROR, "lacks the rights insert"),
        ({"last_heartbeat": NOW - timedelta(hours=1)}, Level.WARNING, "no replica of Tokenweir runs"),
        ({"last_heartbeat": None}, Level.WARNING, "no replica of Tokenweir runs"),
        ({"clock_ahead_s": 31.0}, Level.ERROR, "31.0 s ahead of"),
    ],
)
async def test_each_fault_of_mongodb_is_told(change, level, words):
    ((found, _, what),) = faults(await stores(database=replace(DATABASE, **change)))
    assert found is level
    assert words in what


@pytest.mark.parametrize(
    ("backlog", "level", "words"),
    [
        (Backlog(5, 1.0, 2), Level.ERROR, "2 entries were refused"),
        (Backlog(900, 61.0, 0), Level.WARNING, "the oldest for 61 s"),
    ],
)
async def test_entries_that_do_not_get_into_the_ledger_are_told(backlog, level, words):
    ((found, _, what),) = faults(await stores(backlog=backlog))
    assert found is level
    assert words in what


async def test_a_store_that_is_away_takes_no_other_check_with_it():
    away = StoreError("MongoDB can't be reached", transient=True)
    findings = await stores(database=away)
    assert faults(findings) == [(Level.ERROR, "mongodb", "can't be asked: MongoDB can't be reached")]
    assert not is_sound(findings)
    assert any(each.part == "journal" and each.level is Level.OK for each in findings)


async def test_stores_in_memory_are_noted():
    (finding,) = await Doctor(None, Told(), lambda: NOW).stores()
    assert finding.level is Level.NOTE


# Envoy.

ISSUER = TokenIssuer()
OPTIONS = EnvoyOptions(
    listener_port=10000,
    admin_port=9901,
    jwks_json=ISSUER.jwks_json(),
    issuer=ISSUER.issuer,
    audience=ISSUER.audience,
    processor_addresses=("127.0.0.1:18080",),
    upstream_url="http://127.0.0.1:8000",
)
EXPECTED = Expected("envoy.filters.http.jwt_authn", ("oc_sa",), OPTIONS.max_body_bytes, 0.1)
HOST = {"health_status": {"eds_health_status": "HEALTHY"}, "stats": [{"name": "cx_total", "value": "3"}]}


class Envoy:
    """What the admin port of an Envoy with the local stack's configuration tells."""

    def __init__(self):
        resources = yaml.safe_load(render(OPTIONS))["static_resources"]
        (self.listener,) = resources["listeners"]
        self.manager = self.listener["filter_chains"][0]["filters"][0]["typed_config"]
        self.filters = self.manager["http_filters"]
        self.routes = self.manager["route_config"]["virtual_hosts"][0]["routes"]
        self.clusters = {each["name"]: each for each in resources["clusters"]}
        self.processor = next(each for each in self.filters if each["name"] == "tokenweir")
        self.config = self.processor["typed_config"]
        self.hosts = [copy.deepcopy(HOST)]
        self.node = "local"

    async def fetch(self, path):
        if path.startswith("/clusters"):
            return {"cluster_statuses": [{"name": "tokenweir", "host_statuses": self.hosts}]}
        clusters = [{"cluster": each} for each in self.clusters.values()]
        return {
            "configs": [
                {"bootstrap": {"node": {"id": self.node}}},
                {"dynamic_listeners": [{"active_state": {"listener": self.listener}}]},
                {"static_clusters": clusters},
                {"static_route_configs": [{"route_config": self.manager["route_config"]}]},
            ]
        }

    async def findings(self, expected=EXPECTED):
        return await Doctor(None, Told(), lambda: NOW).envoy(self.fetch, expected)


async def test_the_local_stacks_envoy_is_sound():
    (finding,) = await Envoy().findings()
    assert (finding.level, finding.what) == (Level.OK, "listener ingress: filter 'tokenweir' is as it should be")


def _moved(envoy, name, place):
    chosen = next(each for each in envoy.filters if each["name"].endswith(name))
    envoy.filters.remove(chosen)
    envoy.filters.insert(place, chosen)


BROKEN = {
    "no processor": (lambda e: e.filters.remove(e.processor), "no listener has an ext_proc filter"),
    "open on failure": (lambda e: e.config.update(failure_mode_allow=True), "failure_mode_allow is true"),
    "observing": (lambda e: e.config.update(observability_mode=True), "observability_mode is true"),
    "no denials": (
        lambda e: e.config.update(disable_immediate_response=True), "disable_immediate_response is true",
    ),
    "before the tokens": (lambda e: _moved(e, "tokenweir", 0), "ext_proc comes before jwt_authn"),
    "after the router": (lambda e: _moved(e, "router", 0), "ext_proc comes after the router"),
    "impatient": (lambda e: e.config.update(message_timeout="0.15s"), "message_timeout is 0.15 s"),
    "no answers": (
        lambda e: e.config["processing_mode"].update(response_body_mode="NONE"), "response_body_mode is NONE",
    ),
    "buffered": (
        lambda e: e.config["processing_mode"].update(request_body_mode="BUFFERED"), "request_body_mode is BUFFERED",
    ),
    "no tokens": (lambda e: e.config.pop("metadata_options"), "untyped lacks envoy.filters.http.jwt_authn"),
    "no address": (lambda e: e.config.update(request_attributes=["request.id"]), "lacks source.address"),
    "client's identity": (
        lambda e: e.manager.pop("early_header_mutation_extensions"), "a client's own oc_sa is not removed",
    ),
    "no cluster": (lambda e: e.clusters.pop("tokenweir"), "the cluster 'tokenweir' does not exist"),
    "HTTP/1": (
        lambda e: e.clusters["tokenweir"].pop("typed_extension_protocol_options"), "does not speak HTTP/2",
    ),
    "no endpoint": (lambda e: e.hosts.clear(), "has no endpoint"),
    "unhealthy": (
        lambda e: e.hosts[0].update(health_status={"eds_health_status": "UNHEALTHY"}), "none of the 1 endpoint",
    ),
    "refused": (
        lambda e: e.hosts[0].update(
            stats=[{"name": "cx_total", "value": "4"}, {"name": "cx_connect_fail", "value": "4"}]
        ),
        "none of the 1 endpoint",
    ),
    "off everywhere": (
        lambda e: [route.pop("typed_per_filter_config", None) for route in e.routes],
        "is off, and no route switches it on",
    ),
    "a misspelled name": (
        lambda e: e.processor.update(name="tokenweir-2"), "is off, and no route switches it on",
    ),
    "a route's limits": (
        lambda e: e.routes[-1]["typed_per_filter_config"]["tokenweir"].update(
            overrides={"grpc_initial_metadata": [{"key": "tokenweir-limits", "value": "x"}]}
        ),
        "a route's limits can't be read",
    ),
}  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN)
async def test_a_broken_envoy_is_told_with_its_fix(broken):
    breaks, words = BROKEN[broken]
    envoy = Envoy()
    breaks(envoy)
    findings = await envoy.findings()
    assert any(words in each.what for each in findings if each.level is Level.ERROR), findings
    assert all(each.fix and each.consequence for each in findings if each.level is Level.ERROR)
    assert not is_sound(findings)


WARNED = {
    "no buffer": (lambda e: _moved(e, "buffer", 9), "no buffer filter before ext_proc"),
    "another size": (
        lambda e: next(f for f in e.filters if "buffer" in f["name"])["typed_config"].update(max_request_bytes=7),
        "buffer.max_request_bytes is 7",
    ),
    "two round trips": (
        lambda e: e.config.pop("send_body_without_waiting_for_header_response"),
        "send_body_without_waiting_for_header_response is not set",
    ),
    "few at once": (lambda e: e.clusters["tokenweir"].pop("circuit_breakers"), "takes 1024 requests at once"),
    "a client's request id": (
        lambda e: e.manager.update(preserve_external_request_id=True), "preserve_external_request_id is true",
    ),
    "no code details": (lambda e: e.config.pop("response_attributes"), "lacks response.code_details"),
    "trailers": (
        lambda e: e.config["processing_mode"].pop("request_trailer_mode"), "request_trailer_mode is DEFAULT",
    ),
    "off for a prefix": (
        lambda e: e.routes[-1]["typed_per_filter_config"].update(tokenweir={"disabled": True}),
        "1 route(s) switch the filter off for more than one exact path",
    ),
}  # fmt: skip


@pytest.mark.parametrize("weak", WARNED)
async def test_what_works_until_something_happens_is_a_warning(weak):
    weakens, words = WARNED[weak]
    envoy = Envoy()
    envoy.routes[:] = [copy.deepcopy(route) for route in envoy.routes]  # YAML's aliases are one object
    weakens(envoy)
    findings = await envoy.findings()
    assert any(words in each.what for each in findings if each.level is Level.WARNING), findings
    assert is_sound(findings)


async def test_a_waypoint_is_noted():
    envoy = Envoy()
    envoy.node = "waypoint~10.0.0.9~models-waypoint-1.models~models.svc.cluster.local"
    findings = await envoy.findings()
    assert findings[0].level is Level.NOTE
    assert "a waypoint of Istio's ambient mesh (models-waypoint-1.models)" in findings[0].what


async def test_a_waypoint_without_the_filter_is_no_place_to_meter():
    async def fetch(_path):
        node = {"id": "waypoint~10.0.0.9~models-waypoint-1.models~models.svc.cluster.local"}
        return {"configs": [{"bootstrap": {"node": node}}]}

    role, finding = await Doctor(None, Told(), lambda: NOW).envoy(fetch, EXPECTED)
    assert (role.level, finding.level) == (Level.NOTE, Level.ERROR)
    assert "the charts do not meter at waypoints" in finding.what


@pytest.mark.parametrize("before", [True, False])
async def test_a_second_ext_proc_is_noted_with_its_place(before):
    envoy = Envoy()
    kind = "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor"
    picker = {"name": "envoy.filters.http.ext_proc", "typed_config": {"@type": kind}}
    filters = envoy.manager["http_filters"]
    filters.insert(0 if before else len(filters) - 1, picker)
    findings = await envoy.findings()
    (finding,) = [each for each in findings if "another ext_proc" in each.what]
    assert finding.level is Level.NOTE
    assert finding.what.endswith("comes before Tokenweir" if before else "comes after Tokenweir")


@pytest.mark.parametrize(
    "answer", [None, [], "text", 7, {"configs": None}, {"configs": [1, {"static_listeners": 3}]}]
)
async def test_a_port_that_tells_something_else_has_no_processor(answer):
    async def fetch(_path):
        return answer

    (finding,) = await Doctor(None, Told(), lambda: NOW).envoy(fetch, EXPECTED)
    assert "no listener has an ext_proc filter" in finding.what


async def test_a_port_that_does_not_answer_is_an_error():
    async def fetch(_path):
        raise OSError("refused")

    (finding,) = await Doctor(None, Told(), lambda: NOW).envoy(fetch, EXPECTED)
    assert (finding.level, finding.part) == (Level.ERROR, "envoy")
