"""The apps with which `scripts/bench` compares the service.

usage: python -m tests.bench.apps bare PORT | naive PORT MONGO_URI

bare: a Tornado app that parses and answers the same JSON and stores nothing: the cost of HTTP.
naive: the same with one database call for each request: the obvious first version. Both run on
uvloop like the service, log and count nothing, and validate next to nothing.
"""

import asyncio
import datetime
import json
import sys
import uuid
from typing import Any

import tornado.web
import uvloop
from pymongo import AsyncMongoClient, ReturnDocument


class BarePost(tornado.web.RequestHandler):
    """Parses the message, and answers with a new id."""

    async def post(self) -> None:
        message = json.loads(self.request.body)
        assert isinstance(message["text"], str)
        self.set_status(201)
        self.write({"id": uuid.uuid4().hex})


class BareRead(tornado.web.RequestHandler):
    """Answers every read with one message."""

    async def get(self, username: str) -> None:
        self.set_header("Content-Type", "application/json")
        self.write(json.dumps([{"text": "x" * 32, "id": uuid.uuid4().hex}]))


class NaivePost(tornado.web.RequestHandler):
    """Runs one insert."""

    async def post(self) -> None:
        message = json.loads(self.request.body)
        life = datetime.timedelta(seconds=message["timeout"])
        document = {
            "_id": uuid.uuid4().hex,
            "username": message["username"],
            "text": message["text"],
            "expires_at": datetime.datetime.now(datetime.UTC) + life,
            "unread": True,
        }
        await self.settings["messages"].insert_one(document)
        self.set_status(201)
        self.write({"id": document["_id"]})


class NaiveRead(tornado.web.RequestHandler):
    """Runs one findOneAndUpdate for each message, until one finds nothing."""

    async def get(self, username: str) -> None:
        messages = []
        now = datetime.datetime.now(datetime.UTC)
        while True:
            document = await self.settings["messages"].find_one_and_update(
                {"username": username, "unread": True, "expires_at": {"$gte": now}},
                {"$unset": {"unread": ""}},
                sort=[("_id", 1)],
                return_document=ReturnDocument.BEFORE,
            )
            if document is None:
                break
            messages.append({"text": document["text"], "id": document["_id"]})
        self.set_header("Content-Type", "application/json")
        self.write(json.dumps(messages))


async def serve(kind: str, port: int, uri: str) -> None:
    """Serve until killed."""
    settings: dict[str, Any] = {"log_function": lambda handler: None}
    post: type[tornado.web.RequestHandler] = BarePost
    read: type[tornado.web.RequestHandler] = BareRead
    if kind == "naive":
        post, read = NaivePost, NaiveRead
        client: AsyncMongoClient[Any] = AsyncMongoClient(uri, w="majority", journal=True)
        settings["messages"] = client.bench_naive.messages
        await settings["messages"].create_index(
            [("username", 1), ("_id", 1)], partialFilterExpression={"unread": True}
        )
    app = tornado.web.Application([("/chat", post), ("/chat/([^/]+)", read)], **settings)
    app.listen(port, "127.0.0.1")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    kind, port, *uri = sys.argv[1:]
    uvloop.run(serve(kind, int(port), "".join(uri)))
