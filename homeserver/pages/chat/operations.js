// The operations that the page calls, by the names that they have on the socket, and where HTTP has them.

const CLIENT = "/_matrix/client/v3";
const OWN = "/_homeserver/client/v1";

export const OPERATIONS = {
  get_login_flows: ["GET", `${CLIENT}/login`],
  login: ["POST", `${CLIENT}/login`],
  register: ["POST", `${CLIENT}/register`],
  refresh: ["POST", `${CLIENT}/refresh`],
  logout: ["POST", `${CLIENT}/logout`],
  get_token_owner: ["GET", `${CLIENT}/account/whoami`],
  sync_events: ["GET", `${CLIENT}/sync`],
  get_user_profile: ["GET", `${CLIENT}/profile/{}`],
  set_profile_field: ["PUT", `${CLIENT}/profile/{}/{}`],
  search_user_directory: ["POST", `${CLIENT}/user_directory/search`],
  create_room: ["POST", `${CLIENT}/createRoom`],
  join_room: ["POST", `${CLIENT}/join/{}`],
  invite_user: ["POST", `${CLIENT}/rooms/{}/invite`],
  leave_room: ["POST", `${CLIENT}/rooms/{}/leave`],
  get_members_by_room: ["GET", `${CLIENT}/rooms/{}/members`],
  get_room_events: ["GET", `${CLIENT}/rooms/{}/messages`],
  get_event_context: ["GET", `${CLIENT}/rooms/{}/context/{}`],
  get_one_room_event: ["GET", `${CLIENT}/rooms/{}/event/{}`],
  get_relating_events_with_rel_type: ["GET", "/_matrix/client/v1/rooms/{}/relations/{}/{}"],
  send_message: ["PUT", `${CLIENT}/rooms/{}/send/{}/{}`],
  redact_event: ["PUT", `${CLIENT}/rooms/{}/redact/{}/{}`],
  set_room_state_with_key: ["PUT", `${CLIENT}/rooms/{}/state/{}/{}`],
  set_read_marker: ["POST", `${CLIENT}/rooms/{}/read_markers`],
  set_typing: ["PUT", `${CLIENT}/rooms/{}/typing/{}`],
  search: ["POST", `${CLIENT}/search`],
  upload_content: ["POST", "/_matrix/media/v3/upload"],
  get_content_authed: ["GET", "/_matrix/client/v1/media/download/{}/{}"],
  get_content_thumbnail_authed: ["GET", "/_matrix/client/v1/media/thumbnail/{}/{}"],
  get_friends: ["GET", `${OWN}/friends`],
  set_friend: ["PUT", `${OWN}/friends/{}`],
  delete_friend: ["DELETE", `${OWN}/friends/{}`],
  block_user: ["PUT", `${OWN}/friends/{}/block`],
  unblock_user: ["DELETE", `${OWN}/friends/{}/block`],
  get_blocked: ["GET", `${OWN}/blocked`],
  get_privacy: ["GET", `${OWN}/privacy`],
  put_privacy: ["PUT", `${OWN}/privacy`],
  set_account_data: ["PUT", `${CLIENT}/user/{}/account_data/{}`],
  get_message_status: ["GET", `${OWN}/rooms/{}/events/{}/status`],
};

// What is sent through the socket if it is open: small requests, of which there are many.
export const THROUGH_SOCKET = new Set([
  "send_message",
  "redact_event",
  "set_read_marker",
  "set_typing",
  "get_room_events",
  "get_event_context",
  "get_one_room_event",
  "get_relating_events_with_rel_type",
]);

// Returns the path of an operation with its parameters, each of them escaped as a whole.
export function pathOf(name, parameters) {
  const given = [...parameters];
  const path = OPERATIONS[name][1].replaceAll("{}", () => encodeURIComponent(given.shift()));
  if (given.length) throw new TypeError(`${name} was given ${given.length} parameters too many.`);
  return path;
}
