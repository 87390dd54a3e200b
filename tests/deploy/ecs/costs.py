"""What the sizes of docs/deployment.md cost, from its own prices and the model of capacity.

`python -m tests.deploy.ecs.costs` prints the rows of the document's table.
"""

import re
from typing import NamedTuple

from chat_service.capacity.model import Demand, plan
from tests.deploy.ecs.template import ROOT

DOCUMENT = ROOT / "docs" / "deployment.md"
HOURS = 730
#: Bytes of an access log line, with what CloudWatch adds.
_LINE = 250
#: Access log lines per second of a task, the default of `log_requests_per_s`.
_LINES_PER_S = 20


class Size(NamedTuple):
    """A size: its load, its tasks, its database, and whether that is reached through NAT."""

    requests: int
    tasks: int
    database: str
    has_nat: bool


SIZES = (
    Size(100, 3, "Atlas M10", True),
    Size(500, 3, "Atlas M30, 200 GB", True),
    Size(10000, 12, "Atlas M50", False),
)


def prices(text: str) -> dict[str, float]:
    """Return the prices of the document, by their names."""
    table = text.partition("<!-- prices: begin -->")[2].partition("<!-- prices: end -->")[0]
    rows = re.findall(r"^\| ([^|]+?) \| [^|]+ \| ([\d.]+) \| [^|]+ \|$", table, re.MULTILINE)
    return {name: float(price) for name, price in rows}


def quantities(size: Size) -> list[tuple[str, str, float]]:
    """Return what a size needs in a month: the name of each row, its price, and how many units."""
    demand = Demand(requests=size.requests, lifetime_s=3600, size=300, nodes=size.tasks)
    gigabytes = plan(demand).client_network * HOURS * 3600 / 1e9
    lines = min(_LINES_PER_S, size.requests / size.tasks) * size.tasks
    return [
        ("tasks' processors", "processor, x86-64", size.tasks * HOURS),
        ("tasks' memory", "memory, x86-64", size.tasks * 2 * HOURS),
        ("balancer", "balancer", HOURS),
        # A unit carries one gigabyte an hour.
        ("its units", "balancer's units", gigabytes),
        ("NAT gateways, 3", "NAT gateway", 3 * HOURS),
        ("traffic to the database through NAT", "traffic through NAT", gigabytes * size.has_nat),
        # Two tasks of three are in another zone than the primary.
        (
            "traffic to the database",
            "traffic between zones",
            gigabytes * (not size.has_nat) * 2 / 3,
        ),
        ("public addresses, 6", "public address", 6 * HOURS),
        ("traffic to the internet", "traffic to the internet", gigabytes / 2),
        ("logs", "logs", lines * _LINE * HOURS * 3600 / 1e9),
        ("alerts", "alert", 7),
        ("secrets", "secret", 3),
        *(
            (f"database, {each.database}", each.database, HOURS * (each.database == size.database))
            for each in SIZES
        ),
    ]


def rows(priced: dict[str, float]) -> list[str]:
    """Return the rows of the table of costs, and its sum."""
    columns = [quantities(size) for size in SIZES]
    sums, lines = [0.0] * len(SIZES), []
    for row in zip(*columns, strict=True):
        name, item, _ = row[0]
        cells = []
        for index, (_, _, quantity) in enumerate(row):
            cost = quantity * priced[item]
            sums[index] += cost
            cells += [f"{quantity:,.0f}", f"{cost:,.0f}"] if quantity else ["", ""]
        lines.append(f"| {name} | {priced[item]:g} | {' | '.join(cells)} |")
    total = " | ".join(f" | **{each:,.0f}**" for each in sums)
    per_million = [
        each / (size.requests * HOURS * 3600 / 1e6) for each, size in zip(sums, SIZES, strict=True)
    ]
    each_million = " | ".join(f" | {each:.2f}" for each in per_million)
    return [*lines, f"| **sum** | | {total} |", f"| for a million requests | | {each_million} |"]


if __name__ == "__main__":
    print("\n".join(rows(prices(DOCUMENT.read_text(encoding="utf-8")))))  # noqa: T201
