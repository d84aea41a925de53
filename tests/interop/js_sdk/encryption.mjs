// Encrypted conversation between people of two servers, each with several devices, all with the SDK's cryptography.
//
// PLAN is {"people": [{"url", "user", "password"}, …]}: Alice of one server, Bob and Carol of the other. The last line
// is {"refused": […]}, as in conversation.mjs. See people.mjs.

import { check, cryptoApi, event, login, membership, noting, plan, print, start, tell, until } from "./people.mjs";

const [ALICE, BOB, CAROL] = plan.people;
const { CryptoEvent, VerificationPhase, VerifierEvent } = cryptoApi;

const recoveryKeys = new Map(); // user ID to the key of the secret storage, as a person keeps it on paper
const given = []; // "user-ID device-ID" of each encrypted message to a device, as keys of rooms are sent

/** Like noting, but also keeps which devices are sent keys. */
async function noteRecipients(resource, options) {
    if (new URL(resource).pathname.includes("/sendToDevice/m.room.encrypted/")) {
        for (const [user, devices] of Object.entries(JSON.parse(options.body).messages)) {
            given.push(...Object.keys(devices).map((device) => `${user} ${device}`));
        }
    }
    return noting(resource, options);
}

const nameOf = (client) => `${client.getUserId()} ${client.getDeviceId()}`;

/** Returns a client with a new device of the person. */
async function enter(person) {
    const paper = ({ keys }) => [Object.keys(keys)[0], recoveryKeys.get(client.getUserId())];
    const client = await login(person, {
        fetchFn: noteRecipients, cryptoCallbacks: { getSecretStorageKey: async (asked) => paper(asked) },
    });
    await client.initRustCrypto({ useIndexedDB: false });
    return start(client);
}

/** Makes cross-signing keys. Returns how often a password was asked for. */
async function makeSigningKeys(client, { user, password }, setupNewCrossSigning) {
    let asked = 0;
    const authUploadDeviceSigningKeys = async (makeRequest) => {
        try {
            return await makeRequest(null);
        } catch (error) {
            asked += 1;
            const identifier = { type: "m.id.user", user };
            return makeRequest({ type: "m.login.password", identifier, password, session: error.data.session });
        }
    };
    const crypto = client.getCrypto();
    await crypto.bootstrapCrossSigning({ setupNewCrossSigning, authUploadDeviceSigningKeys });
    // The SDK confuses keys that replace one another while it asks for the first ones.
    const publicKey = await crypto.getCrossSigningKeyId();
    await until("the server tells them, and the device is signed", async () => {
        const stored = await client.downloadKeysForUsers([client.getUserId()]);
        const isStored = `ed25519:${publicKey}` in (stored.master_keys?.[client.getUserId()]?.keys ?? {});
        return isStored && (await isVerifiedDevice(client, client)) && (await isVerifiedUser(client, client));
    });
    return asked;
}

/** Cross-signing keys, secret storage and a key backup, as a client sets them up when a person first logs in. */
async function setUp(client, person) {
    const crypto = client.getCrypto();
    check("the first keys need no password", (await makeSigningKeys(client, person, false)) === 0);
    check("others in their place do", (await makeSigningKeys(client, person, true)) === 1);
    await crypto.bootstrapSecretStorage({
        createSecretStorageKey: async () => {
            const key = await crypto.createRecoveryKeyFromPassphrase();
            recoveryKeys.set(client.getUserId(), key.privateKey);
            return key;
        },
        setupNewKeyBackup: true,
    });
    const user = client.getUserId();
    await until(`${user} has cross-signing keys`, () => crypto.isCrossSigningReady());
    await until(`${user} has secret storage`, () => crypto.isSecretStorageReady());
    await until(`${user} has a key backup`, () => crypto.getActiveSessionBackupVersion());
}

async function meet(host, guests) {
    const { room_id: roomId } = await host.createRoom({
        preset: "private_chat",
        invite: guests.map((guest) => guest.getUserId()),
        initial_state: [
            { type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } },
        ],
    });
    for (const guest of guests) await enterRoom(guest, roomId, [host]);
    return roomId;
}

