"""Hierarchy: every measure on something small enough to work by hand."""

import json
import math
import pytest
import torch
from hypothesis import given, settings, strategies as st
from meru.geometry import geometries, get_geometry
from meru.evaluation.hierarchy import *
from meru.evaluation.hierarchy import _word_tree_metrics
from meru.evaluation.measures import _flatten
from meru.models.taxonomy import ancestors
from meru.evaluation.hierarchy import (
    _ConeRates,
    _containment_metrics,
    _path_metrics,
    _paths_to_root,
    _all_distances,
    _ancestor_overlap,
    _chain_values,
    _kin_recall,
    _nearest_is_own,
    _passes_common,
    _radius_error_auc,
    _ranking_agreement,
    _shuffled_parents,
    _auc,
    _best_tau,
    _cone_metrics,
    _cones_at_level,
    _level_tau,
    _saturated_share,
    _text_levels,
    _tree_metrics,
)

c = torch.tensor(1.0)
L = get_geometry('lorentz')
LEVELS = ['group', 'kind', 'name']


def tree(geometry=L, curv=c):
    "Two groups > four kinds > eight names, an image under each name, nested in angle."
    at = lambda r, a: geometry.exp_map0(r * torch.stack([a.cos(), a.sin()], -1) / curv.sqrt(), curv)
    group = torch.tensor([0.0, math.pi])
    kind = (group[:, None] + torch.tensor([-0.3, 0.3])).flatten()
    name = (kind[:, None] + torch.tensor([-0.04, 0.04])).flatten()
    i = torch.arange(8)
    return (
        at(3.0, name),
        torch.cat([at(0.3, group), at(1.0, kind), at(2.0, name)]),
        torch.stack([i // 4, 2 + i // 2, 6 + i], 1),
    )


@pytest.mark.parametrize('name,curv', [('lorentz', 0.5), ('lorentz', 4.0), ('poincare', 1.0), ('poincare', 3.0)])
def test_the_tree_is_recognised(name, curv):
    g, k = get_geometry(name), torch.tensor(curv)
    res = _flatten(hierarchy_metrics(g, *tree(g, k), k, LEVELS))
    assert [res[x] for x in ('cone_own', 'cone_other', 'cone_auc', 'chain_tau', 'saturated')] == [1, 0, 1, 1, 0]
    assert res['radius_kind_q50'] * math.sqrt(curv) == pytest.approx(1, rel=1e-5)
    assert res['radius_image_q95'] * math.sqrt(curv) == pytest.approx(3, rel=1e-5)


def test_the_tree_upside_down():
    images, texts, chain = tree()
    turned = L.exp_map0((4 - L.radius(texts, c))[:, None] * torch.nn.functional.normalize(texts, dim=-1), c)
    res = _flatten(hierarchy_metrics(L, images, turned, chain, c, LEVELS))
    assert res['chain_tau'] == -1 and res['level_tau'] < -0.5 and res['cone_own'] < 0.5


@pytest.mark.parametrize('name', geometries)
def test_every_geometry_gives_json(name):
    g = get_geometry(name)
    v = [torch.randn(n, 4, generator=torch.Generator().manual_seed(n)) for n in (8, 14)]
    res = _flatten(hierarchy_metrics(g, *(g.exp_map0(x, c) for x in v), tree()[2], c, LEVELS))
    assert json.loads(json.dumps(res, allow_nan=False)) == res
    if g.has_cones:
        assert 0 <= res['cone_auc'] <= 1 and 'cone_reason' not in res
    else:
        assert res['cone_auc'] is res['saturated'] is None and 'no cones' in res['cone_reason']
    if not g.has_radius:
        assert res['level_tau'] is None and res['radius_reason']


def test_collapsed_model_does_not_break_the_rest():
    res = _flatten(hierarchy_metrics(L, torch.ones(8, 2), torch.ones(14, 2), tree()[2], c, LEVELS))
    assert res['level_tau'] is None and res['chain_tau'] == 0 and res['cone_auc'] == 0.5 and res['gromov_delta'] == 0
    json.dumps(res, allow_nan=False)


def test_nan_and_wrong_levels_are_named():
    images, texts, chain = tree()
    bad = texts.clone()
    bad[5] = math.nan
    with pytest.raises(ValueError, match='text points .* row 5'):
        hierarchy_metrics(L, images, bad, chain, c, LEVELS)
    with pytest.raises(ValueError, match='3 levels'):
        hierarchy_metrics(L, images, texts, chain, c, LEVELS[:2])
    with pytest.raises(ValueError, match='row 14 at 0'):
        _text_levels(chain, 15)
    with pytest.raises(ValueError, match='row 0 at 2'):
        _text_levels(chain[:, [0, 0]], 14)


def kendall_by_pairs(x, y):
    s = (
        [(a > b) - (a < b) for i, a in enumerate(x) for b in x[:i]],
        [(a > b) - (a < b) for i, a in enumerate(y) for b in y[:i]],
    )
    return sum(a * b for a, b in zip(*s)) / math.sqrt(sum(map(abs, s[0])) * sum(map(abs, s[1])))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=3, max_size=30))
