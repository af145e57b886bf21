"The Triton kernels, in Triton's interpreter, against the plain loss in float64."

import json
import os
import subprocess
import sys
from importlib.util import find_spec
import pytest
import torch
from conftest import ROOT
from meru.geometry import get_geometry
from meru.losses import pairwise, triton_kernels
from meru.losses.contrastive import _Logits

CHECK = """
import torch
from meru.losses import pairwise, triton_kernels
from meru.losses.contrastive import _matrix_loss as matrix_loss
from meru.losses.pairwise import contrastive_loss
from meru.losses.triton_kernels import _Block as Block, _triton_slopes as triton_slopes, _triton_sums as triton_sums
from meru.geometry import get_geometry
triton_kernels._ROOM = 2**11  # so that larger batches have several
def sums(logits): return triton_sums(logits._replace(precision=precision), block, 1 if b in (64, 70) else 2)
def slopes(logits, *sums): return triton_slopes(logits._replace(precision=precision), *sums, block)
tiles = pairwise._engine
pairwise._engine = lambda left: (sums, slopes) if left.dtype == torch.float32 else tiles(left)
def plain_loss(geometry, x, y, curv, scale, *how): return matrix_loss(scale*geometry.scores(x, y, curv), *how)
def outcome(loss, name, dtype, b, d, curv, scale, *how):
    g = torch.Generator().manual_seed(b)
    u, v = .7*torch.randn(2, b, d, generator=g).double()
    leaves = [o.to(dtype).requires_grad_() for o in (u, v, torch.tensor(curv), torch.tensor(scale))]
    u, v, c, s = leaves
    value = loss(get_geometry(name), *(get_geometry(name).exp_map0(o, c) for o in (u, v)), c, s, *how)
    return [value.detach(), *torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)]
ids = lambda b: torch.arange(b)//2
cases = (23, 5, .7, 14.), (19, 18, 2., 30., ids(19), .3), (18, 3, 1., 9., ids(18), 0., .5), (1, 4, 1., 5.)
cases += (6, 4, 1., 5., 0*ids(6), 0., 1.), (16, 4, .7, 14.), (32, 5, 1., 20.)  # whole blocks
cases += (24, 6, 1., 14.), (256, 5, 1., 14.)  # a wide tile, finished in parts
cases += (64, 5, 1., 14.), (70, 5, 1., 14., ids(70))  # programs of several blocks down and across; two and five rooms
worst = dict(ieee=0., tf32x3=0., bf16=0.)
for name in ('lorentz', 'flat', 'sphere'):  # their links are all there are
    for b, d, curv, scale, *how in cases:
        block = Block(16, 256 if b in (24, 256) else 16, 16)
        want = outcome(plain_loss, name, torch.float64, b, d, curv, scale, *how)
        for precision in worst if b < 20 or b == 70 else ['ieee']:
            got = outcome(contrastive_loss, name, torch.float32, b, d, curv, scale, *how)
            assert all(o.isfinite().all() for o in got), (name, b, precision)
            errors = [((g - w).norm()/(w.norm() + 1e-2)).item() for g, w in zip(got, want)]
            if precision != 'ieee': errors.pop(3)  # of the curvature: a difference of larger numbers
            worst[precision] = max(worst[precision], *errors)
print(*worst.values())
"""


def test_in_the_interpreter():
    if find_spec('triton') is None:
        pytest.skip('triton is missing: no wheels for this system')
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', CHECK],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | dict(TRITON_INTERPRET='1'),
        timeout=600,
    )
    assert not done.returncode, done.stderr[-3000:]
    full, three, half = map(float, done.stdout.split())
    assert full < 1e-4 and three < 1e-4 and 1e-4 < half < 1e-2, done.stdout


def test_rooms_hold_whole_blocks(monkeypatch):
    monkeypatch.setattr(triton_kernels, '_ROOM', 2000)
    logits = _Logits(torch.zeros(100, 8), torch.zeros(60, 8), -1.0, 1.0, 'acosh', 1e-7)
    for high, rows in ((16, [32, 32, 32, 4]), (64, [64, 36]), (128, [100])):
        block = triton_kernels._Block(high, 16, 16)
        rooms = [(at.stop - at.start, room.shape) for at, room in triton_kernels._rooms(logits, block)]
        assert rooms == [(n, (2, n, 60)) for n in rows]


