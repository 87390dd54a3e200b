// Functions for mongosh that find the messages of an inbox: scripts/mongo-shell defines them.

/** Return the route of an inbox: the upper 16 bits of the CRC-32 of its name in UTF-8. */
function route(username) {
  let crc = -1;
  for (const byte of Buffer.from(username, "utf8")) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 16;
}

/**
 * Return the filter for the messages of an inbox, which the inbox index serves.
 * With schema version 1, messages may have no route.
 */
function inbox(username) {
  const indexes = db.messages.getIndexes().map((index) => index.name);
  return indexes.includes("inbox_by_route") && !indexes.includes("inbox")
    ? { route: route(username), username }
    : { username };
}

// A shell that starts shows the last value.
undefined;