def test_tau_b_from_its_definition(pairs):
    levels, radii = zip(*pairs)
    got = _level_tau(torch.tensor(levels), torch.tensor(radii).float())
    if len(set(levels)) == 1 or len(set(radii)) == 1:
        assert got is None
    else:
        assert got == pytest.approx(kendall_by_pairs(levels, radii))


def test_best_tau_is_reached_and_not_passed():
    levels = torch.tensor([0, 0, 1, 1, 1, 2])
    assert _level_tau(levels, torch.arange(6).float()) == pytest.approx(_best_tau(levels))
    assert _best_tau(torch.arange(5)) == 1


def test_chain_tau_by_hand():
    assert chain_tau(
        torch.tensor([[1.0, 2, 3, 4], [1, 2, 4, 3], [4, 3, 2, 1], [1, 1, 1, 1]])
    ).tolist() == pytest.approx([1, 4 / 6, -1, 0])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_auc_counts_pairs(low, high):
    expected = sum((a < b) + 0.5 * (a == b) for a in low for b in high) / (len(low) * len(high))
    assert _auc(torch.tensor(low).float(), torch.tensor(high).float()) == pytest.approx(expected)


def test_cone_rates_by_hand():
    margins, own = torch.tensor([[-1.0, 0, 1], [1, -1, 1]]), torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    # own -1, 0, 1 against others 1, -1, 1
    assert _cone_metrics(margins, own) == pytest.approx(_ConeRates(own=2 / 3, other=1 / 3, auc=(2.5 + 2 + 1) / 9))


def test_one_text_for_all_has_no_others():
    images, texts, _ = tree()
    assert _cone_metrics(torch.zeros(1, 8), torch.ones(1, 8).bool()) == _ConeRates(own=1, other=None, auc=None)
    res = _flatten(_containment_metrics(L, images, texts[:1], torch.zeros(8, 1).long(), c, ['all']))
    assert res['cone_auc'] is None and res['cone_own'] == 0.5


def test_fewer_pairs_are_an_even_choice_of_texts():
    g = torch.Generator().manual_seed(0)
    images, texts = (L.exp_map0(torch.randn(200, 4, generator=g), c) for _ in range(2))
    whole, part = (_cones_at_level(L, images, texts, torch.arange(200), c, pairs=p) for p in (10**6, 200 * 50))
    assert whole != part and part.auc == pytest.approx(whole.auc, abs=0.12)


def test_a_thinned_level_spans_all_its_texts():
    images, texts, _ = tree()  # two of the eight names: the first, whose image is moved off, and the last
    images = images[[7, 1, 2, 3, 4, 5, 6, 7]]
    assert _cones_at_level(L, images, texts, torch.arange(6, 14), c, pairs=16).own == 0.5
    images = images[[0, 0, 0, 0, 0, 0, 0, 7]]
    assert _cones_at_level(L, images, texts, torch.arange(6, 14), c, pairs=16).own == 0.5


