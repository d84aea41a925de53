// Calls with matrix-js-sdk, as Element Call makes them, and the meeting of two devices for log-in by QR code.
//
// PLAN is {"people": [{"url", "user", "password", "server_name"}, …]}: two people of two servers. See people.mjs.

import { check, load, login, membership, noting, plan, sdk, start, tell, until } from "./people.mjs";

const { MSC4108RendezvousSession } = await load("rendezvous/index.js");
const CALL = "org.matrix.msc3401.call.member";
const FOCUS = { type: "livekit", livekit_service_url: "https://livekit.example", livekit_alias: "room" };
const LEAVE_AFTER_MS = 4_000;

const texts = (client, roomId) => client.getRoom(roomId).getLiveTimeline().getEvents().map((each) => each.getContent().body);

async function meet(alice, bob) {
    const { room_id: roomId } = await alice.createRoom({
        preset: "private_chat", invite: [bob.getUserId()], power_level_content_override: { events: { [CALL]: 0 } },
    });
    await until("the invited hears of it", () => membership(bob, roomId) === "invite");
    await bob.joinRoom(roomId);
    await until("the other sees it", () => alice.getRoom(roomId).getMember(bob.getUserId())?.membership === "join");
    return roomId;
}

async function delay(alice, bob, roomId) {
    const later = (body, ms) =>
        alice._unstable_sendDelayedEvent(roomId, { delay: ms }, null, "m.room.message", { msgtype: "m.text", body });
    const { delay_id: soon } = await later("in a second", 1_000);
    const { delay_id: never } = await later("never", 60_000);
    const { delay_id: now } = await later("at once", 60_000);
    const { delayed_events: scheduled } = await alice._unstable_getDelayedEvents();
    check("delayed events are listed in order", scheduled.map((each) => each.delay_id).join() === [soon, never, now].join());
    const { Cancel, Restart, Send } = sdk.UpdateDelayedEventAction ?? { Cancel: "cancel", Restart: "restart", Send: "send" };
    await alice._unstable_updateDelayedEvent(never, Cancel);
    await alice._unstable_updateDelayedEvent(now, Send);
    await until("an event that is sent at once arrives", () => texts(bob, roomId).includes("at once"));
    await until("a delayed event arrives", () => texts(bob, roomId).includes("in a second"));
    check("a cancelled event does not", !texts(bob, roomId).includes("never"));
    const error = await alice._unstable_updateDelayedEvent(never, Restart).catch((reason) => reason);
    check("a cancelled event cannot be restarted", error.errcode === "M_NOT_FOUND");
}

async function call(alice, bob, roomId) {
    const transports = await fetch(`${plan.people[0].url}/_matrix/client/unstable/org.matrix.msc4143/rtc/transports`, {
        headers: { authorization: `Bearer ${alice.getAccessToken()}` },
    });
    check("transports are told", Array.isArray((await transports.json()).rtc_transports));
    const [hers, his] = [alice, bob].map((client) => client.matrixRTC.getRoomSession(client.getRoom(roomId)));
    const seen = (session) => session.memberships.map((each) => each.sender).sort().join();
    const config = {
        useNewMembershipManager: true, membershipServerSideExpiryTimeout: LEAVE_AFTER_MS, membershipKeepAlivePeriod: 1_000,
    };
    hers.joinRoomSession([FOCUS], { type: "livekit", focus_selection: "oldest_membership" }, config);
    await until("a call is seen", () => seen(his) === alice.getUserId());
    his.joinRoomSession([FOCUS], { type: "livekit", focus_selection: "oldest_membership" }, config);
    const both = [alice.getUserId(), bob.getUserId()].sort().join();
    await until("both are in the call", () => seen(hers) === both && seen(his) === both);
    await new Promise((resolve) => setTimeout(resolve, 2 * LEAVE_AFTER_MS));
    check("both stay while their clients say so", seen(hers) === both && seen(his) === both);
    // Alice's device disappears: it restarts nothing any more, and cannot leave.
    hers.membershipManager.scheduler.stop?.();
    alice._unstable_updateDelayedEvent = () => new Promise(() => {});
    alice.sendStateEvent = () => new Promise(() => {});
    await until("a member who disappears has left", () => seen(his) === bob.getUserId());
    await his.leaveRoomSession(5_000);
    await until("nobody is in the call", () => seen(his) === "");
}

async function rendezvous(alice) {
    const shown = new MSC4108RendezvousSession({ client: alice, fetchFn: noting });
    await shown.send("shown as a QR code");
    const scanned = new MSC4108RendezvousSession({ url: shown.url, fetchFn: noting });
    check("a device reads what the other one shows", (await scanned.receive()) === "shown as a QR code");
    await scanned.send("the answer");
    check("and answers", (await shown.receive()) === "the answer");
    await shown.send("good bye");
    check("in turn", (await scanned.receive()) === "good bye");
    await shown.close();
    await scanned.receive();
    check("a session that is closed has ended", scanned.cancelled);
}

await tell(async (refused) => {
    const [alice, bob] = await Promise.all(plan.people.map(async (person) => start(await login(person))));
    const roomId = await meet(alice, bob);
    await delay(alice, bob, roomId);
    await rendezvous(alice);
    await call(alice, bob, roomId);
    return refused;
});
