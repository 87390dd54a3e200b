"""The part of the chart's values.schema.json that describes `settings`, from `config.settings`.

`python -m tests.deploy.helm.settings_schema` writes it into the file.
"""

import json
from typing import Any, get_args, get_origin

import msgspec

from config.load import plain_type
from config.settings import PROJECT_ROOT, Settings

SCHEMA = PROJECT_ROOT / "deploy/helm/chat-inbox/values.schema.json"
#: The chart sets these itself, from other values. It starts no database of its own.
OF_THE_CHART = {
    *("host", "port", "ops", "ops_port", "ops_host", "telemetry", "log_username_key"),
    *("mongo_uri", "mongod", "data_dir", "access", "access_file", "tls_certificate", "tls_key"),
}
_KINDS = {int: "integer", float: "number", str: "string"}


def described() -> dict[str, Any]:
    """Return the schema of `settings`. It rejects names that are no settings, or the chart's."""
    properties = {
        field.name: _described(field)
        for field in msgspec.structs.fields(Settings)
        if field.name not in OF_THE_CHART
    }
    # One for each core would count the cores of the node, not those of the pod.
    properties["processes"]["minimum"] = 1
    # A Service goes on sending to a pod for some seconds after its end has begun.
    properties["drain_delay_s"]["minimum"] = 5
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _described(field: msgspec.structs.FieldInfo) -> dict[str, Any]:
    kind, meta = plain_type(field.name), field.type.__metadata__[0]
    made: dict[str, Any] = {"description": meta.description}
    if get_origin(kind) is tuple:
        return made | {"type": "array", "items": {"type": "string"}}
    if choices := get_args(kind):
        return made | {"enum": list(choices)}
    bounds = {
        "minimum": meta.ge,
        "exclusiveMinimum": meta.gt,
        "maximum": meta.le,
        "pattern": meta.pattern,
    }
    made["type"] = _KINDS[kind]
    return made | {key: value for key, value in bounds.items() if value is not None}


def written(document: dict[str, Any]) -> str:
    """Return the text of the file."""
    return json.dumps(document, indent=2) + "\n"


if __name__ == "__main__":
    whole = json.loads(SCHEMA.read_text(encoding="utf-8"))
    whole["properties"]["settings"] = described()
    SCHEMA.write_text(written(whole), encoding="utf-8")
