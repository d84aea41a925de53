// A person with matrix-js-sdk who invites a bot, tells it what to do, and checks that it is done. See bot_sdk/bot.mjs.
//
// PLAN is {"encryption": bool, "bot": user ID, "people": [{"url", "user", "password"}]}. The program asks for {"bot":
// "stop"}, {"bot": "start"} and {"server": "restart"}, the server of the bot. The last line is {"refused": […]}, as in
// conversation.mjs. See people.mjs.

import { createDecipheriv, createHash } from "node:crypto";

import { askFor, check, event, login, noting, plan, print, start, tell, until } from "./people.mjs";

const { bot, encryption, people } = plan;
const PICTURE = Buffer.from(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg==",
    "base64",
);

/** Returns a client of the person. */
async function enter(person) {
    const client = await login(person);
    await client.initRustCrypto({ useIndexedDB: false });
    return start(client);
}

const timeline = (client, roomId) => client.getRoom(roomId).getLiveTimeline().getEvents();

/** Returns the bot's events in the room. */
async function said(client, roomId) {
    const events = timeline(client, roomId).filter((each) => each.getSender() === bot);
    for (const each of events) {
        if (each.isDecryptionFailure()) await each.attemptDecryption(client.getCrypto(), { isRetry: true });
    }
    return events;
}

/** Waits for an event of the bot. */
const hears = (client, roomId, what, fits) => {
    return until(`the bot ${what}`, async () => (await said(client, roomId)).find((each) => fits(each.getContent(), each)));
};

/** Returns a room of both. Its version is 11, because the cryptography of the bot does not know the room IDs of 12. */
async function meet(client) {
    const algorithm = { algorithm: "m.megolm.v1.aes-sha2" };
    const { room_id: roomId } = await client.createRoom({
        room_version: "11", preset: "private_chat", invite: [bot], power_level_content_override: { users_default: 100 },
        initial_state: encryption ? [{ type: "m.room.encryption", state_key: "", content: algorithm }] : [],
    });
    const status = () => client.getRoom(roomId)?.getMember(bot)?.membership;
    await until("the bot accepts the invitation", () => status() === "join");
    return roomId;
}

/** Tells the bot everything that it understands. */
async function command(client, roomId) {
    const { event_id: ping } = await client.sendTextMessage(roomId, "!ping");
    const pong = await hears(client, roomId, "answers", (content) => content.body?.endsWith("pong"));
    check("that is a reply", pong.getWireContent()["m.relates_to"]["m.in_reply_to"].event_id === ping);
    check(`the answer is ${encryption ? "encrypted" : "in the clear"}`, pong.isEncrypted() === encryption);
    const receipt = () => client.getRoom(roomId).getReadReceiptForUserId(bot, true)?.eventId;
    await until("the bot has read the command", receipt);
    const { event_id: react } = await client.sendTextMessage(roomId, "!react");
    await until("the bot reacts", () => {
        const reactions = client.getRoom(roomId).relations.getChildEventsForEvent(react, "m.annotation", "m.reaction");
        return reactions?.getRelations().some((each) => each.getRelation().key === "🌹" && each.getSender() === bot);
    });
    await client.sendTextMessage(roomId, "!picture");
    const picture = await hears(client, roomId, "sends a picture", (content) => content.msgtype === "m.image");
    check("that can be downloaded", (await download(client, picture.getContent())).subarray(1, 4).toString() === "PNG");
    await client.sendTextMessage(roomId, "!who");
    await hears(client, roomId, "knows who asks", (content) => {
        return content.body?.includes(bot) && content.formatted_body.startsWith("<b>");
    });
    await client.sendTextMessage(roomId, "!topic");
    const topic = () => client.getRoom(roomId).currentState.getStateEvents("m.room.topic", "")?.getContent().topic;
    await until("the bot sets the topic", () => topic() === "set by a bot");
    const { event_id: redact } = await client.sendTextMessage(roomId, "!redact");
    await until("the bot redacts", () => event(client, roomId, redact)?.isRedacted());
    await client.sendTextMessage(roomId, "!remember");
    await hears(client, roomId, "has account data", (content) => content.body === "remembered");
    if (!encryption) await show(client, roomId);
}

/** Returns a picture as it was before it was encrypted. */
async function download(client, { url, file }) {
    const address = client.mxcUrlToHttp(file?.url ?? url, undefined, undefined, undefined, false, true, true);
    const answer = await noting(address, { headers: { authorization: `Bearer ${client.getAccessToken()}` } });
    const bytes = Buffer.from(await answer.arrayBuffer());
    if (!file) return bytes;
    const hash = createHash("sha256").update(bytes).digest("base64").replaceAll("=", "");
    check("what was uploaded is what arrives", hash === file.hashes.sha256);
    const decipher = createDecipheriv("aes-256-ctr", Buffer.from(file.key.k, "base64url"), Buffer.from(file.iv, "base64"));
    return Buffer.concat([decipher.update(bytes), decipher.final()]);
}

/** Sends the bot a picture. */
async function show(client, roomId) {
    const blob = new Blob([PICTURE], { type: "image/png" });
    const { content_uri: mxc } = await client.uploadContent(blob, { name: "rose.png", type: "image/png" });
    await client.sendImageMessage(roomId, mxc, { mimetype: "image/png" }, "rose.png");
    const hash = createHash("sha256").update(PICTURE).digest("hex");
    await hears(client, roomId, "downloads a picture", (content) => content.body === `sha256 ${hash}`);
}

/** The bot goes on where it stopped: it misses no command and answers none twice. */
async function restart(client, roomId) {
    const counts = async () => {
        const bodies = (await said(client, roomId)).map((each) => each.getContent().body);
        return bodies.filter((body) => body?.startsWith("count ")).join();
    };
    await client.sendTextMessage(roomId, "!count");
    await until("the bot counts", async () => (await counts()) === "count 1");
    await askFor({ bot: "stop" });
    await client.sendTextMessage(roomId, "!count");
    await askFor({ bot: "start" });
    await until("the bot answers what was said while it was away", async () => (await counts()) === "count 1,count 2");
    await askFor({ server: "restart" });
    await client.sendTextMessage(roomId, "!count");
    await until("and after a restart of its server", async () => (await counts()) === "count 1,count 2,count 3");
}

await tell(async (refused) => {
    const client = await enter(people[0]);
    const roomId = await meet(client);
    await command(client, roomId);
    print("-- restarts");
    await restart(client, roomId);
    await client.sendTextMessage(roomId, "!leave");
    await until("the bot leaves", () => client.getRoom(roomId).getMember(bot).membership === "leave");
    const all = [...refused];
    client.stopClient();
    return all;
});
