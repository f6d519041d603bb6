"""Settings of a training run, and the file that starts one. No torch here: planning reads these."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from llm.config import Config
from llm.config_data import PLACES, DataConfig
from llm.config_guards import GuardConfig
from llm.config_model import ModelConfig
from llm.config_optim import OptimConfig

LOOKING = frozenset({"eval_every", "eval_windows"})
"""Fields of `TrainConfig` that leave the weights alone unless the validation loss may end a run."""

OBSERVING = LOOKING | frozenset(
    {"checkpoint_every", "keep_checkpoints", "keep_best", "keep_every", "log_every", "log_to"}
    | {"sample_every", "sample_prompts", "sample_tokens", "peak_tflops", "resume_anyway"}
)
"""Fields that say how a run is watched, saved and taken up again, and leave its weights alone."""

ENVIRONMENT = frozenset(
    {"device", "dtype", "threads", "compile", "processes", "parallel", "reshard_after_forward"}
    | {"micro_batch_size", "checkpoint_activations"}
)
"""Fields that choose the environment class: the same run, bitwise equal only within one class."""


class TrainConfig(Config):
    """How a model is trained: how long, on how much at a time, where, and how it is watched."""

    steps: int = Field(default=2000, ge=1)
    """Updates of the weights. 2000 is nanoGPT's documented CPU task (Karpathy, `README.md`)."""
    batch_size: int = Field(default=12, ge=1)
    """Windows of `context_length` tokens in a batch, of all processes together; nanoGPT's
    documented CPU task."""
    accumulation_steps: int = Field(default=1, ge=1)
    """Batches whose gradients make one update; the update is that of one big batch."""
    micro_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Windows of a batch that one process learns from at a time. Fewer take less memory, and give
    the same update but for its last digits (and for what dropout draws, and how a mixture of
    experts is balanced). `auto`: its whole share of the batch, or the half, quarter, ... of it that
    fits the memory: found by trying on CUDA, by `loam size`'s arithmetic on the CPU."""
    seed: int = Field(default=1337, ge=0, lt=2**32)
    """Decides the initial weights and the order of the data; nanoGPT's seed."""
    data: DataConfig = DataConfig()
    """How documents become windows, in which order, and how much of each source."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: the first CUDA device where there is one, else the CPU."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Numbers in matrix products; the weights themselves are float32. `auto`: bfloat16 where the
    device multiplies it natively (CUDA capability 8.0 and later; AVX512_BF16, AMX or ARM's BF16),
    else float32. `float16` is for GPUs before those; the loss is then scaled (Micikevicius et al.
    2018)."""
    threads: int = Field(default=2, ge=1)
    """Threads of one operation on the CPU. Sums are split among them, so their number is part of
    the environment class: another number gives other last digits. Ours: the cores of a small
    machine."""
    compile: bool = False
    """Use `torch.compile`. Faster after a minute or so of compiling, with other last digits. Where
    it cannot compile the run says so and goes on without."""
    checkpoint_activations: bool = False
    """Keep only the input of each block for the backward pass and compute the rest again (Chen et
    al. 2016): less memory for a third more work."""
    processes: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Processes on this machine, each with a device and its share of every micro-batch's windows.
    `auto`: one, or with CUDA as many as there are devices, as far as they divide `batch_size`."""
    parallel: Literal["auto", "ddp", "fsdp2"] = "auto"
    """How several processes hold the model: all of it each (`ddp`; Li et al. 2020) or a share each
    (`fsdp2`; Zhao et al. 2023), for models that do not fit one device. `auto`: `ddp`."""
    reshard_after_forward: bool = True
    """With `fsdp2`: let go of a block's gathered weights between its forward and backward pass
    (ZeRO-3; Rajbhandari et al. 2020); false gathers them once for more memory (ZeRO-2)."""
    eval_every: int = Field(default=250, ge=1)
    """Steps from one look at the validation split to the next; the last step always looks.
    nanoGPT's documented CPU task."""
    eval_windows: int = Field(default=240, ge=0)
    """Windows of the validation split that such a look reads; 0 is all of them, which the last
    step always takes. The 20 batches of 12 of nanoGPT's documented CPU task."""
    checkpoint_every: int = Field(default=250, ge=1)
    """Steps from one checkpoint to the next; what a kill costs at most. As `eval_every`."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Checkpoints that stay: the newest, and one before it in case the newest is damaged."""
    keep_best: bool = True
    """Keep the checkpoint with the lowest validation loss too, of those made at a step that looked
    at the validation split."""
    keep_every: int = Field(default=0, ge=0)
    """Keep each checkpoint whose step is a multiple of it too, to look back at how the model came
    to be (Biderman et al. 2023); 0: none for that reason."""
    sample_every: int = Field(default=500, ge=1)
    """Steps from one set of samples to the next; the last step always samples. Ours."""
    sample_prompts: tuple[str, ...] = ("",)
    """What each sample begins with; an empty prompt begins a document."""
    sample_tokens: int = Field(default=100, ge=1)
    """Tokens in a sample at most. Ours: a few lines."""
    log_every: int = Field(default=10, ge=1)
    """Steps from one row of the log to the next; nanoGPT's Shakespeare configuration."""
    log_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Where the log goes beside the run's own: TensorBoard files in the run's folder, Weights &
    Biases or MLflow, set up by their own environment variables."""
    peak_tflops: float = Field(default=0.0, ge=0)
    """The device's peak in TFLOP/s, of which the log's `mfu` is a share; 0: the maker's data sheet
    where the device is known (`llm/gpus.py`), else a measured product of matrices."""
    resume_anyway: bool = False
    """Go on from a checkpoint of another environment class, dataset or tokenizer, with a warning,
    where a run would refuse: it is then no longer the one an undisturbed run would have been."""
    guards: GuardConfig = GuardConfig()
    """What may skip a step, or end the run before its last one."""
    optim: OptimConfig = OptimConfig()
    """Optimizers, their rates and their schedule."""


class TrainSpec(Config):
    """Everything the training process is told, as the one JSON file it is started with."""

    run_url: str
    """Where the run's log, samples, checkpoints and result go."""
    dataset_url: str
    """The dataset file: a Parquet that names a token shard and row for each document."""
    base_url: str
    """What the dataset file's relative shard URLs are relative to."""
    tokenizer_url: str
    """The tokenizer.json that made the tokens."""
    cache_dir: str
    """A local folder for the prepared tokens; it can be deleted between runs."""
    model: ModelConfig
    """Shape of the model; a `vocab_size` of 0 is taken from the tokenizer."""
    train: TrainConfig
    """How it is trained."""

    @field_validator("run_url")
    @classmethod
    def _without_last_slash(cls, url: str) -> str:
        return url.rstrip("/")

    def decisive(self) -> dict[str, Any]:
        """The settings that decide the weights, apart from data, tokenizer and environment."""
        undecided = OBSERVING | ENVIRONMENT
        if self.train.guards.patience:
            undecided -= LOOKING
        excluded: dict[str, bool | set[str]] = {**dict.fromkeys(undecided, True)}
        excluded["data"] = set(PLACES)
        train = self.train.model_dump(mode="json", exclude=excluded)
        return {"model": self.model.model_dump(mode="json"), "train": train}
