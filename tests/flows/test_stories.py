"""What a trace says of the datasets that hold a document."""

from __future__ import annotations

import pytest

from flows.stories import _dataset
from tasks.trace import InDataset


@pytest.mark.parametrize(
    "split, told, verb",
    [
        ("train", "train, 9 tokens", "trained on by"),
        ("erased_train", "train (erased since), 9 tokens", "trained on by"),
        ("erased_test", "test (erased since), 9 tokens", "measured on by"),
    ],
)
def test_erased_documents_were_trained_or_measured_on_all_the_same(
    split: str, told: str, verb: str
) -> None:
    lines = _dataset(InDataset("d", "f", split, "o", 1, 2, 9, ("m@1",)))
    assert lines[0] == ("d", told)
    assert lines[-1] == (f"  {verb}", "m@1")
