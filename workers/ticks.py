"""The common times at which periodic work of a process runs.

Waking an idle process costs more than most of what it then does. So work that is not urgent runs at
multiples of its period on the event loop's clock, where one wake-up serves several jobs.
"""

import asyncio

#: Timers have whole milliseconds, so a timer for the next multiple may end as much before it.
_EARLY_S = 0.002


def until_next(period_s: float) -> float:
    """Return the seconds until the next multiple of a period.

    One that is due within two milliseconds counts as reached, so that it is not used twice.
    """
    left_s = period_s - asyncio.get_running_loop().time() % period_s
    return left_s if left_s > _EARLY_S else left_s + period_s
