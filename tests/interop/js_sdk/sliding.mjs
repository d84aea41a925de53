// Two people of two servers whose clients use sliding sync, with the lists and subscriptions of Element Web.
//
// PLAN is {"brief": bool, "people": [{"url", "user", "password"}, …]}: Alice of one server, Bob of the other. A brief story
// has nothing in which servers differ: unread counts, answers that get lost, restarts. The program asks for {"restart": N}:
// the server of that person. The last line is {"refused": […]}, as in conversation.mjs. See people.mjs.

import { askFor, check, event, load, login, membership, noting, plan, print, tell, until } from "./people.mjs";

const { SlidingSync } = await load("sliding-sync.js");
const [ALICE, BOB] = plan.people;
const ROOMS = 24;
const WAIT_MS = 10_000;

const REQUIRED_STATE = [
    ["m.room.join_rules", ""],
    ["m.room.avatar", ""],
    ["m.room.tombstone", ""],
    ["m.room.encryption", ""],
    ["m.room.create", ""],
    ["m.room.topic", ""],
    ["m.room.power_levels", ""],
    ["m.space.child", "*"],
    ["m.space.parent", "*"],
    ["m.room.member", "$ME"],
];
const SUBSCRIPTION = { timeline_limit: 50, required_state: [...REQUIRED_STATE, ["m.room.member", "$LAZY"]] };
const listOf = (filters, last) => {
    return { ranges: [[0, last]], timeline_limit: 20, required_state: SUBSCRIPTION.required_state, filters };
};

/** The network as one client sees it: can lose answers on their way, and counts requests. */
class Wire {
    requests = 0;
    #lost = 0;
    #onLost = () => {};

