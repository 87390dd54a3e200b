"""The memory of request bodies: who has to give up theirs, and in which order."""

import asyncio

from chat_service.server.body_budget import BodyBudget


class Upload:
    """A body on its way."""

    def __init__(self, client: str, age_s: float = 1.0) -> None:
        self.body_client = client
        self.body_began = asyncio.get_running_loop().time() - age_s
        self.is_given_up = False

    def give_up_body(self) -> None:
        """Remember it."""
        self.is_given_up = True


async def test_the_client_with_the_most_bytes_gives_up_first() -> None:
    budget = BodyBudget(1600)
    # One client has many small bodies, the other one large and old one.
    many = [Upload("eve") for _ in range(10)]
    for each in many:
        budget.grow(each, 90)
    single = Upload("bob", age_s=9.0)
    budget.grow(single, 600)
    late = Upload("carol")
    budget.grow(late, 101)
    assert [each.is_given_up for each in (single, late)] == [False, False]
    # As many as it takes until a sixteenth is free.
    assert sum(each.is_given_up for each in many) == 2
    assert budget.total == 1600 + 1 - 180


async def test_a_client_that_is_alone_may_use_all_of_it() -> None:
    budget = BodyBudget(1600)
    bodies = [Upload("eve") for _ in range(16)]
    for each in bodies:
        budget.grow(each, 100)
    assert not any(each.is_given_up for each in bodies)


async def test_the_longest_and_largest_of_a_client_goes_first() -> None:
    budget = BodyBudget(1600)
    short, long = Upload("eve", age_s=1.0), Upload("eve", age_s=5.0)
    budget.grow(short, 700)
    budget.grow(long, 700)
    budget.grow(Upload("bob"), 300)
    assert long.is_given_up
    assert not short.is_given_up
