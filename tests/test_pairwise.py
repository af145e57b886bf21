"The contrastive loss of tiles against its matrix: value and every gradient, in float64, at awkward sizes and points."

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.func import grad, jacrev, jvp, vmap
from klein import klein
from meru.losses import pairwise
from meru.losses.contrastive import _matrix_loss
from meru.losses.pairwise import contrastive_loss
from meru.geometry import geometries, get_geometry
from meru.search.exact import nearest

NAMES = list(geometries)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    "Tiles of five by five, so that every batch has several and ragged last ones."

    def spans(n, side):
        step = 5 if n < 100 else 150
        return [slice(i, min(i + step, n)) for i in range(0, n, step)]

    monkeypatch.setattr(pairwise, '_spans', spans)


def plain_loss(geometry, x, y, curv, scale, *how):
    "From the matrix of scores."
    return _matrix_loss(scale * geometry.scores(x, y, curv), *how)


def tangents(b, d, seed, dtype=torch.float64, size=0.7):
    g = torch.Generator().manual_seed(seed)
    return [(size * torch.randn(b, d, generator=g, dtype=torch.float64)).to(dtype) for _ in range(2)]


def outcome(loss, name, vectors, curv, scale, *how):
    "Loss and gradients for tangent vectors, curvature (through the lift too) and scale."
    geometry = get_geometry(name)
    leaves = [
        v.detach().clone().requires_grad_()
        for v in (*vectors, *(torch.tensor(o, dtype=vectors[0].dtype) for o in (curv, scale)))
    ]
    u, v, c, s = leaves
    value = loss(geometry, geometry.exp_map0(u, c), geometry.exp_map0(v, c), c, s, *how)
    return [value, *torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)]


def assert_same(*args, tol=1e-8):
    for got, want in zip(*(outcome(f, *args) for f in (contrastive_loss, plain_loss))):
        assert got.dtype == want.dtype and got.isfinite().all()
        assert (got - want).abs().max() <= tol * (want.abs().max() + 1e-3)


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(NAMES),
    st.integers(1, 33),
    st.integers(1, 9),
    st.integers(0, 99),
    st.floats(0.1, 10),
    st.floats(0.5, 100),
    st.sampled_from([0, 1, 3, 40]),
    st.sampled_from([0.0, 0.7]),
    st.sampled_from([0.0, 0.05, 0.5, 2.0]),
)
def test_is_the_plain_loss(name, b, d, seed, curv, scale, texts, margin, beta):
    ids = torch.randint(texts, (b,), generator=torch.Generator().manual_seed(seed)) if texts else None
    assert_same(name, tangents(b, d, seed), curv, scale, ids, margin, beta)


