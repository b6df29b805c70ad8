"""Threads that take whole pieces change neither what comes of them nor their order."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from camelpress.inference.streaming.thread_team import ThreadTeam

CPU = torch.device("cpu")


@pytest.fixture
def four() -> Iterator[None]:
    """Four threads an operation, as on a processor with so many cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("most", "device", "size", "each"),
    [(9, "cpu", 4, 1), (2, "cpu", 2, 2), (0, "cpu", 1, 4), (9, "meta", 1, 4)],
)
def test_threads_are_shared_out_over_pieces(
    four: None, most: int, device: str, size: int, each: int
) -> None:
    with ThreadTeam.start(most, torch.device(device)) as crew:
        assert crew.size == size
        told = list(crew.map(lambda _: torch.get_num_threads(), range(9)))
        assert told == [each] * 9
    assert torch.get_num_threads() == 4


def test_what_comes_of_pieces_is_in_their_order_and_has_no_gradient(four: None) -> None:
    meeting = threading.Barrier(4, timeout=30)  # whoever is alone never leaves

    def work(piece: int) -> tuple[int, bool]:
        meeting.wait()
        return piece, torch.is_inference_mode_enabled()

    with ThreadTeam.start(4, CPU) as crew:
        assert list(crew.map(work, range(8))) == [(piece, True) for piece in range(8)]


def test_a_piece_that_fails_ends_the_work(four: None) -> None:
    def work(piece: int) -> int:
        if piece == 1:
            raise ValueError("broken")
        return piece

    with pytest.raises(ValueError, match="broken"), ThreadTeam.start(4, CPU) as crew:
        list(crew.map(work, range(1000)))
    assert torch.get_num_threads() == 4
