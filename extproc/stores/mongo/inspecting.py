"""Ask MongoDB about itself. Writes nothing."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final, cast

from pymongo.errors import PyMongoError

from extproc.ports.inspection import DatabaseFacts
from extproc.stores.mongo.client import REPLICAS, Mongo, Named, translated

# What Tokenweir does with its collections. `changeStream` is not needed: limits are then polled.
_ACTIONS: Final = ("find", "insert", "update", "remove", "createIndex")

MakeIndexes = Callable[[Mongo], Awaitable[None]]


class MongoInspection:
    """Inspect the server. `make_indexes` makes all indexes that there should be in the `Mongo` it is given."""

    _replicas = Named(REPLICAS)

    def __init__(self, mongo: Mongo, make_indexes: MakeIndexes) -> None:
        self._mongo = mongo
        self._make_indexes = make_indexes

    async def database(self) -> DatabaseFacts:
        """Return the facts. Raise `StoreError`."""
        async with translated():
            asked = datetime.now(UTC)
            hello = await self._mongo.client.admin.command("hello")
            version = (await self._mongo.client.admin.command("buildInfo")).get("version")
            newest = await self._replicas.find_one({}, {"at": 1}, sort=[("at", -1)])
            replicas = await self._replicas.count_documents({})
            return DatabaseFacts(
                version=str(version) if version is not None else None,
                transactions="setName" in hello or hello.get("msg") == "isdbgrid",
                members=len(hello["hosts"]) + len(hello.get("passives", ())) if "hosts" in hello else None,
                arbiters=len(hello.get("arbiters", ())) if "hosts" in hello else None,
                primary=hello.get("isWritablePrimary"),
                missing_indexes=tuple(await self._missing_indexes()),
                clock_ahead_s=_ahead(hello.get("localTime"), asked),
                replicas=replicas,
                last_heartbeat=_instant((newest or {}).get("at")),
                **await self._rights(),
            )

    async def _missing_indexes(self) -> list[str]:
        wanted = _Recorder()
        await self._make_indexes(cast("Mongo", wanted))
        missing = []
        for name, indexes in wanted.made.items():
            there = {
                tuple(index["key"]) for index in (await self._mongo.collection(name).index_information()).values()
            }
            missing += [f"{name} ({', '.join(f for f, _ in keys)})" for keys in indexes if keys not in there]
        return missing

    async def _rights(self) -> dict[str, Any]:
        try:
            status = await self._mongo.client.admin.command("connectionStatus", showPrivileges=True)
        except PyMongoError:
            return {}
        info = status.get("authInfo", {})
        if not info.get("authenticatedUsers"):
            return {"authenticated": False}
        database = self._mongo.collection(REPLICAS).database.name
        may: set[str] = set()
        for privilege in info.get("authenticatedUserPrivileges", ()):
            resource = privilege.get("resource", {})
            if resource.get("anyResource") or resource.get("db") in ("", database):
                may.update(privilege.get("actions", ()))
        lacking = tuple(action for action in _ACTIONS if action not in may and "anyAction" not in may)
        return {"authenticated": True, "missing_rights": lacking}


class _Recorder:
    """Stand in for a `Mongo`: note the indexes that are to be made."""

    def __init__(self) -> None:
        self.made: dict[str, list[tuple[tuple[str, Any], ...]]] = {}

    def collection(self, name: str) -> "_RecordedCollection":
        return _RecordedCollection(self.made.setdefault(name, []))


class _RecordedCollection:
    def __init__(self, made: list[tuple[tuple[str, Any], ...]]) -> None:
        self._made = made

    async def create_index(self, keys: Any, **_options: Any) -> None:
        self._made.append(((keys, 1),) if isinstance(keys, str) else tuple(tuple(each) for each in keys))

    async def index_information(self) -> dict[str, Any]:
        return {}

    async def find_one(self, *_: Any) -> dict[str, Any]:
        return {}  # there is something: nothing has to be begun


def _instant(value: object) -> datetime | None:
    if not isinstance(value, datetime):
        return None
    return value if value.tzinfo is not None else value.replace(tzinfo=UTC)


def _ahead(clock: object, asked: datetime) -> float | None:
    told = _instant(clock)
    return (told - asked).total_seconds() if told is not None else None
