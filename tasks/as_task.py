"""The thin Prefect skin of a stage."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from tasks.store.run import Run, Visit

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@functools.cache
def in_prefect(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as a Prefect task. The store decides what is done, so Prefect caches nothing."""
    from prefect import task
    from prefect.cache_policies import NO_CACHE
    from prefect.utilities.annotations import quote

    made = task(name=name, cache_policy=NO_CACHE, persist_result=False)(function)
    # Quoted, since Prefect would take the run's visits for inputs and tangle the graph.
    return lambda run, *args, **kwargs: made(quote(run), *args, **kwargs)


def as_task(
    name: str,
) -> Callable[
    [Callable[Concatenate[Run, Arguments], Result]], Callable[Concatenate[Run, Arguments], Result]
]:
    """Makes a function, whose first argument is the Run, a Prefect task of that name.

    Prefect is imported when the task is called, not when its module is: planning goes through
    every stage and must not wait for it, so a run that is only planning calls the function
    plainly. What the stage returned joins the run's visits. A run that was taken for dead
    meanwhile goes no further.
    """

    def decorate(
        function: Callable[Concatenate[Run, Arguments], Result],
    ) -> Callable[Concatenate[Run, Arguments], Result]:
        @functools.wraps(function)
        def call(run: Run, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            if run.lease is not None:
                run.lease.check()
            began = time.monotonic()
            act = function if run.planning else in_prefect(name, function)
            result = act(run, *args, **kwargs)
            made_by = getattr(result, "provenance", {}).get("run_id")
            seconds = round(time.monotonic() - began, 3)
            run.visits.append(Visit(name, result, seconds, made_by != run.run_id))
            return result

        return call

    return decorate
