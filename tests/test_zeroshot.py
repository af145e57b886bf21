"""Zero-shot classification: counts with ties and NaN, prompts, parents, a probe."""

import math
import pytest
import torch
from hypothesis import given, settings, strategies as st
from meru.geometry import geometries, get_geometry
from meru.core import *
from meru.models.model import *
from meru.evaluation.measures import *
from meru.evaluation.measures import _flatten
from meru.evaluation.statistics import *
from meru.evaluation.zeroshot import *
from meru.evaluation.zeroshot import _best_rank, _class_points, _linear_probe, _probe_metrics, _split_halves
from meru.evaluation.zeroshot import _fill, _mean_per_class, _parent_index

c = torch.tensor(1.0)


class Fake(torch.nn.Module):
    "A model of known vectors: text k is row k of a table, an image is its mean colour."

    def __init__(self, geometry, d=3):
        super().__init__()
        self.geometry = get_geometry(geometry)
        self.table = torch.nn.Parameter(torch.randn(64, d, generator=torch.Generator().manual_seed(0)))
        self.log_curv = torch.nn.Parameter(torch.tensor(0.3))

    curv = property(lambda self: self.log_curv.exp())

    def project_text(self, tokens):
        return self.table[tokens[:, 0]]

    def lift_text(self, v):
        return self.geometry.exp_map0(v * 0.5, self.curv)

    def encode_text(self, tokens):
        return self.lift_text(self.project_text(tokens))

    def encode_image(self, x):
        return self.geometry.exp_map0(x.float().mean((2, 3)), self.curv)


def tokenizer(texts):
    return torch.tensor([[sum(map(ord, t)) % 64] for t in texts])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(2, 9), st.integers(0, 10**6), st.integers(1, 4))
def test_rank_is_the_pessimistic_place_in_a_sorted_list(b, n, seed, values):
    g = torch.Generator().manual_seed(seed)
    scores = torch.randint(values, (b, n), generator=g).float()  # few values: many ties
    positive = torch.rand(b, n, generator=g) < 0.4
    positive[:, 0] = True
    got = _best_rank(scores, positive)
    for s, p, r in zip(scores.tolist(), positive.tolist(), got.tolist()):
        order = sorted(range(n), key=lambda i: (-s[i], p[i]))  # among equals the wrong ones first
        first = next(k for k, i in enumerate(order) if p[i])
        assert r == 1 + first


def test_constant_scores_win_nothing():
    res = _flatten(
        classification_metrics(torch.zeros(20, 7), torch.arange(20) % 7, {'kind': torch.tensor([0, 0, 0, 1, 1, 2, 2])})
    )
    assert (res['top1'], res['top5'], res['per_class'], res['kind']) == (0, 0, 0, 0)


def test_nan_is_refused_not_first():
    scores = torch.zeros(3, 4)
    scores[1, 2] = math.nan
    with pytest.raises(ValueError, match='1 of 3 rows hold NaN or infinity: row 1'):
        classification_metrics(scores, torch.zeros(3).long())
    with pytest.raises(ValueError, match='image points .* owl, rat'):
        check_finite(torch.tensor([[0.0], [math.inf], [math.nan]]), ['cat', 'owl', 'rat'], 'image points')
    with pytest.raises(ValueError, match=r'7 of 9 rows .*row 0, row 1, row 2, row 3, row 4, \.\.\.'):
        check_finite(torch.tensor([math.nan] * 7 + [0.0] * 2))
    with pytest.raises(ValueError, match='row 3, row 4$'):
        check_finite(torch.full((5,), math.nan))


def test_encoders_name_the_text_that_breaks():
    model = Fake('lorentz')
    with torch.no_grad():
        model.table[tokenizer(['dog'])[0, 0]] = math.nan
    for f in (encode_texts, lambda m, t, x: _class_points(m, t, x, ['{}'])):
        with pytest.raises(ValueError, match='1 of 3 .*dog'):
            f(model, tokenizer, ['cat', 'dog', 'owl'])


