// Requests to the service: JSON in, JSON out, every refusal a Problem. Keeps the token; knows nothing of the page.

const TOKEN = "cognate.token";
const SUBPROTOCOL = "cognate.v1";

/** What the service answers when it does not do what was asked (RFC 9457). */
export class Problem extends Error {
  constructor(status, body) {
    super(body.detail ?? body.title ?? `the service answered ${status}`);
    this.status = status;
    this.errors = body.errors ?? [];
  }
}

/** Nothing answered. */
export class Unreachable extends Error {
  constructor(cause) {
    super("the service does not answer", { cause });
  }
}

/** Whether the same request may well be answered later. */
export function isPassing(error) {
  return error instanceof Unreachable || (error instanceof Problem && error.status >= 500);
}

/** Whether what was asked for may have been done all the same. */
export function isInDoubt(error) {
  return error instanceof Unreachable || (error instanceof Problem && [500, 502, 504].includes(error.status));
}

let askForToken = null;
let asking = null;

/** `ask(refused)` resolves to a token; called when the service wants one. `refused`: the last one was not accepted. */
export function onUnauthorized(ask) {
  askForToken = ask;
}

export function hasToken() {
  return sessionStorage.getItem(TOKEN) !== null;
}

export function forgetToken() {
  sessionStorage.removeItem(TOKEN);
}

/** The header that every request carries, if there is a token. */
export function authorization() {
  return hasToken() ? { Authorization: `Bearer ${sessionStorage.getItem(TOKEN)}` } : {};
}

export function get(path, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== null);
  return send("GET", given.length ? `${path}?${new URLSearchParams(given)}` : path);
}

/** key: by which the service knows the request again, so that it takes effect once. */
export function post(path, body, key = null) {
  return send("POST", path, body, key === null ? {} : { "Idempotency-Key": key });
}

export function put(path, body) {
  return send("PUT", path, body);
}

export function patch(path, body) {
  return send("PATCH", path, body);
}

export function remove(path) {
  return send("DELETE", path);
}

/** Every item of a list that comes in pages. */
export async function getAll(path, query = {}) {
  const items = [];
  for (let after; ;) {
    const page = await get(path, { ...query, after });
    items.push(...page.data);
    if (!page.has_more) return items;
    after = page.next_cursor;
  }
}

/** What to offer when opening a websocket: a browser cannot send the token there, so it offers a ticket instead. */
export async function websocketProtocols() {
  if (!hasToken()) return [SUBPROTOCOL];
  const { ticket } = await post("/v1/stream/ticket");
  return [SUBPROTOCOL, `ticket.${ticket}`];
}

async function send(method, path, body, headers = {}) {
  for (;;) {
    const used = sessionStorage.getItem(TOKEN);
    const response = await exchange(method, path, body, headers);
    if (response.status === 401 && askForToken) {
      await renewToken(used);
      continue;
    }
    const answer = await response.json().catch(() => ({}));
    if (!response.ok) throw new Problem(response.status, answer);
    return answer;
  }
}

async function exchange(method, path, body, more) {
  const headers = { ...authorization(), ...more };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  try {
    return await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    throw new Unreachable(error);
  }
}

/** Ask once, however many requests were refused at the same time. */
async function renewToken(used) {
  if (sessionStorage.getItem(TOKEN) !== used) return;
  asking ??= askForToken(used !== null)
    .then((token) => sessionStorage.setItem(TOKEN, token))
    .finally(() => (asking = null));
  await asking;
}