def test_saturation():
    r = torch.tensor([1e-4, 0.05, 0.19, 0.21, 1.0])
    texts = L.exp_map0(torch.stack([r, 0 * r], -1), c)  # half-space up to sinh(radius) = 2 K = 0.2
    assert _saturated_share(L, texts, c) == 3 / 5 and _saturated_share(L, texts, c, min_radius=1.0) == 1


WORDS = dict(cat='mammal', dog='mammal', mammal='animal', owl='animal', rose='plant', animal='thing', plant='thing')


def test_tree_measures_by_hand():
    overlap = _ancestor_overlap(['cat', 'dog', 'owl', 'rose'], WORDS)
    each = lambda p, t: _flatten(_tree_metrics(torch.tensor([p]), torch.tensor([t]), overlap))
    assert each(1, 1) == dict(tree_error=0, lca_height=0, jaccard=1, hier_precision=1, hier_recall=1)
    assert each(2, 0) == pytest.approx(
        dict(tree_error=3, lca_height=1, jaccard=2 / 5, hier_precision=2 / 3, hier_recall=2 / 4)
    )
    assert each(0, 2) == pytest.approx(
        dict(tree_error=3, lca_height=2, jaccard=2 / 5, hier_precision=2 / 4, hier_recall=2 / 3)
    )


def test_tree_error_is_the_shortest_path():
    names = list(WORDS) + ['thing']
    overlap = _ancestor_overlap(names, WORDS)
    edges = {(a, b) for a, b in WORDS.items()} | {(b, a) for a, b in WORDS.items()}
    for i, start in enumerate(names):
        far, front = {start: 0}, [start]
        for node in front:
            for a, b in edges:
                if a == node and b not in far:
                    far[b] = far[node] + 1
                    front.append(b)
        for j, end in enumerate(names):
            assert _tree_metrics(torch.tensor([i]), torch.tensor([j]), overlap).value('tree_error') == far[end]


def test_bad_trees():
    with pytest.raises(KeyError, match="1 of 2 .*'wasp'"):
        _ancestor_overlap(['cat', 'wasp'], WORDS)
    with pytest.raises(ValueError, match='cycle'):
        _ancestor_overlap(['a'], dict(a='b', b='c', c='a'))


def test_delta():
    star = 2.0 * (1 - torch.eye(6))
    assert gromov_delta(star) == 0  # the leaves of a star
    cycle = torch.tensor([[0.0, 1, 2, 1], [1, 0, 1, 2], [2, 1, 0, 1], [1, 2, 1, 0]])
    assert gromov_delta(cycle) == 1 and gromov_delta(7 * cycle) == 1
    square = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    assert gromov_delta(torch.cdist(square, square)) == pytest.approx(2 - math.sqrt(2), abs=1e-5)
    with pytest.raises(ValueError, match='got 3'):
        gromov_delta(star[:3, :3])


def test_hyperbolic_delta_is_bounded():
    "The plane of curvature -1 has four-point delta ln 2 whatever the diameter; flat space grows with it."
    g = torch.Generator().manual_seed(0)
    v = torch.randn(60, 2, generator=g).double()
    for size in (1.0, 3.0, 9.0):
        d = _all_distances(L, L.exp_map0(size * v / v.norm(dim=-1, keepdim=True), c.double()), c.double())
        assert gromov_delta(d) * d.max() / 2 <= math.log(2) + 1e-9