async function enterRoom(guest, roomId, others) {
    const user = guest.getUserId();
    await until(`${user} is invited`, () => membership(guest, roomId) === "invite");
    await guest.joinRoom(roomId);
    await until(`${user} has joined`, () => membership(guest, roomId) === "join");
    for (const other of others) {
        await until(`${other.getUserId()} sees ${user} join`, () => {
            return other.getRoom(roomId)?.getMember(user)?.membership === "join";
        });
    }
}

/** Sends a message. Returns its ID and the ID of the session with which it was encrypted. */
async function say(sender, roomId, body) {
    const { event_id: eventId } = await sender.sendTextMessage(roomId, body);
    const stored = await sender.fetchRoomEvent(roomId, eventId);
    check(`the server of ${sender.getUserId()} has only ciphertext`, stored.type === "m.room.encrypted");
    check("and no word of the message", !JSON.stringify(stored).includes(body));
    return { body, eventId, sessionId: stored.content.session_id, sender: sender.getUserId() };
}

/** Waits until all readers have decrypted the message. */
async function readBy(readers, roomId, { body, eventId, sender }) {
    for (const reader of readers) {
        const found = await until(`${nameOf(reader)} reads ${body}`, async () => {
            const each = event(reader, roomId, eventId);
            if (each?.isDecryptionFailure()) await each.attemptDecryption(reader.getCrypto(), { isRetry: true });
            return each?.getContent().body === body && each;
        });
        check("as its sender encrypted it", found.isEncrypted() && found.getSender() === sender);
    }
}

/** Waits until the client has the message, and checks that it cannot read it. */
async function unreadableBy(reader, roomId, { body, eventId }) {
    const found = await until(`${nameOf(reader)} gets an event`, async () => {
        const each = event(reader, roomId, eventId);
        await each?.attemptDecryption(reader.getCrypto(), { isRetry: true });
        return each;
    });
    check("and cannot read it", found.isDecryptionFailure() && found.getContent().body !== body);
}

/** Waits until the client has heard of the other's device, from its server. */
async function knows(client, other) {
    const [user, device] = [other.getUserId(), other.getDeviceId()];
    await until(`${nameOf(client)} knows ${nameOf(other)}`, async () => {
        return (await client.getCrypto().getUserDeviceInfo([user])).get(user)?.has(device);
    });
}

/** A verification request of `one`, accepted by `other`. Returns both views of it. */
async function request(one, other, ask) {
    for (const [client, peer] of [[one, other], [other, one]]) await knows(client, peer); // or it would be ignored
    let asked;
    other.once(CryptoEvent.VerificationRequestReceived, (received) => (asked = received));
    const asking = await ask(one.getCrypto());
    await until("the request arrives", () => asked);
    await asked.accept();
    await until("the request is accepted", () => asking.phase === VerificationPhase.Ready);
    return [asking, asked];
}

/** Compares emoji: `one` starts. */
async function compareEmoji([asking, asked]) {
    const first = await asking.startVerification("m.sas.v1");
    const done = [first.verify()];
    const second = await until("the other side hears of the start", () => asked.verifier);
    done.push(second.verify());
    const shown = [];
    for (const verifier of [first, second]) {
        shown.push(await until("emoji are shown", () => verifier.getShowSasCallbacks()));
    }
    const [here, there] = shown.map(({ sas }) => JSON.stringify(sas.emoji));
    check("both show the same seven", here === there && JSON.parse(here).length === 7);
    await Promise.all(shown.map((callbacks) => callbacks.confirm()));
    await Promise.all(done);
    await until("both sides are done", () => [asking, asked].every(({ phase }) => phase === VerificationPhase.Done));
}

/** `asked` shows a QR code, and `asking` scans it. */
async function scan([asking, asked]) {
    const code = await asked.generateQRCode();
    const scanning = await asking.scanQRCode(code);
    const showing = await until("the other side was scanned", () => asked.verifier);
    const done = [scanning.verify(), showing.verify()];
    (await until("it asks for confirmation", () => showing.getReciprocateQrCodeCallbacks())).confirm();
    await Promise.all(done);
    await until("both sides are done", () => [asking, asked].every(({ phase }) => phase === VerificationPhase.Done));
}

