"""Images that an index reads again, after any additions and removals."""

from __future__ import annotations

import torch

from lpips_fast.search.sources import Joined, Slices, as_source


def numbered(first, count):
    """Images that tell their number."""
    return (first + torch.arange(count)).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).float()


def numbers(source, rows):
    return [None if image is None else image[0, 0, 0].item() for image in source.read(rows)]


class Gone:
    """A source whose image 1 is gone."""

    def read(self, rows):
        return [None if row == 1 else torch.full((3, 2, 2), 100.0 + row) for row in rows]


def test_slices():
    source = as_source(numbered(5, 4))
    assert isinstance(source, Slices)
    assert numbers(source, [3, 0, 0]) == [8, 5, 5]
    assert as_source(source) is source


def test_a_sequence_that_has_read_is_a_sequence():
    class Dataset(list):
        def read(self):
            raise NotImplementedError

    assert isinstance(as_source(Dataset()), Slices)


def test_joined_and_selected():
    joined = Joined.of(as_source(numbered(0, 4)), 4)
    assert Joined.of(joined, 4) is joined
    joined = joined.joined(Joined.of(Gone(), 3))
    assert numbers(joined, [*range(7)]) == [0, 1, 2, 3, 100, None, 102]
    kept = joined.selected(torch.tensor([6, 3, 5]))
    assert numbers(kept, [2, 0, 1]) == [None, 102, 3]
    more = kept.joined(joined.selected(torch.tensor([0])))
    assert numbers(more, [3, 0]) == [0, 102]
    assert numbers(more, []) == []


def test_sources_that_are_not_needed_are_let_go():
    joined = Joined.of(as_source(numbered(0, 2)), 2)
    for i in range(5):
        joined = joined.selected(torch.tensor([0])).joined(Joined.of(as_source(numbered(10 * i, 1)), 1))
        assert len(joined._sources) == 2
    assert numbers(joined, [0, 1]) == [0, 40]
