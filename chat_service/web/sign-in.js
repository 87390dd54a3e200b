// The part of a page that says who uses it, with the form to sign in. Hidden while access is off.

import { element } from "./element.js";
import { isTokenLike, namesOf, rightsOf, session, SessionError } from "./session.js";

const MINUTE_MS = 60_000;
const TICK_MS = 1000;
/** A session that ends so soon says it. */
const SOON_MS = 10 * MINUTE_MS;

const clock = new Intl.DateTimeFormat("en-GB", { timeStyle: "short" });
const calendar = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" });

/**
 * Return a form with a field for a token, and `more` elements below it. `accept` gets the token; if it throws
 * SessionError, the form says why. The field is emptied as soon as the service has judged the token.
 */
export function tokenForm(label, hint, accept, more = []) {
  // "current-password": password managers may fill the field in, and store nothing unless they are told to.
  // Browsers ignore "off" here.
  const field = element("input", {
    id: "token",
    type: "password",
    autocomplete: "current-password",
    autocapitalize: "none",
    spellcheck: "false",
    "aria-describedby": "token-hint token-fault",
  });
  const fault = element("p", { class: "fault", id: "token-fault", hidden: true });
  const button = element("button", { class: "primary" }, [label]);
  const form = element("form", { class: "field token", novalidate: true }, [
    // A password manager asks for a name to store a token under.
    element("input", { type: "text", autocomplete: "username", value: "token", readonly: true, hidden: true }),
    element("label", { for: "token" }, ["Token"]),
    element("div", { class: "joined" }, [field, button]),
    element("p", { class: "hint", id: "token-hint" }, [hint]),
    fault,
    ...more,
  ]);

  function say(words) {
    fault.textContent = words;
    fault.hidden = words === "";
    if (words === "") field.removeAttribute("aria-invalid");
    else field.setAttribute("aria-invalid", "true");
  }

  async function submit() {
    const token = field.value.trim();
    if (!isTokenLike(token)) {
      say(token === "" ? "Enter a token." : "This is not a token: it has spaces or other characters that none has.");
      field.focus();
      return;
    }
    say("");
    try {
      await accept(token);
      field.value = "";
    } catch (error) {
      if (!(error instanceof SessionError)) throw error;
      // A token that was not judged stays, so that it can be tried again.
      if (error.status !== null && error.status !== 429) field.value = "";
      field.focus();
      if (error.status === 429) await countDown(error.retryAfterS ?? 1);
      else say(refusalOf(error));
    }
  }

  async function countDown(seconds) {
    const until = Date.now() + seconds * 1000;
    for (let left = seconds; left > 0; left = Math.ceil((until - Date.now()) / 1000)) {
      say(`Too many attempts. You can try again in ${left} s.`);
      await new Promise((done) => setTimeout(done, TICK_MS));
    }
    say("");
  }

  field.addEventListener("input", () => button.ariaDisabled === "true" || say(""));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (button.ariaDisabled === "true") return;
    button.ariaDisabled = "true";
    button.ariaBusy = "true";
    try {
      await submit();
    } finally {
      button.ariaDisabled = null;
      button.ariaBusy = null;
    }
  });
  // A browser may keep the whole page to go back to it.
  window.addEventListener("pagehide", () => (field.value = ""));
  form.ask = () => field.focus();
  return form;
}

/** How long a session lasts that is not kept and whose token has no end. */
const LASTING = "until you sign out or close the browser";

function refusalOf({ status, detail }) {
  if (status === null) return "No answer from the service. Try again.";
  if (status === 200) return "The token is valid, but the browser did not keep the session. Open this page over HTTPS.";
  if (status === 401) return "The service does not accept this token. Check that it is complete. It may also have expired or been revoked.";
  return `You are not signed in: ${detail || `the service answered ${status}`}.`;
}

/** Fill in a place with who uses the page; return a function that asks to sign in. `needs` is for whom. */
export function showSession(place, needs) {
  const keep = element("input", { type: "checkbox" });
  const form = tokenForm(
    "Sign in",
    "Your browser keeps the token in a cookie that no script can read.",
    async (token) => {
      await session.signIn(token, keep.checked);
      keep.checked = false;
      summary.focus();
    },
    [element("label", { class: "check" }, [keep, element("span", {}, [
      "Stay signed in on this device ",
      element("small", { class: "hint" }, ["for at most 30 days; otherwise, until you close the browser"]),
    ])])],
  );
  const why = element("p", { class: "muted" });
  const notice = element("p", { class: "notice", role: "alert", hidden: true });
  const heading = element("h2", { id: "access-title" });
  const end = element("p", { class: "muted number end" });
  const leave = element("button", { type: "button", class: "quiet" }, ["Sign out"]);
  const rights = element("ul", { class: "plain" });
  const summary = element("summary");
  // A phone has little room: the name is enough until somebody wants to know more.
  const details = element("details", { open: matchMedia("(min-width: 45.01rem)").matches }, [summary, rights]);
  const head = element("div", { class: "who" }, [details, end, leave]);
  place.append(head, notice, why, form);

  function say(words) {
    notice.textContent = words;
    notice.hidden = words === "";
  }

  function show() {
    const { who, isSignedIn, ended } = session;
    place.hidden = !session.isOn;
    heading.textContent = isSignedIn ? `Signed in as ${who.subject}` : "Sign in";
    (isSignedIn ? summary : place).prepend(heading);
    place.classList.toggle("signed-in", isSignedIn);
    head.hidden = !isSignedIn;
    for (const each of [why, form]) each.hidden = isSignedIn;
    rights.replaceChildren(...rightsOf(who).map((words) => element("li", {}, [words])));
    why.textContent = needs(who);
    say({
      "": "",
      expired: "Your session has expired. Sign in again; nothing that you entered is lost.",
      revoked: "Your session has ended: the token was revoked, or you signed out in another tab. Nothing "
        + "that you entered is lost.",
    }[ended]);
    tick();
  }

  function tick() {
    if (!session.isSignedIn) return;
    const left = session.endsAt === null ? Infinity : Math.max(0, session.endsAt - Date.now());
    end.hidden = !details.open && left >= SOON_MS;
    if (session.endsAt === null) {
      end.textContent = LASTING;
      return;
    }
    const isToday = new Date(session.endsAt).toDateString() === new Date().toDateString();
    const words = `until ${(isToday ? clock : calendar).format(session.endsAt)}`;
    if (left < SOON_MS) {
      end.textContent = `${words}, ${left < MINUTE_MS ? "less than a minute" : `${Math.floor(left / MINUTE_MS)} min`} left`;
    } else {
      end.textContent = session.who.kept_until === null ? `${words}, or until you close the browser` : words;
    }
  }

  leave.addEventListener("click", async () => {
    try {
      await session.signOut();
      form.ask();
    } catch (error) {
      if (!(error instanceof SessionError)) throw error;
      say("No answer from the service, so you are still signed in. Try again.");
    }
  });
  details.addEventListener("toggle", tick);
  session.addEventListener("change", show);
  setInterval(tick, TICK_MS);
  show();
  return (words) => {
    if (!session.isOn) return;
    if (session.isSignedIn) return;
    if (session.ended === "") say(words);
    form.ask();
  };
}
