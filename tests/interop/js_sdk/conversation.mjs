// Two people of two servers, each with matrix-js-sdk: they log in, meet in a room across the servers, talk, and leave.
//
// PLAN is {"encryption": bool, "people": [{"url", "user", "password", "server_name"}, …]}; with encryption, the SDK's
// cryptography runs. The last line is {"refused": ["404 POST /path M_ERRCODE", …]}: each request that was answered with
// 4xx or 5xx. See people.mjs.

import { check, event, login, membership, noting, plan, start, tell, until } from "./people.mjs";

const { encryption, people } = plan;

const LINES = 70;
const PICTURE = Buffer.from(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==",
    "base64",
);

/** Returns a client of a person, logged in and synced. */
async function enter(person) {
    const client = await login(person);
    if (encryption) {
        await client.initRustCrypto({ useIndexedDB: false });
        check(`${person.user} has no keys yet`, !(await client.getCrypto().userHasCrossSigningKeys()));
    }
    return start(client);
}

async function meet(alice, bob) {
    const { room_id: roomId } = await alice.createRoom({
        name: "The balcony", topic: "Parting", preset: "private_chat", is_direct: true, invite: [bob.getUserId()],
    });
    await until("the invited hears of it", () => membership(bob, roomId) === "invite");
    check("and of the room's name", bob.getRoom(roomId).name === "The balcony");
    await bob.joinRoom(roomId);
    await until("the invited is in", () => membership(bob, roomId) === "join");
    await until("the other sees it", () => alice.getRoom(roomId).getMember(bob.getUserId())?.membership === "join");
    return roomId;
}

async function talk(alice, bob, roomId) {
    const { event_id: first } = await alice.sendTextMessage(roomId, "But soft");
    await until("a message arrives", () => event(bob, roomId, first));
    const { event_id: answer } = await bob.sendHtmlMessage(roomId, "Who’s there?", "<b>Who’s there?</b>");
    await until("an answer arrives", () => event(alice, roomId, answer));
    await alice.sendEvent(roomId, "m.room.message", {
        "msgtype": "m.text",
        "body": "* But soft!",
        "m.new_content": { msgtype: "m.text", body: "But soft!" },
        "m.relates_to": { rel_type: "m.replace", event_id: first },
    });
    await until("an edit arrives", () => event(bob, roomId, first).getContent().body === "But soft!");
    await bob.sendReadReceipt(event(bob, roomId, first));
    const readBy = () => alice.getRoom(roomId).getReadReceiptForUserId(bob.getUserId(), true);
    await until("a receipt arrives", () => readBy()?.eventId === first);
    await alice.sendTyping(roomId, true, 20_000);
    await until("who is typing is seen", () => bob.getRoom(roomId).getMember(alice.getUserId())?.typing);
    await alice.setPresence({ presence: "online", status_msg: "on the balcony" });
    const status = () => bob.getUser(alice.getUserId())?.presenceStatusMsg;
    await until("presence arrives", () => status() === "on the balcony");
    await bob.redactEvent(roomId, answer);
    await until("what is taken back is gone", () => event(alice, roomId, answer).isRedacted());
}

async function show(alice, bob, roomId) {
    const blob = new Blob([PICTURE], { type: "image/png" });
    const { content_uri: mxc } = await alice.uploadContent(blob, { name: "rose.png", type: "image/png" });
    const { event_id: sent } = await alice.sendImageMessage(roomId, mxc, { mimetype: "image/png" }, "rose.png");
    const seen = await until("a picture arrives", () => event(bob, roomId, sent));
    for (const size of [[], [32, 32, "crop"]]) {
        const url = bob.mxcUrlToHttp(seen.getContent().url, ...(size.length ? size : [, , ,]), false, true, true);
        const answer = await noting(url, { headers: { authorization: `Bearer ${bob.getAccessToken()}` } });
        const bytes = Buffer.from(await answer.arrayBuffer());
        const isRight = size.length ? bytes.subarray(1, 4).toString() === "PNG" : bytes.equals(PICTURE);
        check(size.length ? "its thumbnail is a picture" : "it is what was sent", answer.ok && isRight);
    }
    await alice.setDisplayName("Alice of the balcony");
    await until("a new name is seen in the room", () => {
        return bob.getRoom(roomId).getMember(alice.getUserId()).rawDisplayName === "Alice of the balcony";
    });
}

async function settle(alice, roomId) {
    await alice.setRoomTag(roomId, "m.favourite", { order: 0.5 });
    await until("a tag comes back", () => alice.getRoom(roomId).tags["m.favourite"]);
    await alice.setAccountData("org.example.theme", { dark: true });
    await until("account data come back", () => alice.getAccountData("org.example.theme")?.getContent().dark);
    await alice.setRoomMutePushRule("global", roomId, true);
    const muted = () => (alice.pushRules?.global?.room ?? []).some((rule) => rule.rule_id === roomId);
    await until("a room is muted", muted);
    const served = await Promise.all([
        alice.getDevices(), alice.getThreePids(), alice.getThirdpartyProtocols(), alice.getCapabilities(),
    ]);
    check("what clients ask for at their start is answered", served.every(Boolean));
}

async function wander(alice, bob, { server_name: serverName }) {
    const name = `square-${Date.now()}`;
    const { room_id: roomId } = await alice.createRoom({
        name, preset: "public_chat", visibility: "public", room_alias_name: name,
    });
    for (let number = 0; number < LINES; number++) await alice.sendTextMessage(roomId, `line ${number}`);
    const found = await bob.publicRooms({ server: serverName, filter: { generic_search_term: name } });
    check("a public room is found across the servers", found.chunk.some((each) => each.room_id === roomId));
    await bob.joinRoom(`#${name}:${serverName}`);
    await until("who comes by its alias is in", () => membership(bob, roomId) === "join");
    const room = bob.getRoom(roomId);
    const timeline = () => room.getLiveTimeline().getEvents();
    await until("and pages back to its beginning", async () => {
        await bob.scrollback(room, 30);
        return timeline()[0].getType() === "m.room.create";
    });
    const said = timeline().map((each) => each.getContent().body).filter((body) => body?.startsWith("line "));
    check("all was said once and in order", said.join() === Array.from({ length: LINES }, (_, n) => `line ${n}`).join());
    await room.loadMembersIfNeeded();
    check("both are members", room.getJoinedMembers().length === 2);
    await bob.leave(roomId);
    await until("who leaves is out", () => membership(bob, roomId) === "leave");
}

async function part(alice, bob) {
    await alice.http.authedRequest("POST", "/logout");
    check("a token is dead after logging out", await alice.whoami().then(() => false, () => true));
    check("the other's is not", (await bob.whoami()).user_id === bob.getUserId());
}

await tell(async (refused) => {
    const [alice, bob] = [await enter(people[0]), await enter(people[1])];
    const roomId = await meet(alice, bob);
    await talk(alice, bob, roomId);
    await show(alice, bob, roomId);
    await settle(alice, roomId);
    await wander(alice, bob, people[0]);
    const all = [...refused];
    for (const client of [alice, bob]) client.stopClient();
    await part(alice, bob);
    return all;
});
