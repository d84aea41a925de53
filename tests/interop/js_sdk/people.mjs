// What the programs of this folder share: matrix-js-sdk, clients that log in with it, and waiting for things.
//
// Programs are started as `node PROGRAM FOLDER PLAN`: FOLDER has matrix-js-sdk in its node_modules, PLAN is JSON. They
// print each step. A line that is JSON asks for something; a line on their standard input says that it is done. Their last
// line is JSON, and they exit with 1 at the first step that fails.

import { join } from "node:path";
import { argv, exit, stdin } from "node:process";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const [, , folder, argument] = argv;
/** Returns a module of matrix-js-sdk. */
export const load = (file) => import(pathToFileURL(join(folder, "node_modules/matrix-js-sdk/lib", file)));
export const sdk = await load("index.js");
export const cryptoApi = await load("crypto-api/index.js");
(await load("logger.js")).logger.setLevel("silent");
export const print = console.log;
console.debug = console.info = console.warn = console.log = () => {}; // the SDK's own
export const plan = JSON.parse(argument);

const lines = createInterface({ input: stdin })[Symbol.asyncIterator]();
const PATIENCE_MS = 30_000;
const refused = new Set();

/** Runs `story`, prints what servers refused while it ran, and ends the program. */
export async function tell(story) {
    try {
        const all = await story(refused);
        print(JSON.stringify({ refused: [...all].sort() }));
        exit(0);
    } catch (error) {
        print(error.stack, [...refused]);
        exit(1);
    }
}

/** Asks the scenario that runs this program for something, and returns when it is done. */
export async function askFor(wish) {
    print(JSON.stringify(wish));
    const { done } = await lines.next();
    if (done) throw new Error(`not done: ${JSON.stringify(wish)}`);
}

/** Like fetch, but notes each request that the server refuses. */
export async function noting(resource, options) {
    const answer = await fetch(resource, options);
    if (answer.status >= 400) {
        const { errcode = "" } = await answer.clone().json().catch(() => ({}));
        const path = new URL(resource).pathname
            .replace(/(%40|%23|%21|%24|[@#!$])[^/]+/g, "…")
            .replace(/(room_keys\/keys|delayed_events|rendezvous)\/.*/, "$1/…");
        refused.add(`${answer.status} ${options?.method ?? "GET"} ${path} ${errcode}`.trim());
    }
    return answer;
}

/** Returns the first true value of `probe`. Throws if there is none in time. */
export async function until(what, probe) {
    const end = Date.now() + PATIENCE_MS;
    for (;;) {
        const value = await probe();
        if (value) {
            print(what);
            return value;
        }
        if (Date.now() > end) throw new Error(`not within ${PATIENCE_MS / 1000} s: ${what}`);
        await new Promise((resolve) => setTimeout(resolve, 25));
    }
}

/** Throws unless `holds`. */
export function check(what, holds) {
    if (!holds) throw new Error(`not so: ${what}`);
    print(what);
}

/** Logs a person in with a new device and returns its client, which does not sync yet. */
export async function login({ url, user, password }, options = {}) {
    const anonymous = sdk.createClient({ baseUrl: url, fetchFn: noting });
    const flows = (await anonymous.loginFlows()).flows.map((flow) => flow.type);
    check(`${user} may log in with a password`, flows.includes("m.login.password"));
    const identifier = { type: "m.id.user", user };
    const session = await anonymous.loginRequest({
        type: "m.login.password", identifier, password, refresh_token: true,
    });
    return sdk.createClient({
        baseUrl: url,
        userId: session.user_id,
        deviceId: session.device_id,
        accessToken: session.access_token,
        refreshToken: session.refresh_token,
        tokenRefreshFunction: async (token) => {
            const { access_token, refresh_token, expires_in_ms } = await anonymous.refreshToken(token);
            const expiry = new Date(Date.now() + expires_in_ms);
            return { accessToken: access_token, refreshToken: refresh_token, expiry };
        },
        timelineSupport: true,
        fetchFn: noting,
        ...options,
    });
}

/** Starts a client and waits for its first sync. */
export async function start(client) {
    await client.startClient({ initialSyncLimit: 20, lazyLoadMembers: true, pollTimeout: 10_000 });
    await until(`${client.getUserId()} has synced`, () => ["PREPARED", "SYNCING"].includes(client.getSyncState()));
    return client;
}

export const event = (client, roomId, eventId) => client.getRoom(roomId)?.findEventById(eventId);
export const membership = (client, roomId) => client.getRoom(roomId)?.getMyMembership();
