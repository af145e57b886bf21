"""Who is timed takes turns, and who is weighed has a process of his own."""

import time
import pytest
import torch
from meru.benchmarks.timing import (
    _by_turns,
    _in_new_process,
    _median_range,
    _peak_memory,
    _rates,
    _time_ratios,
    _torch_threads,
    _wall_and_core,
)


def test_the_first_round_is_not_counted_and_peers_take_turns():
    calls = []
    took = _by_turns(
        dict(a=lambda: calls.append('a') or (len(calls) < 2 and sum(range(3_000_000))), b=lambda: calls.append('b')),
        reps=3,
    )
    assert ''.join(calls) == 'abababab' and all(len(v) == 3 for v in took.values()) and max(took['a']) < 0.02


def test_sleep_is_not_work():
    assert max(_by_turns(dict(s=lambda: time.sleep(0.05)), 1)['s']) < 0.04


def test_rates_by_hand():
    found = _rates(dict(ours=[1.0, 2.0, 4.0], theirs=[4.0, 4.0, 8.0]), 8)
    assert found['per_second']['ours'] == dict(median=4.0, low=2.0, high=8.0)
    assert found['ratio']['theirs'] == dict(median=2.0, low=2.0, high=4.0)


def test_memory_is_that_of_a_new_process():
    ballast = torch.ones(200_000_000)  # 800 MB that the other process must not have
    here = _peak_memory()
    assert _in_new_process(_peak_memory) < here - ballast.nbytes / 2


def test_ratios_are_taken_within_a_round():
    "A machine half as fast in the second round changes no ratio."
    assert _time_ratios(dict(ours=[1.0, 2.0], other=[3.0, 6.0]))['other'] == dict(median=3.0, low=3.0, high=3.0)
    assert _median_range([1.0, 2.0, 10.0]) == dict(median=2.0, low=1.0, high=10.0)


def test_waiting_shows_on_the_wall_clock_alone():
    times = _wall_and_core(dict(works=lambda: sum(range(300_000)), waits=lambda: time.sleep(0.03)), reps=3)
    assert times['ms']['waits']['median'] >= 30 and times['core']['ratio']['waits']['median'] < 0.5


def test_threads_are_given_back_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), _torch_threads(before + 2):
        assert torch.get_num_threads() == before + 2
        raise KeyError
    assert torch.get_num_threads() == before
