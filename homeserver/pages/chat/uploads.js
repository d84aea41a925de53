// Uploads of large files, piece by piece, by the tus protocol (https://tus.io): what has arrived is not sent again after
// a lost connection. The server says how much that is.

import { NetworkError, pause } from "./api.js";

export const PIECE_BYTES = 4 * 1024 * 1024;
const UPLOADS = "/_homeserver/client/v1/uploads";
const VERSION = { "tus-resumable": "1.0.0" };
const PIECE_MS = 10 * 60_000;
const WAIT_MS = 1000;
const FAILURES_MAX = 8; // one after the other
const PASSING = new Set([409, 423, 500, 502, 503, 504]); // another offset, still being written, or a proxy without a server

// Uploads a file. `onProgress` gets a number between 0 and 1. Returns {content_uri, info}. wait: pauses for some ms.
export async function uploadInPieces(api, file, name, onProgress, wait = pause) {
  const described = { filename: name, filetype: file.type || "application/octet-stream" };
  const metadata = Object.entries(described).map(([key, text]) => `${key} ${base64(text)}`);
  const headers = { ...VERSION, "upload-length": String(file.size), "upload-metadata": metadata.join(",") };
  const created = await api.request("POST", UPLOADS, { headers, raw: true });
  const path = created.headers.get("location");
  let offset = 0;
  for (let failures = 0; ; ) {
    try {
      const answer = await sendPiece(api, path, file, offset);
      failures = 0;
      offset = Number(answer.headers.get("upload-offset"));
      onProgress(offset / file.size);
      if (answer.status === 200) return await answer.json();
    } catch (error) {
      failures += 1;
      if (!(error instanceof NetworkError || PASSING.has(error.status)) || failures > FAILURES_MAX) throw error;
      await wait(WAIT_MS * 2 ** Math.min(failures, 5));
      const state = await api.request("GET", path, { headers: VERSION }).catch(() => ({ offset }));
      if (state.content_uri) return state;
      offset = state.offset;
    }
  }
}

function sendPiece(api, path, file, offset) {
  const headers = { ...VERSION, "upload-offset": String(offset), "content-type": "application/offset+octet-stream", accept: "application/json" };
  return api.request("PATCH", path, { body: file.slice(offset, offset + PIECE_BYTES), headers, raw: true, timeout: PIECE_MS });
}

function base64(text) {
  return btoa(String.fromCodePoint(...new TextEncoder().encode(text)));
}
