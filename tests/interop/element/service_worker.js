// Adds the access token to requests for media, which the page makes by <img> and <video>.

addEventListener("install", () => skipWaiting());
addEventListener("activate", (event) => event.waitUntil(clients.claim()));

async function accessToken(clientId) {
    const page = await clients.get(clientId);
    return new Promise((resolve) => {
        const { port1, port2 } = new MessageChannel();
        port1.onmessage = ({ data }) => resolve(data);
        page.postMessage("access token?", [port2]);
    });
}

async function fetchMedia({ request, clientId }) {
    return fetch(request.url, { headers: { Authorization: `Bearer ${await accessToken(clientId)}` } });
}

addEventListener("fetch", (event) => {
    const { pathname } = new URL(event.request.url);
    if (event.request.method === "GET" && pathname.startsWith("/_matrix/client/v1/media/")) {
        event.respondWith(fetchMedia(event));
    }
});
