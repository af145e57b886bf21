"Geometry: parity with 50-digit values, theorems, and hostile points over dtype, curvature and radius."

import math
import subprocess
import sys
from functools import partial
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.func import jacrev, jvp, vmap

from conftest import ROOT

from meru.geometry import (
    _acosh1p,
    _asinhc,
    _ball_gap,
    _cone_aperture,
    geometries,
    get_geometry,
    lorentz_to_poincare,
    poincare_to_lorentz,
    products,
    register,
    _sinhc,
    readings,
    _time_component,
    unit,
)
from meru.losses.entailment import entailment_loss

mpmath.mp.dps = 50
lorentz, poincare, euclidean, sphere = (get_geometry(n) for n in ('lorentz', 'poincare', 'euclidean', 'sphere'))
flat, inner = get_geometry('flat'), get_geometry('inner')
metric = [g for g in geometries.values() if g.has_dist]
rooted = [g for g in geometries.values() if g.has_radius]
# tests/parity/lorentz.npz holds the first 6 of the 24 rows of every array of the reference file
# (and the first 6 columns of the pairwise ones), so that it stays small
parity = np.load(Path(__file__).parent / 'parity' / 'lorentz.npz')
groups = sorted({k.split('/')[0] for k in parity})
curvatures, kinds = (
    [0.1, 1.0, 4.0],
    ['coincident', 'collinear', 'antipodal', 'root', 'both at the root', 'one bit', 'edge'],
)


def tensor(c, dtype=torch.float32):
    return torch.tensor(c, dtype=dtype)


def points(n, d, radius, c=1.0, dtype=torch.float64, seed=0):
    "n points of the hyperboloid in random directions, √c·radius as given."
    gen = torch.Generator().manual_seed(seed)
    v = unit(torch.randn(n, d, generator=gen, dtype=torch.float64)) * radius / c**0.5
    return lorentz.exp_map0(v, tensor(c, torch.float64)).to(dtype)


def oracle(x, y, c):
    "Distance in 50 digits of the numbers as given."
    x, y = ([mpmath.mpf(float(a)) for a in v] for v in (x, y))
    c = mpmath.mpf(float(c))
    h = [a - b for a, b in zip(x, y)]
    xt, yt = (mpmath.sqrt(1 / c + mpmath.fdot(v, v)) for v in (x, y))
    return 2 / mpmath.sqrt(c) * mpmath.asinh(mpmath.sqrt(c * (mpmath.fdot(h, h) - (xt - yt) ** 2)) / 2)


def hostile(kind, d, radius, c, dtype=torch.float32):
    "Pairs at which one formula or another divides by zero."
    x = points(8, d, radius, c, dtype)
    other = {
        'coincident': x.clone(),
        'collinear': x / 2,
        'antipodal': -x,
        'root': torch.zeros_like(x),
        'both at the root': torch.zeros_like(x),
        'one bit': x.nextafter(torch.full_like(x, math.inf)),
        'edge': -x,
    }[kind]
    if kind == 'both at the root':
        x = torch.zeros_like(x)
    if kind == 'edge':
        x = points(8, d, math.asinh(0.2), c, dtype)
    return x, other


def on(g, x, c):
    "The same points in the geometry `g`."
    return lorentz_to_poincare(x, c) if g is poincare else unit(x) if g is sphere else x


@pytest.fixture(params=groups)
def group(request):
    values = {k.split('/')[1]: torch.from_numpy(parity[k]) for k in parity if k.startswith(request.param + '/')}
    return values, tensor(float(request.param.split('_c')[1]), torch.float64)


@pytest.mark.parametrize('g', [lorentz, poincare], ids=lambda g: g.name)
def test_parity(g, group):
    v, c = group
    x, y = on(g, v['x'], c), on(g, v['y'], c)

    def same(a, b, tol=1e-12):
        torch.testing.assert_close(a, b, rtol=tol, atol=tol)

    same(g.exp_map0(v['tangent_x'], c), x)
    same(g.log_map0(x, c), v['log_map0_x'])
    same(g.radius(x, c), v['log_map0_x'].norm(dim=-1))
    same(g.dist(x[:, None], y[None], c), v['pairwise_dist'])
    same(-g.scores(x, y, c), v['pairwise_dist'])
    same(g.half_aperture(x, c), v['half_aperture_x'])
    near = torch.minimum(v['exterior_angle_xy'], math.pi - v['exterior_angle_xy']) < 1e-3
    angle = g.exterior_angle(x, y, c)
    same(angle[near], v['exterior_angle_xy'][near], 1e-7)
    same(angle[~near], v['exterior_angle_xy'][~near])


