"""The pause before a restart doubles up to its limit, and starts over after a long life."""

from workers.backoff import Backoff


async def test_the_pause_doubles_up_to_its_limit() -> None:
    backoff = Backoff(0.001, 0.003)
    pauses = []
    for _ in range(4):
        pauses.append(backoff.pause_s)
        await backoff.wait()
    assert pauses == [0.001, 0.002, 0.003, 0.003]


async def test_only_a_long_life_resets_the_pause() -> None:
    backoff = Backoff(0.001, 0.004)
    await backoff.wait()
    backoff.observe_lifetime(0.004)
    assert backoff.pause_s == 0.002
    backoff.observe_lifetime(0.005)
    assert backoff.pause_s == 0.001
