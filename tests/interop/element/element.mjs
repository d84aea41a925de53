// The shell around Element's user interface: what element-web is to matrix-react-sdk.

import React from "react";
import ReactDOM from "react-dom";
import BasePlatform from "matrix-react-sdk/src/BasePlatform";
import MatrixChat from "matrix-react-sdk/src/components/structures/MatrixChat";
import { setLanguage } from "matrix-react-sdk/src/languageHandler";
import { MatrixClientPeg } from "matrix-react-sdk/src/MatrixClientPeg";
import PlatformPeg from "matrix-react-sdk/src/PlatformPeg";
import SdkConfig from "matrix-react-sdk/src/SdkConfig";
import { setTheme } from "matrix-react-sdk/src/theme";
import AutoDiscoveryUtils from "matrix-react-sdk/src/utils/AutoDiscoveryUtils";

const DEVICE_NAME = "Element in Chromium";

class Platform extends BasePlatform {
    getConfig = async () => ({});
    getDefaultDeviceDisplayName = () => DEVICE_NAME;
    getHumanReadableName = () => "Web Platform";
    requestNotificationPermission = async () => "denied";
    getAppVersion = async () => "interop";
    reload = () => location.reload();
}

/** Starts the service worker, and tells it the access token whenever it asks. */
async function serveMedia() {
    navigator.serviceWorker.addEventListener("message", ({ ports }) => {
        ports[0].postMessage(MatrixClientPeg.get()?.getAccessToken());
    });
    await navigator.serviceWorker.register("service_worker.js");
    await navigator.serviceWorker.ready;
}

/** Shows Element. The screen is in the fragment of the address, both ways. */
export async function start(homeserver) {
    PlatformPeg.set(new Platform());
    const server = await AutoDiscoveryUtils.validateServerConfigWithStaticUrls(homeserver, undefined, true);
    SdkConfig.add({ validated_server_config: server });
    await setLanguage("en");
    await setTheme("light");
    await serveMedia();

    let shown;
    const properties = {
        config: SdkConfig.get(),
        defaultDeviceDisplayName: DEVICE_NAME,
        enableGuest: false,
        initialScreenAfterLogin: { screen: location.hash.slice(2), params: {} },
        onNewScreen: (screen) => {
            shown = screen;
            location.hash = `#/${screen}`;
        },
        onTokenLoginCompleted: () => {},
        realQueryParams: {},
        startingFragmentQueryParams: {},
    };
    const place = document.getElementById("matrixchat");
    const element = ReactDOM.render(React.createElement(MatrixChat, properties), place);
    addEventListener("hashchange", () => {
        const screen = location.hash.slice(2);
        if (screen !== shown) element.showScreen(screen);
    });
}
