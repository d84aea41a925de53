// Pictures and files: fetched with the access token, as the specification asks, and shown from memory.
//
// A browser cannot send a token with `<img src>`, so the bytes are fetched and get a blob: address. Only the types in
// PICTURES are shown, under exactly that type; everything else, SVG and HTML above all, can only be saved as a file.

import { NetworkError } from "./api.js";
import { pathOf } from "./operations.js";
import { PIECE_BYTES, uploadInPieces } from "./uploads.js";

const PICTURES = new Set(["image/png", "image/jpeg", "image/gif", "image/webp", "image/avif"]);
const PLAYABLE = new Set(["video/mp4", "video/webm", "video/ogg", "audio/mpeg", "audio/mp4", "audio/aac", "audio/ogg", "audio/webm", "audio/wav", "audio/x-wav", "audio/flac"]);
const REMEMBERED_MAX = 300;
const AT_ONCE_MAX = 6;
const DOWNLOAD_MS = 10 * 60_000;

export class Media {
  #api;
  #addresses = new Map(); // what → promise of a blob: address, least recently used first
  #running = 0;
  #waiting = [];

  constructor(api) {
    this.#api = api;
  }

  // Returns a promise of the blob: address of a small version; rejected if there is no picture.
  thumbnail(mxc, width, height, method = "scale") {
    return this.#remember(`${method} ${width}×${height} ${mxc}`, async () => {
      const query = { width, height, method, timeout_ms: 20_000 };
      const response = await this.#get("get_content_thumbnail_authed", mxc, query);
      return URL.createObjectURL(await asPicture(response));
    });
  }

  // Returns a promise of the blob: address of the whole picture.
  picture(mxc) {
    return this.#remember(mxc, async () => URL.createObjectURL(await asPicture(await this.#get("get_content_authed", mxc))));
  }

  // Returns a promise of the blob: address of a video or a sound; rejected if browsers do not play its type.
  playable(mxc) {
    return this.#remember(`play ${mxc}`, async () => {
      const response = await this.#get("get_content_authed", mxc);
      return URL.createObjectURL(await withType(response, PLAYABLE));
    });
  }

  // Saves a file under a name. Its type is that of no document, so it opens nowhere inside of this page's origin.
  async save(mxc, name) {
    const response = await this.#get("get_content_authed", mxc);
    const address = URL.createObjectURL(new Blob([await response.arrayBuffer()], { type: "application/octet-stream" }));
    const link = document.createElement("a");
    link.href = address;
    link.download = name.replace(/[/\\\p{Cc}]/gu, "_") || "file";
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
  }

  // Uploads a file. `onProgress` gets a number between 0 and 1. Returns {content_uri, info?}.
  async upload(file, name, onProgress) {
    if (file.size > PIECE_BYTES) return uploadInPieces(this.#api, file, name, onProgress);
    const first = await this.#post(file, name, onProgress);
    if (first.status === 401) await this.#api.call("get_token_owner"); // gets a new token, or ends the session
    const { status, response } = first.status === 401 ? await this.#post(file, name, onProgress) : first;
    if (status !== 200) throw new Error(response?.error ?? `The server answered with status ${status}.`);
    return response;
  }

  #post(file, name, onProgress) {
    // fetch() does not tell how far an upload is; this older way does.
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open("POST", `${this.#api.address(pathOf("upload_content", []))}?${new URLSearchParams({ filename: name })}`);
      request.setRequestHeader("authorization", `Bearer ${this.#api.session.accessToken}`);
      request.setRequestHeader("content-type", file.type || "application/octet-stream");
      request.responseType = "json";
      request.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
      request.onload = () => resolve({ status: request.status, response: request.response });
      request.onerror = () => reject(new NetworkError("The upload was interrupted."));
      request.send(file);
    });
  }

  #remember(key, make) {
    const known = this.#addresses.get(key);
    const promise = known ?? this.#inTurn(make);
    this.#addresses.delete(key);
    this.#addresses.set(key, promise);
    if (!known) {
      promise.catch(() => this.#addresses.delete(key));
      if (this.#addresses.size > REMEMBERED_MAX) this.#forgetOldest();
    }
    return promise;
  }

  #forgetOldest() {
    const [key, promise] = this.#addresses.entries().next().value;
    this.#addresses.delete(key);
    promise.then((address) => URL.revokeObjectURL(address), () => {});
  }

  async #inTurn(make) {
    if (this.#running >= AT_ONCE_MAX) await new Promise((resolve) => this.#waiting.push(resolve));
    this.#running += 1;
    try {
      return await make();
    } finally {
      this.#running -= 1;
      this.#waiting.shift()?.();
    }
  }

  #get(name, mxc, query) {
    const match = /^mxc:\/\/([^/]+)\/([A-Za-z0-9_-]+)$/.exec(mxc);
    if (!match) throw new TypeError("This is no address of a file.");
    return this.#api.call(name, [match[1], match[2]], { query, raw: true, timeout: DOWNLOAD_MS });
  }
}

async function asPicture(response) {
  return withType(response, PICTURES);
}

async function withType(response, types) {
  const type = (response.headers.get("content-type") ?? "").split(";")[0].trim().toLowerCase();
  if (!types.has(type)) throw new TypeError(`Files of the type ${type} are not shown.`);
  return new Blob([await response.arrayBuffer()], { type });
}

// Returns whether a message with this info can be shown as a picture.
export function isPicture(mimetype) {
  return mimetype === undefined || PICTURES.has(mimetype);
}

// Returns the width and height of a picture file; {} if the browser cannot read it.
export async function measure(file) {
  if (!PICTURES.has(file.type)) return {};
  try {
    const bitmap = await createImageBitmap(file);
    const size = { w: bitmap.width, h: bitmap.height };
    bitmap.close();
    return size;
  } catch {
    return {};
  }
}
