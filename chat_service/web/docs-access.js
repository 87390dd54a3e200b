// Whose requests the API reference sends: a token's that was entered here, a session's, or nobody's.
//
// This is the only page that keeps a token, because it shows what a request with one is answered: in one
// variable, until it is forgotten or the page is left.

import { element } from "./element.js";
import { rightsOf, session, whoHas } from "./session.js";
import { tokenForm } from "./sign-in.js";

let token = null;

/** Return the options of `fetch` that make a request the chosen identity's. */
export function asChosen(headers) {
  if (token === null) return { headers, credentials: "same-origin" };
  return { headers: { Authorization: `Bearer ${token}`, ...headers }, credentials: "omit" };
}

/** Fill in the part of the page that says so; hidden while access is off. */
export async function showAccess(place) {
  let holder = null;
  const heading = element("h2", { id: "access-title" }, ["Access"]);
  const status = element("p", { role: "status" });
  const rights = element("ul", { class: "plain" });
  const forget = element("button", { type: "button" }, ["Forget the token"]);
  const form = tokenForm(
    "Use",
    "Kept in the memory of this page only, and sent with each request that you try.",
    async (entered) => {
      holder = await whoHas(entered);
      token = entered;
      show();
      forget.focus();
    },
  );

  function drop() {
    token = null;
    holder = null;
    show();
  }

  function show() {
    const who = holder ?? session.who;
    place.hidden = !session.isOn;
    form.hidden = holder !== null;
    forget.hidden = holder === null;
    const name = element("strong", {}, [who.subject]);
    status.replaceChildren(
      ...(holder
        ? ["Requests from this page are those of ", name, ", with the token that you entered."]
        : session.isSignedIn
        ? ["Requests from this page are those of ", name, ", who is signed in here. A token replaces that."]
        : ["Requests from this page have no token. Enter one to try what needs it."]),
    );
    rights.replaceChildren(...rightsOf(who).map((words) => element("li", {}, [words])));
  }

  forget.addEventListener("click", () => {
    drop();
    form.ask();
  });
  window.addEventListener("pagehide", drop);
  session.addEventListener("change", show);
  place.append(heading, status, rights, form, forget);
  await session.watch();
}
