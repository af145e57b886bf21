"The peers compute what we compute, and the suites say what they did; times are nobody's business here."

import json
from functools import partial
import pytest
import torch
from conftest import ROOT
from meru.benchmarks.timing import _in_new_process
from meru.benchmarks import suites as benchmark
from meru.benchmarks import loss as peers
from meru.losses.pairwise import contrastive_loss
from meru.geometry import get_geometry


@pytest.mark.parametrize(
    'geometry, peer',
    [
        ('lorentz', peers._published_loss),
        ('lorentz', peers._published_once),
        ('lorentz', peers._geoopt_loss),
        ('sphere', peers._clip_loss),
    ],
)
def test_peers_have_our_loss_and_gradients(geometry, peer):
    leaves = [o.detach().double().requires_grad_() for o in peers._near_pairs(geometry, 40, 6)]
    got, want = (peers._both_passes(f, leaves) for f in (peer, partial(contrastive_loss, get_geometry(geometry))))
    used = range(5) if geometry == 'lorentz' else (0, 4)  # the sphere's gradients differ along the radius
    assert peers._worst_error([got[i] for i in used], [want[i] for i in used]) < 1e-5


def test_the_published_head_is_ours():
    models, batch = peers._heads(12, 6), torch.randn(2, 50, 12).unbind()
    losses = [m(*batch) for m in models.values()]
    grads = [
        torch.autograd.grad(
            l['loss'] if isinstance(l, dict) else l, [m.image_proj.weight, m.text_proj.weight, m.log_logit_scale]
        )
        for l, m in zip(losses, models.values())
    ]
    assert abs(losses[0]['loss'] - losses[1]) < 1e-4 and peers._worst_error(*grads) < 1e-2


def test_short_forms_say_what_they_did(tmp_path):
    loss, head = (benchmark.record_suite(k, tmp_path, quick=True) for k in ('loss', 'head'))
    assert {r['case'] for r in loss['rows']} == {
        f'{k}, 1 thread'
        for k in (*(f'lorentz {b} x {d}' for b in (48, 64, 96) for d in (8, 16)), 'sphere 64 x 8', 'sphere 64 x 16')
    }
    for row in loss['rows']:
        assert (
            set(row['ms']) == set(row['gradient_error']) == {'ours', *row['ratio']}
            and row['gradient_error']['ours'] < 1e-4
        )
    assert 'geoopt' in loss['rows'][0]['ratio'] and loss['torch_compile'] == 'not asked for'
    assert head['rows'][0]['first_loss']['ours'] == pytest.approx(head['rows'][0]['first_loss']['published'], rel=1e-3)
    assert json.loads((tmp_path / 'loss.json').read_text()) == json.loads(json.dumps(loss))


def test_no_compiler_is_said(monkeypatch):
    def fails(*args, **how):
        raise RuntimeError('no C++ compiler')

    monkeypatch.setattr(torch, 'compile', fails)
    assert peers._compile_published(True) == (None, 'left out: RuntimeError: no C++ compiler')


def test_memory_of_the_published_form_grows_with_the_square():
    with_four, with_eight = (_in_new_process(peers._loss_memory, 'published', b, 4) for b in (2048, 4096))
    assert with_eight > with_four > 2048**2 * 4


def test_exponents():
    assert peers._exponent([1, 10, 100], [5, 500, 50_000]) == 2.0


def test_committed_results_keep_the_promises():
    loss, head = (json.loads((ROOT / f'outputs/benchmarks/{k}.json').read_text()) for k in ('loss', 'head'))
    assert not loss['machine']['dirty'] and not head['machine']['dirty']
    rows = [r for r in loss['rows'] if r['geometry'] == 'lorentz']
    assert {r['threads'] for r in rows} == {1, 2} and {r['pairs'] for r in rows} == {512, 1024, 2048, 4096}
    assert all(r['ratio']['published']['median'] > 1 for r in rows)  # clarity came first below 1,024 pairs
    assert all(r['ratio']['published']['median'] > 2.5 for r in rows if r['pairs'] >= 2048)
    assert (
        max(e for r in loss['rows'] for e in r['gradient_error'].values()) < 2e-5
        and loss['memory']['fraction']['8192'] > 20
    )
    row = head['rows'][0]
    assert row['ratio']['published']['median'] > 10 and (row['pairs'], row['dim']) == (4096, 64)
