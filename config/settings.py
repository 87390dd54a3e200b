"""All settings of the service, with their types, defaults, bounds and meanings.

`config.load` creates the `Settings`, and `config.table` generates docs/settings.md from this file.
Only `chat_service.cli`, `chat_service.service`, `chat_service.supervisor` and
`chat_service.wiring` receive a `Settings`; everything else takes plain arguments.
"""

import os
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

PROJECT_ROOT = Path(__file__).resolve().parent.parent
#: `data` in a checkout. An installed service uses a directory of the user (XDG Base Directory),
#: which survives the removal of the virtual environment.
_XDG = os.environ.get("XDG_STATE_HOME", "")
DATA_DIR = (
    PROJECT_ROOT / "data"
    if (PROJECT_ROOT / "pyproject.toml").is_file()
    else Path(_XDG if os.path.isabs(_XDG) else os.path.expanduser("~/.local/state"), "chat-inbox")
)

#: The default of `storage_free_min_bytes`; on a small disk, at most a fifth of the disk.
STORAGE_FREE_MIN_BYTES = 512 << 20

#: Settings that may contain a password. `--print-config` masks them, and `*_FILE` variables work.
SECRETS = frozenset({"mongo_uri", "log_username_key"})


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of a service. Times are in seconds and sizes in bytes, unless stated."""

    # Listening
    host: Annotated[str, Meta(min_length=1, description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port to listen on. 0: a free one.")] = (
        8080
    )
    processes: Annotated[
        int, Meta(ge=0, le=64, description="Number of processes. 0: one per core.")
    ] = 1
    allowed_hosts: Annotated[
        tuple[str, ...],
        Meta(
            description="Accepted `Host` names, without port. Empty: all or, on a loopback "
            "address, IP addresses and localhost."
        ),
    ] = ()

    allowed_origins: Annotated[
        tuple[str, ...],
        Meta(description="Other origins whose pages may open a stream."),
    ] = ()

    # Operations
    ops: Annotated[
        Literal["auto", "on", "off"],
        Meta(
            description="Whether `/ops` and `/metrics` are also served on `port`. "
            "auto: only if `host` is a loopback address."
        ),
    ] = "auto"
    ops_port: Annotated[
        int,
        Meta(
            ge=0,
            le=65535,
            description="Separate port for `/ops`, `/metrics` and health checks. 0: none.",
        ),
    ] = 0
    ops_host: Annotated[
        str, Meta(min_length=1, description="Address to listen on for `ops_port`.")
    ] = "127.0.0.1"

    # The database
    mongo_uri: Annotated[
        str,
        Meta(description="MongoDB connection string. Empty: start an embedded MongoDB."),
    ] = ""
    mongo_database: Annotated[
        str, Meta(pattern=r"^[A-Za-z0-9_-]{1,38}$", description="Database name.")
    ] = "chat"
    mongo_driver: Annotated[
        Literal["pymongo", "motor"],
        Meta(description="Driver: PyMongo's asynchronous client, or Motor."),
    ] = "pymongo"
    mongo_timeout_s: Annotated[
        float, Meta(gt=0, le=60, description="Timeout of one database operation.")
    ] = 4.0
    mongo_wait_s: Annotated[
        float,
        Meta(ge=0, description="Time to wait for the database, and for `jwt_keys`, at startup."),
    ] = 10.0
    mongod: Annotated[
        str,
        Meta(description="Path of the embedded mongod. Empty: from PATH, else the bundled one."),
    ] = ""
    data_dir: Annotated[
        Path,
        Meta(
            description="Data directory of the embedded MongoDB; "
            "`~/.local/state/chat-inbox` if not run from a checkout."
        ),
    ] = DATA_DIR

    storage_free_min_bytes: Annotated[
        int,
        Meta(
            ge=0,
            description="Refuse posts if less space is free on the database's disk. 0: never. "
            "On a disk smaller than 2.5 GiB, the default is a fifth of it.",
        ),
    ] = STORAGE_FREE_MIN_BYTES

    storage_max_bytes: Annotated[
        int,
        Meta(ge=0, description="Refuse posts if the database uses more space. 0: no limit."),
    ] = 0

    # Access
    access: Annotated[
        Literal["off", "tokens", "jwt", "both"],
        Meta(description="Who may use the service: everyone, or the holders of tokens."),
    ] = "off"
    access_file: Annotated[
        str, Meta(description="TOML file with tokens and rights; required for `tokens` and `both`.")
    ] = ""
    jwt_issuer: Annotated[str, Meta(description="Required `iss` of a JSON Web Token.")] = ""
    jwt_audience: Annotated[str, Meta(description="Required `aud` of a JSON Web Token.")] = ""
    jwt_keys: Annotated[
        str,
        Meta(
            description="JSON Web Key Set that tokens are checked with: a file, or an https URL. "
            "Empty: the one that OpenID Connect Discovery finds through `jwt_issuer`."
        ),
    ] = ""
    trusted_proxies: Annotated[
        tuple[str, ...],
        Meta(
            description="Networks of proxies whose `X-Forwarded-For` or `Forwarded` is believed, "
            "such as `10.0.0.0/8`."
        ),
    ] = ()
    public_url: Annotated[
        str, Meta(description="URL at which clients reach the service, if a proxy changes it.")
    ] = ""
    tls_certificate: Annotated[
        str, Meta(description="PEM file of the certificate and its chain. Empty: no TLS.")
    ] = ""
    tls_key: Annotated[str, Meta(description="PEM file of the certificate's private key.")] = ""

    # Limits for each client and inbox
    client_requests_per_s: Annotated[
        float,
        Meta(
            ge=0, description="Requests per second of one client at a node, roughly. 0: no limit."
        ),
    ] = 0.0
    client_burst: Annotated[
        int, Meta(ge=0, description="Requests of one client at once. 0: ten seconds' worth.")
    ] = 0
    client_bytes_per_s: Annotated[
        int,
        Meta(
            ge=0,
            description="Bytes of request bodies per second of one client, roughly. 0: no limit.",
        ),
    ] = 0
    client_connections_max: Annotated[
        int,
        Meta(
            ge=0,
            description="Connections of one address in a process, unless it is a trusted proxy's. "
            "0: no limit.",
        ),
    ] = 0
    client_waiters_max: Annotated[
        int,
        Meta(ge=0, description="Long polls and streams of one client in a process. 0: no limit."),
    ] = 0
    inbox_messages_max: Annotated[
        int, Meta(ge=0, description="Unread messages of one inbox, roughly. 0: no limit.")
    ] = 0
    inbox_bytes_max: Annotated[
        int, Meta(ge=0, description="Bytes of unread texts of one inbox, roughly. 0: no limit.")
    ] = 0

    # Messages
    max_username_chars: Annotated[
        int, Meta(ge=1, le=512, description="Longest username, in code points.")
    ] = 128
    max_text_bytes: Annotated[
        int, Meta(ge=1, le=1 << 20, description="Longest text, in bytes of UTF-8.")
    ] = 65536
    max_body_bytes: Annotated[
        int,
        Meta(
            ge=64,
            le=16 << 20,
            description="Longest request body. JSON escapes can make a text 6 times longer.",
        ),
    ] = 512 * 1024
    default_timeout_s: Annotated[
        int, Meta(ge=1, description="Lifetime of a message without a timeout.")
    ] = 60
    max_timeout_s: Annotated[
        int, Meta(ge=1, le=3650 * 86400, description="Longest lifetime of a message.")
    ] = 30 * 86400
    receipt_keep_s: Annotated[
        int,
        Meta(
            ge=60,
            le=30 * 86400,
            description="How long a message's status is kept after the message ended.",
        ),
    ] = 86400
    purge_grace_s: Annotated[
        int,
        Meta(
            ge=200,
            le=86400,
            description="How long messages stay on disk after expiry, to resolve lost replies.",
        ),
    ] = 300

    # The engine
    shards: Annotated[int, Meta(ge=1, le=64, description="Number of shards per process.")] = 1
    queue_max: Annotated[
        int, Meta(ge=1, description="Longest queue of one shard, in requests.")
    ] = 4000
    queue_max_bytes: Annotated[
        int, Meta(ge=1024, description="Longest queue of one shard, in bytes of text.")
    ] = 16 << 20
    inbox_queue_max: Annotated[
        int,
        Meta(
            ge=1,
            description="Queued requests for one inbox. Set it to at least `max_batch_messages`.",
        ),
    ] = 1000
    batch_interval_s: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Longest time between the starts of two batches of posts, or of reads. It "
            "applies under load only. 0: no such interval.",
        ),
    ] = 0.02
    batch_max: Annotated[int, Meta(ge=1, le=5000, description="Requests in one batch.")] = 500
    batch_max_bytes: Annotated[
        int, Meta(ge=1024, le=32 << 20, description="Bytes of text in one batch.")
    ] = 4 << 20
    slice_max: Annotated[
        int, Meta(ge=1, le=5000, description="Messages that a long read claims at once.")
    ] = 1000
    deadline_s: Annotated[
        float, Meta(gt=0, le=60, description="Time within which every request is answered.")
    ] = 5.0

    # Long polls, leases and batches
    max_wait_s: Annotated[float, Meta(ge=0, le=55, description="Longest wait of a long poll.")] = (
        25.0
    )
    waiters_max: Annotated[
        int, Meta(ge=0, description="Long polls and streams that may wait at the same time.")
    ] = 20000
    max_lease_s: Annotated[float, Meta(ge=1, le=86400, description="Longest lease.")] = 3600.0
    max_deliveries: Annotated[
        int,
        Meta(
            ge=0,
            le=1_000_000,
            description="Deliveries of a leased message without an acknowledgement after which it "
            "moves to a dead-letter inbox. 0: never. Workers must pause after a failure, or a "
            "short outage of what all jobs need uses up the deliveries of all.",
        ),
    ] = 0
    dead_letter_inbox: Annotated[
        str,
        Meta(
            description="Name of the dead-letter inbox of an inbox; it must contain `{username}`."
        ),
    ] = "dead/{username}"
    max_batch_messages: Annotated[
        int, Meta(ge=1, le=1000, description="Messages in one `POST /chat/batch`.")
    ] = 500
    max_batch_bytes: Annotated[
        int, Meta(ge=64, le=16 << 20, description="Longest body of `POST /chat/batch`.")
    ] = 4 << 20

    # Connections
    max_header_bytes: Annotated[
        int, Meta(ge=1024, le=65536, description="Longest request line and headers together.")
    ] = 8192
    idle_timeout_s: Annotated[
        float, Meta(gt=0, description="Time after which an idle connection is closed.")
    ] = 65.0
    body_timeout_s: Annotated[
        float, Meta(gt=0, description="Time within which a body must arrive.")
    ] = 10.0
    bodies_max_bytes: Annotated[
        int,
        Meta(
            ge=1 << 20,
            description="Memory for all request bodies of a process. Above it: 503.",
        ),
    ] = 64 << 20
    write_timeout_s: Annotated[
        float,
        Meta(gt=0, description="Time after which a client that does not read is disconnected."),
    ] = 30.0

    # Shutdown
    drain_delay_s: Annotated[
        float,
        Meta(
            ge=0,
            le=60,
            description="Time to report not ready while still accepting, for load balancers.",
        ),
    ] = 0.0
    drain_timeout_s: Annotated[
        float, Meta(gt=0, le=300, description="Longest time to finish accepted requests.")
    ] = 8.0

    # Telemetry
    telemetry: Annotated[
        Literal["off", "otlp"],
        Meta(
            description="otlp: send OpenTelemetry traces and metrics, configured by `OTEL_*` "
            "variables."
        ),
    ] = "off"

    # Logs
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Lowest level logged.")
    ] = "info"
    log_format: Annotated[
        Literal["auto", "json", "text"],
        Meta(description="auto: text on a terminal, otherwise JSON."),
    ] = "auto"
    log_requests_per_s: Annotated[
        int,
        Meta(ge=0, description="Access log lines per second. Further lines are only counted."),
    ] = 20
    log_usernames: Annotated[
        Literal["off", "hashed", "clear"],
        Meta(description="How access log lines show the username."),
    ] = "hashed"
    log_clients: Annotated[
        Literal["off", "hashed", "clear"],
        Meta(
            description="How access log lines show the client's address. "
            "off: they do not name its program either."
        ),
    ] = "hashed"
    log_username_key: Annotated[
        str,
        Meta(description="Key of these hashes. Empty: random; for usernames, in the database."),
    ] = ""

    @property
    def scheme(self) -> str:
        """The scheme of the service's own addresses."""
        return "https" if self.tls_certificate else "http"
