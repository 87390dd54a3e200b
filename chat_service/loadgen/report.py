"""Formats the results of a load test as text: a histogram, columns per second, and progress."""

from collections.abc import Iterator, Sequence

from chat_service.loadgen.stats import LoadStats, Second

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_COLUMNS = "▁▂▃▄▅▆▇█"
_BAR_CELLS, _COLUMNS_MAX = 40, 60
#: Upper bounds of the histogram's rows, in ms: ..., 1, 2, 5, 10, ...
_BOUNDS_MS = [part * 10.0**power for power in range(-2, 6) for part in (1, 2, 5)]


def progress(second: Second, number: int, errors: int) -> str:
    """Return the progress line for one second."""
    latencies = second.latencies
    return (
        f"{number:4d} s  {latencies.count:7,d} requests/s  p50 {latencies.rank_ms(0.5):7.2f} ms  "
        f"p99 {latencies.rank_ms(0.99):7.2f} ms  errors {errors}"
    )


def report(stats: LoadStats, seconds: float) -> Iterator[str]:
    """Yield the lines of the report."""
    latencies = stats.all
    rate = latencies.count / seconds
    yield f"{latencies.count:,d} requests in {seconds:.1f} s: {rate:,.0f} per second"
    ranks = ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (0.999, "p99.9"))
    parts = [f"{name} {latencies.rank_ms(share):.2f} ms" for share, name in ranks]
    yield "  ".join([*parts, f"longest {latencies.worst_s * 1000:.2f} ms"])
    yield ""
    yield "latency"
    yield from _histogram(stats)
    whole = stats.seconds[: int(seconds)]
    if len(whole) > 1:
        yield ""
        yield _columns("requests/s", [each.latencies.count for each in whole])
        yield _columns("p99 in ms", [each.latencies.rank_ms(0.99) for each in whole])
        if any(each.errors for each in whole):
            yield _columns("errors/s", [each.errors for each in whole])
    yield ""
    yield from _account(stats)


def _histogram(stats: LoadStats) -> Iterator[str]:
    counts = [
        (low, high, stats.all.between(low, high))
        for low, high in zip([0.0, *_BOUNDS_MS], _BOUNDS_MS, strict=False)
    ]
    filled = [number for number, (_, _, count) in enumerate(counts) if count]
    if not filled:
        return
    counts = counts[filled[0] : filled[-1] + 1]
    most = max(count for _, _, count in counts)
    for low, high, count in counts:
        share = count / stats.all.count
        yield f"{low:>7g} to {high:<6g} ms  {_bar(count / most):<{_BAR_CELLS}}  {share:6.2%}"


def _bar(share: float) -> str:
    eighths = round(share * _BAR_CELLS * 8)
    # A bar that is not empty is visible.
    eighths = max(eighths, 1) if share else 0
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _columns(title: str, values: Sequence[float]) -> str:
    """Return a column per second, or per group of seconds if there are too many."""
    each = -(-len(values) // _COLUMNS_MAX)
    groups = [values[at : at + each] for at in range(0, len(values), each)]
    means = [sum(group) / len(group) for group in groups]
    most = max(means) or 1
    columns = "".join(_COLUMNS[min(int(mean / most * 8), 7)] for mean in means)
    return f"{title:>10}  {columns}  {min(means):,.4g} to {max(means):,.4g}"


def _account(stats: LoadStats) -> Iterator[str]:
    rest = ""
    if stats.missing > 0:
        rest = f" + missing {stats.missing:,d}"
    elif stats.missing < 0:
        rest = f" - {-stats.missing:,d} whose confirmation was lost"
    yield (
        f"accepted {stats.accepted:,d} = read {stats.read:,d} + read at the end "
        f"{stats.swept:,d}{rest}"
    )
    for status, count in sorted(stats.errors.items()):
        yield (
            f"errors with status {status}: {count:,d}"
            if status
            else f"lost connections: {count:,d}"
        )
    if stats.errors[0] or stats.errors[503]:
        yield "requests that failed may have stored or consumed messages all the same"
