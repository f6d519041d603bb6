"""What a stage declares of itself, so that its results can be kept and found again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from unicodedata import unidata_version


@dataclass(frozen=True)
class Stage:
    """A pure function from objects to objects.

    `version` is raised whenever the output for the same input changes. `libraries` are the
    distributions whose version decides the output; they become part of every key. `unicode` among
    them stands for the Unicode tables of the Python that runs.
    """

    name: str
    version: int
    libraries: tuple[str, ...] = ()

    def library_versions(self) -> dict[str, str]:
        """The installed version of each library; a local suffix such as `+cpu` is left out."""
        return {
            name: unidata_version if name == "unicode" else _installed(name)
            for name in sorted(self.libraries)
        }


@cache
def _installed(name: str) -> str:
    return version(name).split("+")[0]
