"What an update does on a GPU, told without one: where the host waits, what is copied, launched and exchanged."

from contextlib import contextmanager
from dataclasses import fields, replace
import pytest
import torch
from meru import parallel
from meru.geometry import geometries, get_geometry
from meru.losses import pairwise, sigmoid, triton_kernels
from meru.losses.contrastive import _Logits, _matrix_loss
from meru.models.model import _SpaceConfig, build_model
from meru.parallel import make_backward
from meru.training import trainer
from meru.training.config import presets
from meru.training.step import _can_compile as can_compile, to_device
from fake_gpu import backward, begun, pretended, ranks, repeated_step, small, step, Watch

ENDS = 'clip', 'euclid', 'poincare'
TWINS = dict(smoke='pairs', smoke_parts='demo_parts', vit_s='vit_b', vit_l='vit_b', vit_s_parts='vit_b_parts')
TWINS |= {f'{a}_{end}': f'{b}_{end}' for a, b in TWINS.items() for end in ENDS}
TWINS |= {
    f'vit_b{kind}_{end}': f'{base}_{end}' for kind, base in (('', 'pairs'), ('_parts', 'demo_parts')) for end in ENDS
}
STARTS = {'embed_dim', 'logit_scale_init', 'learn_curv'}


@pytest.mark.parametrize('name', [o for o in presets if o not in TWINS])
def test_an_update_waits_for_nothing(name, monkeypatch):
    cfg = presets[name]
    told = step(small(cfg), monkeypatch)
    assert told.waits == []
    fields = dict(off=3, levels=9, parts=17)[cfg.chains] + 4 * (cfg.entail_edges == 'next')  # all asynchronous
    assert told.copies == {'cpu to cuda': fields}
    assert (told.launches['_sums_kernel'], told.launches['_shares_kernel']) == (1 + bool(cfg.hard_beta), 1)
    most = 1350 if cfg.chains == 'off' else 3350 if cfg.cone_away else 2700
    assert sum(told.launches.values()) < most


