import assert from "node:assert/strict";
import { test } from "node:test";

import { NetworkError, ServerError } from "./api.js";
import { PIECE_BYTES, uploadInPieces } from "./uploads.js";

const SIZE = 2 * PIECE_BYTES + 7;
const FILE = new Blob([new Uint8Array(SIZE)], { type: "video/mp4" });
const DONE = { content_uri: "mxc://montague.org/film", info: {} };

// A server that loses the answers with these numbers, of those to pieces. Returns what was asked of it, too.
function server(lost, error = new NetworkError("lost")) {
  const asked = [];
  let offset = 0;
  let pieces = 0;
  const request = async (method, path, { headers, body }) => {
    asked.push(method === "PATCH" ? `${method} ${headers["upload-offset"]}` : method);
    if (method === "POST") return { status: 201, headers: new Headers({ location: "/uploads/1" }) };
    if (method === "GET") return offset === SIZE ? DONE : { offset };
    pieces += 1;
    if (Number(headers["upload-offset"]) === offset) offset += body.size;
    if (lost.includes(pieces)) throw error;
    const status = offset === SIZE ? 200 : 204;
    return { status, headers: new Headers({ "upload-offset": String(offset) }), json: async () => DONE };
  };
  return { asked, request };
}

const upload = (api) => uploadInPieces(api, FILE, "Film ❤️.mp4", () => {}, async () => {});

test("a large file is sent piece by piece", async () => {
  const api = server([]);
  assert.deepEqual(await upload(api), DONE);
  assert.deepEqual(api.asked, ["POST", "PATCH 0", `PATCH ${PIECE_BYTES}`, `PATCH ${2 * PIECE_BYTES}`]);
});

test("after a lost connection the upload goes on from where the server is", async () => {
  const api = server([1, 3]);
  assert.deepEqual(await upload(api), DONE);
  assert.deepEqual(api.asked, ["POST", "PATCH 0", "GET", `PATCH ${PIECE_BYTES}`, `PATCH ${2 * PIECE_BYTES}`, "GET"]);
});

test("an upload that is refused, or fails again and again, ends with the reason", async () => {
  const refused = server([1], new ServerError(413, { errcode: "M_TOO_LARGE", error: "Too large." }));
  await assert.rejects(upload(refused), /Too large/);
  const created = { headers: new Headers({ location: "/uploads/1" }) };
  const request = (method) => (method === "POST" ? Promise.resolve(created) : Promise.reject(new NetworkError("lost")));
  await assert.rejects(upload({ request }), NetworkError);
});
