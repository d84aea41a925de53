// Two people of two servers talk in an encrypted room with matrix-js-sdk's Rust cryptography, and verify one another.
//
//     node secrets.mjs FOLDER PLAN
//
// FOLDER has matrix-js-sdk in its node_modules. PLAN is JSON: {"people": [{"url", "user", "password"}, …]}.
// Prints each step, and exits 1 at the first one that does not succeed.

import { join } from "node:path";
import { argv, exit } from "node:process";
import { pathToFileURL } from "node:url";

const [, , folder, plan] = argv;
const load = (file) => import(pathToFileURL(join(folder, "node_modules/matrix-js-sdk/lib", file)));
const sdk = await load("index.js");
(await load("logger.js")).logger.setLevel("silent");
console.debug = console.info = console.warn = () => {}; // the SDK's own
const { people } = JSON.parse(plan);

const PATIENCE_MS = 30_000;
const MEGOLM = "m.megolm.v1.aes-sha2";

/** Returns the first true value of `probe`; fails if there is none in time. */
async function until(what, probe) {
    const end = Date.now() + PATIENCE_MS;
    for (;;) {
        const value = await probe();
        if (value) {
            console.log(what);
            return value;
        }
        if (Date.now() > end) throw new Error(`not within ${PATIENCE_MS / 1000} s: ${what}`);
        await new Promise((resolve) => setTimeout(resolve, 50));
    }
}

function check(what, holds) {
    if (!holds) throw new Error(`not so: ${what}`);
    console.log(what);
}

/** Answers user-interactive authentication with the password. Returns how often it was asked for. */
function authenticator({ user, password }) {
    const asked = { count: 0 };
    asked.authenticate = async (makeRequest) => {
        try {
            return await makeRequest(null);
        } catch (error) {
            asked.count += 1;
            const identifier = { type: "m.id.user", user };
            return await makeRequest({ type: "m.login.password", identifier, password, session: error.data.session });
        }
    };
    return asked;
}

/** Logs a person in, with cross-signing keys. */
async function enter(person) {
    const { url, user, password } = person;
    const anonymous = sdk.createClient({ baseUrl: url });
    const identifier = { type: "m.id.user", user };
    const login = await anonymous.loginRequest({ type: "m.login.password", identifier, password });
    const { user_id: userId, device_id: deviceId, access_token: accessToken } = login;
    const client = sdk.createClient({ baseUrl: url, userId, deviceId, accessToken });
    await client.initRustCrypto({ useIndexedDB: false });
    await client.startClient({ initialSyncLimit: 20, pollTimeout: 10_000 });
    await until(`${user} has synced`, () => ["PREPARED", "SYNCING"].includes(client.getSyncState()));
    const crypto = client.getCrypto();
    for (const [setupNewCrossSigning, asks] of [[false, 0], [true, 1]]) {
        const asked = authenticator(person);
        await crypto.bootstrapCrossSigning({ setupNewCrossSigning, authUploadDeviceSigningKeys: asked.authenticate });
        check(`${user} has cross-signing keys, for which a password was needed ${asks}×`, asked.count === asks);
        // The SDK confuses keys that replace one another while it asks for the first ones.
        const publicKey = await crypto.getCrossSigningKeyId();
        await until("the server tells them, and the device is signed", async () => {
            const stored = await client.downloadKeysForUsers([userId]);
            const device = await crypto.getDeviceVerificationStatus(userId, deviceId);
            const own = await crypto.getUserVerificationStatus(userId);
            const isStored = `ed25519:${publicKey}` in (stored.master_keys?.[userId]?.keys ?? {});
            return isStored && device?.signedByOwner && own.isCrossSigningVerified();
        });
    }
    return client;
}

async function meet(alice, bob) {
    const encryption = { type: "m.room.encryption", state_key: "", content: { algorithm: MEGOLM } };
    const { room_id: roomId } = await alice.createRoom({ invite: [bob.getUserId()], initial_state: [encryption] });
    await until("the invited hears of it", () => bob.getRoom(roomId)?.getMyMembership() === "invite");
    await bob.joinRoom(roomId);
    await until("the other sees that the invited is in", () =>
        alice.getRoom(roomId).getMember(bob.getUserId())?.membership === "join");
    await until("the room is encrypted for both", () => bob.getRoom(roomId)?.hasEncryptionStateEvent());
    return roomId;
}

/** Whether the client has read these words, decrypted. */
async function hasRead(client, roomId, words) {
    const events = client.getRoom(roomId).getLiveTimeline().getEvents();
    await Promise.all(events.map((each) => client.decryptEventIfNeeded(each)));
    return events.some((each) => each.isEncrypted() && each.getContent().body === words);
}

async function talk(alice, bob, roomId) {
    for (const [from, to, words] of [[alice, bob, "But soft"], [bob, alice, "Who’s there?"]]) {
        await from.sendTextMessage(roomId, words);
        await until("a message is read", () => hasRead(to, roomId, words));
    }
}

/** Both compare emoji, after which each has signed the other. */
async function verify(alice, bob, roomId) {
    const received = new Promise((resolve) => bob.on("crypto.verificationRequestReceived", resolve));
    const asking = await alice.getCrypto().requestVerificationDM(bob.getUserId(), roomId);
    const answering = await received;
    await answering.accept();
    await until("the verification is accepted", () => asking.otherPartySupportsMethod("m.sas.v1"));
    const verifiers = [await asking.startVerification("m.sas.v1"), await until("… and begun", () => answering.verifier)];
    const shown = verifiers.map((verifier) => new Promise((resolve) => verifier.on("show_sas", resolve)));
    const ends = verifiers.map((verifier) => verifier.verify());
    const [one, other] = await Promise.all(shown);
    check("both see the same emoji", JSON.stringify(one.sas.emoji) === JSON.stringify(other.sas.emoji));
    await Promise.all([one.confirm(), other.confirm(), ...ends]);
    for (const [viewer, seen] of [[alice, bob], [bob, alice]]) {
        await until("one has verified the other, device and all", async () => {
            const crypto = viewer.getCrypto();
            const user = await crypto.getUserVerificationStatus(seen.getUserId());
            const device = await crypto.getDeviceVerificationStatus(seen.getUserId(), seen.getDeviceId());
            return user.isCrossSigningVerified() && device?.isVerified();
        });
    }
}

try {
    const [alice, bob] = [await enter(people[0]), await enter(people[1])];
    const roomId = await meet(alice, bob);
    await talk(alice, bob, roomId);
    await verify(alice, bob, roomId);
    exit(0);
} catch (error) {
    console.error(error);
    exit(1);
}
