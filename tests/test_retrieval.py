"""Retrieval: ranks against sorting, ties, several captions, memory, exact search, the pixel control."""

import math
import pytest
import torch
from hypothesis import given, settings, strategies as st
from meru.geometry import geometries, get_geometry
from meru.search.exact import *
from meru.evaluation.measures import *
from meru.evaluation.measures import _flatten
from meru.evaluation.retrieval import *
from meru.evaluation.retrieval import _pixel_scores, _recall
from meru.evaluation.retrieval import _chance_recall, _pixel_features

c = torch.tensor(0.7)


def points(geometry, n, d=6, seed=0, size=1.0):
    return geometry.exp_map0(size * torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), c)


@pytest.mark.parametrize('name', geometries)
@pytest.mark.parametrize('budget', [1, 100, 2**22])
def test_ranks_equal_the_place_in_a_sorted_list(name, budget):
    g = get_geometry(name)
    images, texts, owner = points(g, 30), points(g, 100, seed=1), torch.arange(100) % 30
    for q, x, qi, xi in [(images, texts, torch.arange(30), owner), (texts, images, owner, torch.arange(30))]:
        order = g.scores(q, x, c).argsort(descending=True)
        slow = [xi[o].tolist().index(i) + 1 for o, i in zip(order, qi.tolist())]
        assert retrieval_ranks(g, q, x, qi, xi, c, budget).tolist() == slow


def test_paired_distance_gives_the_same_ranks():
    g = get_geometry('lorentz')
    a, b = points(g, 40).double(), points(g, 40, seed=1).double()
    d = torch.stack([g.dist(x[None], b, c.double()) for x in a])
    slow = (d < d.diagonal()[:, None]).sum(1) + 1
    assert torch.equal(retrieval_ranks(g, a, b, torch.arange(40), torch.arange(40), c.double()), slow)


@pytest.mark.parametrize('name', geometries)
def test_collapsed_model_finds_nothing(name):
    g = get_geometry(name)
    same = points(g, 1).expand(20, -1).contiguous()
    res = _flatten(retrieval_metrics(g, same, same, torch.arange(20), torch.arange(20), c))
    for way in ('image_to_text', 'text_to_image'):
        assert [res[f'{way}_r{k}'] for k in (1, 5, 10)] == [0, 0, 0] and res[f'{way}_median_rank'] == 20
        assert res[f'{way}_r5_chance'] == pytest.approx(5 / 20)


@pytest.mark.parametrize('name', [n for n, g in geometries.items() if g.has_dist])  # x·y prefers longer vectors to x
def test_perfect_model_finds_everything(name):
    g = get_geometry(name)
    x = points(g, 20)
    res = _flatten(retrieval_metrics(g, x, x.repeat(5, 1), torch.arange(20), torch.arange(20).repeat(5), c))
    assert res['image_to_text_r1'] == res['text_to_image_r1'] == 1 and res['image_to_text_candidates'] == 100
    assert res['image_to_text_r1_low'] == 1 and res['image_to_text_queries'] == 20


def test_own_captions_do_not_push_each_other_down():
    "An image with five captions on the second to sixth place has rank 2, not 6."
    g = get_geometry('euclidean')
    image = torch.zeros(1, 2)
    texts = torch.tensor([[0.1, 0], [0.2, 0], [0.3, 0], [0.4, 0]])
    assert retrieval_ranks(g, image, texts, torch.tensor([7]), torch.tensor([1, 7, 7, 7]), c).tolist() == [2]


def test_median_rank_and_chance_of_uneven_owners():
    "On a line: queries at 0, 10 and 20; the texts of the third image lie far off."
    g = get_geometry('euclidean')
    images, texts = torch.tensor([[0.0], [10.0], [20.0]]), torch.tensor([[1.0], [9.0], [100.0], [101.0]])
    res = _flatten(retrieval_metrics(g, images, texts, torch.arange(3), torch.tensor([0, 1, 2, 2]), c))
    assert res['image_to_text_median_rank'] == 1 and res['image_to_text_r1'] == pytest.approx(2 / 3)
    assert retrieval_ranks(g, images, texts, torch.arange(3), torch.tensor([0, 1, 2, 2]), c).tolist() == [1, 1, 3]
    assert res['image_to_text_r1_chance'] == pytest.approx((1 + 1 + 2) / 4 / 3)
    assert res['text_to_image_r1_chance'] == pytest.approx(1 / 3)
    far = _flatten(retrieval_metrics(g, images, texts, torch.tensor([2, 0, 1]), torch.tensor([0, 1, 2, 2]), c))
    assert (
        far['image_to_text_median_rank']
        == torch.tensor(
            retrieval_ranks(g, images, texts, torch.tensor([2, 0, 1]), torch.tensor([0, 1, 2, 2]), c).tolist()
        )
        .double()
        .median()
    )


