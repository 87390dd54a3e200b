"""Every setting of the service: its type, default, bounds and meaning, in one frozen object.

Read by `config.load`, which fills it, and by the table in docs/settings.md, which is made from it.
Only `chat_service.cli`, `chat_service.service` and `chat_service.wiring` see a `Settings`;
everything else is given plain arguments.
"""

import os
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

PROJECT_ROOT = Path(__file__).resolve().parent.parent
#: `data` in the checkout. Where it is installed, a folder of the user's (XDG Base Directory), which
#: outlives the environment that it is installed in.
_XDG = os.environ.get("XDG_STATE_HOME", "")
DATA_DIR = (
    PROJECT_ROOT / "data"
    if (PROJECT_ROOT / "pyproject.toml").is_file()
    else Path(_XDG if os.path.isabs(_XDG) else os.path.expanduser("~/.local/state"), "chat-inbox")
)

#: The default of `storage_free_min_bytes`. Of a small disk it is at most a fifth.
STORAGE_FREE_MIN_BYTES = 512 << 20

#: Settings whose values may hold a password: masked in `--print-config`, readable from `*_FILE`.
SECRETS = frozenset({"mongo_uri", "log_username_key"})


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a running service needs to know. Times in seconds, sizes in bytes unless named."""

    # Where it listens
    host: Annotated[str, Meta(min_length=1, description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port; 0 picks a free one.")] = 8080
    processes: Annotated[
        int, Meta(ge=0, le=64, description="Processes behind one socket; 0: one per core.")
    ] = 1
    allowed_hosts: Annotated[
        tuple[str, ...],
        Meta(
            description="`Host` names that are answered, without port. None named: all, or on a "
            "loopback address only IP addresses and localhost."
        ),
    ] = ()

    allowed_origins: Annotated[
        tuple[str, ...],
        Meta(description="Origins of other sites' pages that may open a stream."),
    ] = ()

    # What operators look at
    ops: Annotated[
        Literal["auto", "on", "off"],
        Meta(
            description="Whether `/ops` and `/metrics` are served on `port`, too; "
            "auto: on a loopback address only."
        ),
    ] = "auto"
    ops_port: Annotated[
        int,
        Meta(ge=0, le=65535, description="Port for `/ops`, `/metrics` and health only; 0: none."),
    ] = 0
    ops_host: Annotated[
        str, Meta(min_length=1, description="Address to listen on with `ops_port`.")
    ] = "127.0.0.1"

    # The database
    mongo_uri: Annotated[
        str,
        Meta(description="MongoDB connection string; empty: a private mongod is started."),
    ] = ""
    mongo_database: Annotated[
        str, Meta(pattern=r"^[A-Za-z0-9_-]{1,38}$", description="Database name.")
    ] = "chat"
    mongo_driver: Annotated[
        Literal["pymongo", "motor"], Meta(description="PyMongo's async client, or Motor.")
    ] = "pymongo"
    mongo_timeout_s: Annotated[
        float, Meta(gt=0, le=60, description="Longest time for one database operation.")
    ] = 4.0
    mongo_wait_s: Annotated[
        float, Meta(ge=0, description="At start, a database that is not there is waited for.")
    ] = 10.0
    mongod: Annotated[
        str, Meta(description="Path of the private mongod; empty: PATH, then the bundled one.")
    ] = ""
    data_dir: Annotated[
        Path,
        Meta(
            description="Where the private mongod keeps its data; "
            "without a checkout ~/.local/state/chat-inbox."
        ),
    ] = DATA_DIR

    storage_free_min_bytes: Annotated[
        int,
        Meta(
            ge=0,
            description="Posts are refused where less is free on the database's disk; 0: never. "
            "The default is a fifth of a disk that is smaller than 2.5 GiB.",
        ),
    ] = STORAGE_FREE_MIN_BYTES

    # What a message may be
    max_username_chars: Annotated[
        int, Meta(ge=1, le=512, description="Longest username, in code points.")
    ] = 128
    max_text_bytes: Annotated[
        int, Meta(ge=1, le=1 << 20, description="Longest text, in bytes of UTF-8.")
    ] = 65536
    max_body_bytes: Annotated[
        int,
        Meta(ge=64, le=16 << 20, description="Longest request body; JSON may escape a text to 6x."),
    ] = 512 * 1024
    default_timeout_s: Annotated[
        int, Meta(ge=1, description="Life of a message that names none.")
    ] = 60
    max_timeout_s: Annotated[int, Meta(ge=1, le=3650 * 86400, description="Longest life.")] = (
        30 * 86400
    )
    receipt_keep_s: Annotated[
        int,
        Meta(ge=60, le=30 * 86400, description="A message's fate can be asked for so long."),
    ] = 86400
    purge_grace_s: Annotated[
        int,
        Meta(ge=200, le=86400, description="Kept on disk so long after expiry, for lost replies."),
    ] = 300

    # The engine
    shards: Annotated[int, Meta(ge=1, le=64, description="Shard workers in the process.")] = 2
    queue_max: Annotated[int, Meta(ge=1, description="Requests that wait in one shard.")] = 2000
    queue_max_bytes: Annotated[
        int, Meta(ge=1024, description="Bytes of text that wait in one shard.")
    ] = 16 << 20
    inbox_queue_max: Annotated[
        int,
        Meta(
            ge=1,
            description="Requests for one inbox that wait in its shard; "
            "no less than max_batch_messages.",
        ),
    ] = 1000
    batch_max: Annotated[int, Meta(ge=1, le=5000, description="Requests in one batch.")] = 500
    batch_max_bytes: Annotated[
        int, Meta(ge=1024, le=32 << 20, description="Bytes of text in one batch.")
    ] = 4 << 20
    slice_max: Annotated[
        int, Meta(ge=1, le=5000, description="Messages claimed at once by a long read.")
    ] = 1000
    deadline_s: Annotated[
        float, Meta(gt=0, le=60, description="Every request is answered within this.")
    ] = 5.0

    # Waiting, leases and batches
    max_wait_s: Annotated[
        float, Meta(ge=0, le=55, description="Longest wait for a first message.")
    ] = 25.0
    waiters_max: Annotated[
        int, Meta(ge=0, description="Requests and streams that wait for a message.")
    ] = 20000
    max_lease_s: Annotated[float, Meta(ge=1, le=86400, description="Longest lease.")] = 3600.0
    max_batch_messages: Annotated[
        int, Meta(ge=1, le=1000, description="Messages in one POST /chat/batch.")
    ] = 500
    max_batch_bytes: Annotated[
        int, Meta(ge=64, le=16 << 20, description="Longest body of POST /chat/batch.")
    ] = 4 << 20

    # Connections
    max_header_bytes: Annotated[
        int, Meta(ge=1024, le=65536, description="Longest request head.")
    ] = 8192
    idle_timeout_s: Annotated[
        float, Meta(gt=0, description="An idle connection is closed after this.")
    ] = 65.0
    body_timeout_s: Annotated[
        float, Meta(gt=0, description="A body must have arrived within this.")
    ] = 10.0
    bodies_max_bytes: Annotated[
        int,
        Meta(
            ge=1 << 20,
            description="Memory for the bodies of all requests of a process; above it, 503.",
        ),
    ] = 64 << 20
    write_timeout_s: Annotated[
        float, Meta(gt=0, description="A reader that takes nothing is cut off after this.")
    ] = 30.0

    # Stopping
    drain_delay_s: Annotated[
        float, Meta(ge=0, le=60, description="Not ready, but still accepting, for balancers.")
    ] = 0.0
    drain_timeout_s: Annotated[
        float, Meta(gt=0, le=300, description="Longest time to finish what was accepted.")
    ] = 8.0

    # Telemetry
    telemetry: Annotated[
        Literal["off", "otlp"],
        Meta(description="otlp: OpenTelemetry's traces and metrics, set up by `OTEL_*` variables."),
    ] = "off"

    # Logs
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least level logged.")
    ] = "info"
    log_format: Annotated[
        Literal["auto", "json", "text"], Meta(description="auto: text on a terminal, else JSON.")
    ] = "auto"
    log_requests_per_s: Annotated[
        int, Meta(ge=0, description="Request lines per second; more are counted, not written.")
    ] = 20
    log_usernames: Annotated[
        Literal["off", "hashed", "clear"], Meta(description="How request lines name an inbox.")
    ] = "hashed"
    log_clients: Annotated[
        Literal["off", "hashed", "clear"],
        Meta(description="How request lines name the address that a request came from."),
    ] = "hashed"
    log_username_key: Annotated[
        str,
        Meta(description="Key of these hashes, shared by processes; empty: random."),
    ] = ""
