// Who uses the web UI, and what to say when somebody may not do something.

import { namesOf, refusal, session } from "./session.js";
import { showSession } from "./sign-in.js";
import { byId } from "./ui.js";

const askToSignIn = showSession(byId("access"), ({ send, read }) => {
  const [to, of] = [namesOf(send), namesOf(read)];
  if (!to && !of) return "Sending and reading need a token. Ask an operator of this service for one.";
  const may = [to && `send to ${to}`, of && `read the inbox of ${of}`].filter(Boolean).join(", and ");
  const more = !to ? " Sending needs a token." : !of ? " Reading needs a token." : "";
  return `Without a token you may ${may}.${more}`;
});

/**
 * Return what to tell about an error answer. `act` completes "you may not …". If it helps to sign in, and
 * somebody waits for the request, the form gets the focus.
 */
export async function wordsOf(error, act, { isAwaited = true } = {}) {
  const wasSignedIn = session.isSignedIn;
  if (error.status === 401 || error.kind === "forbidden") await session.look();
  const { isOn, isSignedIn, who } = session;
  // The cookie is gone by now, so requests are those of anybody.
  if (wasSignedIn && !isSignedIn && who.send.length + who.read.length > 0) {
    return "Your session has ended. Try again without it, or sign in first.";
  }
  const why = isOn ? refusal(error, act) : null;
  if (why && isAwaited && !isSignedIn) askToSignIn(why);
  return why ?? error.words;
}

session.addEventListener("change", showBlank);

function showBlank() {
  const isReader = session.who.read.length > 0;
  byId("no-inbox").classList.toggle("reader", isReader);
  byId("no-inbox").querySelector(".blank p").textContent = isReader
    ? "Send a message to a name, then open its inbox here."
    : session.isSignedIn ? "Your token has no right to read an inbox." : "Sign in to open an inbox.";
}

session.watch();
