"""Records of numbers, and the flat files that they are kept in."""

import json
import pytest
from hypothesis import given, strategies as st
from meru.evaluation.measures import *
from meru.evaluation.measures import _flatten, _quantities, _unflatten
from meru.evaluation.protocol import Protocol
from conftest import ROOT

COMMITTED = sorted((ROOT / 'outputs' / 'reference').glob('*/metrics.json'))


@pytest.mark.parametrize('path', COMMITTED, ids=lambda p: p.parent.name)
def test_committed_files_are_read_and_written_unchanged(path):
    saved = json.loads(path.read_text())
    measures = _unflatten(saved)
    assert _flatten(measures) == saved and _unflatten(_flatten(measures)) == measures
    assert {m.model for m in measures} <= {'', 'untrained', 'pixel'}


def test_a_committed_run_by_hand():
    saved = json.loads((ROOT / 'outputs/reference/demo/metrics.json').read_text())
    demo = _unflatten(saved)
    assert demo.find('top1', 'style', 'pixel') == Measure(
        *('style', 'top1', saved['pixel_style_top1'], 1 / 1919),
        *(saved['pixel_style_top1_low'], saved['pixel_style_top1_high'], 'pixel'),
    )
    assert demo.find('top5', 'concept').chance == pytest.approx(5 / 192)
    assert demo.find('per_class', 'concept_all').chance == pytest.approx(1 / 1919)
    assert demo.find('image_to_text_r5').chance == saved['image_to_text_r5_chance']
    assert demo.find('chain_tau', model='untrained').chance == 0 and demo.find('cone_auc').chance == 0.5
    assert demo.value('id', 'test_style') == saved['test_style_id'] and demo.value('damaged') == 0
    assert demo.value('cone_own_name') == saved['cone_own_name'] and demo.value('cone_own_name', 'style') is None


names = st.sampled_from(list(_quantities))
datasets = st.sampled_from(['', 'birds', 'my_photos', 'concept_all', 'a_top', 'cifar10_test_32'])
models = st.sampled_from(['', 'untrained', 'pixel'])
numbers = st.floats(0, 1, allow_subnormal=False)


@given(st.lists(st.tuples(datasets, names, numbers, models), unique_by=lambda t: (t[0], t[1], t[3])))
def test_every_record_comes_back(found):
    measures = Measures()
    for dataset, name, value, model in found:
        quantity = _quantities[name]
        chance = quantity.chance if quantity.chance is not None else min(1.0, quantity.guesses / 7) or None
        measures.append(Measure(dataset, name, value, chance, value / 2, value, model, Protocol().of(name)))
    again = _unflatten(_flatten(measures))
    assert [m._replace(chance=None) for m in again] == [m._replace(chance=None) for m in measures]


def test_chance_of_a_classification_is_saved_once():
    several = [
        Measure('birds', 'top1', 0.5, 0.1),
        Measure('birds', 'top5', 0.9, 0.5),
        Measure('birds', 'per_class', 0.4, 0.1),
    ]
    assert _flatten(several) == dict(birds_top1=0.5, birds_top5=0.9, birds_per_class=0.4, birds_chance=0.1)
    assert _unflatten(_flatten(several)) == several


def test_what_is_not_known_keeps_its_key():
    saved = dict(checkpoint='last', checkpoint_sha256='ab', untrained_strange=1.0, seen_low=3)
    assert _flatten(_unflatten(saved)) == saved
    assert _unflatten(saved).value('strange', model='untrained') == 1.0


def test_a_measure_is_found_by_all_of_its_names():
    measures = Measures(
        [Measure('a', 'top1', 0.1), Measure('a', 'top1', 0.2, model='pixel'), Measure('', 'top1', None)]
    )
    assert measures.value('top1', 'a') == 0.1 and measures.value('top1', 'a', 'pixel') == 0.2
    assert measures.find('top1').value is None and measures.find('top1', 'b') is None
    assert (measures + [Measure('b', 'top1', 0.3)]).labelled(dataset='c').datasets() == ['c']


def test_names_of_the_tree_are_read_back():
    "Whose, of which texts, and what; and files of before, which have none of them, are read as ever."
    from meru.evaluation.measures import _flatten, _unflatten, Measure, Measures

    taken = Measures(
        [
            Measure('style', 'chain_ap', 0.5, 0.005, 0.4, 0.6),
            Measure('unseen', 'text_chain_ap', 0.4, 0.004),
            Measure('', 'text_chain_ap', 0.3, 0.004, model='untrained'),
            Measure('shuffled', 'whole_chain_first', 0.0, 1e-5),
            Measure('', 'below_map', 0.9, 0.02),
            Measure('', 'below_map_cone_angle', 0.8, 0.02),
            Measure('', 'below_by', 'detour'),
            Measure('concept', 'radius_error_auc', None, 0.5),
        ]
    )
    assert _unflatten(_flatten(taken)) == taken
    old = dict(style_top1=0.5, style_chance=0.01, chain_tau=0.7, untrained_cone_auc=0.5)
    assert [(m.dataset, m.name, m.model) for m in _unflatten(old)] == [
        ('style', 'top1', ''),
        ('', 'chain_tau', ''),
        ('', 'cone_auc', 'untrained'),
    ]
