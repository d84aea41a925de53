// Times, statuses and changes in words.

const CLOCK = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const WEEKDAY = new Intl.DateTimeFormat(undefined, { weekday: "long" });
const DAY = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" });
const DAY_OF_YEAR = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "long", year: "numeric" });
const SHORT_DAY = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const FULL = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const MINUTE_MS = 60_000;
const HOUR_MS = 60 * MINUTE_MS;
const DAY_MS = 24 * HOUR_MS;
const WEEK_DAYS = 6;

// Returns a name of the day of a time, the same for all times of that day.
export function dayOf(ts) {
  const date = new Date(ts);
  return `${date.getFullYear()}-${date.getMonth() + 1}-${date.getDate()}`;
}

function daysAgo(ts, now) {
  const midnight = (time) => new Date(time).setHours(0, 0, 0, 0);
  return Math.round((midnight(now) - midnight(ts)) / DAY_MS);
}

export function clockTime(ts) {
  return CLOCK.format(ts);
}

export function fullTime(ts) {
  return FULL.format(ts);
}

export function dayTitle(ts, now = Date.now()) {
  const days = daysAgo(ts, now);
  if (days === 0) return "Today";
  if (days === 1) return "Yesterday";
  if (days > 1 && days <= WEEK_DAYS) return WEEKDAY.format(ts);
  return new Date(ts).getFullYear() === new Date(now).getFullYear() ? DAY.format(ts) : DAY_OF_YEAR.format(ts);
}

// Returns the time of a conversation's last message, as lists show it.
export function shortTime(ts, now = Date.now()) {
  const days = daysAgo(ts, now);
  if (!ts) return "";
  if (days === 0) return CLOCK.format(ts);
  if (days === 1) return "Yesterday";
  if (days > 1 && days <= WEEK_DAYS) return WEEKDAY.format(ts);
  return SHORT_DAY.format(ts);
}

// Returns "Online" or "Active 2 hours ago"; "" if the status is not known or not shown to us.
export function statusText(presence, now = Date.now()) {
  if (!presence) return "";
  if (presence.online) return "Online";
  if (!presence.lastActive) return "Offline";
  const ago = Math.max(MINUTE_MS, now - presence.lastActive);
  if (ago < HOUR_MS) return `Active ${count(Math.floor(ago / MINUTE_MS), "minute")} ago`;
  if (ago < DAY_MS) return `Active ${count(Math.floor(ago / HOUR_MS), "hour")} ago`;
  return `Active ${count(Math.floor(ago / DAY_MS), "day")} ago`;
}

export function count(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

// Returns who is typing, "" if nobody is.
export function typingText(names) {
  if (names.length === 0) return "";
  if (names.length === 1) return `${names[0]} is typing…`;
  if (names.length === 2) return `${names[0]} and ${names[1]} are typing…`;
  return `${names.length} people are typing…`;
}

export function sizeText(bytes) {
  if (!(bytes >= 0)) return "";
  if (bytes < 1000) return `${bytes} bytes`;
  if (bytes < 1e6) return `${Math.round(bytes / 1e3)} kB`;
  return bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(1)} GB`;
}

const TICKS = { sending: "Sending", failed: "Not sent", sent: "Sent", delivered: "Delivered", read: "Read" };

// Returns what the ticks of a message mean.
export function tickText({ status, read = 0, others = 0 }) {
  if (others > 1 && read > 0 && status !== "read") return `${TICKS[status]}, read by ${read} of ${others}`;
  return TICKS[status];
}

// Returns a sentence about a change of a room; "" if it is not worth one.
export function describeChange(event, room) {
  const who = room.nameOf(event.sender);
  if (room.partner && isBeginning(event)) return ""; // that two people met is not news to them
  if (event.type === "m.room.member") return describeMember(event, room, who);
  if (event.type === "m.room.create") return `${who} began this conversation`;
  if (event.type === "m.room.name") return event.content.name ? `${who} named the conversation “${event.content.name}”` : "";
  if (event.type === "m.room.topic") return event.content.topic ? `${who} set the topic: ${event.content.topic}` : "";
  if (event.type === "m.room.avatar") return `${who} changed the picture of the conversation`;
  if (event.type === "m.room.encryption") return `${who} switched on end-to-end encryption`;
  if (event.type === "m.room.tombstone") return "This conversation continues elsewhere";
  return "";
}

function isBeginning(event) {
  return event.type === "m.room.create" || ["join", "invite"].includes(event.content?.membership);
}

function describeMember(event, room, who) {
  const before = event.unsigned?.prev_content?.membership ?? "leave";
  const { membership } = event.content;
  const whom = event.content.displayname || room.nameOf(event.state_key);
  const isOwn = event.sender === event.state_key;
  if (membership === "join" && before === "join") return describeProfile(event);
  if (membership === "join") return room.creator === event.state_key ? "" : `${whom} joined`; // who began it is in it
  if (membership === "invite") return `${who} invited ${whom}`;
  if (membership === "knock") return `${whom} asks to join`;
  if (membership === "ban") return `${who} banned ${whom}`;
  if (before === "ban") return `${who} lifted the ban on ${whom}`;
  if (before === "invite") return isOwn ? `${whom} declined the invitation` : `${who} withdrew the invitation of ${whom}`;
  return isOwn ? `${whom} left` : `${who} removed ${whom}`;
}

function describeProfile(event) {
  const before = event.unsigned?.prev_content?.displayname;
  const now = event.content.displayname;
  return before && now && before !== now ? `${before} is now called ${now}` : "";
}