@pytest.mark.parametrize('name', NAMES)
def test_real_blocks(name, monkeypatch):
    monkeypatch.undo()
    assert len(list(pairwise._spans(1100, 1024))) > 1
    assert_same(name, tangents(1100, 6, 0), 1.0, 14.0, torch.arange(1100) // 3, 0.1)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('beta', [0.0, 0.5])
def test_a_wide_spread_of_logits(name, beta):
    "Rows and columns whose sums lie thousands of nats apart."
    u, v = tangents(23, 4, 3)
    v[:5] *= 5
    u[-5:] *= 4
    assert_same(name, (u, v), 1.0, 100.0, None, 0.0, beta)


@pytest.mark.parametrize('name', NAMES)
def test_a_wide_spread_in_single_precision(name):
    u, v = tangents(23, 4, 3)
    v[:5] *= 3
    want, got = (
        outcome(f, name, [o.to(t) for o in (u, v)], 1.0, 100.0)
        for f, t in ((plain_loss, torch.float64), (contrastive_loss, torch.float32))
    )
    for g, w in zip(got, want):
        assert g.dtype == torch.float32 and (g - w).abs().max() < 2e-3 * w.abs().max() + 1e-4


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_identical_points(name, dtype):
    "Every pair coincides, and so do all pairs: finite, and log of the batch."
    u = tangents(12, 5, 1, dtype)[0]
    for vectors in ((u, u), (u[:1].expand(12, 5), u[:1].expand(12, 5)), (0 * u, 0 * u) if name != 'sphere' else (u, u)):
        got = outcome(contrastive_loss, name, vectors, 1.0, 10.0)
        assert all(g.isfinite().all() for g in got)
    same = outcome(contrastive_loss, name, (u[:1].expand(12, 5),) * 2, 1.0, 10.0)[0]
    assert abs(same - torch.tensor(12.0).log()) < 2e-2


@pytest.mark.parametrize('name', ['lorentz', 'poincare', 'euclidean'])
def test_points_on_one_side_are_centred(name, monkeypatch):
    "The same as plainly; and in single precision nearer to the truth than without."
    geometry, one = get_geometry(name), torch.tensor(1.0)
    u, v = (o + torch.tensor([2.5, 0, 0, 0]) for o in tangents(60, 4, 0, size=0.05))
    points = [geometry.exp_map0(o, one.double()).float() for o in (u, v)]
    assert_same(name, (u, v), 1.0, 14.0)

    def slope(loss, dtype):
        x, *others = (o.to(dtype) for o in (*points, one, 14 * one))
        return torch.autograd.grad(loss(geometry, x.requires_grad_(), *others), x)[0].double()

    truth = slope(plain_loss, torch.float64)

    def off():
        return (slope(contrastive_loss, torch.float32) - truth).norm()

    centred = off()
    monkeypatch.setattr(pairwise, 'common_centre', lambda x, y: torch.zeros_like(x[0]))
    assert 10 * centred < off()


def test_positives_keep_their_digits():
    "Pairs 1e-4 apart at radius 5: one product in float32 does not see them."
    lorentz, one = get_geometry('lorentz'), torch.tensor(1.0)
    u = tangents(30, 8, 0)[0]
    x = lorentz.exp_map0(5 * u / u.norm(dim=1, keepdim=True), one.double()).float()
    y = x * (1 + 1e-4)
    truth = lorentz.dist(x.double(), y.double(), one.double())
    assert ((lorentz.pairing(x, y, one).positive - truth) / truth).abs().max() < 1e-5
    assert ((-lorentz.scores(x, y, one).diagonal() - truth) / truth).abs().max() > 1e-2


def test_batches_of_one_and_of_one_text():
    for name in NAMES:
        for b, ids in ((1, None), (6, torch.zeros(6, dtype=torch.int64))):
            for beta in (0.0, 1.0):
                got = outcome(contrastive_loss, name, tangents(b, 3, 0), 1.0, 5.0, ids, 0.0, beta)
                assert abs(got[0]) < 1e-12 and all(g.isfinite().all() for g in got)


def test_under_autocast_it_is_float32():
    u, v = (o.float() for o in tangents(40, 16, 0))
    plain = outcome(contrastive_loss, 'lorentz', (u, v), 1.0, 14.0)
    with torch.autocast('cpu', torch.bfloat16):
        cast = outcome(contrastive_loss, 'lorentz', (u, v), 1.0, 14.0)
    assert all(torch.equal(a, b) for a, b in zip(plain, cast))


def test_memory_between_the_passes_grows_with_the_pairs():
    def kept(b):
        storages = {}

        def pack(t):
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage()
            return t

        u, v = tangents(b, 16, 0, torch.float32)
        points = [o.requires_grad_() for o in (u, v, torch.tensor(1.0), torch.tensor(10.0))]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            alive = contrastive_loss(get_geometry('lorentz'), *points)
        return sum(s.nbytes() for s in storages.values())

    assert 400 * 16 * 4 < kept(400) < 12 * 400 * 16 * 4 and kept(400) < 2.1 * kept(200)


def test_two_losses_alive_and_a_scaled_one():
    "Memory that serves again does not mix two batches up; the gradient is scaled by what comes after the loss."
    lorentz, one = get_geometry('lorentz'), torch.tensor(1.0)

    def leaves(seed):
        return [
            o.requires_grad_() for o in (*tangents(40, 8, seed, torch.float32), torch.tensor(1.0), torch.tensor(10.0))
        ]

    first, second = leaves(0), leaves(1)
    alone = [torch.autograd.grad(contrastive_loss(lorentz, *o), o) for o in (first, second)]
    both = [contrastive_loss(lorentz, *o) for o in (first, second)]
    for loss, leaf, want in zip(both, (first, second), alone):
        assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(loss, leaf, retain_graph=True), want))
        assert all(
            torch.allclose(a, 3 * b, rtol=1e-4, atol=1e-6) for a, b in zip(torch.autograd.grad(3 * loss, leaf), want)
        )
    with torch.inference_mode():
        contrastive_loss(lorentz, *leaves(2))  # leaves nothing unusable behind
    assert torch.equal(torch.autograd.grad(contrastive_loss(lorentz, *first), first)[0], alone[0][0])