def test_hand_worked_classification():
    scores = torch.tensor([[3.0, 2, 1, 0], [3, 2, 1, 0], [0, 1, 2, 3], [0, 3, 2, 1]])
    res = _flatten(classification_metrics(scores, torch.tensor([0, 1, 0, 1]), {'half': torch.tensor([0, 0, 1, 1])}))
    assert res['top1'] == 2 / 4 and res['per_class'] == 2 / 4 and res['half'] == 3 / 4
    assert res['chance'] == 1 / 4 and res['half_chance'] == 1 / 2 and res['top5'] == 1
    assert res['top1_low'] <= res['top1'] <= res['top1_high']
    assert all(isinstance(v, (int, float)) for v in res.values())


def test_top5_ends_at_five():
    scores = torch.arange(8.0).flip(0).expand(8, -1)
    assert classification_metrics(scores, torch.arange(8)).value('top5') == 5 / 8


def test_per_class_differs_from_plain_where_classes_are_uneven():
    hits, targets = torch.tensor([1.0, 1, 1, 0]), torch.tensor([0, 0, 0, 5])
    assert _mean_per_class(hits, targets) == 0.5


@pytest.mark.parametrize('bad', [-1, 4])
def test_class_index_out_of_range(bad):
    with pytest.raises(ValueError, match=r'0\.\.3'):
        classification_metrics(torch.rand(2, 4), torch.tensor([0, bad]))


def test_coarse_level_of_right_answers_is_right():
    g = torch.Generator().manual_seed(0)
    scores, targets = torch.rand(300, 12, generator=g), torch.randint(12, (300,), generator=g)
    fine, coarse = torch.arange(12) // 2, torch.arange(12) // 6
    res = _flatten(classification_metrics(scores, targets, dict(fine=fine, coarse=coarse)))
    assert res['top1'] < res['fine'] < res['coarse']
    predicted = scores.argmax(1)  # no ties here: the same as looking up the parent of the named class
    assert res['fine'] == pytest.approx((fine[predicted] == fine[targets]).double().mean().item())


def test_prompts():
    assert _fill(['a', 'b'], ['{}', 'x {}']) == ['a', 'x a', 'b', 'x b']
    for bad in ('no place', '{} and {}'):
        with pytest.raises(ValueError, match='must hold one'):
            _fill(['a'], [bad])
    assert _fill(['{x} 100%'], ['a {}']) == ['a {x} 100%']
    assert all(t.count('{}') == 1 for t in templates)


@pytest.mark.parametrize('name', geometries)
def test_ensemble_is_averaged_before_the_lift(name):
    model, prompts = Fake(name), ['{}', 'a {}', '{}!']
    got = _class_points(model, tokenizer, ['cat', 'dog'], prompts)
    with torch.no_grad():
        for row, word in zip(got, ['cat', 'dog']):
            v = model.table[tokenizer([p.format(word) for p in prompts])[:, 0]]
            if name == 'sphere':
                v = torch.nn.functional.normalize(v, dim=-1)
            torch.testing.assert_close(row, model.lift_text(v.mean(0)))
            if name == 'lorentz':
                assert not torch.allclose(row, model.lift_text(v).mean(0), atol=1e-3)


