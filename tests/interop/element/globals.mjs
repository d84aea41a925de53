// What Element's dependencies expect of Node.

export { Buffer } from "buffer/";
export const process = { env: {} };
