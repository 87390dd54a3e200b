"""Samples of the profilers count for the steps that they were taken in."""

import pytest

from tests.bench.budget import mongod_step, service_step
from tests.bench.profilers import perf_stacks, py_spy_stacks

_PERF = """python 7/7
\tffffffff82202b1c tcp_sendmsg
\tffffffff81e314b0 __x64_sys_sendto
\tffffffff821ef691 do_syscall_64
\tffffffff81000130 entry_SYSCALL_64_after_hwframe
\t          10aba4 __send

conn12 9/31
\t    55d0c0 __wt_search_insert
\t    55d0c1 mongo::IndexCatalogImpl::indexRecords(mongo::OperationContext*)
\t    55d0c2 mongo::(anonymous namespace)::CmdInsert::Invocation::typedRun
\t    55d0c3 mongo::transport::ServiceStateMachine::Impl::processMessage

JournalFlusher 9/40
\t    55d0c5 mongo::WiredTigerSessionCache::waitUntilDurable
"""
_LOOP = (
    "thread (7): MainThread;main (chat_service/cli/main.py:153);Runner.run (asyncio/runners.py:118)"
)


def test_samples_of_perf_have_threads_and_frames() -> None:
    sent, inserted, flushed = perf_stacks(_PERF)
    assert (sent.pid, sent.tid, sent.is_in_kernel) == (7, 7, True)
    assert (inserted.thread, inserted.frames[0]) == ("conn12", "__wt_search_insert")
    assert (flushed.tid, flushed.is_in_kernel) == (40, False)


def test_samples_of_mongod_count_for_command_and_part() -> None:
    assert [mongod_step(stack) for stack in perf_stacks(_PERF)][1:] == [
        "insert: indexes",
        "journal: flush",
    ]


@pytest.mark.parametrize(
    ("frames", "step"),
    [
        ("", "event loop"),
        (";gc_collect_main (libpython3.11.so.1.0)", "garbage collection"),
        (";match_request (chat_service/server/request_match.py:65);memchr (x.c:1)", "parse, route"),
        (";Shard._post (workers/shard.py:1);insert_many (pymongo/collection.py:9)", "PyMongo"),
        (";encode (bson/__init__.py:1082);write_dict (bson/_cbsonmodule.c:1983)", "BSON: encode"),
        (";FastRequest.respond (chat_service/server/fast_request.py:1)", "answer"),
        (";_run (workers/shard.py:1);wait (asyncio/tasks.py:2)", "batch: plan, share, resolve"),
    ],
)
def test_samples_of_the_service_count_for_steps(frames: str, step: str) -> None:
    (stack,) = py_spy_stacks(f"{_LOOP}{frames} 1\nthread (8): outlet-1;f (x.py:1) 3")
    assert service_step(stack) == step
