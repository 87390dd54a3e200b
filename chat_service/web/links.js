// Makes links of the web addresses in a text, and shows what turns its direction.

/** An address ends at white space, at quotes and angle brackets, and at characters that turn the direction: with them, it
 *  could look like another one. */
const ADDRESS = /\bhttps?:\/\/[^\s\p{Cc}\p{Bidi_Control}<>"“”«»…]+(…?)/giu;
/** Characters that turn the direction of what comes after them. Their sender could make a text look like another one. */
const TURNS = /([\u202a-\u202e\u2066-\u2069])/u;
const PUNCTUATION = ".,;:!?'’*)]}";
const OPENING = { ")": "(", "]": "[", "}": "{" };

/** Return the nodes of a text. Links look like what is in the text, and all of them together have exactly this text.
 *  The time is proportional to its length. */
export function linked(text) {
  const nodes = [];
  let done = 0;
  for (const { 0: found, 1: isCut, index } of text.matchAll(ADDRESS)) {
    // Before an ellipsis, it is only the beginning of an address.
    const address = isCut ? "" : withoutPunctuation(found);
    if (!isAddress(address)) continue;
    nodes.push(...marked(text.slice(done, index)), linkTo(address));
    done = index + address.length;
  }
  return [...nodes, ...marked(text.slice(done))];
}

/** Return the nodes of a part without links. As in `chat`, a character that turns the direction is seen as an escape. It
 *  is within its own box, where it turns nothing else, so that a copy has it. */
function marked(text) {
  return text.split(TURNS).map((part, n) => {
    // Those between the separators are the even ones.
    if (n % 2 === 0) return part;
    const box = document.createElement("span");
    box.className = "turn";
    box.dir = "ltr";
    box.dataset.escape = `\\u${part.charCodeAt(0).toString(16)}`;
    box.textContent = part;
    return box;
  });
}

/** Return an address without what belongs to the sentence around it. A closing bracket belongs to the address if that has
 *  the opening one. */
function withoutPunctuation(found) {
  const surplus = {};
  for (const [closing, opening] of Object.entries(OPENING)) {
    surplus[closing] = found.split(closing).length - found.split(opening).length;
  }
  let end = found.length;
  for (; PUNCTUATION.includes(found[end - 1]); end -= 1) {
    const last = found[end - 1];
    if (last in OPENING && surplus[last]-- <= 0) break;
  }
  return found.slice(0, end);
}

function isAddress(text) {
  try {
    return new URL(text).hostname !== "";
  } catch {
    return false;
  }
}

function linkTo(address) {
  const link = document.createElement("a");
  link.href = address;
  link.rel = "noopener noreferrer";
  link.target = "_blank";
  // Also within a text from right to left.
  link.dir = "ltr";
  link.textContent = address;
  return link;
}