@pytest.mark.parametrize('name', ['vit_b', 'vit_b_parts'])
def test_an_update_in_parts_waits_for_nothing_either(name, monkeypatch):
    "README's command for a card of 24 GB: the loss is taken once, of all pairs."
    cfg = small(presets[name])
    whole, parted = step(cfg, monkeypatch), step(replace(cfg, micro_batch=cfg.batch_size // 4), monkeypatch)
    assert parted.waits == [] and parted.copies == whole.copies
    assert [parted.launches[kernel] for kernel in ('_sums_kernel', '_shares_kernel')] == [1, 1]
    assert sum(parted.launches.values()) < 6 * sum(whole.launches.values())  # towers twice for each of four parts


def test_the_other_presets_have_the_same_losses():
    decide = {o.name for o in fields(_SpaceConfig)} - STARTS | {'chains'}
    for name, twin in TWINS.items():
        assert all(getattr(presets[name], o) == getattr(presets[twin], o) for o in decide), name


def test_eight_ranks_exchange_rows_and_sums(monkeypatch):
    "Of 256 pairs each: all texts, their ids and positives; sums of columns; six numbers; and gradients of texts."
    for module in (parallel, pairwise):
        monkeypatch.setattr(module, 'row_counts', lambda x: [len(x)] * 8)
    with ranks(8):
        told = step(replace(small(presets['vit_b']), batch_size=256), monkeypatch)
    assert not told.waits and set(told.copies) == {'cpu to cuda'}
    assert told.exchanges == [
        'allgather_base cuda float32[8, 512] float32[1, 512] in parallel.gather_rows',
        'allgather_base cuda float32[2048, 520] float32[256, 520] in parallel.gather_rows',
        'allgather_base cuda int64[2048] int64[256] in parallel.gather_rows',
        'allreduce cuda float32[2, 520] in parallel.total',
        'allreduce cuda float64[2048] in parallel.total',
        'allreduce cuda float64[2048] in parallel.total',
        'allgather_base cuda float64[2048] float64[256] in parallel.gather_rows',
        'allreduce cuda float64[] in parallel.total',
        'allreduce cuda float32[] in parallel.total',
        'allreduce cuda float32[] in parallel.total',
        'reduce_scatter_base cuda float32[256, 520] float32[2048, 520] in parallel.scatter_sum',
    ]


def test_gradients_travel_in_buckets():
    "Those of eight ranks, from 25 MB on: each number once, and DistributedDataParallel sends nothing else."
    cfg = replace(small(presets['vit_b']), vocab_size=514, text_width=64, text_heads=1)
    with ranks(8):
        model = build_model(cfg)
        backward = make_backward(model)
        with Watch() as told:
            backward(sum(p.sum() for p in model.parameters()))
    numbers = 7_601_792, 592_900
    assert told.exchanges == [f'allreduce cpu float32[{n}] in parallel._sum_bucket' for n in numbers]
    assert sum(numbers) == model.param_count


# a head, from one launch


@pytest.mark.parametrize('name', ['head_lorentz', 'head_poincare', 'head_clip'])
def test_a_repeated_step_of_a_head_is_a_few_launches(name, monkeypatch):
    cfg = replace(small(presets[name]), batch_size=4096)
    recorded, repeated = repeated_step(cfg, monkeypatch)
    assert recorded.waits == [] and recorded.copies == {} and sum(recorded.launches.values()) > 200
    assert repeated.waits == [] and repeated.copies == {}
    assert repeated.launches['replay'] == 1 and sum(repeated.launches.values()) + 4 <= 60  # and 4 gather a batch


def test_a_head_that_several_gpus_share_is_not_recorded(monkeypatch, capsys):
    "It waits for nothing either, and the run says that one GPU may be faster."
    cfg = replace(presets['head_lorentz'], batch_size=256)
    for module in (parallel, pairwise):
        monkeypatch.setattr(module, 'row_counts', lambda x: [len(x)] * 2)
    monkeypatch.setattr(trainer, 'make_backward', lambda model: backward)
    monkeypatch.setattr('torch.cuda.CUDAGraph', lambda: pytest.fail('a step with exchanges was recorded'))
    watch = Watch()
    with ranks(2), pretended(watch, monkeypatch):
        model, optimiser, batch = begun(cfg)
        move = trainer._stepper(model, optimiser, cfg, None, own=False)
        with watch:
            moved = to_device(batch, cfg, 'cuda')
            for i in range(5):
                move(moved, i)
    assert watch.waits == [] and len(watch.exchanges) % 5 == 0 and sum(watch.launches.values()) > 5 * 200
    assert capsys.readouterr().out.count('2 processes share each step of this head') == 1
    for quiet in (
        (cfg, 'cuda', False, 1),
        (cfg, 'cpu', False, 2),
        (cfg, 'cuda', True, 2),
        (presets['vit_b'], 'cuda', False, 2),
    ):
        trainer._say_unrecorded(*quiet)
    assert not capsys.readouterr().out


def test_kernels_are_launched_on_the_gpu_of_their_rows(monkeypatch):
    "Triton launches on the current one, which nobody set to the second."
    current, launched = [], []

    @contextmanager
    def device_of(x):
        current.append(x.device)
        yield
        current.pop()

    class Kernel:
        def __getitem__(self, grid):
            return lambda rows, *args, **options: launched.append((rows.device, *current))

    with pretended(Watch(), monkeypatch):
        monkeypatch.setattr('torch.cuda.device_of', device_of)
        for name in ('_sums_kernel', '_shares_kernel'):
            monkeypatch.setattr(triton_kernels, name, Kernel())
        rows = torch.zeros(64, 8, device='cuda:1')
        logits = _Logits(rows, rows, -1.0, 1.0, 'acosh', 1e-7)
        sums = triton_kernels._triton_sums(logits)
        triton_kernels._triton_slopes(logits, sums, sums)
    assert launched == 2 * [(rows.device, rows.device)]


# where Triton does not run


@pytest.mark.parametrize(
    'gpu, says',
    [
        (dict(triton=None), 'no Triton for this system'),
        ({'torch.version.hip': '7.0'}, 'written for NVIDIA'),
        ({'torch.cuda.get_device_capability': lambda device: (7, 5)}, 'Tesla T4 is older than compute capability 8.0'),
        ({'shutil.which': lambda name: None}, 'install gcc'),
        ({}, 'Triton does not run'),  # as on this machine
    ],
)
def test_an_obstacle_is_said_once_and_chunks_serve(gpu, says, monkeypatch):
    monkeypatch.delenv('CC', raising=False)
    monkeypatch.setattr('torch.cuda.get_device_name', lambda device: 'Tesla T4')
    monkeypatch.setattr('torch.cuda.get_device_capability', lambda device: (9, 0))
    monkeypatch.setattr('shutil.which', lambda name: '/usr/bin/gcc')
    for name, value in gpu.items():
        monkeypatch.setattr(name if '.' in name else f'meru.losses.triton_kernels.{name}', value)
    triton_kernels._runs_on.cache_clear()
    with pytest.warns(UserWarning, match=says):
        assert not triton_kernels._runs_on(torch.device('cuda', 0))
    assert not triton_kernels._runs_on(torch.device('cuda', 0))
    triton_kernels._runs_on.cache_clear()


@pytest.mark.parametrize('how, compiled', [('auto', False), ('on', True)])
def test_blocks_are_not_compiled_where_triton_fails(how, compiled, monkeypatch):
    "A card without a C compiler beside it trains all the same, unless `compile` is on."
    cfg = replace(small(presets['vit_b']), compile=how)
    monkeypatch.setattr('meru.losses.triton_kernels._fails', lambda device: 'install gcc')
    if compiled:
        assert can_compile(cfg, 'cuda')
        return
    with pytest.warns(UserWarning, match='install gcc: the transformer blocks are not compiled'):
        assert not can_compile(cfg, 'cuda')
    assert can_compile(presets['head_clip'], 'cuda') and can_compile(cfg, 'cpu')  # without blocks, or a GPU
    monkeypatch.setattr('meru.losses.triton_kernels._fails', lambda device: None)
    assert can_compile(cfg, 'cuda')


def outcome(loss, name, *how):
    g, geometry = torch.Generator().manual_seed(0), get_geometry(name)
    vectors = 0.7 * torch.randn(2, 23, 4, generator=g, dtype=torch.float64)
    scalars = [torch.tensor(o, dtype=torch.float64) for o in (1.2, 9.0)]
    leaves = [o.requires_grad_() for o in (*vectors, *scalars)]
    points = [geometry.exp_map0(o, leaves[2]) for o in leaves[:2]]
    value = loss(geometry, *points, *leaves[2:], *how)
    return [value, *torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)]


def plain_loss(geometry, x, y, curv, scale, *how):
    return _matrix_loss(scale * geometry.scores(x, y, curv), *how)


@pytest.mark.parametrize('name', geometries)
def test_chunks_give_the_loss_of_the_whole_matrix(name, monkeypatch):
    monkeypatch.setattr(pairwise, '_number', lambda x: x.detach())
    monkeypatch.setattr(pairwise, '_AT_ONCE', 100)
    monkeypatch.setattr(pairwise, '_engine', lambda left: (pairwise._chunk_sums, pairwise._chunk_slopes))
    for how in ((), (torch.arange(23) // 3, 0.2, 0.5), (torch.zeros(23, dtype=torch.int64), 0.0, 1.0)):
        for got, want in zip(outcome(pairwise.contrastive_loss, name, *how), outcome(plain_loss, name, *how)):
            torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize('name', geometries)
def test_chunks_give_the_sigmoid_loss_of_tiles(name, monkeypatch):
    how = torch.tensor(5.0).double(), torch.arange(23) // 3
    want = outcome(sigmoid.sigmoid_loss, name, *how)
    monkeypatch.setattr(sigmoid, '_number', lambda x: x.detach())
    monkeypatch.setattr(pairwise, '_AT_ONCE', 100)
    monkeypatch.setattr(sigmoid, '_engine', lambda left: (sigmoid._chunk_sum, sigmoid._chunk_sum_slopes))
    for a, b in zip(outcome(sigmoid.sigmoid_loss, name, *how), want):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def test_a_config_says_how_precise_the_products_are(monkeypatch):
    seen = []
    sums = triton_kernels._triton_sums
    monkeypatch.setattr(triton_kernels, '_triton_sums', lambda logits: seen.append(logits.precision) or sums(logits))
    for precision in ('bf16', 'tf32x3'):
        step(replace(small(presets['head_clip']), pair_products=precision, hard_beta=0.0), monkeypatch)
    assert seen == ['bf16', 'tf32x3']


@pytest.mark.skipif(triton_kernels.triton is None, reason='triton is missing: no wheels for this system')
def test_a_big_batch_tries_its_tiles_once_and_takes_the_fastest(monkeypatch):
    blocks, tried = triton_kernels._blocks(90, 'bf16'), []

    def timed(run, **how):
        tried.append(run())
        if tried[-1] == blocks[0]:
            raise triton_kernels.triton.runtime.OutOfResources(300000, 232448, 'shared memory')
        return {blocks[1]: 2.0, blocks[2]: 3.0}[tried[-1]]

    monkeypatch.setattr('torch.cuda.get_device_capability', lambda device: (9, 0))
    monkeypatch.setattr('triton.testing.do_bench', timed)
    monkeypatch.setattr(triton_kernels, '_best', {})
    rows = torch.zeros(2048, 8)
    logits = _Logits(rows, rows, -1.0, 1.0, 'acosh', 1e-7, precision='bf16')

    def function(logits, block):
        return block

    best = [triton_kernels._best_block(function, logits) for _ in range(2)]
    assert best == [blocks[1]] * 2 and tried == blocks
    assert triton_kernels._best_block(function, logits._replace(left=rows[:64])) == blocks[0]  # not worth it
    monkeypatch.setattr('torch.are_deterministic_algorithms_enabled', lambda: True)
    assert triton_kernels._best_block(function, logits) == blocks[0] and tried == blocks
