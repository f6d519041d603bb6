from __future__ import annotations

from pathlib import Path

import pytest

from flows.config import PipelineConfig, read_config
from flows.planning import Plan, make_plan, plan_sources, stage_names
from flows.running import RunOptions
from llm.errors import ConfigError, DataError
from tests.flows.grown import Grown


def plan_of(path: Path, **options: object) -> Plan:
    return make_plan(read_config(path), RunOptions.model_validate(options))


def running(plan: Plan) -> list[str]:
    return [stage.stage for stage in plan.stages if stage.action == "run"]


def why(plan: Plan) -> tuple[str, ...]:
    (stage,) = (stage for stage in plan.stages if stage.action == "run")
    return stage.why


def test_a_grown_pipeline_leaves_nothing_to_do(grown: Grown) -> None:
    plan = plan_of(grown.config)
    assert plan.nothing_to_do
    assert (plan.seconds, plan.bytes) == (0, 0)


def test_the_stages_of_a_plan_are_those_the_recipes_come_through(grown: Grown) -> None:
    plan = plan_of(grown.config)
    came_through = [visit.name for visit in plan.visits]
    assert came_through == [
        "ingest",
        *(n.split()[0] for n in stage_names(read_config(grown.config))),
    ]


def test_a_config_without_a_model_ends_with_the_corpus(grown: Grown) -> None:
    config = read_config(grown.config).model_copy(update={"model": None})
    plan = make_plan(config, RunOptions())
    assert plan.nothing_to_do
    assert plan.stages[-1].stage == "publish corpus"


def test_the_field_that_makes_a_stage_run_is_named(grown_copy: Grown) -> None:
    plan = plan_of(grown_copy.edited("min_words = 50", "min_words = 60"))
    assert running(plan) == ["select"]
    assert why(plan) == ("min_words: 50 -> 60",)
    actions = {stage.stage: stage.action for stage in plan.stages}
    assert (actions["annotate"], actions["dedup"], actions["train"]) == (
        "reuse", "follows", "follows",
    )  # fmt: skip


def test_a_field_that_decides_no_result_makes_nothing_run(grown_copy: Grown) -> None:
    assert plan_of(grown_copy.edited("shard_rows = 16", "shard_rows = 7")).nothing_to_do
    assert plan_of(grown_copy.edited("sample_tokens = 8", "sample_tokens = 9")).nothing_to_do


def test_a_changed_file_makes_its_source_run_and_the_rest_follow(grown_copy: Grown) -> None:
    docs = grown_copy.folder / "docs.jsonl"
    docs.write_text(docs.read_text() + '{"id": "more", "text": "more"}\n')
    plan = plan_of(grown_copy.config)
    assert running(plan) == ["ingest docs"]
    assert "docs.jsonl" in why(plan)[0]
    assert all(stage.action == "follows" for stage in plan.stages[1:])


def test_refresh_makes_every_source_run(grown: Grown) -> None:
    assert why(plan_of(grown.config, refresh=True)) == ("--refresh",)


def test_a_sample_is_a_pipeline_of_its_own(grown: Grown) -> None:
    plan = plan_of(grown.config, sample=5)
    assert plan.name == "tiny-sample5"
    assert why(plan) == ("it was never read",)


def test_a_pin_made_with_other_settings_is_an_error_that_says_what_to_do(grown_copy: Grown) -> None:
    with pytest.raises(ConfigError, match=r"vocab_size: 400 -> 500.*loam repin tokenizer"):
        plan_of(grown_copy.edited("vocab_size = 400", "vocab_size = 500"))


def test_a_source_whose_file_is_gone_is_an_error_and_not_a_plan(grown_copy: Grown) -> None:
    (grown_copy.folder / "docs.jsonl").unlink()
    with pytest.raises((ConfigError, DataError), match=r"docs\.jsonl"):
        plan_of(grown_copy.config)


def test_an_empty_store_plans_everything_with_estimates_from_the_size_of_the_files(
    grown_copy: Grown,
) -> None:
    config = elsewhere(read_config(grown_copy.config), grown_copy.folder / "empty")
    small = make_plan(config, RunOptions())
    assert [stage.action for stage in small.stages][:2] == ["run", "follows"]
    assert small.complete
    docs = grown_copy.folder / "docs.jsonl"
    docs.write_text(docs.read_text() * 10)
    large = make_plan(config, RunOptions())
    scrub = [next(s for s in p.stages if s.stage == "scrub") for p in (small, large)]
    assert scrub[1].bytes == pytest.approx(10 * (scrub[0].bytes or 0), rel=0.01)


def test_training_is_estimated_in_proportion_to_its_steps(grown_copy: Grown) -> None:
    def seconds(steps: int) -> float:
        plan = plan_of(grown_copy.edited("steps = 4", f"steps = {steps}"))
        assert running(plan) == ["train"]
        return plan.seconds

    assert seconds(80_000) - seconds(40_000) == pytest.approx(
        seconds(120_000) - seconds(80_000), rel=0.01
    )
    assert seconds(80_000) > seconds(40_000) > 1


def test_a_training_that_was_stopped_goes_on_and_the_plan_says_from_where(
    grown_copy: Grown,
) -> None:
    (trained,) = Path("store/manifests/train").glob("*.json")
    (result,) = Path("store/runs").glob("*/result.json")
    trained.unlink()
    result.unlink()
    plan = plan_of(grown_copy.config)
    assert running(plan) == ["train"]
    assert why(plan)[-1] == "stopped at step 4 of 4, it goes on from its checkpoint"


def test_planning_changes_nothing_in_the_store(grown: Grown, grown_copy: Grown) -> None:
    def contents() -> dict[str, bytes]:
        root = Path(grown_copy.store)
        return {str(p): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}

    before = contents()
    plan_of(grown_copy.config)
    plan_of(grown_copy.edited("min_words = 50", "min_words = 60"))
    assert contents() == before


def test_planning_an_empty_store_does_not_even_make_its_folder(grown_copy: Grown) -> None:
    config = elsewhere(read_config(grown_copy.config), grown_copy.folder / "empty")
    make_plan(config, RunOptions())
    assert not (grown_copy.folder / "empty").exists()


def test_sources_can_be_asked_alone_whether_they_are_due(grown: Grown) -> None:
    config = read_config(grown.config)
    assert plan_sources(config, RunOptions())["docs"].action == "reuse"
    assert plan_sources(config, RunOptions(refresh=True))["docs"].action == "run"


def elsewhere(config: PipelineConfig, root: Path) -> PipelineConfig:
    place = config.store.model_copy(update={"root": str(root)})
    return config.model_copy(update={"store": place})
