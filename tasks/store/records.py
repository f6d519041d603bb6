"""The JSON records of the store: object references, receipts, manifests and ref entries."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from llm.errors import DataError
from tasks.store.fingerprint import fingerprint

FORMAT = 1

Record = TypeVar("Record")


@dataclass(frozen=True)
class ObjectRef:
    """An object: its kind, content name, extension, rows (0 where it has none), bytes, digest."""

    kind: str
    sha256: str
    ext: str
    rows: int
    bytes: int
    data_digest: str = ""


@dataclass(frozen=True)
class Receipt:
    """What one action produced. `data_digest` sums the digests of its output tables."""

    key: str
    outputs: tuple[ObjectRef, ...]
    rows_in: int
    rows_out: int
    drops: dict[str, int]
    data_digest: str
    stats: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    host: str = ""
    run_id: str = ""

    def output(self, kind: str) -> ObjectRef | None:
        """The output of that kind; None when it was empty and so never written."""
        return next((ref for ref in self.outputs if ref.kind == kind), None)


@dataclass(frozen=True)
class Erased:
    """What stands in the place of an object from which documents were erased.

    `successor` holds the same rows in the same order, those of the documents emptied; None: it had
    no row left. `rows` were emptied or left out, for the takedown of `targets`.
    """

    successor: ObjectRef | None
    rows: int
    targets: tuple[str, ...]
    at: str
    format: int = FORMAT


@dataclass(frozen=True)
class ManifestRef:
    """Which manifest: a pin that a reader follows."""

    stage: str
    fingerprint: str


@dataclass(frozen=True)
class Manifest:
    """A stage's whole output. Created if absent, last: the commit.

    `rows_in`, `rows_out`, `drops` and `data_digest` speak of live rows only, so that they do not
    depend on history. `receipts` is an object (Parquet), one row per action, in shard order.
    `objects` are outputs that belong to no shard. `summary` holds small facts for people.
    """

    stage: str
    fingerprint: str
    payload: dict[str, Any]
    inputs: dict[str, ManifestRef]
    rows_in: int
    rows_out: int
    drops: dict[str, int]
    data_digest: str
    receipts: ObjectRef | None
    objects: dict[str, tuple[ObjectRef, ...]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def ref(self) -> ManifestRef:
        return ManifestRef(self.stage, self.fingerprint)

    def object(self, name: str) -> ObjectRef:
        """The one object under `name`. Raises DataError when there is none."""
        found = self.objects.get(name, ())
        if len(found) != 1:
            raise DataError(f"{self.stage} {self.fingerprint[:12]} has {len(found)} '{name}'")
        return found[0]


def to_json(record: Any) -> bytes:
    """A record as JSON a person can read: sorted keys, two spaces."""
    return json.dumps(asdict(record), sort_keys=True, indent=2, ensure_ascii=False).encode()


def parse(body: bytes, where: str) -> Any:
    """A record's JSON. Raises DataError naming `where` for what is none."""
    try:
        return json.loads(body)
    except ValueError as error:
        raise DataError(f"{where}: damaged, it is not JSON ({error})") from None


def check_format(data: dict[str, Any], where: str) -> None:
    """Raises DataError naming `where` for a record of another format than ours."""
    if data.get("format") != FORMAT:
        raise DataError(
            f"{where}: format {data.get('format')!r}, this Loam reads {FORMAT}; use the version "
            "of Loam that wrote the store"
        )


def erased_from(data: dict[str, Any], where: str) -> Erased:
    """Raises DataError naming `where` for another format."""
    check_format(data, where)
    successor = ObjectRef(**data["successor"]) if data["successor"] else None
    return Erased(successor, data["rows"], tuple(data["targets"]), data["at"])


def receipt_from(data: dict[str, Any]) -> Receipt:
    names = {f.name for f in fields(Receipt)}
    kept = {key: value for key, value in data.items() if key in names}
    return Receipt(**{**kept, "outputs": tuple(ObjectRef(**o) for o in data["outputs"])})


def manifest_from(body: bytes, where: str) -> Manifest:
    """A manifest from its JSON. Raises DataError naming `where` for another format, or when the
    fingerprint is not that of the payload."""
    data = parse(body, where)
    check_format(data, where)
    if fingerprint(data["payload"]) != data["fingerprint"]:
        raise DataError(f"{where}: the fingerprint is not that of the payload: the file was edited")
    return Manifest(
        **{
            **data,
            "inputs": {name: ManifestRef(**pin) for name, pin in data["inputs"].items()},
            "receipts": ObjectRef(**data["receipts"]) if data["receipts"] else None,
            "objects": {
                name: tuple(ObjectRef(**ref) for ref in refs)
                for name, refs in data["objects"].items()
            },
        }
    )
