// A bridge on matrix-appservice-bridge to an imaginary network of fax machines.
//
//     node bridge.mjs FOLDER PLAN
//
// FOLDER has the packages in its node_modules. PLAN is JSON: {"registration", "port", "url", "server_name"}. Each line
// that it prints is a step, or a JSON object: what people are to do, or should see. It goes on once it gets a line on
// its standard input. Exits with 1 if a step fails.

import { createRequire } from "node:module";
import { join } from "node:path";
import { argv, exit, stdin } from "node:process";
import { createInterface } from "node:readline";

const [, , folder, argument] = argv;
const plan = JSON.parse(argument);
const require = createRequire(join(folder, "package.json"));

// The native cryptography is downloaded from elsewhere when npm installs it. This bridge does not encrypt.
const place = require.resolve("@matrix-org/matrix-sdk-crypto-nodejs");
require.cache[place] = { id: place, filename: place, loaded: true, exports: {} };
const { AppServiceRegistration, Bridge } = require("matrix-appservice-bridge");

const TIMEOUT_MS = 60_000;
const lines = createInterface({ input: stdin })[Symbol.asyncIterator]();
const events = [];
const ephemeral = [];

const bridge = new Bridge({
    homeserverUrl: plan.url,
    domain: plan.server_name,
    registration: AppServiceRegistration.fromObject(plan.registration),
    disableStores: true,
    controller: {
        onEvent: (request) => events.push(request.getData()),
        onEphemeralEvent: (request) => ephemeral.push(request.getData()),
        onUserQuery: (user) => ({ name: `Fax of ${user.localpart}` }),
        onAliasQuery: (alias, localpart) => ({
            creationOpts: { room_alias_name: localpart, preset: "public_chat", name: "The fax room" },
        }),
        thirdPartyLookup: {
            protocols: ["fax"],
            getProtocol: () => ({
                user_fields: ["number"],
                location_fields: ["number"],
                icon: "mxc://example.org/fax",
                field_types: { number: { regexp: "[0-9]+", placeholder: "123" } },
                instances: [{ network_id: "office", desc: "Fax of the office", fields: {} }],
            }),
            getLocation: (protocol, fields) => [
                { alias: `#bridged_${fields.number}:${plan.server_name}`, protocol, fields: { number: String(fields.number) } },
            ],
        },
    },
});

/** Has people do something, or checks what they see. Returns what they answer, if that is a JSON object. */
async function people(wish) {
    console.log(JSON.stringify(wish));
    const { value } = await lines.next();
    return value ? JSON.parse(value) : {};
}

/** Waits until there is something. */
async function until(what, find) {
    const begun = Date.now();
    for (;;) {
        const found = find();
        if (found) {
            console.log(`- ${what}`);
            return found;
        }
        if (Date.now() - begun > TIMEOUT_MS) throw new Error(`not within a minute: ${what}`);
        await new Promise((resolve) => setTimeout(resolve, 50));
    }
}

const said = (text) => events.find((event) => event.content?.body === text);
const member = (user, membership) =>
    events.find((event) => event.type === "m.room.member" && event.state_key === user && event.content.membership === membership);

async function converse() {
    const alias = `#bridged_42:${plan.server_name}`;
    const { room_id: room, alice, bob } = await people({ do: "join", alias });
    await until("the room was made when it was asked for, and people came", () => member(alice, "join") && member(bob, "join"));
    const carol = bridge.getIntent(`@bridged_carol:${plan.server_name}`);
    await carol.ensureProfile("Carol's fax");
    await carol.join(room);
    await people({ do: "say", who: "alice", room, text: "hello fax" });
    await people({ do: "say", who: "bob", room, text: "hello from afar" });
    await until("the bridge gets what Alice says", () => said("hello fax"));
    await until("and what Bob of the other server says", () => said("hello from afar"));
    const { event_id: answer } = await carol.sendText(room, "beep");
    await people({ see: "message", event: answer, room, text: "beep" });
    await carol.sendReadReceipt(room, said("hello from afar").event_id);
    await carol.sendTyping(room, true);
    await people({ see: "typing", room, user: carol.userId });
    await people({ see: "receipt", room, user: carol.userId, event: said("hello from afar").event_id });
    await people({ do: "notice", room, event: answer });
    const has = (type, test) => ephemeral.some((each) => each.type === type && test(each));
    await until("the bridge sees who types", () => has("m.typing", (each) => each.room_id === room && each.content.user_ids.includes(alice)));
    await until("who has read", () => has("m.receipt", (each) => each.content[answer]?.["m.read"]?.[alice]));
    await until("and who is there", () => has("m.presence", (each) => each.sender === alice && each.content.status_msg === "at the fax"));
    return room;
}

async function inviteStranger() {
    const dave = `@bridged_dave:${plan.server_name}`;
    for (const who of ["alice", "bob"]) {
        const { room_id: room } = await people({ do: "invite", who, user: who === "alice" ? dave : `@bridged_erin:${plan.server_name}` });
        const invited = await until(`a user was made when ${who} invited them`, () =>
            events.find((event) => event.room_id === room && event.content?.membership === "invite"),
        );
        const intent = bridge.getIntent(invited.state_key);
        await intent.join(room);
        await intent.sendText(room, `a fax for ${who}`);
        await people({ see: "text", who, room, text: `a fax for ${who}` });
    }
}

async function listRooms(room) {
    await bridge.getIntent().setRoomDirectoryVisibilityAppService(room, "office", "public");
    await people({ see: "directory", room });
    await people({ see: "location", alias: `#bridged_7:${plan.server_name}`, number: "7" });
}

try {
    await bridge.run(plan.port, undefined, "127.0.0.1");
    await bridge.getBot().getJoinedRooms();
    const room = await converse();
    await inviteStranger();
    await listRooms(room);
    await bridge.getIntent(`@bridged_carol:${plan.server_name}`).leave(room);
    await people({ see: "left", room, user: `@bridged_carol:${plan.server_name}` });
} catch (error) {
    console.error(error);
    exit(1);
}
console.log("{}");
exit(0);
