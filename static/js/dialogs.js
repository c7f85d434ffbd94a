// Questions that wait for an answer.

import { isInDoubt } from "./api.js";
import { byId, element, setText } from "./dom.js";

/** Resolves to whether the person agreed to a command that cannot be taken back. */
export function confirm({ label, question, consequence }) {
  const dialog = byId("confirm");
  setText(dialog.querySelector("h2"), question);
  setText(dialog.querySelector("p"), consequence);
  setText(dialog.querySelector("button[value=yes]"), label);
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) =>
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }),
  );
}

/** Resolves to the token that was typed in; there is no way around it. */
export function askForToken(wasRefused) {
  const dialog = byId("token");
  const input = dialog.querySelector("input");
  setText(dialog.querySelector("[role=alert]"), wasRefused ? "That token was not accepted." : "");
  input.value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => dialog.showModal(); // by Escape, which a page cannot refuse twice
    dialog.querySelector("form").onsubmit = (event) => {
      event.preventDefault();
      dialog.onclose = null;
      dialog.close();
      resolve(input.value.trim());
    };
  });
}

/** A refusal or a failure, at the top of the view until it is dismissed or the view changes. */
export function tell(message) {
  const place = byId("message");
  place.replaceChildren(
    element("span", {}, message),
    element("button", { type: "button", onclick: () => place.replaceChildren() }, "Dismiss"),
  );
}

export function untell() {
  byId("message").replaceChildren();
}

/** Do what was asked for; when it is refused or not answered, say so. `what` begins the sentence. */
export async function attempt(what, act) {
  untell();
  try {
    await act();
  } catch (error) {
    if (isInDoubt(error)) tell(`${what}: ${error.message}, so it is not known whether it was done.`);
    else tell(`${what} was refused: ${error.message}`);
  }
}