def test_parity_of_time_component(group):
    v, c = group
    inner = v['x'] @ v['y'].T - _time_component(v['x'], c)[:, None] * _time_component(v['y'], c)
    torch.testing.assert_close(inner, v['pairwise_inner'], rtol=1e-12, atol=1e-12)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([2, 3, 16, 64]),
    st.sampled_from(curvatures),
    st.floats(0, 8),
    st.floats(-7, 1.2),
    st.floats(0, math.pi),
    st.integers(0, 10**6),
)
def test_paired_float32_against_the_oracle(d, c, radius, log_step, turn, seed):
    gen = torch.Generator().manual_seed(seed)
    u, w = unit(torch.randn(2, d, generator=gen, dtype=torch.float64))
    w = unit(w - (w @ u) * u)
    s, step = math.sinh(radius), 10**log_step
    y = math.cosh(step) * s * u + math.sinh(step) * (math.cos(turn) * math.cosh(radius) * u + math.sin(turn) * w)
    if y.norm() > math.sinh(8):
        y = s * u * (1 - 10 ** min(log_step, -1))
    x, y, curv = (s * u / c**0.5).float(), (y / c**0.5).float(), tensor(c)
    true = oracle(x, y, curv)
    assert abs(mpmath.mpf(lorentz.dist(x, y, curv).item()) - true) <= true * mpmath.mpf('1e-6')
    p, q = lorentz_to_poincare(x, curv), lorentz_to_poincare(y, curv)
    p, q = (v.double() for v in (p, q))
    exact = oracle(poincare_to_lorentz(p, curv.double()), poincare_to_lorentz(q, curv.double()), curv)
    got = poincare.dist(p.float(), q.float(), curv).item()
    assert abs(got - float(exact)) <= 1e-6 * float(exact) + 1e-9


@pytest.mark.parametrize('c', curvatures)
@pytest.mark.parametrize('step', [2**-20, 2**-10, 2**-3])
def test_collinear_pairs_keep_their_digits(c, step):
    x = points(20, 16, 8, c, torch.float32).bfloat16().float()
    y = x * (1 - step)
    for a, b, d in zip(x, y, lorentz.dist(x, y, tensor(c))):
        assert abs(mpmath.mpf(d.item()) - oracle(a, b, tensor(c))) <= oracle(a, b, tensor(c)) * mpmath.mpf('1e-6')


