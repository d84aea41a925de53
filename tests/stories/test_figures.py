"""An administrator looks at how two organisations have used their server for a week, without reading a message."""

from __future__ import annotations

from homeserver.config import RateLimitsSection
from homeserver.users.accounts import store_admin
from tests.support.clock import let_days_pass
from tests.support.federation import Federation, create_room, join, send_text, until, wait_text

ANALYTICS = "/_homeserver/admin/v1/analytics"
DAY_S = 24 * 3600


async def test_a_week_of_two_organisations(federation: Federation) -> None:
    a = await federation.start("a.example", rate_limits=RateLimitsSection(enabled=False))
    b = await federation.start("b.example", rate_limits=RateLimitsSection(enabled=False))
    alice, carol, bob = await a.register("alice"), await a.register("carol"), await b.register("bob")
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id, a.name)
    await join(carol, room_id)
    for day in range(7):  # Alice talks on every day, Bob answers, Carol comes on the first two only
        await send_text(alice, room_id, f"Tea on day {day}?")
        await wait_text(bob, room_id, f"Tea on day {day}?")
        await send_text(bob, room_id, f"Yes, {day} cups.")
        await wait_text(alice, room_id, f"Yes, {day} cups.")
        if day < 2:
            await send_text(carol, room_id, "For me too.")
        await let_days_pass(1)

    await a.write(store_admin, alice.user_id, True)
    admin = await a.log_in(alice.user_id)
    answer = await admin.ok("GET", ANALYTICS)
    week = answer["periods"][-8:-1]
    assert [day["messages_sent"] for day in week] == [2, 2, 1, 1, 1, 1, 1]
    assert [day["messages_received"] for day in week] == [1] * 7
    assert [day["active_people"] for day in week] == [2, 2, 1, 1, 1, 1, 1]
    assert week[-1]["active_people_week"] == 2
    assert (week[0]["joins"], week[0]["new_people"], week[0]["new_rooms"]) == (3, 2, 1)
    (peer,) = answer["peers"]
    assert (peer["server"], peer["received"]) == (b.name, 8)  # seven answers, and the join
    assert "Tea" not in str(answer) and "cups" not in str(answer)

    # The server is restored from nothing but its database: the figures are part of it.
    await federation.kill("a.example")
    a = await federation.start("a.example")
    admin = a.with_token(admin.token)

    async def is_the_same() -> bool:
        return bool((await admin.ok("GET", ANALYTICS))["periods"][-8:-1] == week)

    await until(is_the_same)
