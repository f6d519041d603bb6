"""Register: a new version of the model, and the gate that makes it the champion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field

from llm.config import Config
from tasks import registry
from tasks.as_task import as_task
from tasks.registry import ModelVersion
from tasks.store.records import Manifest
from tasks.store.run import Run, WouldRun
from tasks.store.store import now


class RegisterConfig(Config):
    """What the model is called, and when a new version takes over."""

    name: str = Field("", pattern=r"^[A-Za-z0-9._-]*$")
    """The model's name in the registry; empty: the pipeline's name."""

    tolerance: float = Field(0.0, ge=0)
    """Bits per byte by which a new version may be worse than the champion on the pinned
    validation split and still take over."""


@dataclass(frozen=True)
class Registered:
    """A registered version, its aliases, and what the gate said."""

    version: ModelVersion
    aliases: tuple[str, ...]
    verdict: str

    @property
    def provenance(self) -> dict[str, Any]:
        """Who registered it, and in which run."""
        return self.version.provenance


def model_name(config: RegisterConfig, run_name: str, sample: int | None) -> str:
    """What a run's model is called: as the config says, a sample's apart from the real one."""
    if not config.name or sample is None:
        return config.name or run_name
    return f"{config.name}-sample{sample}"


@as_task("register")
def register(
    run: Run,
    dataset: Manifest,
    trained: Manifest,
    evaluated: Manifest,
    exported: Manifest,
    config: RegisterConfig,
) -> Registered:
    """Registers the model, makes it the candidate, and the champion if the gate lets it."""
    name = model_name(config, run.name, run.sample)
    described = ModelVersion(
        name=name,
        version=0,
        model_sha256=trained.object("weights").sha256,
        files={name: refs[0] for name, refs in exported.objects.items()},
        manifests={
            "dataset": dataset.ref,
            "train": trained.ref,
            "evaluate": evaluated.ref,
            "export": exported.ref,
        },
        heldout_sha256=dataset.payload["pins"]["heldout"],
        metrics=evaluated.summary["splits"],
        created_at=now(),
        provenance={**run.provenance, "run_id": run.run_id},
    )
    known = registry.find_same(run.store, described)
    verdict = registry.last_verdict(run.store, known) if known else None
    if verdict is None and run.planning:
        raise WouldRun("register", ["this model is not registered yet"])
    if known is None or verdict is None:
        known = registry.register(run.store, described)
        registry.move_aliases(run.store, name, {"candidate": known.version}, "newest version")
        verdict = registry.promote_if(run.store, known, config.tolerance)
    mine = sorted(k for k, n in registry.aliases(run.store, name).items() if n == known.version)
    return Registered(known, tuple(mine), verdict)
