"""The order of examples is a pure function of (seed, position), also for sets read in windows."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inkdrop.data.order import Shuffled, Windowed


@given(
    count=st.integers(1, 60),
    window=st.integers(2, 30),
    block=st.integers(1, 9),
    sequential=st.booleans(),
    seed=st.integers(0, 5),
)
def test_every_epoch_holds_every_example_once(count, window, block, sequential, seed):
    order = Windowed(count, seed, window, block, sequential=sequential)
    for epoch in range(3):
        positions = np.arange(epoch * count, (epoch + 1) * count)
        assert sorted(order.indices(positions).tolist()) == list(range(count))


@given(count=st.integers(1, 60), window=st.integers(2, 30), block=st.integers(1, 9))
def test_a_window_has_what_its_positions_need_and_no_more(count, window, block):
    order = Windowed(count, 3, window, block)
    for first in range(0, 2 * count, 7):
        positions = np.arange(first, first + 5)
        keys = order.keys(positions)
        at_hand = np.concatenate([order.members(key) for key in keys])
        assert set(order.indices(positions).tolist()) <= set(at_hand.tolist())
        assert all(len(order.members(key)) <= window for key in keys)
    members = [order.members(key) for key in range(order.windows)]
    assert sorted(np.concatenate(members).tolist()) == list(range(count))


@pytest.mark.parametrize("kind", [Shuffled, lambda n, seed: Windowed(n, seed, 16, 4)])
def test_nothing_depends_on_what_was_asked_before(kind):
    asked = kind(50, 1)
    first = [asked.indices(np.arange(p, p + 9)).tolist() for p in range(0, 300, 9)]
    fresh = kind(50, 1)
    for p in (207, 9, 90, 0):
        assert fresh.indices(np.arange(p, p + 9)).tolist() == first[p // 9]


def test_seeds_and_epochs_have_orders_of_their_own():
    epoch = np.arange(200)
    orders = [
        Windowed(200, seed, 64, 8).indices(epoch + start).tolist()
        for seed in (0, 1)
        for start in (0, 200)
    ]
    assert len({tuple(order) for order in orders}) == 4


def test_blocks_come_from_all_over_the_set_unless_it_is_read_from_its_beginning():
    shuffled = Windowed(10_000, 0, 500, 25)
    assert np.ptp(shuffled.members(0)) > 5000
    in_order = Windowed(10_000, 0, 500, 25, sequential=True)
    assert in_order.members(0).tolist() == list(range(500))
    assert in_order.members(20).tolist() == list(range(500))
    window = in_order.indices(np.arange(500))
    assert sorted(window.tolist()) == list(range(500))
    assert window.tolist() != list(range(500))


def test_a_window_is_read_in_runs_of_neighbours():
    members = Windowed(10_000, 0, 500, 25).members(3)
    runs = 1 + np.count_nonzero(np.diff(members) != 1)
    assert runs <= 500 / 25 + 1


def test_threads_that_ask_for_different_epochs_do_not_disturb_each_other():
    alone = Windowed(5000, 0, 200, 4)
    keys = [alone.windows * epoch + window for window in range(5) for epoch in range(3)]
    known = {key: Windowed(5000, 0, 200, 4).members(key).tolist() for key in keys}
    with ThreadPoolExecutor(4) as pool:
        for key, found in zip(keys * 40, pool.map(alone.members, keys * 40), strict=True):
            assert found.tolist() == known[key]