def test_ids_may_be_64_bit_hashes():
    g = get_geometry('lorentz')
    ids = torch.tensor([2**62 + 1, -(2**62), 5])
    x = points(g, 3)
    assert retrieval_ranks(g, x, x, ids, ids, c).tolist() == [1, 1, 1]
    res = _flatten(retrieval_metrics(g, x, x, ids, ids, c))
    assert res['image_to_text_r1_chance'] == pytest.approx(1 / 3)


def test_a_caption_without_its_image_is_named():
    g = get_geometry('lorentz')
    with pytest.raises(ValueError, match='1 of 3 queries have no partner .* row 2 with id 9'):
        retrieval_ranks(g, points(g, 3), points(g, 2), torch.tensor([0, 1, 9]), torch.tensor([0, 1]), c)


def test_nan_rows_are_named():
    g, x = get_geometry('lorentz'), points(get_geometry('lorentz'), 4)
    bad = x.clone()
    bad[2] = math.nan
    for a, b, what in [(bad, x, 'query'), (x, bad, 'gallery')]:
        with pytest.raises(ValueError, match=f'{what} points .* row 2'):
            retrieval_ranks(g, a, b, torch.arange(4), torch.arange(4), c)
        with pytest.raises(ValueError, match=f'{what} points .* row 2'):
            nearest(g, a, b, c, 1)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.data())
def test_chance_is_what_random_orders_give(n, data):
    right, k = data.draw(st.integers(1, n)), data.draw(st.integers(1, n + 2))
    expected = 1 - math.comb(n - right, min(k, n)) / math.comb(n, min(k, n))
    assert _chance_recall(torch.tensor([right]), n, k) == pytest.approx(expected)


def test_recall_counts_up_to_k():
    ranks = torch.tensor([1, 5, 6, 10, 11])
    assert [_recall(ranks, k) for k in (1, 5, 10)] == [0.2, 0.4, 0.8]


@pytest.mark.parametrize('curv', [0.1, 1.0, 5.0])
def test_exact_search_is_an_inner_product(curv):
    g, k = get_geometry('lorentz'), torch.tensor(curv).double()
    a, b = (g.exp_map0(torch.randn(50, 8, generator=torch.Generator().manual_seed(s)).double(), k) for s in (0, 1))
    product = g.query_vectors(a, k) @ g.gallery_vectors(b, k).T
    assert product.shape == (50, 50) and g.query_vectors(a, k).shape == (50, 9)
    torch.testing.assert_close((-k * product).acosh() / k.sqrt(), torch.stack([g.dist(x[None], b, k) for x in a]))
    assert torch.equal(product.topk(5).indices, nearest(g, a, b, k, 5))
    # the sign belongs to the query alone: without it another order comes out
    assert not torch.equal(
        (g.gallery_vectors(a, k) @ g.gallery_vectors(b, k).T).topk(5).indices, nearest(g, a, b, k, 5)
    )


@pytest.mark.parametrize('k', [0, 4])
def test_k_out_of_range(k):
    g = get_geometry('sphere')
    with pytest.raises(ValueError, match=r'1\.\.3'):
        nearest(g, points(g, 2), points(g, 3), c, k)


def test_pixels():
    g = torch.Generator().manual_seed(0)
    train = torch.randint(256, (30, 3, 32, 32), generator=g, dtype=torch.uint8)
    labels = torch.randint(5, (30,), generator=g)
    n = int(labels.max()) + 1
    assert torch.equal(_pixel_scores(train, labels, train, n).argmax(1), labels)  # each its own nearest
    noisy = (train.int() + torch.randint(-9, 9, train.shape, generator=g)).clamp(0, 255).to(torch.uint8)
    scores = _pixel_scores(train, labels, noisy, 7)
    x, y = _pixel_features(noisy), _pixel_features(train)
    slow = torch.stack([(x[:, None] * y[labels == k][None]).sum(-1).amax(1) for k in range(5)], 1)
    torch.testing.assert_close(scores[:, :5], slow, atol=1e-5, rtol=1e-5)
    assert (scores[:, 5:] < scores[:, :5].amin()).all() and scores.isfinite().all()


def test_pixel_features_are_averaged_and_correlate():
    image = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    image[0, 0, :2, :2] = 255
    v = torch.tensor([[1.0] + [0] * 11]) - 1 / 12
    torch.testing.assert_close(_pixel_features(image, 2), v / v.norm())
    brighter = torch.randint(100, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(_pixel_features(2 * brighter + 50), _pixel_features(brighter), atol=1e-5, rtol=1e-4)
