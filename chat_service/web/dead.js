// Returns dead letters to the inbox that they were in.

import { ask, persist } from "./api.js";

/** The service's default lifetime may be a minute, too short for a consumer that is being repaired. */
const DAY_S = 86_400;

/**
 * Post a dead letter to its inbox, as a new message that lives for a day. The key is made of the dead letter's id, as in `chat dead`,
 * so it is posted once, however often it is returned. Throws `Problem`.
 */
export async function giveBack({ id, text, dead }, tell) {
  const headers = { "Idempotency-Key": `return-${id}` };
  const post = (lifetime) =>
    persist(
      () => ask("POST", "chat", { headers, body: { username: dead.username, text, ...lifetime } }),
      tell,
    );
  try {
    await post({ timeout: DAY_S }).catch((error) => {
      // A service may allow less than a day.
      if (error.status !== 400) throw error;
      return post({});
    });
  } catch (error) {
    // It was returned before, with another lifetime.
    if (error.kind !== "key-reused") throw error;
  }
}
