// Numbers and times as people read them.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** A count of bytes; an empty text for null. */
export function bytes(count) {
  if (count === null || count === undefined) return "";
  let unit = 0;
  while (count >= 1024 && unit < UNITS.length - 1) {
    count /= 1024;
    unit++;
  }
  return `${unit && count < 100 ? count.toFixed(1) : Math.round(count)}\u00a0${UNITS[unit]}`;
}

/** MiB as bytes() shows them. */
export const mib = (count) => (count ? bytes(count * 1048576) : "");

/** How long ago a time was, such as "5 min"; an empty text for null. */
export function age(time, now = Date.now()) {
  if (!time) return "";
  return duration(Math.max(0, now - new Date(time).getTime()));
}

/** Milliseconds as one number and a unit. */
export function duration(milliseconds) {
  const seconds = Math.floor(milliseconds / 1000);
  if (seconds < 60) return `${seconds}\u00a0s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)}\u00a0min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)}\u00a0h`;
  return `${Math.floor(seconds / 86400)}\u00a0d`;
}

/** A time in full, in the browser's own zone. */
export function time(text) {
  return text ? new Date(text).toLocaleString() : "";
}

/** A lifetime in seconds as a setting shows it. */
export const lifetime = (seconds) => (seconds ? duration(seconds * 1000) : "never");

const ESCAPES = /\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-_])|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f]/g;

/** Output of a command without the escape sequences of a terminal. */
export const plain = (text) => text.replace(ESCAPES, "").replace(/\r\n/g, "\n");

/** Words of a command line, which quotes may join. Throws an Error for a quote that nobody closes. */
export function words(text) {
  const found = [];
  const pattern = /\s*((?:[^\s"'\\]|\\.|"(?:[^"\\]|\\.)*"|'[^']*')+)/y;
  while (text.slice(pattern.lastIndex).trim()) {
    const match = pattern.exec(text);
    if (!match) throw new Error("A quote in the command is not closed.");
    found.push(match[1].replace(/\\(.)|"((?:[^"\\]|\\.)*)"|'([^']*)'/g, (_, escaped, double, single) =>
      escaped ?? single ?? double.replace(/\\(.)/g, "$1")));
  }
  return found;
}
