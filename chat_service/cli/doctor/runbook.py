"""Which entry of the runbook is about a finding of `chat doctor`."""

from collections.abc import Mapping

from workers.store.finding import Finding

#: The document for a service whose own page cannot be named.
DOCUMENT = "docs/operations.md"
#: The anchors of the entries, by the checks. Checks that explain all that is to be done have none.
_ENTRIES: Mapping[str, str] = {
    "settings": "service-does-not-start",
    "python": "service-does-not-start",
    "packages": "service-does-not-start",
    "telemetry": "service-does-not-start",
    "port": "service-does-not-start",
    "data": "service-does-not-start",
    "mongod": "mongod-does-not-start",
    "disk": "disk-fills",
    "other files": "disk-fills",
    "its storage": "disk-fills",
    "database": "database-unavailable",
    "its database": "database-unavailable",
    "majority": "database-unavailable",
    "members": "database-unavailable",
    "indexes": "indexes-missing",
    "leader": "leader-missing",
    "clock": "clocks-differ",
    "its clock": "clocks-differ",
    "access": "clients-get-401-or-403",
    "tokens": "clients-get-401-or-403",
    "token keys": "clients-get-401-or-403",
    "limits": "clients-get-429",
    "tls": "certificate-expires",
    "alive": "node-does-not-answer",
    "ready": "clients-get-503",
    "restarts": "process-restarts",
    "loop lag": "node-is-slow",
}


def entry_of(finding: Finding) -> str:
    """Return the anchor of the entry about a finding, or nothing if all is well or none is."""
    return "" if finding.state == "ok" else finding.entry or _ENTRIES.get(finding.what, "")
