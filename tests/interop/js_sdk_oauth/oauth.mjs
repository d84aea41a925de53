// A person logs in as with Element X: the client discovers the server and registers itself, a browser opens the server's
// pages, and the client gets tokens for a code. Then once more with a device code. The client's half is matrix-js-sdk.

import { check, load, plan, sdk, tell } from "../js_sdk/people.mjs";
import { Browser } from "./browser.mjs";

const { OAuth2, OAuth2HTTPError } = await load("oauth/index.js");
const { TokenRefresher } = await load("oauth/tokenRefresher.js");
const { TokenRefreshLogoutError } = await load("http-api/errors.js");

const [{ url, user, user_id: userId, password }] = plan.people;
const REDIRECT = "https://app.example.com/callback";
const CLIENT = {
    client_name: "Balcony",
    client_uri: "https://example.com/",
    logo_uri: "https://example.com/logo.png",
    redirect_uris: [REDIRECT],
    application_type: "web",
};

const clientOf = (accessToken) => sdk.createClient({ baseUrl: url, accessToken, userId });

/** Returns whom and which device the server takes a token for; null if it does not take it any more. */
async function ownerOf(accessToken) {
    try {
        return await clientOf(accessToken).whoami();
    } catch (error) {
        check("the token has ended", error.errcode === "M_UNKNOWN_TOKEN");
        return null;
    }
}

/** Logs in by a code in the redirect. Returns the tokens. */
async function logInByRedirect(metadata, clientId, browser, mode) {
    const auth = new OAuth2(metadata, { clientId });
    await browser.open(await auth.generateAuthorizationCodeGrantUrl("a state", REDIRECT, mode));
    if (browser.text.includes('name="password"')) await browser.send({ username: user, password });
    check("the page asks whether to let the app in", browser.text.includes("Balcony"));
    const end = await browser.send({ decision: "allow" });
    const told = new URLSearchParams(mode === "fragment" ? end.hash.slice(1) : end.search);
    check("the browser is sent back to the app", end.href.startsWith(REDIRECT) && told.get("state") === "a state");
    const tokens = await auth.completeAuthorizationCodeGrant(told.get("code"), REDIRECT);
    const owner = await ownerOf(tokens.access_token);
    check("the app is logged in", owner.user_id === userId && owner.device_id === auth.context.deviceId);
    return { auth, tokens };
}

async function refuse(metadata, clientId, browser) {
    const auth = new OAuth2(metadata, { clientId });
    await browser.open(await auth.generateAuthorizationCodeGrantUrl("another", REDIRECT, "fragment"));
    const end = await browser.send({ decision: "refuse" });
    const told = new URLSearchParams(end.hash.slice(1));
    check("a refusal is told", told.get("error") === "access_denied" && told.get("state") === "another");
}

async function refreshAndReplay({ auth, tokens }) {
    const kept = [];
    const refresher = new TokenRefresher(auth, (next) => kept.push(next));
    const second = await refresher.refreshTokens(tokens.refresh_token);
    check("new tokens are kept", kept.length === 1 && kept[0].refreshToken !== tokens.refresh_token);
    check("they work", (await ownerOf(second.accessToken)).user_id === userId);
    const refusal = await refresher.refreshTokens(tokens.refresh_token).catch((error) => error);
    check("a replay is the end of the session", refusal instanceof TokenRefreshLogoutError);
    check("for the newest tokens too", (await ownerOf(second.accessToken)) === null);
    check("and is told as OAuth does", refusal.cause === undefined || refusal.cause instanceof OAuth2HTTPError);
}

/** Logs in by a code that is typed on a page, or is refused there. Returns the client's answer. */
async function logInByCode(metadata, clientId, browser, decision) {
    const auth = new OAuth2(metadata, { clientId });
    const session = await auth.startDeviceAuthorizationGrant();
    const answer = auth.waitForDeviceAuthorizationGrant(session);
    await browser.open(session.verification_uri_complete);
    check("the page knows the code", browser.text.includes(session.user_code));
    await browser.send({ user_code: session.user_code });
    check("the page asks for what app", browser.text.includes("Balcony"));
    await browser.send({ decision });
    return { auth, tokens: await answer };
}

tell(async (refused) => {
    const metadata = await sdk.createClient({ baseUrl: url }).getAuthMetadata();
    check("the account page is told", metadata.account_management_actions_supported.includes("org.matrix.devices_list"));
    const clientId = await OAuth2.registerClient(metadata, CLIENT);
    check("equal clients are one", (await OAuth2.registerClient(metadata, CLIENT)) === clientId);
    const browser = new Browser(url);
    await refreshAndReplay(await logInByRedirect(metadata, clientId, browser, "fragment"));
    const { auth, tokens } = await logInByRedirect(metadata, clientId, browser, "query");
    await refuse(metadata, clientId, browser);

    const other = await logInByCode(metadata, clientId, browser, "allow");
    check("the other device is logged in", (await ownerOf(other.tokens.access_token)).user_id === userId);
    const { tokens: denied } = await logInByCode(metadata, clientId, browser, "refuse");
    check("a refused code gets nothing", denied.error === "access_denied");

    await auth.revokeToken(tokens.access_token, "access_token");
    check("a client that logs out is out", (await ownerOf(tokens.access_token)) === null);
    check("and no other is", (await ownerOf(other.tokens.access_token)).user_id === userId);
    return refused;
});
