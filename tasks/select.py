"""tmp"""

from __future__ import annotations

from tasks.as_task import as_task
from tasks.selecting import SelectConfig, select_shard
from tasks.signals import SIGNALS
from tasks.store.corpus import Shard, commit_stage, open_corpus
from tasks.store.records import Manifest, ObjectRef
from tasks.store.run import Action, Outcome, Request, Run, reuse, run_actions
from tasks.store.schema import DOCUMENTS, DROPS
from tasks.store.stage import Stage
from tasks.store.store import Store

STAGE = Stage("select", 1, ("pyarrow",))


def select_request(corpus: Manifest, config: SelectConfig) -> Request:
    """What decides the filters' verdicts: the signals, the text's columns and the thresholds."""
    return Request(STAGE, config.model_dump(), {"corpus": corpus})


def select_work(store: Store, shard: Shard, config: SelectConfig) -> Outcome:
    columns = store.read_table(shard.text, DOCUMENTS, ["id", "digest", "license"])
    signals = store.read_table(shard.extras.get(SIGNALS.kind), SIGNALS)
    drops = select_shard(columns, signals, config)
    return Outcome(((DROPS, drops),), columns.num_rows, columns.num_rows - drops.num_rows)


@as_task("select")
def select(run: Run, corpus: Manifest, config: SelectConfig) -> Manifest:
    """Drops what fails a threshold over the stored signals: nothing is measured again."""
    request = select_request(corpus, config)
    if done := reuse(run, request):
        return done
    shards = open_corpus(run.store, corpus).shards
    actions = [
        Action(
            {**shard.inputs, "signals": _digest(shard.extras.get(SIGNALS.kind))}, (shard, config)
        )
        for shard in shards
    ]
    return commit_stage(run, request, run_actions(run, request, select_work, actions), shards)


def _digest(ref: ObjectRef | None) -> str:
    return ref.data_digest if ref else ""
