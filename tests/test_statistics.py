"""Intervals and paired tests against what is known; tables over seeds."""

import itertools
import math
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats
from meru.evaluation.statistics import *
from meru.evaluation.statistics import _flip_test, _holm, _t_test
from meru.evaluation.statistics import _Interval


def test_interval_is_the_binomials():
    p, n = 0.3, 500
    low, high = interval(torch.arange(n) < p * n)
    wide = 1.96 * math.sqrt(p * (1 - p) / n)
    assert (low, high) == pytest.approx((p - wide, p + wide), abs=0.004)
    assert interval(torch.arange(n), 0) != interval(torch.arange(n), 1)
    with pytest.raises(ValueError, match='at least one'):
        interval(torch.ones(0))
    with pytest.raises(ValueError, match='values must be finite'):
        interval(torch.tensor([0.0, math.nan]))


def test_t_interval_is_scipys():
    values = [0.2, 0.5, 0.4, 0.9]
    ends = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    found = t_interval(values)
    assert found == pytest.approx((0.5, *ends)) and found.leaves_out_zero
    assert _Interval(-1, -2, -0.1).leaves_out_zero and not _Interval(0, 0, 0).leaves_out_zero


def rows(**values):
    "A result for each value and seed; None where a run has no such measure."
    return [
        dict(group='g', name=name, seed=seed, metrics=dict(r=value))
        for name, several in values.items()
        for seed, value in enumerate(several)
    ]


def test_rows_are_paired_by_seed_whatever_their_order():
    results = rows(a=[1.0, 5.0, 3.0], b=[2.0, 6.5, 4.0])
    table = {row.name: row for row in compare_rows(results, 'r', dict(g='a'))}
    assert table['a'].mean == 3 and table['a'].difference is None
    assert table['b'].difference == pytest.approx(t_interval([1.0, 1.5, 1.0]))
    for row in compare_rows(results[::-1], 'r', dict(g='a')):
        assert row[2:5] == pytest.approx(table[row.name][2:5]) and bool(row.difference) == (row.name == 'b')


def test_a_row_without_a_value_is_left_out():
    table = compare_rows(rows(a=[1.0, 2.0], b=[1.0, None]), 'r', dict(g='a'))
    assert [row.name for row in table] == ['a']
    table = compare_rows(rows(a=[1.0, None], b=[1.0, 2.0]), 'r', dict(g='a'))
    assert [(row.name, row.difference) for row in table] == [('b', None)]


def test_drawn_rows_are_filled_where_significant():
    import matplotlib.pyplot as plt

    table = compare_rows(rows(a=[1.0, 5.0, 3.0], b=[2.0, 6.0, 4.1], c=[9.0, 0.0, 4.0]), 'r', dict(g='a'))
    faces = lambda ax: [line.get_markerfacecolor() for line in ax.lines if line.get_marker() == 'o']
    assert faces(plot_rows(table, 'a', plt.subplots()[1], 'score')) == ['white', 'C0', 'white']
    assert faces(plot_rows(table, 'a', plt.subplots()[1], 'score', {'c'})) == ['white', 'white', 'C0']
    plt.close('all')


def test_flips_are_the_exact_test():
    "All sign patterns by hand."
    d = torch.tensor([0.3, -0.1, 0.4, 0.2, 0.25, -0.05])
    signs = torch.tensor(list(itertools.product([-1, 1], repeat=6))).float()
    exact = ((signs @ d).abs() >= d.sum().abs() - 1e-6).double().mean().item()
    assert _flip_test(d, flips=40_000) == pytest.approx(exact, abs=0.01)
    assert _flip_test(-d) == _flip_test(d) and _flip_test(d, seed=1) == pytest.approx(_flip_test(d), abs=0.03)


def test_flips_are_uniform_where_nothing_differs():
    gen = torch.Generator().manual_seed(0)
    p = [_flip_test(torch.randn(60, generator=gen), flips=500) for _ in range(200)]
    assert 0.01 < np.mean(np.array(p) < 0.05) < 0.10 and 0.45 < np.mean(p) < 0.55


def test_drawings_of_a_concept_count_once():
    d, groups = torch.ones(40), torch.arange(40) // 8
    assert _flip_test(d) < 1e-3 and _flip_test(d, groups) == pytest.approx(2 / 32, abs=0.02)


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_by_its_definition(p):
    "The smallest level at which step-down rejection still reaches each test."
    got, ordered = _holm(p), sorted(p)
    steps = [max((len(p) - k) * ordered[k] for k in range(j + 1)) for j in range(len(p))]
    assert sorted(got) == pytest.approx([min(1, x) for x in steps]) and all(a >= b for a, b in zip(got, p))


@settings(max_examples=30)
@given(st.lists(st.integers(-9, 9), min_size=3, max_size=6, unique=True))
def test_t_is_scipys(d):
    assert _t_test([float(x) for x in d]) == pytest.approx(stats.ttest_1samp(d, 0).pvalue)
