"""The thin Prefect skin of a stage."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from tasks.store.run import Run

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def as_task(name: str) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Makes a function a Prefect task of that name.

    Prefect is imported when the task is called, not when its module is: planning goes through
    every stage and must not wait for it. The store decides what is done, so nothing is cached.
    The function's first argument is the Run; one that is only planning calls it plainly.
    """

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @functools.cache
        def prefect_task() -> Any:
            from prefect import task
            from prefect.cache_policies import NO_CACHE

            return task(function, name=name, cache_policy=NO_CACHE, persist_result=False)

        @functools.wraps(function)
        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            run = args[0]
            if isinstance(run, Run) and run.planning:
                return function(*args, **kwargs)
            return prefect_task()(*args, **kwargs)

        return call

    return decorate
