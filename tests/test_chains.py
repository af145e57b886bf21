"Chains of texts, from the data to the loss, against definitions written out by hand."

import itertools
import math
import pytest
import torch
from dataclasses import replace
from hypothesis import given, settings, strategies as st
from torch.func import grad, jacrev, jvp, vmap
from meru.core import file_sha256
from meru.data.chains import chain_kinds, _folder_chain, _level_chain, _noun_chain, _word_chain
from meru.data.emoji import embedded_data
from meru.data.loader import Loader, TextChains
from meru.data.shards import Shards, write_shards
from meru.data.tokenizer import Tokenizer
from meru.geometry import geometries, get_geometry, readings
from meru.losses.chains import chain_loss, chain_terms, Cones, edge_entailment, radial_order, _ReadBy, text_graph
from meru.models.model import build_model
from meru.training.config import make_config
from meru.training.run import Run
from meru.training.trainer import fit

ONE = torch.tensor(1.0, dtype=torch.float64)
ids = st.lists(st.lists(st.integers(0, 6), min_size=3, max_size=3), min_size=1, max_size=6)


def by_hand(logits, positive, hidden):
    "Row by row, positive by positive, with nothing but exp and log."
    rows = []
    for l, p, h in zip(logits.tolist(), positive.tolist(), hidden.tolist()):
        negatives = sum(math.exp(x) for x, is_p, is_h in zip(l, p, h) if not (is_p or is_h))
        own = [math.log(1 + negatives / math.exp(x)) for x, is_p in zip(l, p) if is_p]
        if own:
            rows.append(sum(own) / len(own))
    return sum(rows) / len(rows) if rows else 0.0


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 6), st.integers(1, 7), st.integers(0, 999))
def test_the_loss_is_its_definition(b, n, seed):
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(b, n, generator=g, dtype=torch.float64)
    positive, hidden = (torch.rand(b, n, generator=g) < share for share in (0.4, 0.2))
    hidden &= ~positive
    assert chain_loss(logits, positive, hidden).item() == pytest.approx(by_hand(logits, positive, hidden), abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(ids)
def test_the_graph_is_read_off_the_chains(chains):
    chains = torch.tensor(chains)
    text_ids = torch.arange(1, 7)
    graph = text_graph(text_ids, chains)
    for i, chain in enumerate(chains.tolist()):
        assert (graph.of_images.general[graph.of_images.special == i] + 1).tolist() == sorted({o for o in chain if o})
    pairs = {
        (special, general)
        for chain in chains.tolist()
        for general, special in itertools.combinations(chain, 2)
        if general and special and general != special
    }
    true, above = graph.of_images.matrix(), graph.above.matrix()
    assert {(i + 1, j + 1) for i, j in above.nonzero().tolist()} == pairs
    reduced, by = graph.reduced(), above.float()
    assert torch.equal(reduced.of_images.matrix(), true & ~(true.float() @ by > 0))
    assert torch.equal(reduced.above.matrix(), above & ~(by @ by > 0))
    turned = text_graph(text_ids.flip(0), chains)  # columns are in the order of the texts
    assert torch.equal(turned.of_images.matrix(), true.flip(1))
    assert torch.equal(turned.above.matrix(), above.flip(0, 1))


def test_a_true_text_is_never_a_negative():
    "The gradient of a row's logits pulls every true text nearer, and pushes every other away."
    logits = torch.randn(20, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    positive = torch.rand(20, 9, generator=torch.Generator().manual_seed(1)) < 0.4
    chain_loss(logits, positive).backward()
    some = positive.any(1) & ~positive.all(1)
    assert (logits.grad[some][positive[some]] < 0).all() and (logits.grad[some][~positive[some]] > 0).all()


@pytest.mark.parametrize(
    'name, reading', [(n, r) for n, g in geometries.items() for r in [None, *readings(g)]], ids=str
)
def test_terms_in_every_geometry_by_every_reading(name, reading):
    geometry = get_geometry(name) if reading is None else _ReadBy(get_geometry(name), reading)
    graph = text_graph(torch.arange(1, 6), torch.tensor([[1, 2, 3], [1, 4, 5]]))
    g = torch.Generator().manual_seed(0)
    vectors = [0.5 * torch.randn(n, 4, generator=g, dtype=torch.float64) for n in (2, 5)]
    x, t = (geometry.exp_map0(v, ONE).requires_grad_() for v in vectors)
    terms = chain_terms(geometry, x, t, graph, ONE, 3.0)
    up = by_hand(3 * geometry.scores(x, t, ONE), graph.of_images.matrix(), torch.zeros(2, 5, dtype=torch.bool))
    texts = by_hand(3 * geometry.scores(t, t, ONE), graph.above.matrix(), torch.eye(5, dtype=torch.bool))
    back = by_hand(3 * geometry.scores(x, t, ONE).T, graph.of_images.matrix().T, torch.zeros(5, 2, dtype=torch.bool))
    assert [o.item() for o in terms] == pytest.approx([up, texts, back], rel=1e-9)
    terms.mean.backward()
    assert x.grad.isfinite().all() and t.grad.isfinite().all()


LOSSES = dict(
    terms=lambda *args: chain_terms(*args, 3.0).mean,
    cones=lambda *args: edge_entailment(*args, Cones(away=0.5)),
    radii=lambda *args: radial_order(*args, 0.3),
)


@pytest.mark.parametrize('kind', LOSSES)
@pytest.mark.parametrize('name', ['lorentz', 'poincare', 'euclidean'])
def test_under_the_transforms_of_torch_func(name, kind):
    geometry, gen = get_geometry(name), torch.Generator().manual_seed(0)
    graph = text_graph(torch.arange(1, 6), torch.tensor([[1, 2, 3], [1, 4, 5]]))
    x, t = (geometry.exp_map0(0.6 * torch.randn(n, 3, generator=gen, dtype=torch.float64), ONE) for n in (2, 5))

    def loss(x, t):
        return LOSSES[kind](geometry, x, t, graph, ONE)

    leaf, close = t.clone().requires_grad_(), torch.testing.assert_close
    value = loss(x, leaf)
    (by_t,) = torch.autograd.grad(value, leaf)
    close(grad(loss, 1)(x, t), by_t)
    close(jacrev(loss, 1)(x, t), by_t)
    close(jvp(lambda o: loss(x, o), (t,), (t,))[1], (by_t * t).sum())
    close(vmap(loss, (0, None))(torch.stack([x, x]), t), value.detach().expand(2))


@pytest.mark.parametrize('name', [n for n, g in geometries.items() if g.has_cones])
def test_edges_in_every_geometry_with_cones(name):
    geometry = get_geometry(name)
    graph = text_graph(torch.arange(1, 6), torch.tensor([[1, 2, 3], [1, 4, 5]]))
    g = torch.Generator().manual_seed(0)
    x, t = (geometry.exp_map0(0.6 * torch.randn(n, 3, generator=g, dtype=torch.float64), ONE) for n in (2, 5))
    edges = [(x[i], t[j], 0.7) for i, j in graph.of_images.matrix().nonzero().tolist()]
    edges += [(t[i], t[j], 1.2) for i, j in graph.above.matrix().nonzero().tolist()]
    misses, rises = [], []
    for special, general, widening in edges:
        angle = geometry.exterior_angle(general, special, ONE).item()
        misses.append(max(0.0, angle - widening * geometry.half_aperture(general, ONE).item()))
        rises.append(max(0.0, 0.3 + geometry.radius(general, ONE).item() - geometry.radius(special, ONE).item()))
    cones = Cones(across=0.7, within=1.2)
    assert edge_entailment(geometry, x, t, graph, ONE, cones).item() == pytest.approx(sum(misses) / len(misses))
    assert radial_order(geometry, x, t, graph, ONE, 0.3).item() == pytest.approx(sum(rises) / len(rises))


def test_what_a_reduced_graph_implies_is_not_kept_out_of_cones():
    geometry, graph = get_geometry('lorentz'), text_graph(torch.arange(1, 4), torch.tensor([[1, 2, 3]]))
    ray = geometry.exp_map0(torch.tensor([[0.3, 0.0], [0.6, 0.0], [0.9, 0.0], [1.2, 0.0]], dtype=torch.float64), ONE)
    x, t, cones = ray[3:], ray[:3], Cones(away=0.1)
    assert edge_entailment(geometry, x, t, graph, ONE, cones, graph.reduced()).item() == 0
    backwards = edge_entailment(geometry, -x, t, graph, ONE, cones, graph.reduced()).item()
    # of six edges three are read, one of them from the picture, which lies behind the root
    assert backwards == pytest.approx((math.pi - geometry.half_aperture(t[2], ONE).item()) / 3)


def test_each_kind_of_chain_ends_with_the_caption():
    caption = 'Two retrievers sleep on a sofa, side by side'
    for kind in chain_kinds.values():
        chain = kind('dogs/indoors/7', caption, dict(levels=['animal', 'dog']))
        assert chain[-1] == caption and len(set(chain)) == len(chain)
    assert _folder_chain('dogs/in_doors/7', caption, {})[:2] == ['dogs', 'in doors']
    assert _word_chain('', caption, {})[0] == 'Two retrievers sleep'
    assert _noun_chain('', caption, {})[-3:] == ['sporting dog', 'retriever', caption]
    with pytest.raises(ValueError, match="brings no 'levels'.*chains='folders'"):
        _level_chain('7', caption, {})


def test_chains_do_not_move_the_pairs_and_do_not_depend_on_workers():
    shards = Shards(embedded_data() / 'val')
    how = dict(image_size=16, batch_size=24, level_probs=(0.1, 0.2, 0.5, 0.2))
    plain = Loader(shards, Tokenizer(4096, 16), **how).batch_at(3)
    loader = Loader(shards, Tokenizer(4096, 16), **how, chain=_level_chain)
    batch = loader.batch_at(3)
    assert all(torch.equal(a, b) for a, b in zip(plain[:3], batch[:3]))
    with_workers = next(Loader(shards, Tokenizer(4096, 16), **how, chain=_level_chain, workers=1).batches(3))
    assert all(torch.equal(a, b) for a, b in zip(batch.chains[:3], with_workers.chains[:3]))
    in_batch = set(batch.text_ids.tolist()) | set(batch.chains.text_ids.tolist())
    for drawn, chain in zip(batch.text_ids.tolist(), batch.chains.of_images.tolist()):
        assert set(chain[: chain.index(drawn) + 1]) <= in_batch


def test_data_without_levels_are_refused_with_the_remedy(tmp_path):
    drawings = Shards(embedded_data() / 'val')
    write_shards((drawings[i]._replace(meta={}) for i in range(60)), tmp_path / 'plain')
    cfg = make_config('smoke', data=str(tmp_path / 'plain'), chains='levels', chain_weight=1.0, batch_size=8)
    with pytest.raises(ValueError, match="brings no 'levels'.*choose chains='folders', 'words' or 'nouns'"):
        fit(Run(tmp_path / 'run', cfg), quiet=True)
    cfg = replace(cfg, chains='words', steps=2, warmup=1)
    assert fit(Run(tmp_path / 'words', cfg), quiet=True).cfg.chain_weight == 1.0


@pytest.mark.parametrize(
    'given, message',
    [
        (dict(chain_weight=1.0), 'chains is off'),
        (dict(order_weight=1.0), 'chains is off'),
        (dict(cone_within=0.7), 'they shape the entailment of chains'),
        (dict(chains='levels', entail_weight=0.0, cone_away=0.1), 'they shape the entailment of chains'),
        (dict(geometry='sphere', entail_weight=0.0, chains='levels', order_weight=1.0), 'has no radii'),
        (
            dict(geometry='sphere', entail_weight=0.0, chain_reading='cone_angle'),
            "'sphere' has no cone_angle: .*distance",
        ),
        (dict(chains='tiers'), 'is not one of off, levels'),
    ],
)
def test_what_cannot_be_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        make_config('smoke', **{'image_tower': 'vit', 'patch_size': 8, **given})


def test_the_cones_of_a_config_are_those_of_the_loss():
    cfg = make_config('smoke', chains='levels', entail_weight=1.0, cone_across=0.7, cone_within=1.2, cone_away=0.1)
    model, g = build_model(cfg), torch.Generator().manual_seed(0)
    x, t, general = (
        model.geometry.exp_map0(torch.randn(n, cfg.embed_dim, generator=g), ONE.float()) for n in (3, 3, 2)
    )
    chains = TextChains(None, torch.tensor([4, 5]), torch.tensor([[5, 4, 1], [5, 4, 2], [5, 3, 0]]))
    terms = model.losses(x, t, torch.arange(1, 4), general, chains)
    graph = text_graph(torch.arange(1, 6), chains.of_images)
    cones = Cones(cfg.min_radius, across=0.7, within=1.2, away=0.1)
    edges = model.geometry, x, torch.cat([t, general]), graph, model.curv
    assert terms['entailment'] == edge_entailment(*edges, cones) != edge_entailment(*edges)


def test_a_step_computes_the_angles_of_all_pairs_once(monkeypatch):
    cfg = make_config('demo')
    model, g = build_model(cfg), torch.Generator().manual_seed(0)
    u, v = (0.1 * torch.randn(n, cfg.embed_dim, generator=g) for n in (3, 5))
    chains = TextChains(None, torch.tensor([4, 5]), torch.tensor([[5, 4, 1], [5, 4, 2], [5, 3, 0]]))
    own, seen = type(model.geometry).cone_angle, []
    monkeypatch.setattr(type(model.geometry), 'cone_angle', lambda *args: seen.append(args) or own(*args))

    def slope(shared):
        x = u.clone().requires_grad_()
        points = model.lift_image(x), *model.lift_text(v).split([3, 2])
        if not shared:
            monkeypatch.setattr('meru.models.model._AnglesOnce', lambda geometry: geometry)
        model.losses(*points[:2], torch.arange(1, 4), points[2], chains)['loss'].backward()
        return x.grad

    shared = slope(True)
    assert [(len(x), len(y)) for _, x, y, _ in seen] == [(3, 5), (5, 5)]
    torch.testing.assert_close(shared, slope(False))
    assert len(seen) == 2 + 4


def test_a_run_with_chains_repeats_and_resumes_to_the_bit(tmp_path):
    cfg = make_config('tree', steps=6, batch_size=32, warmup=1, save_every=3, val_every=6, log_every=1, cache=False)
    fit(Run(tmp_path / 'whole', cfg), quiet=True)
    part = Run(tmp_path / 'parts', cfg)

    class Stop(Exception):
        pass

    def log(row, write=part.log):
        write(row)
        if row['step'] == 4:
            raise Stop

    part.log = log
    with pytest.raises(Stop):
        fit(part, quiet=True)
    assert Run(tmp_path / 'parts', cfg).step == 3
    fit(Run(tmp_path / 'parts', cfg), quiet=True)
    assert file_sha256(Run(tmp_path / 'whole', cfg).last) == file_sha256(Run(tmp_path / 'parts', cfg).last)
    row = Run(tmp_path / 'whole', cfg).rows()[-1]
    assert row['loss'] == pytest.approx(row['chain'])
    assert row['chain'] == pytest.approx((row['chain_up'] + row['chain_texts'] + row['chain_back']) / 3, rel=1e-5)