const isVerifiedDevice = async (client, other) => {
    const [user, device] = [other.getUserId(), other.getDeviceId()];
    return (await client.getCrypto().getDeviceVerificationStatus(user, device))?.crossSigningVerified;
};
const isVerifiedUser = async (client, other) => {
    return (await client.getCrypto().getUserVerificationStatus(other.getUserId())).isCrossSigningVerified();
};

/** Waits until the backup has the keys of all sessions that the client knows. */
async function backedUp(client) {
    await until(`the backup of ${client.getUserId()} has all keys`, async () => {
        const { count } = await client.http.authedRequest("GET", "/room_keys/version");
        return count > 0 && count === (await client.getCrypto().exportRoomKeys()).length;
    });
}

/** Reads the backup with the key that the other device has told this one. */
async function restoreFromGossip(client) {
    const crypto = client.getCrypto();
    await until(`${nameOf(client)} is told the key of the backup`, () => crypto.getSessionBackupPrivateKey());
    const { total, imported } = await crypto.restoreKeyBackup();
    check(`and restores ${total} keys`, total > 0 && imported === total);
}

/** Reads the backup with what only the recovery key opens. */
async function restoreFromPaper(client) {
    const crypto = client.getCrypto();
    check("the public keys can be had", await crypto.userHasCrossSigningKeys(client.getUserId(), true));
    await crypto.bootstrapCrossSigning({});
    await until(`${nameOf(client)} signs itself`, () => isVerifiedDevice(client, client));
    await crypto.loadSessionBackupPrivateKeyFromSecretStorage();
    const { total, imported } = await crypto.restoreKeyBackup();
    check(`and restores ${total} keys`, total > 0 && imported === total);
}

/** Says something from each sender, and waits until all readers have read it. */
async function talk(senders, readers, roomId, words) {
    const said = [];
    for (const sender of senders) {
        said.push(await say(sender, roomId, `${words}, ${nameOf(sender)}`));
        await readBy(readers, roomId, said.at(-1));
    }
    return said;
}

/** A second device each: verified by emoji, and by a QR code; then both have the keys of what was said before. */
async function addDevices(alice, bob, roomId, early) {
    print("-- second devices");
    const alice2 = await enter(ALICE);
    await unreadableBy(alice2, roomId, early[0]);
    await compareEmoji(await request(alice2, alice, (crypto) => crypto.requestOwnUserVerification()));
    const bob2 = await enter(BOB);
    await unreadableBy(bob2, roomId, early[0]);
    await scan(await request(bob2, bob, (crypto) => crypto.requestOwnUserVerification()));
    for (const [old, young] of [[alice, alice2], [bob, bob2]]) {
        await until(`${nameOf(young)} is verified`, () => isVerifiedDevice(old, young));
        await until("and verifies the other", () => isVerifiedDevice(young, old));
        await restoreFromGossip(young);
        for (const message of early) await readBy([young], roomId, message);
    }
    return [alice2, bob2];
}

/** Alice and Bob verify each other: each of their devices then trusts each. */
async function verifyPeople(alice, alice2, bob, bob2, roomId) {
    print("-- people verify each other");
    await compareEmoji(await request(alice, bob, (crypto) => crypto.requestVerificationDM(bob.getUserId(), roomId)));
    for (const [one, other] of [[alice, bob], [bob, alice], [alice2, bob], [bob2, alice]]) {
        await until(`${nameOf(one)} has verified ${other.getUserId()}`, () => isVerifiedUser(one, other));
    }
    for (const [one, other] of [[alice, bob2], [bob, alice2], [alice2, bob2], [bob2, alice2]]) {
        await until("and so the second device", () => isVerifiedDevice(one, other));
    }
    const all = [alice, alice2, bob, bob2];
    await talk(all, all, roomId, "to four devices");
}

