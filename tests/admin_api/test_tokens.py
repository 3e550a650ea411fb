"""Tokens for machines: issued once, stored as a digest, scoped, expiring, revoked."""

from dataclasses import asdict
from datetime import timedelta

import pytest

from extproc.admin.access import Grant, Role
from extproc.admin.change import Change
from extproc.admin.errors import AdminError, NotFoundError
from extproc.ports.audit import AuditFilter

from .api import MINE, NOW, OTHER, ROOT, Running, of

DAY = timedelta(days=1)


async def test_a_token_is_returned_once_and_only_its_digest_is_stored():
    running = Running()
    issued = await running.tokens.issue("ci", Role.VIEWER, None, DAY, ROOT)
    assert issued.text.startswith("twa_")
    assert len(issued.text) == 47
    (stored,) = await running.store.tokens(10)
    assert issued.text[4:] not in str(asdict(stored))
    assert (stored.name, stored.role, stored.tenants) == ("ci", "viewer", None)
    assert stored.expires_at == NOW + DAY
    assert (await running.tokens.issue("ci", Role.VIEWER, None, DAY, ROOT)).text != issued.text


async def test_who_bears_it_is_known_by_its_id_and_may_do_what_it_grants():
    running = Running()
    issued = await running.tokens.issue("ci", Role.TEAM_LEAD, [OTHER, MINE], DAY, ROOT)
    caller = await running.tokens.caller(issued.text, "192.0.2.1")
    assert (caller.actor.name, caller.actor.kind, caller.actor.origin) == (issued.token.id, "token", "192.0.2.1")
    assert caller.grant == Grant(Role.TEAM_LEAD, frozenset({MINE, OTHER}))


async def test_an_expired_or_revoked_one_and_one_that_looks_like_it_are_refused():
    running = Running()
    issued = await running.tokens.issue("ci", Role.VIEWER, None, DAY, ROOT)
    other = "x" if issued.text[-1] != "x" else "y"
    for text in (issued.text[:-1] + other, issued.text[:-1], issued.text + "x", issued.text.upper(), "twa_", ""):
        assert await running.tokens.caller(text, "a") is None
    running.now = NOW + DAY - timedelta(seconds=1)
    assert await running.tokens.caller(issued.text, "a") is not None
    running.now = NOW + DAY
    of(await running.bearing(issued.text).get("/v1/me"), 401)
    running.now = NOW
    client = running.bearing(issued.text)
    of(await client.get("/v1/me"), 200)
    await running.tokens.revoke(issued.token.id, ROOT)
    of(await client.get("/v1/me"), 401)
    with pytest.raises(NotFoundError):
        await running.tokens.revoke(issued.token.id, ROOT)


async def test_a_digest_of_another_token_under_its_id_proves_nothing():
    running = Running()
    issued = await running.tokens.issue("ci", Role.VIEWER, None, DAY, ROOT)
    stored = running.store._tokens
    stored[issued.token.id] = (await running.tokens.issue("b", Role.ADMIN, None, DAY, ROOT)).token
    assert await running.tokens.caller(issued.text, "a") is None


@pytest.mark.parametrize(
    ("name", "role", "tenants", "lifetime", "said"),
    [
        ("", Role.VIEWER, None, DAY, "the name must be"),
        ("a\nb", Role.VIEWER, None, DAY, "the name must be"),
        ("ci", Role.ADMIN, [MINE], DAY, "'admin' is for all tenants"),
        ("ci", Role.TEAM_LEAD, None, DAY, "for named tenants"),
        ("ci", Role.TEAM_LEAD, [], DAY, "'tenants' must be 1 to 100 names"),
        ("ci", Role.VIEWER, ["a\tb"], DAY, "the tenant must be"),
        ("ci", Role.VIEWER, [f"t{n}" for n in range(101)], DAY, "1 to 100 names"),
        ("ci", Role.VIEWER, None, timedelta(0), "must expire after 1 minute to 366 days"),
        ("ci", Role.VIEWER, None, timedelta(days=367), "must expire after 1 minute to 366 days"),
    ],
)
async def test_a_token_that_can_not_be_is_refused_with_the_reason(name, role, tenants, lifetime, said):
    running = Running()
    with pytest.raises(AdminError, match=said):
        await running.tokens.issue(name, role, tenants, lifetime, ROOT)
    assert await running.store.tokens(10) == []


async def test_issuing_and_revoking_are_audited_without_a_digest():
    running = Running()
    why = Change(ROOT.actor, note="for the pipeline")
    issued = await running.tokens.issue("ci", Role.VIEWER, [MINE], DAY, why)
    running.now = NOW + timedelta(seconds=1)
    await running.tokens.revoke(issued.token.id, ROOT)
    revoked, made = await running.tenants.audit.entries(AuditFilter(), 10)
    assert (made.action, made.subject, made.note, made.actor) == (
        "token.issue", issued.token.id, "for the pipeline", ROOT.actor,
    )  # fmt: skip
    assert made.after == {"name": "ci", "role": "viewer", "tenants": [MINE], "expires_at": NOW + DAY}
    assert (revoked.action, revoked.before, revoked.after) == ("token.revoke", made.after, None)


async def test_a_dry_run_issues_and_revokes_nothing():
    running = Running()
    dry = Change(ROOT.actor, dry_run=True)
    assert (await running.tokens.issue("ci", Role.VIEWER, None, DAY, dry)).text is None
    assert await running.store.tokens(10) == []
    issued = await running.tokens.issue("ci", Role.VIEWER, None, DAY, ROOT)
    await running.tokens.revoke(issued.token.id, dry)
    assert await running.tokens.caller(issued.text, "a") is not None


async def test_the_last_use_is_noted_to_the_hour_and_not_at_each_request():
    running = Running()
    issued = await running.tokens.issue("ci", Role.VIEWER, None, DAY, ROOT)
    noted = []

    async def note(token_id, at, inner=running.store.note_use):
        noted.append(at)
        await inner(token_id, at)

    running.store.note_use = note
    for minutes in (1, 2, 59, 61):
        running.now = NOW + timedelta(minutes=minutes)
        assert await running.tokens.caller(issued.text, "a") is not None
    assert noted == [NOW, NOW + timedelta(hours=1)]
    (stored,) = await running.store.tokens(1)
    assert stored.used_at == NOW + timedelta(hours=1)


async def test_the_list_has_pages_from_the_newest_to_the_oldest():
    running = Running()
    for number in range(5):
        running.now = NOW + timedelta(seconds=number // 2)  # two at one instant
        await running.tokens.issue(f"t{number}", Role.VIEWER, None, DAY, ROOT)
    names, cursor = [], None
    while True:
        page = await running.tokens.page(2, cursor)
        names += [row.name for row in page.rows]
        cursor = page.cursor
        if cursor is None:
            break
    assert sorted(names) == ["t0", "t1", "t2", "t3", "t4"]
    assert names[0] == "t4"
    with pytest.raises(AdminError, match="the cursor can't be read"):
        await running.tokens.page(2, "bm9uc2Vuc2U")
