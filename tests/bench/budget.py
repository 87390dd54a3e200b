"""Where the processor time of a request goes: steps of the service, and steps of its mongod.

Two profilers take samples while `tests.bench.contenders` measures the processor time: perf sees
system calls and mongod, py-spy sees Python's functions. The share of a step in the samples, times
the processor time per request, is the time of the step. Both profilers are optional.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from pymongo import AsyncMongoClient

from chat_service.loadgen.generator import Load
from tests.bench.contenders import Contender
from tests.bench.profilers import Stack, perf, py_spy
from tests.bench.results import Budget, Cost
from workers.store.driver import Document

CONNECTIONS = (16, 64, 256)
_WARM_UP_S = 2.0
#: Time in seconds that a load goes on after a profiler ends.
_SPARE_S = 1.0
_FUNCTIONS = 25

#: The steps that are system calls, by the beginning of the call's name. The fast path sends and
#: receives; the event loop reads and writes the sockets of the driver.
_CALLS = {
    "send": "system calls: send to clients",
    "recv": "system calls: receive from clients",
    "epoll": "system calls: epoll",
    "write": "system calls: MongoDB's socket",
    "read": "system calls: MongoDB's socket",
}
_OTHER_CALL = "system calls: others"
_CALL_NAME = re.compile(r"_*(?:x64_sys|ksys|do_sys|libc)?_*(send|recv|epoll|write|read)")
#: The steps of the service. The innermost frame with a match decides.
_SERVICE = (
    (r"^\w+\.account |_account(?:_all)? |/metrics/|/access_log", "metrics, log"),
    (r"prometheus_client/|/otlp/", "metrics, log"),
    (r"^\w+\.(?:next_request_id|request_opened|request_closed) ", "metrics, log"),
    (r"workers/metrics|structlog/|logging/|/api/log_lines", "metrics, log"),
    (r"response_writer|[._](?:on_outcome|respond|finish) |shared_answers", "answer"),
    (r"^_posted |^_count_claimed |^_read |/handlers/inbox.*_answer", "answer"),
    (r"request_match|header_cache|routing\.py|[._]begin |client_of ", "parse, route"),
    (r"_on_readable|_await_body|\.guarded ", "receive"),
    (r"/api/|/access/|/handlers/", "validate"),
    (r"workers/(?:pool|queue|fair_queue|work_item|ids|routing|inbox_quotas)", "queue, work item"),
    (r"workers/(?:waiters|batch_pacing|commands)", "queue, work item"),
    (r"^_?(?:decode|_bson_to|array_of|_raw)\w* \(bson|unpack_response", "BSON: decode"),
    (r" \(bson/|_document ", "BSON: encode"),
    (r" \((?:pymongo|motor)/", "PyMongo"),
    (r"workers/store/", "store: commands, results"),
    (r"workers/", "batch: plan, share, resolve"),
)
#: The innermost frame of samples in a system call, and of other short calls of the C library.
_IN_CALL = re.compile(r"\S+ \(libc\.so")
_IN_PYTHON = re.compile(r"\.py:\d+\)$")
_COLLECTOR = re.compile(r"gc_collect")
_LOOP, _COLLECTED = "event loop", "garbage collection"
_THREADS = "other threads (log)"

#: The steps of mongod: the command or thread, then its part. The innermost frame with a match
#: decides, separately for each.
_COMMANDS = (
    (r"CmdInsert", "insert"),
    (r"FindCmd|GetMoreCmd", "find"),
    (r"CmdUpdate|CmdFindAndModify", "update (claim)"),
    (r"CmdDelete|TTLMonitor|TTLCollection", "deletions"),
)
_PARTS = (
    (r"OpObserver|logOp|logInsertOps|insertDocumentsForOplog|OplogToBeVisible", "oplog"),
    (r"IndexCatalogImpl::|SortedDataIndexAccessMethod::(?:update|insert|remove)", "indexes"),
    (r"RecoveryUnit::_commit|WriteUnitOfWork::commit|_txnClose", "commit"),
    (r"RecordStore::\w*(?:insertRecords|updateRecord|deleteRecord|InsertRecords)", "documents"),
    (r"getExecutor|CanonicalQuery|QueryPlanner|ParsedUpdate|PrepareExecution", "plan"),
    (r"IndexScan::|FetchStage::|PlanStage::work|CollectionScan", "search"),
    (r"UpdateDriver|UpdateStage|applyUpdate|transformAndUpdate", "change of the document"),
)
_THREAD_STEPS = (
    (r"JournalFlusher", "journal: flush"),
    (r"OplogVi", "oplog: visibility"),
    (r"TTLMonitor", "deletions"),
    (r"^mongod$|checkpoint|WT|eviction", "storage: eviction, checkpoint, log"),
)
#: The steps of a connection outside of commands.
_OUTSIDE = (
    (r"waitForWriteConcern|waitForNoOplogHoles", "journal: wait"),
    (r"sourceMessage|sinkMessage|ASIOSession|BatonASIO", "network: receive, send"),
)


async def measure(
    contender: Contender, mongod: int, uri: str, connections: int, seconds: float
) -> tuple[Budget, Budget]:
    """Return the budgets of a service and of its mongod under half posts, half reads.

    Each profiler runs for `seconds`. Raises `CannotProfile`.
    """
    pid = contender.processes()[-1]
    load = Load(0, connections, _WARM_UP_S, prefix=f"budget-{connections}")
    await contender.load(load)
    load = msgspec.structs.replace(load, warm_up_s=0, seconds=seconds + _SPARE_S)
    async with AsyncMongoClient[Document](uri) as client:
        async with perf([pid, mongod], seconds) as native:
            before = await _commands(client)
            sample = await contender.load(load)
            commands = await _commands(client) - before
        async with py_spy(pid, seconds) as python:
            await contender.load(load)
    requests = sample.measured.requests
    batch = requests / (commands["insert"] + commands["find"])
    sizes = connections, batch, commands.total() / requests
    ours = [stack for stack in native if stack.pid == pid]
    theirs = [stack for stack in native if stack.pid == mongod]
    return (
        Budget("the service", *sizes, *_service(ours, python, sample.server_s * 1e6)),
        Budget("mongod", *sizes, *_mongod(theirs, sample.database_s * 1e6)),
    )


async def _commands(client: AsyncMongoClient[Document]) -> Counter[str]:
    counted = (await client.admin.command("serverStatus"))["metrics"]["commands"]
    return Counter({name: counted[name]["total"] for name in ("insert", "find", "update")})


def _call_of(stack: Stack) -> str | None:
    """Return the step of the system call that a sample is in, if it is in one."""
    if not stack.is_in_kernel:
        return None
    for frame in reversed(stack.frames):
        name = _CALL_NAME.match(frame)
        if name is not None:
            return _CALLS[name[1]]
    return _OTHER_CALL


def _service(
    native: Sequence[Stack], python: Sequence[Stack], us: float
) -> tuple[float, dict[str, float], list[Cost]]:
    """Return the time per request, that of its steps, and the costliest functions."""
    each = us / len(native)
    steps: defaultdict[str, float] = defaultdict(float)
    for stack in native:
        if stack.tid != stack.pid:
            steps[_THREADS] += each
        elif (call := _call_of(stack)) is not None:
            steps[call] += each
    user = [stack for stack in python if not _IN_CALL.match(stack.frames[0])]
    each = (us - sum(steps.values())) / len(user)
    for stack in user:
        steps[service_step(stack)] += each
    return us, dict(steps), _costliest(map(_python_only, user), each)


def service_step(stack: Stack) -> str:
    """Return the step of the service that a sample outside the kernel was taken in."""
    if any(map(_COLLECTOR.match, stack.frames[:4])):
        return _COLLECTED
    return _first(_python_only(stack), _SERVICE) or _LOOP


def _python_only(stack: Stack) -> list[str]:
    """Return the functions in Python. The time of others is that of their callers."""
    return [re.sub(r":\d+\)$", ")", frame) for frame in stack.frames if _IN_PYTHON.search(frame)]


def _mongod(stacks: Sequence[Stack], us: float) -> tuple[float, dict[str, float], list[Cost]]:
    each = us / len(stacks)
    steps: defaultdict[str, float] = defaultdict(float)
    for stack in stacks:
        steps[mongod_step(stack)] += each
    return us, dict(steps), _costliest((list(map(_plain, it.frames)) for it in stacks), each)


def mongod_step(stack: Stack) -> str:
    """Return the step of mongod that a sample was taken in."""
    if not stack.thread.startswith("conn"):
        return _first([stack.thread], _THREAD_STEPS) or "other threads"
    if (command := _first(stack.frames, _COMMANDS)) is not None:
        return f"{command}: {_first(stack.frames, _PARTS) or 'others'}"
    return _first(stack.frames, _OUTSIDE) or "parse and dispatch"


def _first(frames: Iterable[str], rules: Sequence[tuple[str, str]]) -> str | None:
    """Return the step of the innermost frame that has one."""
    for frame in frames:
        for pattern, step in rules:
            if re.search(pattern, frame):
                return step
    return None


def _plain(frame: str) -> str:
    """Return the name of a C++ function without its arguments."""
    frame = frame.replace("(anonymous namespace)::", "")
    return re.sub(r"[(<].*", "", frame)[:70]


def _costliest(stacks: Iterable[list[str]], each: float) -> list[Cost]:
    own: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for names in stacks:
        if names:
            own[names[0]] += 1
            total.update(set(names))
    return [
        Cost(function, count * each, total[function] * each)
        for function, count in own.most_common(_FUNCTIONS)
    ]


def tables(budgets: Sequence[Budget]) -> str:
    """Return one Markdown table for each process: a row for each step, a column for each size."""
    lines: list[str] = []
    for process in dict.fromkeys(each.process for each in budgets):
        its = [each for each in budgets if each.process == process]
        names = sorted(
            {name for each in its for name in each.steps},
            key=lambda name: -sum(each.steps.get(name, 0.0) for each in its),
        )
        heads = " | ".join(f"{each.connections} connections" for each in its)
        lines += ["", f"| {process}, µs per request | {heads} |", "|---|" + "---:|" * len(its)]
        rows: Mapping[str, list[str]] = {
            "requests per batch": [f"{each.batch:.0f}" for each in its],
            "commands per request": [f"{each.commands:.3f}" for each in its],
            **{name: [f"{each.steps.get(name, 0.0):.1f}" for each in its] for name in names},
            "**all**": [f"**{each.us:.1f}**" for each in its],
        }
        lines += [f"| {name} | {' | '.join(row)} |" for name, row in rows.items()]
    return "\n".join(lines[1:])


def functions(budgets: Sequence[Budget]) -> str:
    """Return the costliest functions of each budget as text."""
    lines: list[str] = []
    for each in budgets:
        lines += ["", f"{each.process}, {each.connections} connections: µs per request alone and"]
        lines += ["with callees", ""]
        lines += [f"{it.own_us:7.2f} {it.total_us:7.2f}  {it.name}" for it in each.functions]
    return "\n".join(lines[1:])
