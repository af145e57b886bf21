"""A short form of `tests/fuzz.py`."""

from functools import cache
import pytest
from hypothesis import given, settings, strategies as st
import fuzz

target = cache(lambda name: fuzz.TARGETS[name]())
QUICK = 'pictures tars tables json_files checkpoints released_files'.split()


@pytest.mark.parametrize('name', QUICK)
@given(number=st.integers(0, 10**9))
@settings(max_examples=150)
def test_every_input_ends_in_a_result_or_one_named_error(name, number, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / 'fuzz'
    folder.mkdir(exist_ok=True)
    assert fuzz.one_input(target(name), number, folder) in ('read', 'refused')


@pytest.mark.parametrize('name', QUICK)
def test_whole_files_are_read(name, tmp_path):
    "The target can say yes: what nothing was done to is read, but for the lines that are wrong from the start."
    outcomes = [target(name).check(data, tmp_path) for data in target(name).seeds]
    assert 'read' in outcomes and (name == 'json_files' or set(outcomes) == {'read'})


def test_a_fault_would_be_found(tmp_path):
    "The harness can say no."

    def breaks(data, folder):
        raise KeyError('surprise')

    with pytest.raises(KeyError):
        fuzz.one_input(fuzz.Target([b'abc'], breaks), 0, tmp_path)
