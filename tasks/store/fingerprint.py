"""Canonical JSON and the fingerprints made of it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel


def canonical(value: Any) -> Any:
    """`value` as plain JSON data with one form for equal values.

    Raises TypeError for what has no stable form (sets, objects, NaN): a fingerprint that
    guesses is worse than none.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{value} cannot be part of a fingerprint")
        return int(value) if value == int(value) and abs(value) < 2**53 else value
    if isinstance(value, BaseModel):
        return canonical({name: getattr(value, name) for name in type(value).model_fields})
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("a mapping in a fingerprint must have text keys")
        return {key: canonical(value[key]) for key in sorted(value)}
    if isinstance(value, tuple | list):
        return [canonical(item) for item in value]
    raise TypeError(f"a {type(value).__name__} cannot be part of a fingerprint")


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys, no spaces and no escapes that are not needed."""
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def fingerprint(payload: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON of `payload`, as 64 hex digits."""
    return hashlib.sha256(canonical_json(payload)).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Which fields of two payloads differ, as `field: old -> new`, nested fields with dots."""
    lines: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if canonical(before) == canonical(after):
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{prefix}{key}.")
        else:
            lines.append(f"{prefix}{key}: {_short(before)} -> {_short(after)}")
    return lines


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(canonical(value), ensure_ascii=False)
    return text if len(text) <= 24 else text[:12] + "…"