def test_float64_keeps_its_digits():
    x = points(20, 16, 12)
    y = x + 1e-3 * torch.randn(20, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for a, b, d in zip(x, y, lorentz.dist(x, y, tensor(1.0, torch.float64))):
        assert abs(mpmath.mpf(d.item()) - oracle(a, b, 1)) <= oracle(a, b, 1) * mpmath.mpf('1e-9')


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize('kind', kinds)
@pytest.mark.parametrize('g', geometries.values(), ids=lambda g: g.name)
def test_values_and_gradients_are_finite(g, kind, dtype):
    for c in curvatures:
        for radius in (1e-30, 1e-4, 0.3, 3.0, 8.0):
            x, y = hostile(kind, 4, radius, c)
            x, y = (on(g, t, tensor(c)).to(dtype).requires_grad_() for t in (x, y))
            curv = tensor(c).requires_grad_()
            with torch.autocast('cpu', dtype=torch.bfloat16):
                out = [
                    g.exp_map0(g.log_map0(x, curv), curv),
                    g.log_map0(x, curv),
                    g.dist(x, y, curv),
                    g.scores(x, y, curv),
                    g.radius(x, curv),
                ]
                if g.has_cones:
                    out += [g.half_aperture(x, curv), g.exterior_angle(x, y, curv)]
            for o in out:
                assert o.dtype == torch.promote_types(dtype, torch.float32) and o.isfinite().all()
                for grad in torch.autograd.grad(o.sum(), (x, y, curv), retain_graph=True, allow_unused=True):
                    assert grad is None or grad.isfinite().all(), (kind, c, radius)


@pytest.mark.parametrize('g', metric, ids=lambda g: g.name)
def test_coincident_points_are_at_distance_zero(g):
    for c in curvatures:
        x = on(g, points(50, 64, 5.0, c, torch.float32), tensor(c))
        assert (g.dist(x, x, tensor(c)) == 0).all()


def test_autocast_changes_nothing():
    x, y, c = points(30, 32, 2.0, dtype=torch.float32), points(20, 32, 3.0, dtype=torch.float32, seed=1), tensor(1.0)
    for g in geometries.values():
        calm = g.scores(on(g, x, c), on(g, y, c), c)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            assert torch.equal(g.scores(on(g, x, c), on(g, y, c), c), calm)


def test_products_ignore_autocast_backwards_too():
    x, y = torch.randn(5, 33, requires_grad=True), torch.randn(7, 33)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        (grad,) = torch.autograd.grad(products(x, y).square().sum(), x)
    torch.testing.assert_close(grad, 2 * (x @ y.T) @ y)
    assert torch.get_float32_matmul_precision() == 'highest'


@pytest.mark.parametrize('precision', ['high', 'medium'])
def test_matmul_shortcuts_are_put_back(precision):
    torch.set_float32_matmul_precision(precision)
    try:
        products(torch.ones(2, 3), torch.ones(4, 3))
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision('highest')


# every child is forked before anything was computed: a process that has threads of OpenMP cannot be forked safely
SWITCHES = """
import os, sys, torch
from meru.geometry import get_geometry, _matmuls
from meru.losses.pairwise import contrastive_loss

def values():
    torch.manual_seed(0)
    space, curv, scale = get_geometry('lorentz'), torch.tensor(1.0), torch.tensor(10.0)
    x, y = (space.exp_map0(torch.randn(64, 256) / 16, curv) for _ in range(2))
    rows = x.clone().requires_grad_()
    loss = contrastive_loss(space, rows, y, curv, scale)
    return [space.scores(x, y, curv), loss.detach(), *torch.autograd.grad(loss, rows)]

for switch in sys.argv[1:]:
    if os.fork() == 0:
        truth = values()
        exec(switch)
        before = [o.fp32_precision for o in _matmuls]
        same = all(map(torch.equal, values(), truth))
        kept = before == [o.fp32_precision for o in _matmuls]
        print(switch, same, kept, flush=True)
        os._exit(0)
    os.wait()
"""


def test_no_switch_of_torch_makes_scores_or_losses_coarse():
    switches = [
        "torch.set_float32_matmul_precision('medium')",
        "torch.backends.fp32_precision = 'tf32'",
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
        "torch.backends.mkldnn.fp32_precision = 'bf16'",
        "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
        'torch.backends.cuda.matmul.allow_tf32 = True',
        "torch.backends.cudnn.fp32_precision = 'tf32'",
    ]
    command = [sys.executable, '-W', 'ignore', '-c', SWITCHES, *switches]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.stdout.splitlines() == [f'{o} True True' for o in switches], done.stdout + done.stderr[-2000:]


def gradient_inputs(g, seed=3):
    gen = torch.Generator().manual_seed(seed)
    c = tensor(0.7, torch.float64)
    x, y = (on(g, 0.8 * torch.randn(4, 3, generator=gen, dtype=torch.float64), c).requires_grad_() for _ in 'xy')
    return x, y, c.requires_grad_()


@pytest.mark.parametrize('g', geometries.values(), ids=lambda g: g.name)
def test_gradients(g):
    x, y, c = gradient_inputs(g)
    check = torch.autograd.gradcheck
    for f in (g.dist, g.scores):
        assert check(f, (x, y, c))
    for f in (g.exp_map0, g.log_map0, g.radius):
        assert check(f, (x, c))
    if g.has_cones:
        assert check(g.exterior_angle, (x, y, c))
        assert check(lambda p, k: g.half_aperture(p, k, 0.1), (x, c))


def test_second_derivatives_and_the_root():
    x, y, c = gradient_inputs(lorentz)
    y.data[0] = 0
    assert torch.autograd.gradcheck(lorentz.dist, (x, y, c)) and torch.autograd.gradgradcheck(lorentz.dist, (x, y, c))
    (slope,) = torch.autograd.grad(lorentz.dist(x, y, c)[0], y)
    torch.testing.assert_close(slope[0], -unit(x[0]).detach())


@pytest.mark.parametrize('c', curvatures)
def test_float32_gradients_are_right(c):
    x, y = points(40, 16, 6.0, c, torch.float32), points(40, 16, 6.0, c, torch.float32) * 1.001

    def grads(dtype):
        args = [x.to(dtype).requires_grad_(), y.to(dtype).requires_grad_(), tensor(c).to(dtype).requires_grad_()]
        return torch.autograd.grad(lorentz.dist(*args).sum(), args)

    for low, high in zip(grads(torch.float32), grads(torch.float64)):
        torch.testing.assert_close(low.double(), high, rtol=1e-6, atol=1e-6)


def test_scores_never_do_much_worse_than_the_inner_product():
    for rx, ry in ((0.5, 0.5), (0.5, 3), (3, 3), (1, 6)):
        x, y, c = (
            points(200, 16, rx, dtype=torch.float32),
            points(200, 16, ry, dtype=torch.float32, seed=1),
            tensor(1.0),
        )
        y[:20] = x[:20] * 1.02
        cosh = torch.cosh(lorentz.scores(x, y, c)).double()
        true = torch.cosh(lorentz.dist(x[:, None].double(), y[None].double(), c.double()))
        bound = 8 * torch.finfo(torch.float32).eps * math.cosh(rx) * torch.cosh(lorentz.radius(y, c)).double()
        assert ((cosh - true).abs() < bound + 2e-6 * true).all()


def test_scores_of_a_cluster_keep_their_digits():
    x = points(1, 16, 4.0) + 0.01 * torch.randn(
        100, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    x, c = x.float(), tensor(1.0)
    d = lorentz.dist(x[:, None], x[None], c)
    off = ~torch.eye(100, dtype=bool)
    assert ((lorentz.scores(x, x, c) + d).abs() / d)[off].max() < 1e-3


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(list(geometries)),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from(curvatures),
    st.floats(1e-6, 8),
    st.integers(0, 10**6),
)
def test_exp_and_log_are_inverse(name, dtype, c, radius, seed):
    g, curv = geometries[name], tensor(c, dtype)
    v = (
        unit(torch.randn(20, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)
        * radius
        / c**0.5
    )
    back = g.log_map0(g.exp_map0(v, curv), curv)
    if g is sphere:
        v = unit(v)
    loss = math.exp(radius) if g is poincare else 1  # a ball's coordinates crowd at its edge
    assert ((back - v).norm(dim=-1) / v.norm(dim=-1)).max() < 4 * loss * torch.finfo(dtype).eps
    if g.has_radius:
        torch.testing.assert_close(
            g.radius(g.exp_map0(v, curv), curv), v.norm(dim=-1), rtol=4 * loss * torch.finfo(dtype).eps, atol=0
        )


def boost(x, direction, rapidity, c):
    along = (x * direction).sum(-1, keepdim=True)
    return x + ((math.cosh(rapidity) - 1) * along + math.sinh(rapidity) * _time_component(x, c)[..., None]) * direction


@pytest.mark.parametrize('c', curvatures)
def test_theorems(c):
    gen = torch.Generator().manual_seed(1)
    curv = tensor(c, torch.float64)
    x, y, z = (
        points(300, 6, 2.5, c, seed=s) * torch.rand(300, 1, generator=gen, dtype=torch.float64) for s in range(3)
    )
    d = lorentz.dist(x, y, curv)
    turned = torch.linalg.qr(torch.randn(6, 6, generator=gen, dtype=torch.float64))[0]
    there = unit(torch.randn(6, generator=gen, dtype=torch.float64))
    torch.testing.assert_close(lorentz.dist(x @ turned, y @ turned, curv), d, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        lorentz.dist(boost(x, there, 1.5, curv), boost(y, there, 1.5, curv), curv), d, rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(lorentz.exterior_angle(x @ turned, y @ turned, curv), lorentz.exterior_angle(x, y, curv))
    for g in metric:
        a, b, e = (on(g, t, curv) for t in (x, y, z))
        assert (g.dist(a, e, curv) <= g.dist(a, b, curv) + g.dist(b, e, curv) + 1e-12).all()
        assert torch.equal(g.dist(a, b, curv), g.dist(b, a, curv))


def members(x, gen, K):
    "A point somewhere in the cone of each x, c = 1."
    n, d = x.shape
    a = (
        torch.rand(n, 1, generator=gen, dtype=torch.float64)
        * lorentz.half_aperture(x, tensor(1.0, torch.float64), K)[:, None]
    )
    step = 3 * torch.rand(n, 1, generator=gen, dtype=torch.float64)
    u, w = unit(x), torch.randn(n, d, generator=gen, dtype=torch.float64)
    w = unit(w - (w * u).sum(-1, keepdim=True) * u)
    return step.cosh() * x + step.sinh() * (
        a.cos() * _time_component(x, tensor(1.0, torch.float64))[:, None] * u + a.sin() * w
    )


@pytest.mark.parametrize('K', [0.1, 0.3])
@pytest.mark.parametrize('over', [1e-6, 0.5, 3.0])
def test_cones_are_transitive_outside_the_clamped_ball(K, over):
    gen, c = torch.Generator().manual_seed(2), tensor(1.0, torch.float64)
    x = points(3000, 4, math.asinh(2 * K) + over)
    y = members(x, gen, K)
    z = members(y, gen, K)
    for near, far in ((x, y), (y, z), (x, z)):
        assert (lorentz.exterior_angle(near, far, c) <= lorentz.half_aperture(near, c, K) + 1e-9).all()


def test_cones_are_not_transitive_inside_it():
    gen, c = torch.Generator().manual_seed(2), tensor(1.0, torch.float64)
    x = points(20000, 4, 0.05)
    z = members(members(x, gen, 0.1), gen, 0.1)
    assert (lorentz.exterior_angle(x, z, c) > lorentz.half_aperture(x, c) + 1e-3).any()


@pytest.mark.parametrize('g', [lorentz, poincare, euclidean], ids=lambda g: g.name)
def test_aperture_is_exactly_a_half_space_inside_the_clamp(g):
    for c in curvatures:
        radius = torch.tensor([0, 1e-3, 0.05, 0.0999, 0.15]) / (1 if g is euclidean else c**0.5)
        x = g.exp_map0(radius[:, None] * unit(torch.ones(5, 8)), tensor(c))
        wanted = 4 if g is euclidean else 5
        assert (g.half_aperture(x, tensor(c))[:wanted] == torch.tensor(math.pi / 2)).all()
        assert g.half_aperture(2 * x, tensor(c))[4] < 1.5


def test_aperture_closes_as_asin():
    s = torch.tensor([0.2 + 1e-12, 0.21, 1.0, 50.0], dtype=torch.float64)
    torch.testing.assert_close(_cone_aperture(s, 0.2), torch.asin(0.2 / s), rtol=1e-9, atol=1e-7)


def test_exterior_angle_straight_ahead_and_straight_back():
    for g in (lorentz, poincare, euclidean):
        x, c = points(10, 8, 2.0, dtype=torch.float32).bfloat16().float(), tensor(1.0)
        p, far, near, opposite = (on(g, t, c) for t in (x, 2 * x, x / 2, -x))
        assert g.exterior_angle(p, far, c).max() < 1e-6
        for y in (near, opposite):
            assert (math.pi - g.exterior_angle(p, y, c)).max() < 1e-6


def test_angles_broadcast():
    x, y, c = points(5, 4, 1.0), points(7, 4, 2.0, seed=1), tensor(1.0, torch.float64)
    for g in (lorentz, poincare, euclidean):
        p, q = on(g, x, c), on(g, y, c)
        table = g.exterior_angle(p[:, None], q[None], c)
        assert table.shape == (5, 7)
        torch.testing.assert_close(table[2, 3], g.exterior_angle(p[2], q[3], c))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_ball_stays_inside_however_long_the_vector(dtype):
    for c in curvatures:
        v = unit(torch.randn(50, 16, generator=torch.Generator().manual_seed(0))).to(dtype) * 80 / c**0.5
        curv = tensor(c, dtype)
        p = poincare.exp_map0(v, curv)
        assert (c * p.double().square().sum(-1) < 1).all() and (
            poincare.radius(p, curv) * c**0.5 > (14 if dtype == torch.float32 else 33)
        ).all()
        assert poincare.dist(p, -p, curv).isfinite().all() and poincare.log_map0(p, curv).isfinite().all()


def test_points_rounded_out_of_the_ball_do_no_harm():
    p, c = torch.tensor([[1.0, 0.0], [1.0, 0.001], [0.9999, 0.02]], requires_grad=True), tensor(1.0)
    root = torch.zeros(1, 2)
    for out in (
        poincare.dist(p, -p, c),
        poincare.dist(p, root, c),
        poincare.scores(p, root, c),
        _ball_gap(p, c),
        poincare.half_aperture(p, c),
    ):
        assert out.isfinite().all() and (out != 0).all()
        assert torch.autograd.grad(out.sum(), p, retain_graph=True)[0].isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_quotients_through_zero(dtype):
    t = torch.cat([torch.zeros(1, dtype=dtype), torch.logspace(-30, 1.6, 400, dtype=dtype)])
    for f, exact in ((_sinhc, mpmath.sinh), (_asinhc, mpmath.asinh)):
        true = [exact(mpmath.mpf(a)) / mpmath.mpf(a) if a else mpmath.mpf(1) for a in t.tolist()]
        assert max(abs(mpmath.mpf(a) / b - 1) for a, b in zip(f(t).tolist(), true)) < 4 * torch.finfo(dtype).eps


def test_the_isometry_and_its_inverse():
    for c in curvatures:
        x, curv = points(50, 8, 6.0, c), tensor(c, torch.float64)
        torch.testing.assert_close(poincare_to_lorentz(lorentz_to_poincare(x, curv), curv), x, rtol=1e-9, atol=0)


def test_sphere():
    c = tensor(1.0)
    x = sphere.exp_map0(torch.randn(9, 5), c)
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(9))
    torch.testing.assert_close(sphere.dist(x, -x, c), torch.full((9,), math.pi))
    v = torch.tensor([[[10.0, 0], [0, 1.0]]])
    torch.testing.assert_close(sphere.prompt_mean(v, c, 1), torch.tensor([[0.5, 0.5]]))
    torch.testing.assert_close(lorentz.prompt_mean(v, c, 1), torch.tensor([[5.0, 0.5]]))
    for f in (lambda: sphere.half_aperture(x, c), lambda: sphere.exterior_angle(x, x, c)):
        with pytest.raises(NotImplementedError, match='no entailment cones'):
            f()


def test_euclidean_scores_and_cones():
    x, y, c = points(6, 4, 1.0, dtype=torch.float32), points(5, 4, 2.0, dtype=torch.float32, seed=1), tensor(1.0)
    x = x * torch.linspace(0.5, 4, 6)[:, None]
    torch.testing.assert_close(euclidean.scores(x, y, c), -(torch.cdist(x, y) ** 2))
    torch.testing.assert_close(
        euclidean.half_aperture(x / 20, c), torch.asin((0.1 / (x / 20).norm(dim=-1)).clamp(max=1))
    )
    torch.testing.assert_close(
        euclidean.exterior_angle(x[:5], y, c),
        torch.acos(torch.cosine_similarity(x[:5], y - x[:5], dim=-1)),
        atol=1e-5,
        rtol=1e-5,
    )


def test_flat_limit():
    c = tensor(1e-8, torch.float64)
    v, w = points(20, 4, 1.0), points(20, 4, 1.5, seed=1)
    x, y = lorentz.exp_map0(v, c), lorentz.exp_map0(w, c)
    torch.testing.assert_close(lorentz.dist(x, y, c), euclidean.dist(v, w, c), rtol=1e-7, atol=0)
    torch.testing.assert_close(lorentz.exterior_angle(x, y, c), euclidean.exterior_angle(v, w, c), rtol=1e-7, atol=1e-7)


def test_acosh1p_counts_rounding_as_zero():
    delta = torch.tensor([-1e-3, 0, 1e-30, 1e-8, 1.0], requires_grad=True)
    out = _acosh1p(delta)
    out.sum().backward()
    assert (out[:2] == 0).all() and (delta.grad[:2] == 0).all() and delta.grad.isfinite().all()
    torch.testing.assert_close(
        out[2:].detach(), torch.tensor([math.sqrt(2) * 1e-15, math.sqrt(2e-8), math.acosh(2)]), rtol=1e-6, atol=0
    )


def test_scores_in_flat_space():
    x, y = points(30, 8, 2.0, dtype=torch.float32), points(20, 8, 2.0, dtype=torch.float32, seed=1)
    torch.testing.assert_close(-euclidean.scores(x, y, tensor(1.0)), torch.cdist(x, y) ** 2, rtol=1e-4, atol=1e-5)


def test_flat_scores_are_plain_distances():
    x, y = points(30, 8, 2.0), points(20, 8, 2.0, seed=1)
    y[0] = x[0]
    c = tensor(1.0, torch.float64)
    torch.testing.assert_close(-flat.scores(x, y, c), torch.cdist(x, y), rtol=1e-9, atol=1e-7)
    torch.testing.assert_close(flat.cdist(x, y, c), euclidean.cdist(x, y, c), rtol=1e-9, atol=1e-7)
    close = -flat.scores(x.float(), y.float(), tensor(1.0))
    torch.testing.assert_close(close[:, 1:].double(), torch.cdist(x, y)[:, 1:], rtol=1e-5, atol=1e-5)
    rows = flat.pairing(x, x, c)
    assert rows.link == 'sqrt' and (rows.positive == 0).all()


def test_inner_is_a_product_and_nothing_else():
    x, y, c = points(30, 8, 2.0), points(20, 8, 2.0, seed=1), tensor(1.0, torch.float64)
    torch.testing.assert_close(inner.scores(x, y, c), x @ y.T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(inner.exp_map0(3 * x, c), 3 * x)
    assert not (inner.has_dist or inner.has_radius or inner.has_cones or inner.has_curv) and inner.has_length
    for f in (inner.detour, inner.exterior_angle):
        with pytest.raises(NotImplementedError, match='inner'):
            f(x[:1], y[:1], c)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize('g', metric, ids=lambda g: g.name)
def test_all_distances_are_those_of_pairs(g, dtype):
    for c in curvatures:
        curv = tensor(c, dtype)
        x, y = (on(g, points(n, 6, 2.0, c, dtype, n), curv) for n in (7, 9))
        want = g.dist(x[:, None].double(), y[None].double(), curv.double())
        torch.testing.assert_close(g.cdist(x, y, curv).double(), want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('g', rooted, ids=lambda g: g.name)
@pytest.mark.parametrize('c', curvatures)
def test_theorems_of_the_detour(g, c):
    curv = tensor(c, torch.float64)
    v = torch.randn(40, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x = g.exp_map0(v, curv)
    share = torch.linspace(0, 1, 7, dtype=torch.float64)[:, None]
    way = g.exp_map0(share * v[:1], curv)  # from the root to the first point
    root = torch.zeros_like(x[:1])
    assert g.detour(x[:1], way, curv).abs().max() < 1e-7  # nothing is lost by a stop on the way
    assert g.detour(x, root, curv).abs().max() < 1e-7  # all lies below the root
    detour, dist, radius = g.detour(x, x, curv), g.cdist(x, x, curv), g.radius(x, curv)
    assert detour.min() > -1e-7  # the triangle's inequality
    assert (detour <= 2 * torch.minimum(radius, dist) + 1e-7).all()
    swap = detour - detour.T  # d(x, y) is the same both ways
    torch.testing.assert_close(swap, 2 * (radius - radius[:, None]), rtol=1e-9, atol=1e-9)
    product = (radius[:, None] + radius - dist) / 2  # Gromov's, at the root
    torch.testing.assert_close(detour, 2 * (radius - product), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('name', [n for n, g in geometries.items() if g.has_length])
def test_direction_is_the_angle_of_tangent_vectors(name):
    g, curv = get_geometry(name), tensor(0.7, torch.float64)
    v, w = (torch.randn(n, 5, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (6, 8))
    want = torch.acos(torch.cosine_similarity(v[:, None], w[None], dim=-1))
    got = g.direction(g.exp_map0(v, curv), g.exp_map0(3 * w, curv), curv)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    axis, back = g.exp_map0(w[:1], curv), g.exp_map0(-2 * w[:1], curv)
    assert g.direction(axis, axis, curv).item() < 1e-7 and abs(g.direction(axis, back, curv).item() - math.pi) < 1e-7
    assert g.direction(torch.zeros_like(axis), axis, curv).item() == math.pi / 2


@pytest.mark.parametrize('g', [lorentz, poincare, euclidean, flat], ids=lambda g: g.name)
def test_cone_angles_are_exterior_angles(g):
    for c in curvatures:
        curv = tensor(c, torch.float64)
        x, y = (on(g, points(n, 4, 2.5, c, seed=n), curv) for n in (7, 9))
        want = g.exterior_angle(y[None], x[:, None], curv)
        torch.testing.assert_close(g.cone_angle(x, y, curv), want, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize('name', geometries)
def test_readings_put_what_is_below_first(name):
    "Two branches from the root: what lies on one is told from the other by every reading, with finite gradients."
    g, curv = get_geometry(name), tensor(1.0, torch.float64)
    below = g.exp_map0(torch.tensor([[2.0, 0.1], [3.0, -0.2], [-0.1, 2.0]], dtype=torch.float64), curv)
    above = g.exp_map0(torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64), curv).requires_grad_()
    for way, far in readings(g).items():
        value = far(below, above, curv)
        assert value.argmin(1).tolist() == [0, 0, 1], way
        assert torch.autograd.grad(far(below, torch.cat([above, below[:1]]), curv).sum(), above)[0].isfinite().all()


def test_unknown_name():
    with pytest.raises(ValueError, match="'hyperbolic'.*lorentz, poincare, euclidean, flat, sphere, inner"):
        get_geometry('hyperbolic')


def test_geoopt_agrees():
    geoopt = pytest.importorskip(
        'geoopt', reason='geoopt is not installed: no independent implementation to compare with'
    )
    for c in curvatures:
        x, y, curv = points(20, 6, 2.0, c), points(20, 6, 1.5, c, seed=1), tensor(c, torch.float64)
        ball = geoopt.PoincareBallExact(c=c)
        torch.testing.assert_close(
            poincare.dist(on(poincare, x, curv), on(poincare, y, curv), curv),
            ball.dist(on(poincare, x, curv), on(poincare, y, curv)),
            rtol=1e-6,
            atol=0,
        )  # geoopt clamps
        full = [torch.cat([_time_component(t, curv)[:, None], t], -1) for t in (x, y)]
        torch.testing.assert_close(lorentz.dist(x, y, curv), geoopt.Lorentz(k=1 / c).dist(*full), rtol=1e-6, atol=0)


measures = dict(scores=geometries.values(), dist=metric, cones=[g for g in metric if g.has_cones])


@pytest.mark.parametrize('measure, g', [(name, g) for name, fit in measures.items() for g in fit], ids=str)
def test_the_transforms_of_torch_func(measure, g):
    "Row by row under vmap, and derivatives forwards, backwards and by plain autograd, are the same."
    curv = torch.tensor(1.3, dtype=torch.float64)
    gen = torch.Generator().manual_seed(0)
    x, y = (g.exp_map0(torch.randn(5, 3, generator=gen, dtype=torch.float64), curv) for _ in range(2))

    def f(x, y, curv):
        if measure == 'cones':
            return entailment_loss(g, x, y, curv)
        return g.dist(x, y, curv) if measure == 'dist' else g.scores(x, y, curv)

    close = partial(torch.testing.assert_close, atol=1e-10, rtol=1e-8)
    if measure == 'dist':
        close(vmap(f, (0, 0, None))(x, y, curv), f(x, y, curv))
    else:
        close(vmap(f, (0, None, None))(torch.stack([x, 0.5 * x]), y, curv)[0], f(x, y, curv))
    leaves = [o.clone().requires_grad_() for o in (x, y, curv)]
    value = f(*leaves)
    weight = torch.randn(value.shape, generator=gen, dtype=torch.float64)
    plain = torch.autograd.grad((value * weight).sum(), leaves, materialize_grads=True, allow_unused=True)
    for i, by_autograd in enumerate(plain):
        by_rows = jacrev(f, argnums=i)(x, y, curv)
        close(torch.tensordot(weight, by_rows, weight.ndim), by_autograd)
    ways = [torch.randn(o.shape, generator=gen, dtype=torch.float64) for o in (x, y, curv)]
    along = jvp(f, (x, y, curv), tuple(ways))[1]
    close((along * weight).sum(), sum((o * way).sum() for o, way in zip(plain, ways)))


def test_a_geometry_without_a_name_of_its_own_takes_nobodys_place():
    before = dict(geometries)
    with pytest.raises(ValueError, match='Nameless has no name of its own'):

        @register
        class Nameless(type(get_geometry('euclidean'))):
            pass

    assert geometries == before
