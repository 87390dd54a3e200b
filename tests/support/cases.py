"""Tables of named cases: one test that runs once for each row, all on one service.

`pytest.mark.parametrize` starts a service for each row. A subtest does not, and a row that fails
does not hide the rows after it.
"""

import inspect
import re
from collections.abc import Callable, Coroutine, Iterable, Mapping
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

import pytest

Case = TypeVar("Case")
Fixtures = ParamSpec("Fixtures")
Text = TypeVar("Text", str, bytes)
AsyncTest: TypeAlias = Callable[..., Coroutine[Any, Any, None]]


def each_case(
    cases: Mapping[str, Case],
) -> Callable[[Callable[Concatenate[Case, Fixtures], Coroutine[Any, Any, None]]], AsyncTest]:
    """Return a decorator that runs a test with every case, as a subtest with the case's name.

    The test takes the case as its first argument and fixtures as the others. All cases share
    these fixtures.
    """

    def decorate(
        test: Callable[Concatenate[Case, Fixtures], Coroutine[Any, Any, None]],
    ) -> AsyncTest:
        _, *fixtures = inspect.signature(test).parameters.values()
        subtests = inspect.Parameter("subtests", inspect.Parameter.POSITIONAL_OR_KEYWORD)

        @wraps(test)
        async def run(
            subtests: pytest.Subtests, *args: Fixtures.args, **kwargs: Fixtures.kwargs
        ) -> None:
            for name, case in cases.items():
                with subtests.test(name):
                    await test(case, *args, **kwargs)

        # pytest reads the fixtures that a test needs from its signature.
        run.__signature__ = inspect.Signature([subtests, *fixtures])  # type: ignore[attr-defined]
        return run

    return decorate


def by_text(values: Iterable[Text]) -> dict[str, Text]:
    """Return a table whose cases are named by themselves."""
    return {
        value.decode("latin-1") if isinstance(value, bytes) else value: value for value in values
    }


def without_keys(value: object) -> str:
    """Return a value as the id of a parameter, without keys, which differ from run to run.

    The processes of a parallel run must agree about the names of all tests.
    """
    return re.sub(r"[\w-]{40,}", "...", str(value), flags=re.ASCII)
