// A bot with matrix-bot-sdk: it accepts invitations and does what it is told. What it remembers is in its storage.
//
//     node bot.mjs FOLDER PLAN
//
// FOLDER has the packages in its node_modules. PLAN is JSON: {"url", "user", "password", "storage": a folder,
// "encryption": bool}. Prints "ready" once the bot syncs, and runs until it is killed.

import { createHash } from "node:crypto";
import { createRequire } from "node:module";
import { join } from "node:path";
import { argv, exit } from "node:process";

const [, , folder, argument] = argv;
const { url, user, password, storage: storageFolder, encryption } = JSON.parse(argument);
const require = createRequire(join(folder, "package.json"));

// The native cryptography of matrix-bot-sdk is downloaded from elsewhere when npm installs it, and we install nothing that
// our lock does not list. Without the module, matrix-bot-sdk cannot even be loaded. The fork's is in its package.
const NATIVE = "@matrix-org/matrix-sdk-crypto-nodejs";
const place = require.resolve(NATIVE);
require.cache[place] = { id: place, filename: place, loaded: true, exports: {} };

const sdk = require(encryption ? "@rocket.chat/forked-matrix-bot-sdk" : "matrix-bot-sdk");
sdk.LogService.setLevel(sdk.LogLevel.ERROR);

const PICTURE = Buffer.from(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==",
    "base64",
);

/** Returns the client of the bot. It logs in once, and has its token from its storage later. */
async function enter() {
    const storage = new sdk.SimpleFsStorageProvider(join(storageFolder, "bot.json"));
    let token = await storage.readValue("token");
    if (!token) {
        token = (await new sdk.MatrixAuth(url).passwordLogin(user, password, "a bot")).accessToken;
        await storage.storeValue("token", token);
    }
    const keys = encryption ? new sdk.RustSdkCryptoStorageProvider(join(storageFolder, "keys")) : undefined;
    return [new sdk.MatrixClient(url, token, storage, keys), storage];
}

const [client, storage] = await enter();
sdk.AutojoinRoomsMixin.setupOnClient(client);
const self = await client.getUserId();

/** Uploads the picture, encrypted if the room is, and sends it. */
async function sendPicture(roomId) {
    const content = { msgtype: "m.image", body: "rose.png", info: { mimetype: "image/png", size: PICTURE.length } };
    if (encryption && (await client.crypto.isRoomEncrypted(roomId))) {
        const encrypted = await client.crypto.encryptMedia(PICTURE);
        const uploaded = await client.uploadContent(encrypted.buffer, "application/octet-stream");
        await client.sendMessage(roomId, { ...content, file: { ...encrypted.file, url: uploaded } });
    } else {
        await client.sendMessage(roomId, { ...content, url: await client.uploadContent(PICTURE, "image/png", "rose.png") });
    }
}

const commands = {
    "!ping": (roomId, event) => client.replyText(roomId, event, "pong"),
    "!react": (roomId, event) => client.unstableApis.addReactionToEvent(roomId, event.event_id, "🌹"),
    "!picture": (roomId) => sendPicture(roomId),
    "!count": async (roomId) => {
        const count = Number((await storage.readValue("count")) ?? 0) + 1;
        await storage.storeValue("count", String(count));
        await client.sendNotice(roomId, `count ${count}`);
    },
    "!who": async (roomId, event) => {
        const { displayname } = await client.getUserProfile(event.sender);
        const members = await client.getJoinedRoomMembers(roomId);
        await client.sendHtmlText(roomId, `<b>${displayname}</b> and ${members.filter((each) => each !== event.sender)}`);
    },
    "!topic": (roomId) => client.sendStateEvent(roomId, "m.room.topic", "", { topic: "set by a bot" }),
    "!redact": (roomId, event) => client.redactEvent(roomId, event.event_id, "as you wish"),
    "!remember": async (roomId) => {
        await client.setRoomAccountData("org.example.bot", roomId, { remembered: true });
        const { remembered } = await client.getRoomAccountData("org.example.bot", roomId);
        await client.sendNotice(roomId, remembered ? "remembered" : "forgotten");
    },
    "!leave": (roomId) => client.leaveRoom(roomId),
};

client.on("room.message", async (roomId, event) => {
    if (event.sender === self || !event.content) return;
    try {
        if (event.content.msgtype === "m.image") {
            const { data } = event.content.file
                ? { data: await client.crypto.decryptMedia(event.content.file) }
                : await client.downloadContent(event.content.url);
            await client.sendNotice(roomId, `sha256 ${createHash("sha256").update(data).digest("hex")}`);
        } else {
            await client.sendReadReceipt(roomId, event.event_id);
            await commands[event.content.body]?.(roomId, event);
        }
    } catch (error) {
        console.log(`${event.content.body}: ${error.stack ?? JSON.stringify(error)}`);
        exit(1);
    }
});
client.on("room.failed_decryption", (roomId, event, error) => {
    console.log(`cannot read ${event.event_id}: ${error}`);
});

await client.start();
console.log("ready");
