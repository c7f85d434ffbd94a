// Numbers, sizes and times as people read them; the only place that does it.

const LISTED = 20; // of a longer list, as many are shown

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const dayAndClock = new Intl.DateTimeFormat("en-GB", {
  day: "numeric",
  month: "short",
  hour: "2-digit",
  minute: "2-digit",
});
const dayOnly = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric" });

export const NOTHING = "–";

export function integer(value) {
  return value === null || value === undefined ? NOTHING : grouped.format(value);
}

/** A measurement to four digits; what is not finite keeps its name. */
export function number(value) {
  if (value === null || value === undefined) return NOTHING;
  if (typeof value === "string") return value;
  if (Number.isInteger(value) && Math.abs(value) < 1e12) return grouped.format(value);
  const size = Math.abs(value);
  return size >= 1e-3 && size < 1e6 ? String(Number(value.toPrecision(4))) : value.toExponential(2);
}

/** A ratio of 0..1. */
export function percent(ratio) {
  return ratio === null || ratio === undefined ? NOTHING : `${Math.floor(100 * ratio)} %`;
}

export function bytes(size) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = size > 0 ? Math.min(Math.floor(Math.log2(size) / 10), units.length - 1) : 0;
  return `${Number((size / 1024 ** power).toPrecision(power ? 3 : 4))} ${units[power]}`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return NOTHING;
  const whole = Math.max(0, Math.round(seconds));
  const [days, hours, minutes] = [
    Math.floor(whole / 86400),
    Math.floor((whole % 86400) / 3600),
    Math.floor((whole % 3600) / 60),
  ];
  if (days) return `${days} d ${hours} h`;
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min ${whole % 60} s` : `${whole} s`;
}

/** An instant of the service, RFC 3339 or seconds since the epoch, as a Date. */
export function instant(at) {
  return new Date(typeof at === "number" ? at * 1000 : at);
}

/** The time of day, with the day when it is not today's. */
export function time(at) {
  const when = instant(at);
  return dayOnly.format(when) === dayOnly.format(new Date()) ? clock.format(when) : dayAndClock.format(when);
}

/** The beginning of a digest, enough to compare by eye. */
export function digest(sha256) {
  return sha256.slice(0, 12);
}

/** A name of the service's vocabulary in words: "loading_data" is "loading data". */
export function words(name) {
  return name.replaceAll("_", " ");
}

/** Any plain value on one line. */
export function plain(value) {
  if (value === null || value === undefined) return NOTHING;
  if (typeof value === "number") return number(value);
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (Array.isArray(value)) return list(value);
  if (typeof value === "object")
    return Object.entries(value)
      .map(([key, inner]) => `${words(key)} ${plain(inner)}`)
      .join(", ");
  return value;
}

function list(values) {
  const shown = values.slice(0, LISTED).map(plain).join(", ");
  return values.length > LISTED ? `${shown} … (${integer(values.length)} in all)` : shown;
}
