"""The thin Prefect skin of a stage."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def as_task(name: str) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Makes a function a Prefect task of that name.

    Prefect is imported when the task is called, not when its module is: planning reads every
    stage's config and must not wait for it. The store decides what is done, so nothing is cached.
    """

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @functools.cache
        def prefect_task() -> Any:
            from prefect import task
            from prefect.cache_policies import NO_CACHE

            return task(function, name=name, cache_policy=NO_CACHE, persist_result=False)

        @functools.wraps(function)
        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            return prefect_task()(*args, **kwargs)

        return call

    return decorate
