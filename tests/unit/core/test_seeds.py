"""Global generators are seeded for a block, and are afterwards what they were."""

from __future__ import annotations

import pytest
import torch

from core.seeds import seeded_globals


def test_inside_the_block_draws_are_those_of_the_seed_and_afterwards_go_on_as_before() -> None:
    torch.manual_seed(7)
    expected = torch.rand(4)
    torch.manual_seed(1)
    first, second = torch.rand(2), torch.rand(2)
    torch.manual_seed(1)
    before = torch.rand(2)
    with seeded_globals(7):
        inside = torch.rand(4)
    assert torch.equal(inside, expected)
    assert torch.equal(before, first)
    assert torch.equal(torch.rand(2), second)


def test_they_are_restored_where_the_block_fails() -> None:
    def fail() -> None:
        with seeded_globals(7):
            torch.rand(4)
            raise RuntimeError("inside")

    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_so_are_those_of_the_gpu_in_use() -> None:
    torch.cuda.manual_seed(7)
    expected = torch.rand(4, device="cuda")
    state = torch.cuda.get_rng_state()
    with seeded_globals(7):
        inside = torch.rand(4, device="cuda")
    assert torch.equal(inside, expected)
    assert torch.equal(torch.cuda.get_rng_state(), state)
