// Which of the two panes a phone shows, Send or Inbox. Wider screens show both.
//
// The tabs are links: `#send`, `#inbox`, and `#inbox=bob` for an open inbox. `inbox.js` follows the address.

import { byId } from "./ui.js";

const tabs = { send: byId("tab-send"), inbox: byId("tab-inbox") };
/** How far down each pane was scrolled when it was left. */
const places = { send: 0, inbox: 0 };

/** Show a pane, at the place where it was left. */
export function showPane(name) {
  const { pane } = document.body.dataset;
  if (pane === name) return;
  places[pane] = scrollY;
  document.body.dataset.pane = name;
  tabs[pane].removeAttribute("aria-current");
  tabs[name].setAttribute("aria-current", "page");
  if (isAlone()) scrollTo(0, places[name]);
}

/** Let the tab lead to the open inbox, or to the list of inboxes if `address` is empty. */
export function leadTo(address) {
  tabs.inbox.href = address || "#inbox";
}

/** Show in the tab how many messages are unread. An empty text stands for none. */
export function showUnread(text) {
  byId("tab-unread").textContent = text;
  for (const part of document.querySelectorAll("#tab-inbox span")) part.hidden = text === "";
}

/** Whether only one pane is shown. */
const isAlone = () => getComputedStyle(tabs.send.parentElement).display !== "none";

/** Call `follow` when a tab was pressed and its address is that of the page. */
export function onTab(follow) {
  for (const tab of Object.values(tabs)) {
    tab.addEventListener("click", (event) => {
      // Without the jump that a browser makes to the element of this name.
      event.preventDefault();
      if (tab.hash !== location.hash) history.pushState(null, "", tab.hash);
      follow();
    });
  }
}
