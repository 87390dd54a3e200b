// Texts that leave the page: to the clipboard, or into a file.

import { announce } from "./ui.js";

const TOLD_MS = 2000;
const SAVING_MS = 60_000;

/** Copy a text. The button says for a moment whether that worked. */
export async function copy(text, button) {
  // Of a button that was pressed before, the word is not in view.
  button.dataset.word ??= button.textContent;
  const said = (await isCopied(text)) ? "Copied" : "Not copied";
  button.textContent = said;
  announce(`${said}.`);
  setTimeout(() => (button.textContent = button.dataset.word), TOLD_MS);
}

async function isCopied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Over plain HTTP from elsewhere there is no clipboard, or the browser forbids its use.
    return isSelectionCopied(text);
  }
}

/** Copy with the command of the Edit menu, which copies what is selected. */
function isSelectionCopied(text) {
  const { activeElement } = document;
  const field = document.createElement("textarea");
  field.className = "unseen";
  field.readOnly = true;
  field.value = text;
  document.body.append(field);
  field.select();
  const isDone = document.execCommand("copy");
  field.remove();
  activeElement?.focus({ preventScroll: true });
  return isDone;
}

/** Let the browser save a text as a file. */
export function save(text, filename, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = filename;
  link.click();
  // The browser reads it after the click.
  setTimeout(() => URL.revokeObjectURL(link.href), SAVING_MS);
}
