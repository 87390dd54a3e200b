"""Measures the service against a bare Tornado app and a naive one. Run by `scripts/bench`.

usage: python -m tests.bench [--only NAME] [--rounds 5] [--seconds 6] [--report FILE]
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

import msgspec

from tests.bench.measurements import MEASUREMENTS, Bench, Row
from tests.support.server import mongods_on
from workers.store.embedded import EmbeddedMongod

_HEADS = (
    "load",
    "service",
    "connections",
    "requests/s",
    "p50",
    "p99",
    "CPU",
    "mongod CPU",
    "errors",
)


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    lines = [f"| {' | '.join(_HEADS)} |", "|---|---|" + "---:|" * (len(_HEADS) - 2)]
    lines += [
        f"| {row.what} | {row.name} | {row.connections} | {row.rate:.0f} | {row.p50_ms:.1f} ms "
        f"| {row.p99_ms:.1f} ms | {row.server_us:.0f} µs | {row.database_us:.0f} µs "
        f"| {row.errors} |"
        for row in rows
    ]
    return "\n".join(lines)


async def measure(names: list[str], rounds: int, seconds: float) -> list[Row]:
    """Start a mongod and take the measurements of these names."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        data_dir = Path(folder) / "data"
        mongod = EmbeddedMongod(data_dir, "")
        uri = await mongod.start()
        try:
            bench = Bench(uri, mongods_on(data_dir)[0], rounds, seconds, _show)
            for name in names:
                rows += await MEASUREMENTS[name](bench)
        finally:
            await mongod.stop()
    return rows


def _show(what: str) -> None:
    sys.stderr.write(f"\r\x1b[K{what}" if sys.stderr.isatty() else f"{what}\n")
    sys.stderr.flush()


def main() -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser("scripts/bench")
    parser.add_argument("--only", action="append", choices=list(MEASUREMENTS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--report", type=Path, help="a file for all figures, as JSON")
    options = parser.parse_args()
    names = options.only or list(MEASUREMENTS)
    rows = asyncio.run(measure(names, options.rounds, options.seconds))
    if options.report:
        options.report.write_bytes(msgspec.json.format(msgspec.json.encode(rows)))
    print("\n" + table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
