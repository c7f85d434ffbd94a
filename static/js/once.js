// Keys by which the service knows a request again whose answer was lost. Data only.

/** For one form: the same request has the same key until it is done. */
export class Once {
  #request = null;
  #key;

  keyOf(request) {
    const text = JSON.stringify(request);
    if (text !== this.#request) this.#key = randomKey(); // the service refuses a key that comes with another request
    this.#request = text;
    return this.#key;
  }

  /** It was carried out: the same once more is meant as another. */
  done() {
    this.#request = null;
  }
}

function randomKey() {
  // Not crypto.randomUUID(): over plain HTTP browsers have it for loopback only.
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
