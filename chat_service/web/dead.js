// Returns dead letters to the inbox that they were in.

import { ask, persist } from "./api.js";

/**
 * Post a dead letter to its inbox, as a new message. The key is made of the dead letter's id, as in `chat dead`,
 * so it is posted once, however often it is returned. Throws `Problem`.
 */
export async function giveBack({ id, text, dead }, tell) {
  const body = { username: dead.username, text };
  try {
    await persist(() => ask("POST", "chat", { headers: { "Idempotency-Key": `return-${id}` }, body }), tell);
  } catch (error) {
    // It was returned before, with another lifetime.
    if (error.kind !== "key-reused") throw error;
  }
}