def test_agreement():
    g = torch.Generator().manual_seed(0)
    v = torch.nn.functional.normalize(torch.randn(200, 8, generator=g), dim=-1)
    shell, thick = L.exp_map0(v, c), L.exp_map0(v * (0.5 + 2 * torch.rand(200, 1, generator=g)), c)
    assert _ranking_agreement(L, shell[:50], shell[50:], c) > 0.999
    assert _ranking_agreement(L, thick[:50], thick[50:], c) < 0.8
    assert _ranking_agreement(get_geometry('sphere'), v[:50], v[50:], c) == 1


# --- the walk to the root


@pytest.mark.parametrize('name', geometries)
@pytest.mark.parametrize('c', [0.3, 2.0])
def test_walk_is_straight_and_even(name, c):
    g, curv = get_geometry(name), torch.tensor(c, dtype=torch.float64)
    x = g.exp_map0(torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64), curv)
    walk = _paths_to_root(g, x, x.mean(0), curv, 10)
    assert walk.shape == (5, 10, 4) and torch.allclose(walk[:, 0], x, atol=1e-9)
    if not g.has_radius:
        return
    r = g.radius(x, curv)
    assert torch.allclose(g.radius(walk, curv), r[:, None] * torch.arange(10, 0, -1) / 10, atol=1e-9)
    steps = g.dist(walk[:, :-1], walk[:, 1:], curv)  # a geodesic: equal steps that add up to the way
    assert torch.allclose(steps, r[:, None] / 10, rtol=1e-4)


def test_walk_on_the_sphere_goes_to_the_mean():
    g, c2 = get_geometry('sphere'), torch.tensor(2.0)
    walk = _paths_to_root(g, torch.tensor([[1.0, 0.0]]), torch.tensor([0.0, 3.0]), c2, 4)
    share = torch.tensor([1, 0.75, 0.5, 0.25])
    assert torch.allclose(walk[0], torch.nn.functional.normalize(torch.stack([share, 1 - share], 1), dim=1), atol=1e-6)


