// A certified provider of OpenID Connect, with its own pages for development: anyone logs in under any name.
//
// Arguments: the folder of its node_modules, and {"port", "redirect_uri", "client_id", "client_secret"}. Prints "ready".

import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [folder, given] = process.argv.slice(2);
const plan = JSON.parse(given);
const found = createRequire(`${folder}/`).resolve("oidc-provider");
const { Provider } = await import(pathToFileURL(found));

const provider = new Provider(`http://127.0.0.1:${plan.port}`, {
    clients: [{
        client_id: plan.client_id,
        client_secret: plan.client_secret,
        redirect_uris: [plan.redirect_uri],
        token_endpoint_auth_method: "client_secret_basic",
    }],
    pkce: { required: () => true },
    claims: { openid: ["sub"], profile: ["name", "preferred_username"], email: ["email", "email_verified"] },
    conformIdTokenClaims: true,
    cookies: { keys: ["not a secret"] },
    findAccount: (_, id) => ({
        accountId: id,
        claims: () => ({
            sub: `subject of ${id}`, name: `${id} of the provider`, preferred_username: id,
            email: `${id}@mail.example`, email_verified: true,
        }),
    }),
});
provider.listen(plan.port, "127.0.0.1", () => console.log("ready"));
