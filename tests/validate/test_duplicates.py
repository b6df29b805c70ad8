"""Pieces that repeat another count with it; pieces that merely resemble it do not."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from camelpress.validate.corpus.duplicates import merge_duplicates
from camelpress.validate.corpus.protocols import TokenWindow
from camelpress.validate.scoring.scored_positions import ScoredPositions

SEED = 3


def ids(seed: int, length: int = 100, words: int = 5000) -> list[int]:
    draw = random.Random(seed)  # noqa: S311
    return [draw.randrange(words) for _ in range(length)]


def window(tokens: list[int], piece: int, start: int = 1) -> TokenWindow:
    return TokenWindow(tokens, [place >= start for place in range(len(tokens))], piece)


def pieces(*texts: list[int]) -> int:
    """How many independent pieces some documents are."""
    windows = [window(tokens, number) for number, tokens in enumerate(texts)]
    return len({*merge_duplicates(windows, range(len(windows)))})


def test_the_same_row_three_hundred_times_is_one_piece() -> None:
    assert pieces(*[ids(1)] * 300) == 1
    assert pieces(*[ids(1)] * 299, ids(2)) == 2


def test_copies_among_others_are_joined_and_the_others_are_not() -> None:
    texts = [ids(seed) for seed in range(40)]
    assert pieces(*texts) == 40
    assert pieces(*texts, *texts[:25], *texts[:10]) == 40


def test_a_beginning_of_a_piece_is_joined_whichever_comes_first() -> None:
    whole = ids(1, 400)
    assert pieces(whole, whole[:150]) == pieces(whole[:150], whole) == 1


def test_a_longer_piece_that_begins_as_another_is_one_of_its_own() -> None:
    assert pieces(ids(1, 60), ids(1, 60) + ids(2, 40), ids(3, 100)) == 2
    longer = ids(1, 60) + ids(2, 400)
    assert pieces(longer, ids(1, 60) + ids(4, 400)) == 2


@pytest.mark.parametrize("place", [0, 50, 99])
def test_a_changed_word_makes_no_new_piece(place: int) -> None:
    changed = ids(1)
    changed[place] = 9999
    assert pieces(ids(1), changed) == 1


@pytest.mark.parametrize("length", [40, 60, 100])
def test_a_number_before_or_behind_a_row_makes_no_new_piece(length: int) -> None:
    row = ids(1, length)
    assert pieces(*([6000 + number, 5, *row] for number in range(300))) == 1
    assert pieces(*([*row, 5, 6000 + number] for number in range(300))) == 1
    assert pieces(*([6000 + number, *ids(number, length)] for number in range(300))) == 300


def test_the_same_rows_cut_elsewhere_are_one_piece() -> None:
    """A text that is one paragraph again and again, in windows that are no multiple of it."""
    rows = ids(1, 37) * 60
    windows = [
        window(rows[start : start + 128], number)
        for number, start in enumerate(range(0, len(rows) - 128, 128))
    ]
    assert len({*merge_duplicates(windows, range(len(windows)))}) == 1


def test_a_short_frame_around_other_words_joins_nothing() -> None:
    frame = ids(1, 20)
    assert pieces(*(frame + ids(seed, 30) + frame for seed in range(2, 30))) == 28


def test_only_what_is_scored_is_compared() -> None:
    """A long prompt before answers of their own."""
    prompt = ids(1, 300)
    windows = [window(prompt + ids(seed, 40), seed, start=300) for seed in range(20)]
    assert len({*merge_duplicates(windows, range(20))}) == 20


def test_short_pieces_are_compared_with_their_beginnings() -> None:
    assert pieces([1, 2], [1, 3], [1, 2]) == 2
    assert pieces([1, 5, 6], [2, 5, 6]) == 2


def test_documents_of_many_windows_are_compared_as_a_whole() -> None:
    """A page that all documents end with joins none of them."""
    windows, numbers = [], []
    for number in range(8):
        for part in [*(ids(100 * number + 7 + place) for place in range(3)), ids(1)]:
            windows.append(window(part, number))
            numbers.append(number)
    assert len({*merge_duplicates(windows, numbers)}) == 8
    assert (
        len({*merge_duplicates(windows + windows, [*numbers, *(each + 8 for each in numbers)])})
        == 8
    )


def test_copies_of_what_resembles_others_are_joined() -> None:
    """Texts of few words, which have turns of phrase in common with each other."""
    texts = [ids(seed, 60, words=3) for seed in range(30)]
    assert pieces(*texts) == 30
    assert pieces(*texts, *texts[:20]) == 30


def test_a_changed_copy_is_joined_though_part_of_it_stands_elsewhere() -> None:
    page = ids(1, 60)
    one, other = page + ids(2, 140), page + ids(3, 160)
    changed = [*one[:-1], 9999]
    assert pieces(other, one) == 2
    assert pieces(other, one, changed) == 2


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30))
def test_there_are_as_many_pieces_as_texts_that_differ(seeds: list[int]) -> None:
    assert pieces(*(ids(seed, 30 + 10 * seed) for seed in seeds)) == len({*seeds})


def test_places_have_the_joined_clusters_across_texts() -> None:
    first = [window(ids(seed), seed) for seed in range(3)]
    second = [window(ids(1), 0), window(ids(9), 1)]
    places = ScoredPositions.from_windows([first, second])
    assert len(places.cluster.unique()) == 4
    by_window = {
        number: set(places.cluster[places.window == number].tolist())
        for number in places.window.unique().tolist()
    }
    assert by_window[1] == by_window[3] and len(by_window[1]) == 1
    assert torch.equal(places.window.unique(), torch.arange(5))