@pytest.mark.parametrize('width', [8, 64, 520])
def test_rows_of_bfloat16_products_are_aligned(width):
    "To 16 bytes, as the library's fast kernels want them."
    for parts in (1, 2):
        rows = triton_kernels._row_parts(torch.zeros(3, width), parts)
        assert rows.shape[1] % 8 == 0 and rows.dtype == torch.bfloat16


def test_a_product_of_hyperboloids_is_too_fine_for_bf16():
    "It has a column of lengths for each factor, and bf16 keeps the digits of twelve."
    space, points, one = get_geometry('product'), torch.randn(5, 128), torch.tensor(1.0)
    with pairwise._products_in('bf16'), pytest.raises(ValueError, match='product.*set pair_products to tf32x3'):
        pairwise.contrastive_loss(space, points, points, torch.ones(16), one)
    assert pairwise.contrastive_loss(space, points, points, torch.ones(16), one).isfinite()


@pytest.mark.parametrize('name', ['lorentz', 'poincare', 'flat'])
def test_positives_are_exact_at_any_precision(name, monkeypatch):
    "Pairs so near that products of their rows hold nothing of them; the negatives are made up."
    g, geometry = torch.Generator().manual_seed(0), get_geometry(name)
    v = 0.7 * torch.randn(32, 16, generator=g, dtype=torch.float64)
    near = v + 1e-4 * torch.randn(32, 16, generator=g, dtype=torch.float64)
    curv, scale = torch.tensor(1.0, dtype=torch.float64), torch.tensor(14.0, dtype=torch.float64)
    ends = [geometry.exp_map0(o, curv).float() for o in (v, near)]

    def sums(logits):
        return pairwise._Sums(*(torch.zeros(32, dtype=torch.float64) for _ in range(2)))

    def slopes(logits, *sums):
        return pairwise._Slopes(torch.zeros_like(logits.left), torch.zeros_like(logits.right), torch.tensor(0.0))

    def outcome(dtype, precision):
        points = [o.to(dtype).requires_grad_() for o in ends]
        with pairwise._products_in(precision):
            loss = pairwise.contrastive_loss(geometry, *points, curv.to(dtype), scale.to(dtype))
        return [loss.detach(), *torch.autograd.grad(loss, points)]

    monkeypatch.setattr(pairwise, '_engine', lambda left: (sums, slopes))
    want = outcome(torch.float64, 'ieee')
    for precision in ('bf16', 'tf32x3', 'ieee'):
        for got, right in zip(outcome(torch.float32, precision), want):
            assert (got - right).norm() < 1e-4 * right.norm()


def test_without_triton_the_rest_works():
    code = """import sys
sys.modules['triton'] = None
from meru.losses import triton_kernels, pairwise
assert triton_kernels.triton is None and callable(pairwise.contrastive_loss)"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


def test_triton_is_not_imported_before_it_is_used():
    code = "import sys; from meru.losses import pairwise; assert 'meru.losses.triton_kernels' not in sys.modules"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(find_spec('triton') is None, reason='triton is missing: no wheels for this system')
@pytest.mark.filterwarnings('ignore:TRITON_DEFAULT_FP_FUSION')
def test_compiled_kernels_take_no_more_than_is_on_record(tmp_path, monkeypatch):
    "For GPUs of four generations: registers, spilled bytes, instructions. `python tests/kernels.py` records anew."
    import kernels

    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    recorded = json.loads(kernels.JSON.read_text())
    for case, row in zip(kernels.CASES, recorded['rows'], strict=True):
        now = kernels.taken(*case)
        assert {k: now[k] for k in ('block', 'width')} == {k: row[k] for k in ('block', 'width')}
        for ceiling in ('registers', 'spilled', 'instructions', 'column_instructions', 'special'):
            assert now[ceiling] <= 1.03 * row[ceiling], (case, ceiling, now[ceiling], row[ceiling])
        assert now['spilled'] <= 64
