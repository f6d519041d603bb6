"""Everything that a run says while it goes on: its log, its progress, and what others are told."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import psutil
import torch

from llm.log_writers import open_writers
from llm.metrics import Display, MetricsLog, Row
from llm.peak import peak_flops
from llm.run_state import Run
from llm.setup import Setup
from llm.sizing import training_flops_per_token

MIB = 1 << 20


class Log:
    """Rows to the run's log, the display and `train.log_to`; only the first rank's says anything.

    Used as a context.
    """

    def __init__(self, run: Run, setup: Setup) -> None:
        spec, world, environment = setup.spec, setup.world, setup.environment
        self._on_gpu = environment.device == "cuda"
        self._display = Display(spec.train.steps, run.step, quiet=not world.is_main)
        self._metrics = MetricsLog(spec.run_url, run.step) if world.is_main else None
        self._writers = open_writers(spec, run.step) if world.is_main else []
        peak = spec.train.peak_tflops * 1e12
        if not peak and world.is_main:
            peak = peak_flops(environment)
        self._utilization = training_flops_per_token(run.model.config) / (
            (peak or 1) * world.world_size
        )
        self._opened = ExitStack()
        self.restart_clock(run)

    def __enter__(self) -> Log:
        self._opened.enter_context(self._display)
        for writer in self._writers:
            self._opened.callback(self._try, writer.close)
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def say(self, line: str) -> None:
        self._display.say(line)

    def restart_clock(self, run: Run) -> None:
        """The next row's rate is that of the steps from here on."""
        self._since, self._counted = time.monotonic(), run.tokens

    def row(self, run: Run, loss: float, norm: float) -> Row:
        """The row of the step just made: what training did, then what it took (`TIMINGS`)."""
        row: Row = {"step": run.step, "loss": loss, "grad_norm": norm, "tokens": run.tokens}
        for optimizer in run.optimizers:
            row |= {f"lr_{group['role']}": group["lr"] for group in optimizer.param_groups}
        row["skipped"] = run.guard.skipped
        if run.loss_scale.needed:
            row["loss_scale"] = run.loss_scale.factor
        rate = (run.tokens - self._counted) / (time.monotonic() - self._since)
        return row | {
            "tokens_per_second": round(rate, 1),
            "mfu": round(rate * self._utilization, 4),
            "memory_mib": round(self._memory() / MIB, 1),
        }

    def _memory(self) -> int:
        """Bytes that this process takes: at most so far on a GPU, now in the host's memory."""
        if self._on_gpu:
            return torch.cuda.max_memory_allocated()
        return psutil.Process().memory_info().rss

    def append(self, row: Row) -> None:
        if self._metrics:
            self._metrics.append(row)
            self._display.update(row)
        for writer in self._writers:
            self._try(partial(writer.write, row))

    def _try(self, act: Callable[[], None]) -> None:
        """Another program may be out of reach, which is said and no reason to stop a run."""
        try:
            act()
        except Exception as error:
            self.say(f"train.log_to: {type(error).__name__}: {error}")

    def close_segment(self, step: int) -> None:
        """Makes every row so far durable; the next segment begins after `step`."""
        if self._metrics:
            self._metrics.close_segment(step)