def test_a_tile_of_one_text_beside_faint_hard_negatives():
    "A row whose every entry of a tile is hidden; in both precisions."
    ids = torch.arange(33).clamp_max(28)
    for dtype, tol in ((torch.float64, 1e-8), (torch.float32, 1e-4)):
        for scale in (5.0, 14.0, 1 / 0.07, 30.0):
            assert_same('lorentz', tangents(33, 4, 0, dtype), 1.0, scale, ids, 0.0, 0.05, tol=tol)


def test_a_second_derivative_is_refused():
    u, v = (o.requires_grad_() for o in tangents(9, 3, 0))
    loss = contrastive_loss(get_geometry('lorentz'), u, v, torch.tensor(1.0).double(), torch.tensor(9.0).double())
    with pytest.raises(RuntimeError, match='differentiated once'):
        torch.autograd.grad(loss + u.square().sum(), u, create_graph=True)


@pytest.mark.parametrize('name', NAMES)
def test_kept_or_made_again(name, monkeypatch):
    "The same gradients, whether tiles stay or not; with one text twice and hard negatives."
    found = []
    for limit in (0, 10**6):
        monkeypatch.setattr(pairwise, '_KEPT', limit)
        found.append(outcome(contrastive_loss, name, tangents(23, 4, 0), 1.0, 14.0, torch.arange(23) // 2, 0.1, 0.5))
    assert all((a - b).norm() <= 1e-12 * b.norm() for a, b in zip(*found))


@pytest.mark.parametrize('bad', [dict(t=3), dict(ids=4)])
def test_refuses_what_the_plain_one_refuses(bad):
    x, one = torch.rand(5, 2), torch.tensor(1.0)
    ids = torch.arange(bad['ids']) if 'ids' in bad else None
    with pytest.raises(ValueError):
        contrastive_loss(get_geometry('lorentz'), x, x[: bad.get('t', 5)], one, one, ids)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('radius', [1e-9, 1e-6, 1e-4, 1e-2])
def test_near_the_root_it_is_as_right_as_the_plain_form(name, radius):
    "In float32, against float64 on the same points."
    geometry = get_geometry(name)
    points = [o.float() * radius for o in tangents(40, 6, 0)]
    points = [geometry.exp_map0(o, torch.tensor(1.0)) for o in points]

    def result(loss, dtype):
        given = [o.to(dtype).requires_grad_() for o in (*points, torch.tensor(1.0), torch.tensor(14.0))]
        value = loss(geometry, *given)
        return [o.double() for o in (value, *torch.autograd.grad(value, given[:2]))]

    want, plain, tiles = (
        result(plain_loss, torch.float64),
        result(plain_loss, torch.float32),
        result(contrastive_loss, torch.float32),
    )
    off = [max((g - w).norm() / w.norm() for g, w in zip(got, want)) for got in (plain, tiles)]
    assert off[1] < 2e-5 and off[1] < 2 * off[0] + 1e-6, off


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('how', [(), (torch.tensor([0, 1, 1, 2, 3]), 0.2, 0.5)])
def test_under_the_transforms_of_torch_func(name, how):
    geometry = get_geometry(name)
    x, y = (geometry.exp_map0(o, torch.tensor(1.3).double()) for o in tangents(5, 3, 0))
    curv, scale = torch.tensor(1.3).double().requires_grad_(), torch.tensor(9.0).double()
    a = x.clone().requires_grad_()
    value = contrastive_loss(geometry, a, y, curv, scale, *how)
    by_x, by_curv = torch.autograd.grad(value, (a, curv), materialize_grads=True, allow_unused=True)

    def loss(x, curv):
        return contrastive_loss(geometry, x, y, curv, scale, *how)

    c, close = curv.detach(), torch.testing.assert_close
    close(grad(loss)(x, c), by_x, atol=1e-10, rtol=1e-9)
    close(jacrev(loss, argnums=1)(x, c), by_curv, atol=1e-10, rtol=1e-9)
    close(jvp(loss, (x, c), (y, c))[1], (by_x * y).sum() + by_curv * c, atol=1e-9, rtol=1e-9)
    close(vmap(lambda o: loss(o, c))(torch.stack([x, x])), value.detach().expand(2))


def test_a_model_in_training_asks_for_the_batch_of_all_processes(monkeypatch):
    from meru.models import model
    from meru.training.config import presets

    head, calls = model.build_model(presets['head_poincare']), []
    monkeypatch.setattr(model, 'contrastive_loss', lambda *args, **kw: calls.append(kw) or torch.zeros(()))
    for training in (True, False):
        head.train(training).contrastive(torch.rand(3, 4), torch.rand(3, 4))
    assert calls == [dict(all_processes=True), dict(all_processes=False)]


# a fifth geometry is one class


@pytest.mark.parametrize('b', [1, 7, 33])
@pytest.mark.parametrize('how', [(), (torch.arange(33) // 2, 0.3, 0.5)])
def test_a_fifth_geometry_has_the_loss(b, how):
    with klein():
        assert_same(
            'klein', tangents(b, 4, 0), 0.7, 14.0, *[o[:b] if torch.is_tensor(o) else o for o in how], tol=1e-11
        )


def test_a_fifth_geometry_has_the_loss_of_many_tiles(monkeypatch):
    monkeypatch.undo()
    with klein():
        assert_same('klein', tangents(1100, 6, 0), 1.0, 14.0, torch.arange(1100) // 3, 0.1, tol=1e-11)


def test_a_fifth_geometry_agrees_with_the_hyperboloid_it_is_a_chart_of():
    lorentz, curv, (u, v) = get_geometry('lorentz'), torch.tensor(0.7).double(), tangents(30, 4, 0)
    with klein() as geometry:
        ours, theirs = ([g.exp_map0(o, curv) for o in (u, v)] for g in (geometry, lorentz))
        torch.testing.assert_close(geometry.scores(*ours, curv), lorentz.scores(*theirs, curv))
        torch.testing.assert_close(geometry.dist(*ours, curv), lorentz.dist(*theirs, curv))
        got, want = (outcome(contrastive_loss, name, (u, v), 0.7, 14.0) for name in ('klein', 'lorentz'))
        assert all((g - w).norm() < 1e-10 * w.norm() for g, w in zip(got, want))


def test_a_fifth_geometry_is_searched_exactly():
    curv, (queries, gallery) = torch.tensor(0.7).double(), tangents(200, 4, 0)
    with klein() as geometry:
        queries, gallery = (geometry.exp_map0(o, curv) for o in (queries, gallery))
        order = torch.stack([geometry.dist(o[None], gallery, curv) for o in queries]).argsort(1)
        assert torch.equal(nearest(geometry, queries, gallery, curv, k=5, budget=300), order[:, :5])


def test_an_unknown_geometry_is_one_clear_error():
    with pytest.raises(ValueError, match="Unknown geometry 'klein'; choose one of lorentz, poincare"):
        get_geometry('klein')
