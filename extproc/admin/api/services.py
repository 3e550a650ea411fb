"""Hold the use cases that the operations call."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from extproc.admin.doctor import Doctor
from extproc.admin.explaining import Explainer
from extproc.admin.requests import Requests
from extproc.admin.service import Admin
from extproc.admin.usage import UsageAdmin
from extproc.core.quota.models import Models
from extproc.core.quota.policies import Defaults


@dataclass(frozen=True, slots=True)
class ReplayBounds:
    """Bound a simulation: entries that it replays, and seconds that it takes."""

    entries: int = 200_000
    seconds: float = 20.0


@dataclass(frozen=True, slots=True)
class Services:
    """Hold the use cases, and what they need beside their ports.

    `ready` raises `StoreError` if a store is away. `replaying` is held by the one simulation that runs.
    """

    admin: Admin
    usage: UsageAdmin
    requests: Requests
    explainer: Explainer
    doctor: Doctor
    currency: str
    defaults: Defaults
    models: Models
    replay: ReplayBounds
    ready: Callable[[], Awaitable[None]]
    replaying: asyncio.Lock = field(default_factory=asyncio.Lock)
