"""The errors a person can act on: what was found, what was expected, what to do."""

from __future__ import annotations


class LoamError(Exception):
    """Base of every error Loam raises on purpose. Its message is meant to be read."""


class ConfigError(LoamError):
    """A setting is unknown, missing or impossible; the message names the key."""


class DataError(LoamError):
    """Input that cannot be used as it is; the message names the file, row or field."""


class StorageError(LoamError):
    """The storage refused, failed or is full; the message names the URL."""
