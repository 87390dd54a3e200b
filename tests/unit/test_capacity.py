"""The capacity model: its shape, what it knows of the service, and the document that shows it."""

from dataclasses import asdict, replace

import pytest

from chat_service.capacity import coefficients, model, report
from chat_service.capacity.model import Demand, limits, plan
from config.settings import Settings
from tests.bench import capacity_document
from workers import batch_pacing
from workers.store.driver import close_client, open_client

DEMAND = Demand(10_000, lifetime_s=3600, size=300)


def test_the_model_knows_the_services_settings() -> None:
    defaults = Settings()
    assert defaults.batch_interval_s == model.BATCH_INTERVAL_S
    assert defaults.batch_max == model.BATCH_MAX
    assert defaults.purge_grace_s == model.GRACE_S
    assert batch_pacing.ENOUGH == model.BATCH_ENOUGH
    assert batch_pacing.FULL_RATE == coefficients.AWAKE_RATE


async def test_the_model_knows_the_size_of_the_drivers_pool() -> None:
    client = open_client("pymongo", "mongodb://127.0.0.1:1")
    assert client.options.pool_options.max_pool_size == coefficients.POOL
    await close_client(client)


def test_the_document_shows_what_the_model_says() -> None:
    text = capacity_document.DOCUMENT.read_text(encoding="utf-8")
    assert capacity_document.with_table(text) == text, "refresh it with: scripts/capacity-table"
    assert capacity_document.CHART.read_text(encoding="utf-8") == capacity_document.chart()


def test_few_full_nodes_cost_the_database_less_than_many() -> None:
    few, many = (plan(replace(DEMAND, nodes=nodes)) for nodes in (2, 40))
    assert many.commands > 3 * few.commands
    assert many.primary_cores > 2 * few.primary_cores


def test_a_distant_primary_makes_batches_larger_not_dearer() -> None:
    near, far = (plan(replace(DEMAND, latency_s=each, nodes=4)) for each in (0.0, 0.05))
    assert far.batches.posts > near.batches.posts
    assert far.primary_cores < near.primary_cores


def test_no_node_of_the_fewest_is_too_busy() -> None:
    for requests in (1, 300, 5_000, 90_000):
        planned = plan(replace(DEMAND, requests=requests))
        assert planned.node_cores <= coefficients.NODE_FULL
        assert planned.batches.lane_share < 1
        if planned.nodes > 2:
            fewer = plan(replace(DEMAND, requests=requests, nodes=planned.nodes - 1))
            assert fewer.node_cores > coefficients.NODE_FULL or fewer.batches.lane_share >= 1


def test_a_limit_is_full_at_the_load_that_it_names() -> None:
    for limit in limits(DEMAND):
        at_limit = limits(replace(DEMAND, requests=limit.full_at))
        assert next(it for it in at_limit if it.name == limit.name).used == pytest.approx(1, 0.01)


def test_nothing_limits_a_load_that_does_not_use_it() -> None:
    assert [it.name for it in limits(replace(DEMAND, posts=0.0))] == ["the primary's cores"]


def test_nodes_are_a_limit_only_if_their_number_is_given() -> None:
    full = limits(replace(DEMAND, nodes=2))
    assert full[0].name == model.NODES
    at_limit = plan(replace(DEMAND, nodes=2, requests=full[0].full_at))
    assert at_limit.node_cores == pytest.approx(coefficients.NODE_FULL, 0.01)
    assert model.NODES not in [it.name for it in limits(DEMAND)]


def test_the_limit_that_is_full_first_comes_first() -> None:
    few, many = (limits(replace(DEMAND, primary_cores=cores)) for cores in (2, 64))
    assert few[0].name == "the primary's cores"
    assert many[0].name == "the TTL thread"


def test_unread_messages_are_those_of_their_lifetime() -> None:
    never = plan(replace(DEMAND, read=0.0))
    at_once = plan(replace(DEMAND, read=1.0, read_after_s=1))
    assert never.unread == 5_000 * 3600
    assert never.stored == never.unread + 5_000 * 300
    assert at_once.unread == 5_000
    assert at_once.stored == 5_000 + 5_000 * 150


def test_waiting_clients_cost_the_primary_for_each_node() -> None:
    waits = replace(DEMAND, is_waiting=True)
    more = [plan(replace(waits, nodes=n)).primary_cores for n in (4, 8)]
    less = [plan(replace(DEMAND, nodes=n)).primary_cores for n in (4, 8)]
    assert more[1] - less[1] == pytest.approx(2 * (more[0] - less[0]))


def test_json_has_every_figure_of_the_plan() -> None:
    planned, full = plan(DEMAND), limits(DEMAND)
    fields = report.fields(planned, full)
    assert set(fields) == set(asdict(planned)) | {"limits"}
    assert fields["limits"][0]["full_at"] == pytest.approx(full[0].full_at, rel=1e-3)


@pytest.mark.parametrize(
    ("count", "text"), [(0.5, "0.5 B"), (999, "999 B"), (1234, "1.23 kB"), (2.5e15, "2,500 TB")]
)
def test_sizes_are_short(count: float, text: str) -> None:
    assert report.size(count) == text