/** Carol joins, and reads what is said from then on, and nothing that was said before. */
async function welcome(alice, alice2, bob, bob2, roomId) {
    print("-- a third person joins later");
    const carol = await enter(CAROL);
    await setUp(carol, CAROL);
    const before = await say(bob, roomId, "before carol");
    await alice.invite(roomId, carol.getUserId());
    await enterRoom(carol, roomId, [alice, bob, alice2, bob2]);
    await scan(await request(carol, alice, (crypto) => crypto.requestVerificationDM(alice.getUserId(), roomId)));
    for (const [one, other] of [[carol, alice], [alice, carol]]) {
        await until(`${nameOf(one)} has verified ${other.getUserId()}`, () => isVerifiedUser(one, other));
    }
    await talk([alice, bob2, carol], [alice, alice2, bob, bob2, carol], roomId, "to three people");
    await carol.scrollback(carol.getRoom(roomId), 100);
    await unreadableBy(carol, roomId, before);
    return carol;
}

/** Keys are rotated on request, and when somebody leaves: she is given no more of them. */
async function rotate(alice, alice2, bob, bob2, carol, roomId) {
    print("-- keys are rotated");
    const old = await say(alice, roomId, "old key");
    await alice.getCrypto().forceDiscardSession(roomId);
    const fresh = await say(alice, roomId, "new key");
    check("the key is another one", fresh.sessionId !== old.sessionId);
    for (const message of [old, fresh]) await readBy([alice2, bob, bob2, carol], roomId, message);
    await alice.kick(roomId, carol.getUserId(), "");
    await until("carol is out", () => membership(carol, roomId) === "leave");
    for (const client of [alice, bob, bob2]) {
        const gone = () => client.getRoom(roomId).getMember(carol.getUserId())?.membership === "leave";
        await until("the others see it", gone);
    }
    given.length = 0;
    const [after] = await talk([alice, bob], [alice, alice2, bob, bob2], roomId, "without carol");
    check("the key is another one", after.sessionId !== fresh.sessionId);
    check("that carol is not given", given.length > 0 && !given.includes(nameOf(carol)));
    return [old, fresh];
}

/** A device is lost and logged out: all hear of it, and give it no more keys. */
async function lose(alice, alice2, bob, bob2, roomId) {
    print("-- a device is lost");
    alice2.stopClient();
    await alice2.logout();
    for (const client of [alice, bob, bob2]) {
        await until(`${nameOf(client)} hears that ${nameOf(alice2)} is gone`, async () => {
            const devices = await client.getCrypto().getUserDeviceInfo([alice.getUserId()]);
            return !devices.get(alice.getUserId()).has(alice2.getDeviceId());
        });
    }
    given.length = 0;
    const said = await talk([alice, bob, bob2], [alice, bob, bob2], roomId, "with a device less");
    check("a lost device is given nothing", given.length > 0 && !given.includes(nameOf(alice2)));
    return said;
}

/** A new device has only the recovery key, and restores the keys of all that was said. */
async function restore(alice, bob, bob2, roomId, said) {
    print("-- a new device restores the backup");
    await backedUp(alice);
    alice.stopClient();
    const alice3 = await enter(ALICE);
    await unreadableBy(alice3, roomId, said.at(-1));
    await restoreFromPaper(alice3);
    await alice3.scrollback(alice3.getRoom(roomId), 100);
    for (const message of said) await readBy([alice3], roomId, message);
    await until("bob trusts it as he trusts alice", () => isVerifiedDevice(bob, alice3));
    await talk([alice3, bob2], [alice3, bob, bob2], roomId, "here again");
    return alice3;
}

await tell(async (refused) => {
    const [alice, bob] = [await enter(ALICE), await enter(BOB)];
    for (const [client, person] of [[alice, ALICE], [bob, BOB]]) await setUp(client, person);
    const roomId = await meet(alice, [bob]);
    const early = await talk([alice, bob], [alice, bob], roomId, "early");
    for (const client of [alice, bob]) await backedUp(client);
    const [alice2, bob2] = await addDevices(alice, bob, roomId, early);
    await verifyPeople(alice, alice2, bob, bob2, roomId);
    const carol = await welcome(alice, alice2, bob, bob2, roomId);
    const rotated = await rotate(alice, alice2, bob, bob2, carol, roomId);
    const late = await lose(alice, alice2, bob, bob2, roomId);
    const alice3 = await restore(alice, bob, bob2, roomId, [...early, ...rotated, ...late]);
    for (const client of [alice3, bob, bob2, carol]) client.stopClient();
    return refused;
});
