"""Which digits may be a phone number: libphonenumber's own number plans as one automaton.

libphonenumber tries every run of digits in a text under the plan of each region, at about a
millisecond a run, and finds that dates, versions and amounts are no numbers. The automaton tells
that at a step a digit. It accepts every sequence of digits, without marks between them, that
`PhoneNumberMatcher` (leniency VALID) takes for a number of one of the regions when no plus sign
precedes, and few others: it knows prefixes, patterns and which numbers need their national prefix,
but not that a prefix is left where what follows it would be no number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from llm.errors import DataError

_ANY = (1 << 10) - 1


class Automaton(NamedTuple):
    """`steps[state, digit]` is the next state, -1 where none is left.

    One automaton for each calling code lies in it, which begins at its state in `starts` and is for
    its `regions`; together in one they would have twenty times as many states.
    """

    steps: npt.NDArray[np.int32]
    accepts: npt.NDArray[np.bool_]
    starts: npt.NDArray[np.int32]
    regions: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class _Plan:
    """How the national numbers of one calling code look; `formats` are (leading digits, pattern,
    whether a number so written needs its national prefix), the first that fits counts."""

    code: int
    regions: tuple[str, ...]
    international_prefixes: tuple[str, ...]
    national_prefixes: tuple[str, ...]
    numbers: tuple[str, ...]
    formats: tuple[tuple[str, str, bool], ...]


@lru_cache(maxsize=2)
def phone_automaton(regions: tuple[str, ...]) -> Automaton:
    """The automaton of the regions that a recogniser asks, by their two-letter names."""
    steps: list[list[int]] = []
    accepts: list[bool] = []
    starts = []
    plans = tuple(_plans(regions))
    for plan in plans:
        starts.append(len(steps))
        rows, ends = _plan_automaton(plan)
        steps += [[to + starts[-1] if to >= 0 else -1 for to in row] for row in rows]
        accepts += ends
    return Automaton(
        np.array(steps, np.int32),
        np.array(accepts, np.bool_),
        np.array(starts, np.int32),
        tuple(plan.regions for plan in plans),
    )


def _plan_automaton(plan: _Plan) -> tuple[list[list[int]], list[bool]]:
    nfa = _Nfa()
    sure, bare = nfa.tag(), nfa.tag()
    for prefix in plan.international_prefixes:
        nfa.accept(nfa.read(rf"(?:{prefix})[1-9]\d*"), sure)
    national = _any_of(plan.national_prefixes)
    number = _any_of(plan.numbers)
    for prefix in (f"{plan.code}(?:{national})?(?:{national})?", national):
        nfa.accept(nfa.read(f"(?:{prefix})(?:{number})"), sure)
    nfa.accept(nfa.read(number), bare)
    formats = []
    for leading, pattern, prefixed in plan.formats:
        tags = nfa.tag(), nfa.tag()
        nfa.accept(nfa.read(rf"(?:{leading})\d*"), tags[0])
        nfa.accept(nfa.read(pattern), tags[1])
        formats.append((*tags, prefixed))

    def accepts(tags: int) -> bool:
        return bool(tags >> sure & 1 or (tags >> bare & 1 and not _prefixed(tags, formats)))

    return nfa.determined(accepts)


def _prefixed(tags: int, formats: Iterable[tuple[int, int, bool]]) -> bool:
    fits = (need for lead, pattern, need in formats if tags >> lead & 1 and tags >> pattern & 1)
    return next(fits, False)


def _plans(regions: Sequence[str]) -> Iterator[_Plan]:
    from phonenumbers import COUNTRY_CODE_TO_REGION_CODE

    asked = [_metadata(region) for region in regions]
    for code in dict.fromkeys(metadata.country_code for metadata in asked):
        callers = [metadata for metadata in asked if metadata.country_code == code]
        main, *others = map(_metadata, COUNTRY_CODE_TO_REGION_CODE[code])
        # Parsing strips the prefix of the caller's region and of the code's main region.
        national = {m.national_prefix_for_parsing: m for m in (main, *callers)}
        yield _Plan(
            code,
            tuple(metadata.id for metadata in callers),
            tuple(dict.fromkeys(m.international_prefix for m in callers)),
            tuple(_stripped(m) for prefix, m in national.items() if prefix),
            tuple(dict.fromkeys(p for m in (main, *others) for p in _numbers(m))),
            tuple(_formats(main)),
        )


def _metadata(region: str) -> Any:
    from phonenumbers import PhoneMetadata

    return PhoneMetadata.metadata_for_region(region)


def _numbers(metadata: Any) -> Iterator[str]:
    kinds = (
        *("premium_rate", "toll_free", "shared_cost", "voip", "personal_number", "pager"),
        *("uan", "voicemail", "fixed_line", "mobile"),
    )
    for kind in kinds:
        described = getattr(metadata, kind)
        if described is not None and described.national_number_pattern:
            yield described.national_number_pattern


def _stripped(metadata: Any) -> str:
    """The national prefix as a pattern, without the part of it that stays in the number."""
    pattern: str = metadata.national_prefix_for_parsing
    if not metadata.national_prefix_transform_rule:
        return pattern
    kept = pattern.rfind("(\\d")
    if metadata.national_prefix_transform_rule != "\\2" or kept < 0:
        raise DataError(
            f"libphonenumber's prefix rule of {metadata.id} is {pattern!r} with "
            f"{metadata.national_prefix_transform_rule!r}; only a last group of digits is known"
        )
    return pattern[:kept] + pattern[pattern.index(")", kept) + 1 :]


def _formats(metadata: Any) -> Iterator[tuple[str, str, bool]]:
    for form in metadata.number_format:
        rule = form.national_prefix_formatting_rule or ""
        bare = not rule or form.national_prefix_optional_when_formatting
        # A rule that is only the first group, perhaps in brackets, asks for no prefix.
        first_group_only = rule.strip("()") == "\\1"
        leading = form.leading_digits_pattern[-1] if form.leading_digits_pattern else ""
        yield leading, form.pattern, not bare and not first_group_only


def _any_of(patterns: Iterable[str]) -> str:
    return "|".join(f"(?:{pattern})" for pattern in patterns)


@dataclass
class _Nfa:
    """States with moves on sets of digits (bit d for digit d) and moves on nothing."""

    moves: list[list[tuple[int, int]]] = field(default_factory=lambda: [[]])
    empty: list[list[int]] = field(default_factory=lambda: [[]])
    tags: dict[int, int] = field(default_factory=dict)
    tagged: int = 0

    def state(self) -> int:
        self.moves.append([])
        self.empty.append([])
        return len(self.moves) - 1

    def tag(self) -> int:
        self.tagged += 1
        return self.tagged - 1

    def accept(self, state: int, tag: int) -> None:
        self.tags[state] = self.tags.get(state, 0) | 1 << tag

    def read(self, pattern: str) -> int:
        """Adds a regular expression over digits; returns the state at its end."""
        end, place = self._alternatives(pattern, 0, 0)
        if place != len(pattern):
            raise DataError(
                f"libphonenumber's pattern {pattern!r} has {pattern[place]!r} at {place}"
            )
        return end

    def _alternatives(self, pattern: str, place: int, start: int) -> tuple[int, int]:
        end = self.state()
        while True:
            # A state of its own, so that a repetition within leads back to this branch only.
            state = self.state()
            self.empty[start].append(state)
            while place < len(pattern) and pattern[place] not in "|)":
                state, place = self._repeated(pattern, place, state)
            self.empty[state].append(end)
            if place == len(pattern) or pattern[place] == ")":
                return end, place
            place += 1

    def _repeated(self, pattern: str, place: int, start: int) -> tuple[int, int]:
        """One atom of the pattern with its count."""
        state, after = self._atom(pattern, place, start)
        least, most, done = _count(pattern, after)
        if (least, most) == (1, 1):
            return state, done
        state = start
        for _ in range(least):
            state, _ = self._atom(pattern, place, state)
        if most is None:
            hub = self.state()
            self.empty[state].append(hub)
            back, _ = self._atom(pattern, place, hub)
            self.empty[back].append(hub)
            return hub, done
        end = self.state()
        self.empty[state].append(end)
        for _ in range(most - least):
            state, _ = self._atom(pattern, place, state)
            self.empty[state].append(end)
        return end, done

    def _atom(self, pattern: str, place: int, start: int) -> tuple[int, int]:
        if pattern[place] == "(":
            inside = place + 3 if pattern.startswith("(?:", place) else place + 1
            end, place = self._alternatives(pattern, inside, start)
            return end, place + 1
        digits, place = _digits(pattern, place)
        end = self.state()
        self.moves[start].append((digits, end))
        return end, place

    def determined(self, accepts: Callable[[int], bool]) -> tuple[list[list[int]], list[bool]]:
        """The next state of each (-1: none) and whether it accepts, of the automaton whose states
        are sets of these (Rabin and Scott 1959).

        `accepts` says of the tags of such a set, as bits, whether a number may end there.
        """
        closures = [self._closure(state) for state in range(len(self.moves))]
        nexts: dict[int, list[int]] = {}
        for state, moves in enumerate(self.moves):
            if moves:
                reached = [0] * 10
                for digits, to in moves:
                    for digit in range(10):
                        if digits >> digit & 1:
                            reached[digit] |= closures[to]
                nexts[state] = reached
        places = {closures[0]: 0}
        steps: list[list[int]] = []
        accepted: list[bool] = []
        queue = [closures[0]]
        for subset in queue:
            row, tags = [0] * 10, 0
            for state in _bits(subset):
                tags |= self.tags.get(state, 0)
                for digit, reached_by in enumerate(nexts.get(state, ())):
                    row[digit] |= reached_by
            accepted.append(accepts(tags))
            for reached_set in row:
                if reached_set and reached_set not in places:
                    places[reached_set] = len(queue)
                    queue.append(reached_set)
            steps.append([places[reached_set] if reached_set else -1 for reached_set in row])
        return steps, accepted

    def _closure(self, state: int) -> int:
        """What is reached from `state` on nothing, of the states that move on or have a tag."""
        seen, queue, kept = {state}, [state], 0
        for place in queue:
            if self.moves[place] or place in self.tags:
                kept |= 1 << place
            fresh = [to for to in self.empty[place] if to not in seen]
            seen.update(fresh)
            queue += fresh
        return kept


def _bits(number: int) -> Iterator[int]:
    while number:
        lowest = number & -number
        yield lowest.bit_length() - 1
        number ^= lowest


def _count(pattern: str, place: int) -> tuple[int, int | None, int]:
    """(least, most, place behind) of the count at `place`; most is None where there is no limit."""
    mark = pattern[place : place + 1]
    if mark == "?":
        return 0, 1, place + 1
    if mark == "*":
        return 0, None, place + 1
    if mark == "{":
        end = pattern.index("}", place)
        least, _, most = pattern[place + 1 : end].partition(",")
        return int(least), int(most or least), end + 1
    return 1, 1, place


def _digits(pattern: str, place: int) -> tuple[int, int]:
    """(bits, place behind) of a digit, `\\d` or a class such as `[13-59]` at `place`."""
    if pattern.startswith("\\d", place):
        return _ANY, place + 2
    if pattern[place].isdigit():
        return 1 << int(pattern[place]), place + 1
    if pattern[place] != "[":
        raise DataError(f"libphonenumber's pattern {pattern!r} has {pattern[place]!r} at {place}")
    end = pattern.index("]", place)
    bits = 0
    inside = iter(pattern[place + 1 : end].replace("\\d", "0-9"))
    previous = 0
    for mark in inside:
        low, high = (previous, int(next(inside))) if mark == "-" else (int(mark), int(mark))
        for digit in range(low, high + 1):
            bits |= 1 << digit
        previous = high
    return bits, end + 1