def test_batches_do_not_matter():
    model, texts = Fake('poincare'), [f'text {i}' for i in range(10)]
    whole = encode_texts(model, tokenizer, texts)
    assert torch.equal(
        whole, torch.cat([encode_texts(model, tokenizer, texts[:3]), encode_texts(model, tokenizer, texts[3:])])
    )
    images = (
        torch.randint(256, (600, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).float() / 255
    )
    torch.testing.assert_close(
        encode_images(model, images), torch.cat([encode_images(model, images[i : i + 1]) for i in range(600)])
    )


def test_model_comes_back_in_its_mode():
    for mode in (True, False):
        model = Fake('lorentz').train(mode)
        assert not encode_texts(model, tokenizer, ['a']).requires_grad and model.training == mode
        with pytest.raises(RuntimeError):
            with evaluating(model):
                raise RuntimeError
        assert model.training == mode and torch.is_grad_enabled()


def test_parents():
    index, parents = _parent_index(['cat', 'rose', 'dog'], dict(cat='animal', dog='animal', rose='plant', fern='plant'))
    assert index.tolist() == [0, 1, 0] and parents == ['animal', 'plant']
    with pytest.raises(KeyError, match="2 of 3 .*'wasp'"):
        _parent_index(['cat', 'wasp', 'bee'], dict(cat='animal'))


@pytest.mark.parametrize('seed', range(3))
def test_probe_finds_what_is_there_and_no_more(seed):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(300) % 5
    hidden = torch.randn(8, 8, generator=rng) * 50 + 3  # features in no scale that suits anybody
    clear = (torch.nn.functional.one_hot(labels, 8) + 0.05 * torch.randn(300, 8, generator=rng)) @ hidden
    fit, test = _split_halves(labels)
    assert (_linear_probe(clear[fit], labels[fit], clear[test], 5).argmax(1) == labels[test]).all()
    noise = torch.randn(300, 8, generator=rng)
    hits = (_linear_probe(noise[fit], labels[fit], noise[test], 5).argmax(1) == labels[test]).double().mean()
    assert hits < 0.4
    again = _linear_probe(clear[fit], labels[fit], clear[test], 5)
    assert torch.equal(again, _linear_probe(clear[fit], labels[fit], clear[test], 5)) and again.dtype == torch.float64


def test_probe_by_hand():
    "Two points, one feature: by symmetry the bias is 0 and the rows of W are w and -w."
    x, y = torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1])
    scores = _linear_probe(x, y, x, 2)
    w = (scores[1, 1] - scores[1, 0]).item() / 2  # w_1 = -w_0 = w
    # d/dw of 2 log(1 + exp(-2 w)) + w² (two classes, each w²/2) = 0
    assert w == pytest.approx(2 / (1 + math.exp(2 * w)), abs=1e-6)
    assert scores[0, 0].item() == pytest.approx(scores[1, 1].item(), abs=1e-6)


def test_probe_strength_unseen_classes_and_hostile_input():
    x, y = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2 * 2
    scores = _linear_probe(x, y, x, 4)
    assert scores[:, [1, 3]].eq(-torch.inf).all() and scores[:, [0, 2]].isfinite().all()
    weak = _linear_probe(x, y, x, 4, strength=1e6)[:, [0, 2]]
    assert (weak[:, 0] - weak[:, 1]).abs().max() < 0.01
    assert (
        _linear_probe(torch.ones(4, 3), torch.tensor([0, 0, 1, 1]), torch.ones(2, 3), 2).isfinite().all()
    )  # features that say nothing
    with pytest.raises(ValueError, match='above 0'):
        _linear_probe(x, y, x, 4, strength=0.0)
    with pytest.raises(ValueError, match='NaN'):
        _linear_probe(x, y, x.index_fill(0, torch.tensor([3]), math.nan), 4)


def test_halves_of_each_class():
    targets = torch.tensor([2, 0, 2, 2, 1, 2])
    fit, test = _split_halves(targets)
    assert sorted(fit.tolist() + test.tolist()) == list(range(6))
    assert torch.bincount(targets[fit]).tolist() == [1, 1, 2] and targets[test].tolist() == [2, 2]


def test_probe_metrics_by_hand():
    res = _flatten(_probe_metrics(torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]]), torch.tensor([0, 0, 0, 0])))
    assert res == dict(probe_top1=0.75, probe_per_class=0.75, probe_images=4)
    res = _flatten(_probe_metrics(torch.tensor([[1.0, 0], [1, 0], [1, 0], [1, 0]]), torch.tensor([0, 0, 0, 1])))
    assert res == dict(probe_top1=0.75, probe_per_class=0.5, probe_images=4)
