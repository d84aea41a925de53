// Configures Element, and starts it then: its modules read the configuration while they are loaded.

import SdkConfig from "matrix-react-sdk/src/SdkConfig";

const homeserver = new URLSearchParams(location.search).get("homeserver");
SdkConfig.put({
    brand: "Element",
    default_server_config: { "m.homeserver": { base_url: homeserver } },
    disable_guests: true,
    features: {},
    setting_defaults: { developerMode: true }, // with it, rooms are upgraded to any version
});
const { start } = await import("./element.mjs");
await start(homeserver);