@pytest.mark.parametrize('name', ['lorentz', 'poincare', 'euclidean'])
def test_path_precision_and_recall_by_hand(name):
    """One picture at radius 4 to the east, texts at 1, 2, 3 east and one north.
    The three are met, two of them its own; one of its own is never met."""
    g, c2 = get_geometry(name), torch.tensor(2.0)
    lift = lambda v: g.exp_map0(torch.tensor(v), c2)
    texts = lift([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
    got = _flatten(_path_metrics(g, lift([[4.0, 0.0]]), texts, torch.tensor([[0, 1, 3]]), c2))
    assert got == dict(path_precision=pytest.approx(2 / 3), path_recall=pytest.approx(2 / 3), path_met=3.0)
    twice = _path_metrics(
        g, lift([[4.0, 0.0]]), texts, torch.tensor([[0, 0, 1]]), c2
    )  # a text named at two levels is one text
    assert twice.value('path_recall') == 1 and twice.value('path_precision') == pytest.approx(2 / 3)


def test_path_of_many_pictures_is_the_mean_of_each():
    g, c2, rng = get_geometry('lorentz'), torch.tensor(2.0), torch.Generator().manual_seed(1)
    x, t = (g.exp_map0(torch.randn(n, 3, generator=rng), c2) for n in (37, 20))
    own = torch.randint(20, (37, 4), generator=rng)
    each = [_flatten(_path_metrics(g, x[i : i + 1], t, own[i : i + 1], c2)) for i in range(37)]
    for k, v in _flatten(_path_metrics(g, x, t, own, c2)).items():
        assert v == pytest.approx(sum(e[k] for e in each) / 37)


def test_path_refuses_nan():
    g, c2 = get_geometry('lorentz'), torch.tensor(2.0)
    with pytest.raises(ValueError, match='finite'):
        _path_metrics(g, torch.full((1, 2), math.nan), torch.ones(3, 2), torch.tensor([[0]]), c2)


# --- words alone


@pytest.mark.parametrize('name', ['lorentz', 'poincare', 'euclidean'])
def test_word_tree_by_hand(name):
    """A chain of four words straight out from a root word that is no cone's wrong side.
    All lead outward and lie inside; then two of them are swapped."""
    g, c2 = get_geometry(name), torch.tensor(2.0)
    points = g.exp_map0(torch.tensor([[0.05, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]), c2)
    above = torch.tensor([-1, 0, 1, 2])
    assert _flatten(_word_tree_metrics(g, points, above, c2)) == dict(
        depth_tau=1, edge_outward=1, edge_in_cone=1, edges=3
    )
    swapped = _word_tree_metrics(
        g, points[[0, 2, 1, 3]], above, c2
    )  # radii .05 2 1 3: 5 of 6 pairs in order, 2 of 3 edges outward
    assert _flatten(swapped) == dict(
        depth_tau=pytest.approx(4 / 6), edge_outward=pytest.approx(2 / 3), edge_in_cone=pytest.approx(2 / 3), edges=3
    )


def test_word_tree_depth_does_not_ask_for_an_order_of_rows():
    g, c2, rng = L, torch.tensor(2.0), torch.Generator().manual_seed(0)
    above = torch.tensor([-1, 0, 0, 1, 3, -1])
    points = g.exp_map0(torch.randn(6, 3, generator=rng), c2)
    turn = torch.randperm(6, generator=rng)
    place = turn.argsort()
    moved = torch.where(above[turn] >= 0, place[above[turn].clamp_min(0)], -1)
    a = _flatten(_word_tree_metrics(g, points, above, c2))
    b = _flatten(_word_tree_metrics(g, points[turn], moved, c2))
    assert a == pytest.approx(b) and a['edges'] == 4


def test_word_tree_refuses_a_circle():
    with pytest.raises(ValueError, match='circle'):
        _word_tree_metrics(L, torch.ones(3, 2), torch.tensor([1, 2, 0]), c)


# --- whole chains


def slow_precision(scores, own):
    "By the definition, one list after the other; of equal scores the wrong answers first."
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], own[i]))
    hits, found = 0, []
    for place, i in enumerate(order, 1):
        if own[i]:
            hits += 1
            found.append(hits / place)
    return sum(found) / len(found) if found else math.nan


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 30), st.integers(1, 8), st.integers(0, 10**6))
def test_average_precision_is_the_slow_one(q, n, values, seed):
    gen = torch.Generator().manual_seed(seed)
    scores = torch.randint(values, (q, n), generator=gen).double()  # many ties
    own = torch.rand(q, n, generator=gen) < 0.3
    want = torch.tensor([slow_precision(s, o) for s, o in zip(scores.tolist(), own.tolist())], dtype=torch.float64)
    torch.testing.assert_close(average_precision(scores, own), want, equal_nan=True, rtol=1e-12, atol=0)
    near, first = _nearest_is_own(scores, own), own_come_first(scores, own)
    for i in range(q):
        mine, others = scores[i][own[i]].tolist(), scores[i][~own[i]].tolist()
        assert near[i].item() == (bool(mine) and (not others or max(mine) > max(others)))
        if mine:
            assert first[i].item() == (not others or min(mine) > max(others))


def test_ancestors_follow_every_parent():
    parents = torch.tensor([-1, 0, 1, 2, -1, 4, 1])
    above = ancestors(parents)
    for i, row in enumerate(above):
        want, up = set(), parents[i].item()
        while up >= 0:
            want.add(up)
            up = parents[up].item()
        assert set(row.nonzero().flatten().tolist()) == want
    with pytest.raises(ValueError, match='circle'):
        ancestors(torch.tensor([1, 0]))


