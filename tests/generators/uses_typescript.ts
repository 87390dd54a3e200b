// Uses a client of openapi-fetch with the types that openapi-typescript made, as its users would.
//
// test_generated_clients.py checks the types with tsc, and runs it: `uses_typescript.js BASE TOKEN`.

import createClient from "openapi-fetch";
import type { components, paths } from "./chat.js";

declare const process: { argv: string[] };

const [baseUrl = "", token = ""] = process.argv.slice(2);
// A service without access control ignores the token.
const chat = createClient<paths>({ baseUrl, headers: { Authorization: `Bearer ${token}` } });
type NewMessage = components["schemas"]["NewMessage"];

function same(found: unknown, expected: unknown): void {
  const [text, wanted] = [JSON.stringify(found), JSON.stringify(expected)];
  if (text !== wanted) throw new Error(`${text} instead of ${wanted}`);
}

async function posted(body: NewMessage): Promise<{ id: string; receipt: string }> {
  const { data, error, response } = await chat.POST("/chat", { params: { header: { Prefer: "receipt" } }, body });
  if (error) throw new Error(error.detail);
  return { id: data.id, receipt: response.headers.get("X-Receipt") ?? "" };
}

async function fateOf({ id, receipt }: { id: string; receipt: string }): Promise<components["schemas"]["Fate"]> {
  const { data, error } = await chat.GET("/messages/{id}/status", {
    params: { path: { id }, header: { "X-Receipt": receipt } },
  });
  if (error) throw new Error(error.detail);
  return data;
}

async function postAndRead(): Promise<void> {
  const username = "bob";
  const message = await posted({ text: "lunch?", username });
  same((await fateOf(message)).status, "pending");
  const body: NewMessage[] = [{ text: "at noon?", username, timeout: 3600 }, { text: "nobody", username: "" }];
  const { data: batch, error } = await chat.POST("/chat/batch", { body });
  if (error) throw new Error(error.detail);
  const [good, bad] = batch.results;
  if (!good || !("id" in good) || !bad || !("error" in bad)) throw new Error("other results");
  same(bad.error.errors?.[0]?.field, "username");
  const { response } = await chat.HEAD("/chat/{username}", { params: { path: { username } } });
  same(response.headers.get("X-Unread-Count"), "2");
  const { data: messages } = await chat.POST("/chat/{username}/read", {
    params: { path: { username }, query: { wait: 1.5, limit: 10 } },
  });
  same(messages?.map(({ text, id }) => [text, id]), [["lunch?", message.id], ["at noon?", good.id]]);
  const fate = await fateOf(message);
  same([fate.status, typeof fate.at], ["read", "string"]);
}

async function postTexts(): Promise<void> {
  const path = { username: "ops" };
  await chat.POST("/chat/{username}", {
    params: { path, query: { timeout: 60 } },
    body: "Backup ok",
    bodySerializer: (text) => text,
    headers: { "Content-Type": "text/plain" },
  });
  await chat.POST("/chat/{username}", { params: { path }, body: { text: "42 files" } });
  const { data: messages } = await chat.POST("/chat/{username}/read", { params: { path } });
  same(messages?.map(({ text }) => text), ["Backup ok", "42 files"]);
}

async function postForLater(): Promise<void> {
  const username = "later";
  const soon = await posted({ text: "soon", username, delay: 0.5 });
  const later = await posted({ text: "in an hour", username, delay: 3600 });
  const fate = await fateOf(later);
  same([fate.status, typeof fate.at], ["scheduled", "string"]);
  await chat.DELETE("/messages/{id}", { params: { path: { id: later.id }, header: { "X-Receipt": later.receipt } } });
  same((await fateOf(later)).status, "revoked");
  const { data: messages } = await chat.POST("/chat/{username}/read", {
    params: { path: { username }, query: { wait: 20 } },
  });
  same(messages?.map(({ id }) => id), [soon.id]);
}

async function leaseAndAcknowledge(): Promise<void> {
  const path = { username: "worker" };
  await posted({ text: "job", username: "worker" });
  const { data: leased } = await chat.POST("/chat/{username}/lease", { params: { path, query: { ttl: 20 } } });
  if (!leased?.lease) throw new Error("no lease");
  same(leased.messages.map(({ text, deliveries }) => [text, deliveries]), [["job", 1]]);
  const { error: lost } = await chat.POST("/chat/{username}/ack", {
    params: { path },
    body: { lease: "f".repeat(32) },
  });
  same([lost?.type, lost?.status], ["urn:chat:problem:lease-over", 410]);
  const { data: done } = await chat.POST("/chat/{username}/ack", { params: { path }, body: { lease: leased.lease } });
  same(done?.acknowledged, 1);
}

async function beRefused(): Promise<void> {
  const { error } = await chat.POST("/chat", { body: { text: "x", username: "bob", timeout: 0 } });
  same(error?.errors?.[0]?.field, "timeout");
  let full: components["schemas"]["Problem"] | undefined;
  for (let tries = 0; tries < 50 && !full; tries++) {
    full = (await chat.POST("/chat", { body: { text: "x", username: "full" } })).error;
  }
  same([full?.type, full?.stored], ["urn:chat:problem:inbox-full", false]);
  const message = await posted({ text: "x", username: "eve" });
  await chat.POST("/chat/{username}/read", { params: { path: { username: "eve" } } });
  const { error: late } = await chat.DELETE("/messages/{id}", {
    params: { path: { id: message.id }, header: { "X-Receipt": message.receipt } },
  });
  same(late?.fate, "read");
}

await postAndRead();
await postTexts();
await postForLater();
await leaseAndAcknowledge();
await beRefused();
