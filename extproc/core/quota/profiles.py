"""Keep what is learned per tenant and model, in bounded memory that no tenant can fill alone."""

from typing import NamedTuple

from extproc.core.quota.prompt_fit import PromptFit, PromptKind
from extproc.core.quota.recent import Recent


class Profile:
    """Hold the observations of one tenant and model: 1 kB of outputs and 1 kB of each kind of prompts, if full."""

    __slots__ = ("observations", "outputs", "prompts")

    def __init__(self) -> None:
        self.observations = 0
        self.outputs = Recent()
        self.prompts: dict[PromptKind, PromptFit] = {}

    def fit(self, kind: PromptKind) -> PromptFit:
        """Return the fit of prompts of this kind, a new one if there was none."""
        found = self.prompts.get(kind)
        if found is None:
            found = self.prompts[kind] = PromptFit()
        return found


class Forgotten(NamedTuple):
    """Name the model of a profile that had to leave."""

    model: str
    profile: Profile


class ProfileTable:
    """Keep at most `room` profiles (1 or more), by tenant and model.

    When there is no room, the tenant with the most profiles loses the one that was observed least lately; among
    equals, the tenant that was observed least lately. So a tenant with no more than an equal share of the room
    loses nothing to a tenant with more models. No call takes longer when there are more tenants or profiles.
    """

    __slots__ = ("_by_size", "_largest", "_profiles", "_room", "_tenants")

    def __init__(self, room: int) -> None:
        self._room = room
        self._profiles = 0
        # Everywhere, the one that was observed last is at the end.
        self._tenants: dict[str, dict[str, Profile]] = {}
        self._by_size: dict[int, dict[str, None]] = {}  # number of profiles -> tenants that have so many
        self._largest = 0

    def __len__(self) -> int:
        return self._profiles

    def find(self, tenant: str, model: str) -> Profile | None:
        """Return a profile, and change nothing."""
        models = self._tenants.get(tenant)
        return models.get(model) if models is not None else None

    def touch(self, tenant: str, model: str) -> None:
        """Note that a profile of this table was observed."""
        models = self._tenants[tenant]
        models[model] = models.pop(model)
        tenants = self._by_size[len(models)]
        del tenants[tenant]
        tenants[tenant] = None

    def add(self, tenant: str, model: str, profile: Profile) -> Forgotten | None:
        """Add a profile that is not in this table. Return the one that had to leave; None if there was room."""
        models = self._tenants.setdefault(tenant, {})
        models[model] = profile
        self._resized(tenant, len(models) - 1, len(models))
        if self._profiles <= self._room:
            return None
        # A tenant whose only profile is new would lose just this one.
        its_own = 1 < len(models) == self._largest
        loser = tenant if its_own else next(iter(self._by_size[self._largest]))
        forgotten = next(iter(self._tenants[loser]))
        return Forgotten(forgotten, self.remove(loser, forgotten))

    def remove(self, tenant: str, model: str) -> Profile:
        """Take out a profile of this table, and return it."""
        models = self._tenants[tenant]
        profile = models.pop(model)
        if not models:
            del self._tenants[tenant]
        self._resized(tenant, len(models) + 1, len(models))
        return profile

    def _resized(self, tenant: str, before: int, now: int) -> None:
        """Move a tenant to those that have as many profiles as it has now, one more or one less than before."""
        self._profiles += now - before
        if before:
            tenants = self._by_size[before]
            del tenants[tenant]
            if not tenants:
                del self._by_size[before]
        if now:
            self._by_size.setdefault(now, {})[tenant] = None
        if now > self._largest or self._largest not in self._by_size:
            self._largest = now