def test_wrong_parents_keep_family_sizes_and_levels():
    parents = torch.cat([torch.full((3,), -1), torch.arange(12) % 3, 3 + torch.arange(60) // 5])
    wrong = _shuffled_parents(parents)
    assert (wrong[:3] == -1).all() and not (wrong == parents)[15:].any()
    assert torch.equal(torch.bincount(wrong[3:]), torch.bincount(parents[3:]))
    assert torch.equal(ancestors(wrong).sum(1), ancestors(parents).sum(1))


@pytest.mark.parametrize('name', geometries)
def test_a_text_is_no_answer_to_itself(name):
    g = get_geometry(name)
    texts = g.exp_map0(torch.randn(20, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64), c)
    above = ancestors(torch.cat([torch.tensor([-1, -1]), torch.arange(18) % 2]))
    rows = torch.arange(2, 20)
    got = _chain_values(g, texts[rows], texts, above[rows], c, itself=rows)
    scores = -g.cdist(texts, texts, c.double())
    for place, row in enumerate(rows.tolist()):
        others = [i for i in range(20) if i != row]
        want = slow_precision([scores[row, i].item() for i in others], [above[row, i].item() for i in others])
        assert got['chain_ap'][place].item() == pytest.approx(want, abs=1e-12)
    down = below_precision(g, texts, above, c)
    first = next(iter(down))  # by distance or score
    for place, row in enumerate((0, 1)):
        others = [i for i in range(20) if i != row]
        want = slow_precision([scores[i, row].item() for i in others], [above[i, row].item() for i in others])
        assert down[first][place].item() == pytest.approx(want, abs=1e-12)


def test_relatives_by_hand():
    "Four in a row: neighbours 0, 1 and 2, 3 are siblings; the cousins are all."
    near = -(torch.arange(4.0)[:, None] - torch.arange(4.0)).abs() - torch.tensor([0.0, 0, 0.1, 0.2])
    assert _kin_recall(near, torch.tensor([0, 0, 1, 1]), k=1).tolist() == [1, 1, 0, 1]
    assert _kin_recall(near, torch.tensor([5, 5, 5, 5]), k=3).tolist() == [1, 1, 1, 1]
    assert _kin_recall(near, torch.tensor([0, 1, 2, 3]), k=2).isnan().all()


def test_radius_tells_errors():
    radii, right = torch.tensor([1.0, 2.0, 3.0, 3.0]), torch.tensor([False, False, True, True])
    assert _radius_error_auc(radii, right) == 1 and _radius_error_auc(-radii, right) == 0
    assert _radius_error_auc(torch.ones(4), right) == 0.5 and _radius_error_auc(radii, right | True) is None


@pytest.mark.parametrize('name', geometries)
def test_the_common_text_is_passed_where_the_way_ends_at_it(name):
    "Two pictures on either side of their common text, far from all others."
    g = get_geometry(name)
    v = torch.tensor([[3.0, 0.6, 0], [3.0, -0.6, 0], [3.0, 0, 0], [0, 0, 3.0], [0, 0.2, -3.0]], dtype=torch.float64)
    points, texts = g.exp_map0(v[:2] / 3, c), g.exp_map0(v[2:] / 3, c)
    own = torch.tensor([[True, True, False], [True, False, True]])
    assert _passes_common(g, points, texts, own, c.double()).unique().tolist() == [1.0]


@pytest.mark.parametrize('name', [o for o in geometries if get_geometry(o).has_cones])
def test_the_common_text_is_passed_behind_its_cone(name):
    "Midway between two pictures their common text, near the root, is straight ahead; theirs are to the sides."
    g = get_geometry(name)
    v = torch.tensor([[1.8, 0.9], [1.8, -0.9], [0.3, 0], [0.9, 0.45], [0.9, -0.45]], dtype=torch.float64)
    points, texts = g.exp_map0(v[:2], c), g.exp_map0(v[2:], c)
    own = torch.tensor([[True, True, False], [True, False, True]])
    assert _passes_common(g, points, texts, own, c.double(), by_angle=True).unique().tolist() == [1.0]
    aside = torch.cat([-texts[:1], texts[1:]])  # beyond the root it sees them all behind itself
    assert _passes_common(g, points, aside, own, c.double(), by_angle=True).unique().tolist() == [0.0]
