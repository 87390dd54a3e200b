// The rules of a schema as text, the types of bodies, and the colors of statuses. Used by docs-operation.js and docs-try.js.

/** Return the rules of a schema as text. */
export function ruleOf(schema) {
  const words = [];
  const type = [schema.type ?? []].flat().join(" or ");
  if (type) words.push(schema.items?.type ? `${type} of ${schema.items.type}s` : type);
  if (schema.enum) words.push(`one of ${schema.enum.map((each) => JSON.stringify(each)).join(", ")}`);
  if ("const" in schema) words.push(`always ${JSON.stringify(schema.const)}`);
  words.push(...bounds(schema.minLength, schema.maxLength, " characters"));
  words.push(...bounds(schema.minimum, schema.maximum ?? schema.exclusiveMaximum, ""));
  words.push(...bounds(schema.minItems, schema.maxItems, " elements"));
  if (schema.pattern && schema.pattern.length < 24) words.push(`matches ${schema.pattern}`);
  return `${words.join(", ")}.`;
}

function bounds(least, most, what) {
  if (least === undefined && most === undefined) return [];
  const [from, to] = [least, most].map((bound) => bound?.toLocaleString("en"));
  if (least === undefined) return [`at most ${to}${what}`];
  return most === undefined ? [`at least ${from}${what}`] : [`${from} to ${to}${what}`];
}

/** Return the media types of a body, each with its content, first plain text. Some of them are apart. */
export function mediasOf(body) {
  const medias = Object.entries({ ...body.content, ...body["x-other-content"] });
  return medias.sort(([one], [other]) => (other === "text/plain") - (one === "text/plain"));
}

/** Return the class that colors a status. */
export function kindOf(status) {
  return status < 400 ? "good" : status < 500 ? "pending" : "bad";
}
