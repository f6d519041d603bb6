"""Export of a model: the files that other programs load, kept in the store and copied out of it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Literal

from llm import files
from llm.errors import ConfigError, DataError
from tasks.as_task import as_task
from tasks.evaluate import load_model
from tasks.export import LISTING
from tasks.registry import ModelVersion, load_version
from tasks.store.fingerprint import fingerprint
from tasks.store.records import Manifest, ObjectRef
from tasks.store.run import Request, Run, reuse
from tasks.store.stage import Stage
from tasks.store.store import Store, now

STAGE = Stage("export", 1, ("safetensors", "torch"))

ModelFormat = Literal["huggingface", "gguf", "gguf-q8_0"]


def export_request(trained: Manifest) -> Request:
    """What decides the exported files: the weights and the tokenizer."""
    pins = {"tokenizer": trained.object("tokenizer").sha256}
    return Request(STAGE, {}, {"model": trained}, pins)


@as_task("export")
def export(run: Run, trained: Manifest) -> Manifest:
    """The model as the files that transformers, vLLM, SGLang and llama.cpp read."""
    request = export_request(trained)
    if done := reuse(run, request):
        return done
    from llm.export import export_huggingface
    from llm.tokenizer import Tokenizer

    tokenizer_json = run.store.read_bytes(trained.object("tokenizer"))
    eot_id = Tokenizer.from_bytes(tokenizer_json).eot_id
    with tempfile.TemporaryDirectory() as folder:
        export_huggingface(
            load_model(run.store, trained), tokenizer_json, Path(folder), eot_id=eot_id
        )
        written = {
            path.name: run.store.put_local_file(path, "model-file", path.suffix.lstrip("."))
            for path in sorted(Path(folder).iterdir())
        }
    objects: dict[str, tuple[ObjectRef, ...]] = {name: (ref,) for name, ref in written.items()}
    return run.store.commit(
        Manifest(
            stage=STAGE.name,
            fingerprint=request.ref.fingerprint,
            payload=request.payload,
            inputs={"model": trained.ref},
            rows_in=trained.rows_out,
            rows_out=trained.rows_out,
            drops={},
            data_digest=fingerprint({name: ref.sha256 for name, ref in written.items()}),
            receipts=None,
            objects=objects,
            provenance={**run.provenance, "run_id": run.run_id, "at": now()},
        )
    )


def export_version(
    store: Store, version: ModelVersion, to: str, format: ModelFormat
) -> dict[str, int]:
    """Writes a registered model to `to`.

    `huggingface` is a folder that transformers, vLLM, SGLang and llama.cpp's converter read; in it
    `LISTING`, written last, says which version it is. `gguf` and `gguf-q8_0` are one file each,
    the latter with matrices in 8 bits.
    Raises DataError where something is at `to` already, and ConfigError for a model or a name that
    the format does not have.
    """
    to = files.absolute_url(to)
    if format != "huggingface":
        _write_gguf(store, version, to, format)
        return {"version": version.version, "files": 1}
    if files.list_urls(to):
        raise DataError(f"{to} is not empty; give another folder, or empty it")
    for name, ref in version.files.items():
        files.put(f"{to}/{name}", store.read_bytes(ref))
    about = {"model": version.name, "version": version.version, "sha256": version.model_sha256}
    body = json.dumps({**about, "files": sorted(version.files)}, indent=2).encode()
    files.put(f"{to}/{LISTING}", body)
    return {"version": version.version, "files": len(version.files)}


def _write_gguf(store: Store, version: ModelVersion, to: str, format: ModelFormat) -> None:
    if not to.endswith(".gguf"):
        raise ConfigError(f"a GGUF export is one file, not {to}: give --to a name ending in .gguf")
    if files.exists(to):
        raise DataError(f"{to} is there already; give another name, or remove it")
    from llm.export_gguf import export_gguf

    model, tokenizer = load_version(store, version)
    tokenizer_json = store.read_bytes(version.files["tokenizer.json"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        export_gguf(
            model,
            tokenizer_json,
            path,
            eot_id=tokenizer.eot_id,
            precision="q8_0" if format == "gguf-q8_0" else "f32",
        )
        files.put_file(to, path)