    /** Loses the next answers of sliding sync that have any news. Returns when they are lost. */
    lose(count) {
        this.#lost = count;
        return new Promise((resolve) => (this.#onLost = resolve));
    }

    fetch = async (resource, options) => {
        const answer = await noting(resource, options);
        if (!new URL(resource).pathname.endsWith("simplified_msc3575/sync")) return answer;
        this.requests += 1;
        if (this.#lost && answer.ok) {
            const { rooms, extensions } = await answer.clone().json();
            if (Object.keys(rooms).length || extensions.to_device?.events.length) {
                this.#lost -= 1;
                if (!this.#lost) this.#onLost();
                throw new TypeError("the answer was lost");
            }
        }
        return answer;
    };
}

/** Returns a new client of the person, with its first answer received. */
async function enter(person) {
    const wire = new Wire();
    const client = await login(person, { fetchFn: wire.fetch });
    await client.initRustCrypto({ useIndexedDB: false });
    const lists = new Map([
        ["spaces", listOf({ room_types: ["m.space"] }, 10)],
        ["invites", listOf({ is_invite: true }, 10)],
        ["favourites", listOf({ tags: ["m.favourite"] }, 10)],
        ["direct", listOf({ is_dm: true, is_invite: false, not_room_types: ["m.space"] }, 10)],
        ["untagged", listOf({ is_invite: false, not_room_types: ["m.space"], not_tags: ["m.favourite"] }, 4)],
    ]);
    const sliding = new SlidingSync(person.url, lists, SUBSCRIPTION, client, WAIT_MS);
    await client.startClient({ slidingSync: sliding, lazyLoadMembers: true });
    await until(`${client.getUserId()} has synced`, () => client.getSyncState() === "SYNCING");
    return { client, sliding, wire };
}

const names = (client) => client.getRooms().map((room) => room.name);
const told = (client, words) => names(client).filter((name) => name.startsWith(words)).length;

/** A list shows its newest rooms, and more of them as its window grows. */
async function scroll({ client: alice, sliding }) {
    for (let number = 0; number < ROOMS; number++) {
        await alice.createRoom({ name: `room ${number}`, preset: "private_chat" });
    }
    const late = await enter(ALICE);
    check("a new client is told the newest five rooms", told(late.client, "room ") === 5);
    check("of all", late.sliding.getListData("untagged").joinedCount === ROOMS);
    const newest = Array.from({ length: 5 }, (_, back) => `room ${ROOMS - 1 - back}`);
    check("which are these", newest.every((name) => names(late.client).includes(name)));
    for (const last of [9, 14, 99]) {
        late.sliding.setListRanges("untagged", [[0, last]]);
        const most = Math.min(last + 1, ROOMS);
        await until(`a window of ${last + 1} shows ${most} rooms`, () => told(late.client, "room ") === most);
    }
    await until("the first client knows its own rooms", () => told(alice, "room ") === ROOMS);
    return late;
}

/** An invitation to an encrypted room, and its acceptance. Returns the room. */
async function meet(alice, bob) {
    const encryption = { type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } };
    const { room_id: roomId } = await alice.createRoom({
        name: "The balcony", preset: "private_chat", is_direct: true, invite: [bob.getUserId()],
        initial_state: [encryption],
    });
    await until("the invited hears of it", () => membership(bob, roomId) === "invite");
    check("and of the room's name", bob.getRoom(roomId).name === "The balcony");
    await bob.joinRoom(roomId);
    await until("the invited is in", () => membership(bob, roomId) === "join");
    await until("the other sees it", () => alice.getRoom(roomId).getMember(bob.getUserId())?.membership === "join");
    check("members are counted", alice.getRoom(roomId).getJoinedMemberCount() === 2);
    await until("both know that it is encrypted", () => [alice, bob].every((each) => isEncrypted(each, roomId)));
    return roomId;
}

const isEncrypted = (client, roomId) => client.getRoom(roomId)?.hasEncryptionStateEvent();

async function say(sender, roomId, body) {
    const { event_id: eventId } = await sender.sendTextMessage(roomId, body);
    const stored = await sender.fetchRoomEvent(roomId, eventId);
    check(`“${body}” is ciphertext on the server`, stored.type === "m.room.encrypted");
    return { eventId, body };
}

/** Waits until all have decrypted the message. */
async function readBy(readers, roomId, { eventId, body }) {
    for (const reader of readers) {
        await until(`${reader.getUserId()} ${reader.getDeviceId()} reads “${body}”`, async () => {
            const each = event(reader, roomId, eventId);
            if (each && (each.isEncrypted() || each.isDecryptionFailure()) && each.getContent().body !== body) {
                await each.attemptDecryption(reader.getCrypto(), { isRetry: true });
            }
            return each?.getContent().body === body;
        });
    }
}

async function react(alice, bob, roomId, said) {
    await bob.sendReadReceipt(event(bob, roomId, said.eventId));
    const receipt = () => alice.getRoom(roomId).getReadReceiptForUserId(bob.getUserId(), true);
    await until("a receipt arrives", () => receipt()?.eventId === said.eventId);
    await alice.sendTyping(roomId, true, 20_000);
    const isTyping = () => bob.getRoom(roomId).getMember(alice.getUserId())?.typing;
    await until("the typist is seen", isTyping);
    await alice.sendTyping(roomId, false, 0);
    await until("and that it ends", () => !isTyping());
    await alice.setRoomTag(roomId, "m.favourite", { order: 0.5 });
    await until("a tag comes back", () => alice.getRoom(roomId).tags["m.favourite"]);
    await alice.setAccountData("org.example.theme", { dark: true });
    await until("account data come back", () => alice.getAccountData("org.example.theme")?.getContent().dark);
    await alice.setAccountData("m.direct", { [bob.getUserId()]: [roomId] });
    await alice.setRoomTopic(roomId, "Parting");
    const topic = () => bob.getRoom(roomId).currentState.getStateEvents("m.room.topic", "")?.getContent().topic;
    await until("a topic arrives", () => topic() === "Parting");
    await alice.setDisplayName("Alice of the balcony");
    await until("a new name is seen in the room", () => {
        return bob.getRoom(roomId).getMember(alice.getUserId())?.rawDisplayName === "Alice of the balcony";
    });
}

/** A client gets a room that none of its lists shows if it subscribes to the room. */
async function subscribe({ client: alice, sliding }, roomId) {
    sliding.setList("untagged", listOf({ is_invite: false, not_tags: ["m.favourite"] }, 0));
    sliding.setListRanges("favourites", [[0, 0]]);
    const oldest = alice.getRooms().find((room) => room.name === "room 0");
    sliding.modifyRoomSubscriptions(new Set([roomId, oldest.roomId]));
    await until("the whole of an old room is told", () => {
        const types = oldest.getLiveTimeline().getEvents().map((each) => each.getType());
        return types.includes("m.room.create") && types.includes("m.room.name");
    });
}

/** Unread counts rise with the messages, and a receipt resets them. */
async function count(alice, bob) {
    const invite = [bob.getUserId()];
    const { room_id: roomId } = await alice.createRoom({ name: "plain", preset: "private_chat", invite });
    await until("an invite arrives", () => membership(bob, roomId) === "invite");
    await bob.joinRoom(roomId);
    await until("the invited is in", () => membership(bob, roomId) === "join");
    const room = bob.getRoom(roomId);
    for (const body of ["one", "two"]) await alice.sendTextMessage(roomId, body);
    const mention = { "msgtype": "m.text", "body": "three", "m.mentions": { user_ids: [bob.getUserId()] } };
    const { event_id: last } = await alice.sendEvent(roomId, "m.room.message", mention);
    await until("unread messages are counted", () => room.getUnreadNotificationCount("total") >= 3);
    await until("and mentions", () => room.getUnreadNotificationCount("highlight") === 1);
    await until("all have arrived", () => event(bob, roomId, last));
    await bob.sendReadReceipt(event(bob, roomId, last));
    await until("a receipt ends that", () => {
        return ["total", "highlight"].every((kind) => room.getUnreadNotificationCount(kind) === 0);
    });
    const texts = () => room.getLiveTimeline().getEvents().map((each) => each.getContent().body).filter(Boolean);
    check("each message came once and in order", texts().join() === "one,two,three");
    await bob.leave(roomId);
    await until("the one who leaves is out", () => membership(bob, roomId) === "leave");
}

/** Answers that get lost on their way lose no message and no key; none arrives twice. */
async function lose(alice, bob, roomId) {
    const lost = bob.wire.lose(2);
    await alice.client.getCrypto().forceDiscardSession(roomId); // so that a key travels too
    const said = [];
    for (const number of [1, 2, 3]) said.push(await say(alice.client, roomId, `said to a bad wire ${number}`));
    await lost;
    for (const each of said) await readBy([bob.client], roomId, each);
    checkOnce(bob.client, roomId, said);
}

/** A restart of either server only delays messages. */
async function restart(alice, bob, roomId) {
    const said = [];
    for (const number of [0, 1]) {
        said.push(await say(bob.client, roomId, `before restart ${number}`));
        await askFor({ restart: number });
        await alice.client.getCrypto().forceDiscardSession(roomId);
        for (const sender of [alice.client, bob.client]) {
            said.push(await say(sender, roomId, `after restart ${number}, ${sender.getUserId()}`));
        }
        for (const each of said) await readBy([alice.client, bob.client], roomId, each);
    }
    for (const { client } of [alice, bob]) checkOnce(client, roomId, said);
}

function checkOnce(client, roomId, said) {
    const events = client.getRoom(roomId).getLiveTimeline().getEvents();
    const found = events.map((each) => each.getId()).filter((id) => said.some(({ eventId }) => eventId === id));
    check("each message came once", found.length === said.length && new Set(found).size === said.length);
}

/** A client at rest waits for news: it does not ask again and again. */
async function rest(people) {
    const before = people.map(({ wire }) => wire.requests);
    await new Promise((resolve) => setTimeout(resolve, 1500));
    const asked = people.map(({ wire }, each) => wire.requests - before[each]);
    check("clients at rest wait", asked.every((times) => times <= 1));
}

await tell(async (refused) => {
    const [alice, bob] = [await enter(ALICE), await enter(BOB)];
    alice.sliding.setListRanges("untagged", [[0, 99]]);
    const alice2 = await scroll(alice);
    const roomId = await meet(alice.client, bob.client);
    await until("her other client is in", () => membership(alice2.client, roomId) === "join");
    await until("and knows that, too", () => isEncrypted(alice2.client, roomId));
    const everyone = [alice.client, alice2.client, bob.client];
    const said = [];
    for (const sender of everyone) said.push(await say(sender, roomId, `hello from ${sender.getDeviceId()}`));
    for (const each of said) await readBy(everyone, roomId, each);
    await react(alice.client, bob.client, roomId, said[0]);
    await subscribe(alice2, roomId);
    if (!plan.brief) {
        await count(alice.client, bob.client);
        await rest([alice, alice2, bob]);
        print("-- a bad wire");
        await lose(alice, bob, roomId);
        print("-- restarts");
        await restart(alice, bob, roomId);
    }
    const all = [...refused];
    for (const { client } of [alice, alice2, bob]) client.stopClient();
    return all;
});
