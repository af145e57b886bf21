"Many processes against one: loss, gradients, data, runs; and the message when one of them goes."

import io
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import time
from contextlib import redirect_stderr
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch
import pytest
import torch
from meru import parallel
from meru.losses import pairwise
from meru.losses.contrastive import _matrix_loss
from meru.losses.entailment import entailment_loss
from meru.training import trainer
from meru.parallel import make_backward, PeerLost, gather_rows, processes, rank, total, world
from meru.models.feature_cache import open_cache
from meru.models.mining import FeatureBatches
from meru.geometry import geometries, get_geometry
from klein import klein
from meru.data.images import decode_image
from meru.training.launch import launch, _start, _what_happened
from meru.models.model import build_model
from meru.training.config import make_config
from meru.training.run import Run
from meru.training.step import gradients
from meru.core import file_sha256
from meru.data.loader import Batch, Loader, part_of, TextChains
from meru.training.trainer import _Part, _check_processes, main, make_loader, open_data, _validate

pytestmark = pytest.mark.usefixtures('in_root')
SMOKE = dict(dropout=0.0, val_pairs=128, steps=12, val_every=6, save_every=1, log_every=1)


def _member(job, args, r, n, port, pipe, err):
    os.environ |= dict(
        RANK=str(r), LOCAL_RANK=str(r), WORLD_SIZE=str(n), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    with open(err, 'w') as f, redirect_stderr(f):
        try:
            pipe.send(job(*args))
        except SystemExit as e:
            f.write(str(e.code))
            f.flush()
            os._exit(1)


class Team:
    "Processes forked from one that has imported everything; each returns what its job returned, or says why not."

    def __init__(self, home):
        self.home, self.fork = home, multiprocessing.get_context('forkserver')
        self.fork.set_forkserver_preload(['meru.training.launch', 'torch._dynamo'])  # which an optimiser would import

    def start(self, n, job, *args):
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            port = s.getsockname()[1]
        self.pipes, self.errs = [self.fork.Pipe(False) for _ in range(n)], [self.home / f'err{r}' for r in range(n)]
        self.members = [
            self.fork.Process(target=_member, args=(job, args, r, n, port, w, e))
            for r, ((_, w), e) in enumerate(zip(self.pipes, self.errs))
        ]
        for o in self.members:
            o.start()
        for _, w in self.pipes:
            w.close()

    def end(self, seconds=60):
        results = []
        for r, _ in self.pipes:
            try:
                results.append(r.recv() if r.poll(seconds) else 'late')
            except EOFError:
                results.append(None)
        for o in self.members:
            o.join(seconds)
        return results, [e.read_text() if e.exists() else '' for e in self.errs]

    def run(self, n, job, *args):
        self.start(n, job, *args)
        results, errs = self.end(120)
        assert not any(o.exitcode for o in self.members), errs
        return results


@pytest.fixture(scope='module')
def team(tmp_path_factory):
    return Team(tmp_path_factory.mktemp('team'))


# the loss

B = 11
WAYS = dict(
    plain={},
    masked=dict(text_ids=torch.arange(B) % 7),
    all=dict(margin=0.5, hard_beta=0.5, text_ids=torch.arange(B) % 7),
)
CUTS = {1: [11], 2: [8, 3], 4: [1, 5, 3, 2]}  # pairs of each process
MUTANTS = {
    'gather without gradient': dict(scatter_sum=lambda x, counts: torch.zeros_like(x[: counts[rank()]])),
    'wrong target offset': dict(first_row=lambda counts: 0),
    'missing average': dict(mean_of_all=lambda mean, n, every: parallel._Share.apply(mean)),
}


def numbers(name, spread, how, size=0.7):
    "Loss, gradients of all images and texts, of curvature and scale; of the plain form, or of the processes together."
    g, geometry = torch.Generator().manual_seed(3), get_geometry(name)
    u, v = (size * torch.randn(B, 5, generator=g, dtype=torch.float64) for _ in range(2))
    if size > 1:
        v[:2] *= 4
        u[-1:] *= 4
    counts = CUTS[world()] if spread else [B]
    mine = slice(sum(counts[: rank()]), sum(counts[: rank() + 1])) if spread else slice(None)
    leaves = [
        o.clone().requires_grad_() for o in (u[mine], v[mine], torch.tensor(1.3).double(), torch.tensor(14.0).double())
    ]
    x, y = (geometry.exp_map0(o, leaves[2]) for o in leaves[:2])
    how = how | ({'text_ids': how['text_ids'][mine]} if 'text_ids' in how else {})
    if spread:
        loss = pairwise.contrastive_loss(geometry, x, y, *leaves[2:], **how, all_processes=True)
    else:
        loss = _matrix_loss(leaves[3] * geometry.scores(x, y, leaves[2]), **how)
    if geometry.has_cones:
        entail = entailment_loss(geometry, y, x, leaves[2])
        loss = loss + 0.2 * (parallel.mean_of_all(entail, len(x)) if spread else entail)
    grads = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return (
        [loss.detach(), *(gather_rows(o) for o in grads[:2]), *map(total, grads[2:])]
        if spread
        else [loss.detach(), *grads]
    )


def errors(got, want):
    return [float((g - w).abs().max() / w.abs().max().clamp_min(1e-9)) for g, w in zip(got, want)]


def compare_losses():
    "Worst relative errors of loss and gradients over everything; far apart points; and what each mutant does."
    with processes('cpu'), klein():

        def both(name, how, size=0.7):
            return errors(numbers(name, True, how, size), numbers(name, False, how, size))

        results = dict(
            all={(name, way): both(name, how) for name in geometries for way, how in WAYS.items()},
            far={name: both(name, {}, 1.5) for name in geometries if name != 'klein'},  # its coordinates end before
        )
        for mutant, names in MUTANTS.items() if world() > 1 else ():
            with patch.multiple(pairwise, **names):
                results[mutant] = both('lorentz', {})
        return results


@pytest.fixture(scope='module')
def compared(team):
    return {n: team.run(n, compare_losses) for n in (1, 2, 4)}


@pytest.mark.parametrize('n', [1, 2, 4])
def test_loss_and_gradients_are_those_of_one_process(compared, n):
    for results in compared[n]:
        assert len(results['all']) == 3 * (len(geometries) + 1), results['all'].keys()  # and the Klein model
        assert max(map(max, results['all'].values())) < 1e-12, results['all']
        assert max(map(max, results['far'].values())) < 1e-6, results[
            'far'
        ]  # so far out the fused form itself has lost these digits


@pytest.mark.parametrize('n', [2, 4])
@pytest.mark.parametrize('mutant', MUTANTS)
def test_the_comparison_catches(compared, mutant, n):
    for results in compared[n]:
        loss, *gradients = results[mutant]
        assert max(gradients) > 1e-2
        assert loss < 1e-12 if mutant == 'gather without gradient' else loss > 1e-4


# the model


def chains_of(ids):
    "TextChains for texts 1 to 7: above each an even or odd one, 11 or 10, above those 12."
    general = torch.tensor(sorted({10 + i % 2 for i in ids.tolist()} | {12}))
    tokens = torch.zeros(len(general), 4, dtype=torch.int64)
    tokens[:, 0], tokens[:, 1] = general, 200  # the highest id ends a text
    return TextChains(tokens, general, torch.stack([torch.full_like(ids, 12), 10 + ids % 2, ids], 1))


def parts_of(ids):
    "TextChains for texts 1 to 7 with parts: 12 and an even or odd one above each, one of them above its part."
    drawn = torch.where(ids % 3 == 0, 12, 10 + ids % 2)
    general = drawn.unique()
    tokens = torch.zeros(len(general), 4, dtype=torch.int64)
    tokens[:, 0], tokens[:, 1] = general, 200
    rows = torch.cat([torch.stack([o, ids], 1) for o in (torch.full_like(ids, 12), 10 + ids % 2)])
    places = torch.arange(len(ids))
    own = torch.stack([torch.zeros_like(drawn), drawn], 1)
    return TextChains(tokens, general, torch.cat([rows, own]), torch.cat([places, places, len(ids) + places]))


def model_gradients(preset, given):
    "Loss and all gradients of a whole model in float64, batch norm included, in slices and in one."

    def of(parts):
        torch.manual_seed(0)
        model = (
            build_model(
                make_config(
                    preset,
                    dropout=0.0,
                    **({} if 'clip' in preset or 'euclid' in preset else dict(learn_curv=True)),
                    **given,
                )
            )
            .double()
            .train()
        )
        g = torch.Generator().manual_seed(1)
        images, tokens = (
            torch.rand(B, 3, 32, 32, generator=g, dtype=torch.float64),
            torch.randint(1, 99, (B, 16), generator=g),
        )
        tokens[:, 9] = tokens.max() + 1
        if world() > 1:
            parallel.sync_batch_norms(model)
        ids = torch.arange(B) % 7 + 1
        chains = chains_of(ids[parts]) if 'chain_weight' in given else None
        pictures = images[parts]
        if 'part_weight' in given:
            chains, pictures = parts_of(ids[parts]), torch.cat([pictures, 1 - pictures.flip(2)])
        out = model(pictures, tokens[parts], ids[parts], chains)
        make_backward(model, bucket_mb=0.2)(out['loss'])
        return [
            out['loss'].detach(),
            *(p.grad for p in model.parameters()),
            *(o for k, o in model.state_dict().items() if 'running' in k),
        ]

    want = of(slice(None))
    with processes('cpu'):
        return errors(of(part_of(B, (rank(), world()))), want)


@pytest.mark.parametrize('preset', ['smoke', 'smoke_clip', 'smoke_euclid', 'smoke_poincare'])
def test_a_whole_model_has_the_same_gradients(team, preset):
    for results in team.run(2, model_gradients, preset, {}):
        assert max(results) < 1e-10 and results[0] < 1e-12, results


@pytest.mark.parametrize('n', [2, 4])
@pytest.mark.parametrize('preset', ['smoke', 'smoke_clip'])
def test_chains_reach_across_processes(team, preset, n):
    terms = dict(chains='levels', chain_weight=1.0, **({} if 'clip' in preset else dict(order_weight=0.5)))
    for results in team.run(n, model_gradients, preset, terms):
        assert max(results) < 1e-10 and results[0] < 1e-12, results


@pytest.mark.parametrize('preset', ['smoke_parts', 'smoke_parts_clip'])
def test_parts_reach_across_processes(team, preset):
    for results in team.run(2, model_gradients, preset, dict(part_weight=0.5, image_size=32, context_length=16)):
        assert max(results) < 1e-10 and results[0] < 1e-12, results


def norms():
    "Every kind of batch norm, spread and plain: outputs in training and after it, and running statistics."
    x = torch.randn(7, 3, 4, generator=torch.Generator().manual_seed(0)).double()

    def of(kind, part):
        norm, outputs = torch.nn.BatchNorm1d(3, **kind).double(), []
        if world() > 1:
            parallel.sync_batch_norms(norm)
        for step in (1, 2, 3):
            outputs.append(norm(step * x[part] + step))
        return [*outputs, norm.eval()(x[part]), *(o.double()[None] for o in norm.buffers())]

    kinds = [dict(), dict(momentum=None), dict(track_running_stats=False), dict(affine=False)]
    want = [of(kind, slice(None)) for kind in kinds]
    with processes('cpu'):
        part = part_of(7, (rank(), 2))
        results = [
            errors([o.detach() for o in of(kind, part)], [(o[part] if len(o) == 7 else o).detach() for o in w])
            for kind, w in zip(kinds, want)
        ]
        lonely = parallel._SyncBatchNorm(3)
        lonely(torch.ones(rank(), 3, 1))  # one value a channel in all
        return results, [o.isfinite().all().item() for o in (lonely.running_mean, lonely.running_var)]


def test_every_kind_of_batch_norm_sees_all_processes(team):
    for results, finite in team.run(2, norms):
        assert max(map(max, results)) < 1e-12 and all(finite), (results, finite)


# the data


def padded(x):  # texts are as wide as the longest of their slice
    return torch.nn.functional.pad(x, (0, 16 - x.shape[1])) if x.ndim == 2 and x.dtype == torch.int64 else x


@pytest.mark.parametrize('k', [1, 2, 3, 5])
def test_the_slices_of_a_batch_are_the_batch(k, made_up):
    config = make_config('smoke', batch_size=16, word_drop=0.2, level_probs=())
    pairs, held_out = open_data(config)
    cache = open_cache(made_up)

    def loaders(share):
        return make_loader(config, pairs, share=share), FeatureBatches(cache, batch_size=16, order='hard', share=share)

    for whole, *parts in zip(loaders((0, 1)), *(loaders((i, k)) for i in range(k))):
        for step in (0, 7):
            one, many = whole.batch_at(step), [o.batch_at(step) for o in parts]
            assert one.keys == sum([o.keys for o in many], []) and len(one.keys) == 16
            for name in ('images', 'tokens', 'text_ids'):
                assert torch.equal(padded(getattr(one, name)), torch.cat([padded(getattr(o, name)) for o in many]))
    seen = [
        [key for b in make_loader(config, held_out, share=(i, k), batch_size=7).eval_batches() for key in b.keys]
        for i in range(k)
    ]
    assert sum(seen, []) == [key for b in make_loader(config, held_out, batch_size=7).eval_batches() for key in b.keys]


# runs


def train(folder, poison=False):
    if poison:
        real = Loader.batches

        def batches(self, first):
            for i, b in enumerate(real(self, first), first):
                yield b._replace(images=b.images.float() * float('nan')) if i == 6 and rank() == 1 else b

        Loader.batches = batches
    main(['--config', str(Path(folder) / 'config.json')])


def numbered(run):
    return [{k: v for k, v in o.items() if k not in ('seconds', 'pairs_per_s')} for o in run.rows()]


def test_a_killed_process_ends_the_run_and_the_restart_ends_with_the_same_bits(team, tmp_path):
    "Two processes under torchrun; the second is killed."
    config = make_config('smoke', **SMOKE)
    whole, broken = Run(tmp_path / 'whole', config), Run(tmp_path / 'broken', config)
    team.run(2, train, whole.folder)
    with open(tmp_path / 'log', 'w+') as log, patch.dict(os.environ, OMP_NUM_THREADS='1'):
        child = _start(broken, 2, log)
        end = time.time() + 120
        while len(broken.rows()) < 5 and time.time() < end and child.poll() is None:
            time.sleep(0.01)
        second = next(int(p.parent.name) for p in Path('/proc').glob('[0-9]*/environ') if is_second(p, child.pid))
        os.kill(second, signal.SIGKILL)
        killed = time.time()
        assert child.wait(60) != 0 and time.time() - killed < 60
        child.stdin.close()
        log.seek(0)
        messages = log.read()
    assert _what_happened(messages) == 'process 1 was ended by SIGKILL'
    assert re.search(
        r'process 0: .*another.*keeps its checkpoint of step \d+, and the same command goes on from there', messages
    ), messages[-2000:]
    assert 4 <= broken.step < 12 and not broken.finished
    team.run(2, train, broken.folder)
    for name in ('last', 'best'):
        assert file_sha256(whole.folder / f'{name}.safetensors') == file_sha256(broken.folder / f'{name}.safetensors')
    assert numbered(whole) == numbered(broken)
    assert [o['processes'] for o in broken.read('run.json')['sessions']] == [2, 2]


def is_second(path, parent):
    "Is this process the second of those that `parent` started?"
    try:
        return (
            f'PPid:\t{parent}\n' in path.with_name('status').read_text() and b'\0RANK=1\0' in b'\0' + path.read_bytes()
        )
    except OSError:
        return False


def test_resumes_with_another_number_of_processes(team, tmp_path):
    config = make_config('smoke_clip', **SMOKE)
    one, many = Run(tmp_path / 'one', config), Run(tmp_path / 'many', config)
    team.run(1, train, one.folder)
    team.start(3, stop_at, many.folder, 5)
    team.end()
    assert 5 <= many.step < 12
    team.run(1, train, many.folder)
    assert [o['processes'] for o in many.read('run.json')['sessions']] == [3, 1]
    a, b = one.rows(), many.rows()
    assert [o['step'] for o in a] == [o['step'] for o in b] == list(range(1, 13))
    assert a[0]['loss'] == pytest.approx(b[0]['loss'], rel=1e-5) and a[0]['grad_norm'] == pytest.approx(
        b[0]['grad_norm'], rel=1e-4
    )


def stop_at(folder, step):
    real = Run.log

    def log(self, row):
        real(self, row)
        if row['step'] > step:
            os._exit(1)

    Run.log = log
    train(folder)


def train_in_buckets(folder, stop=None, mb=0.5):
    "Train with buckets so small that a model has several."
    trainer.make_backward = partial(make_backward, bucket_mb=mb)
    train(folder) if stop is None else stop_at(folder, stop)


def test_three_processes_resume_with_the_same_bits(team, tmp_path):
    "From three on, the order in which numbers are added decides their last bits."
    config = make_config('smoke_clip', **SMOKE | dict(steps=5, val_every=5))
    whole, broken = Run(tmp_path / 'whole', config), Run(tmp_path / 'broken', config)
    team.run(3, train_in_buckets, whole.folder)
    team.start(3, train_in_buckets, broken.folder, 2)
    team.end()
    assert 2 <= broken.step < 5
    team.run(3, train_in_buckets, broken.folder)
    assert numbered(whole) == numbered(broken)
    for name in ('last', 'best'):
        assert file_sha256(whole.folder / f'{name}.safetensors') == file_sha256(broken.folder / f'{name}.safetensors')


def exchanges(mb):
    "Gradients of a whole batch with chains and by parts, and how many numbers each exchange of theirs carried."
    cfg = make_config(
        'smoke', image_tower='vit', image_width=32, image_depth=1, image_heads=4, patch_size=8, dropout=0.0
    )
    cfg = replace(cfg, learn_curv=True, chains='levels', chain_weight=1.0)
    g = torch.Generator().manual_seed(1)
    images, tokens = torch.rand(8, 3, 32, 32, generator=g), torch.randint(1, 99, (8, 16), generator=g)
    tokens[:, 9] = tokens.max() + 1
    real = parallel._sum_bucket

    def of(micro_batch, part, sizes):
        def count(sent, bucket):
            sizes.append(bucket.buffer().numel())
            return real(sent, bucket)

        torch.manual_seed(0)
        model = build_model(cfg).double().train()
        with patch.object(parallel, '_sum_bucket', count):
            backward = make_backward(model, mb)
        sizes.clear()
        ids = 1 + torch.arange(8)[part] % 7
        batch = Batch(images[part].double(), tokens[part], ids, [], chains=chains_of(ids))
        gradients(model, batch, replace(cfg, micro_batch=micro_batch), backward)
        return [p.grad for p in model.parameters()]

    want = of(0, slice(None), [])
    with processes('cpu'):
        results = []
        for micro_batch in (0, 1):
            sizes = []
            grads = of(micro_batch, part_of(8, (rank(), world())), sizes)
            results.append((max(errors(grads, want)), sizes, sum(o.numel() for o in want)))
        return results


@pytest.mark.parametrize('n', [1, 2, 4])
def test_gradients_travel_once_a_step_in_buckets(team, n):
    for results in team.run(n, exchanges, 0.2):
        for error, sizes, most in results:
            assert error < 1e-12
            assert sizes == [] if n == 1 else len(sizes) > 2 and sum(sizes) == most, (sizes, most)
    for results in team.run(n, exchanges, 25):
        assert all(len(sizes) == (n > 1) for _, sizes, _ in results)


def loses_a_peer(late):
    "What the others say when one goes amid a step, and when one's own way back fails."
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(300, 300), torch.nn.Linear(300, 300))
    with processes('cpu'):
        backward = make_backward(model, 0.2)
        if late and rank() == 1:
            os._exit(0)
        loss = model(torch.ones(2, 300)).sum()
        if not late:
            loss.register_hook(lambda g: torch.ones(3) @ torch.ones(4))
        try:
            backward(loss)
        except (PeerLost, RuntimeError) as error:
            return type(error).__name__, str(error)


def test_a_peer_that_goes_amid_a_step_is_told_from_other_faults(team):
    team.start(3, loses_a_peer, True)
    results, errs = team.end()
    for r in (0, 2):
        name, message = results[r]
        assert name == 'PeerLost' and message.startswith('another process of the run has gone ('), results
    for name, message in team.run(2, loses_a_peer, False):
        assert name == 'RuntimeError' and 'has gone' not in message


def loses_patience():
    "What a first step on GPUs would change, with gloo in NCCL's place."
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3)
    with processes('cpu'):
        parallel._Words.group = torch.distributed.new_group(backend='gloo')
        backward, before = make_backward(model), parallel.gather_objects(rank())
        with patch.object(torch.distributed, 'set_timeout', create=True) as limit:
            for _ in range(3):
                backward(model(torch.ones(2, 3)).sum())
        said = [o.args[0].total_seconds() for o in limit.call_args_list]
        os.environ['MERU_PEER_SECONDS'] = '0.3'
        parallel._lose_patience()
        time.sleep(2.5 * rank())
        try:  # a step begins with how many rows each has
            told = parallel.row_counts(torch.ones(2))
        except PeerLost as error:
            told = str(error)
    return before, said, parallel._Words.group, told


def test_after_the_first_step_a_late_peer_has_gone(team):
    results = team.run(2, loses_patience)
    assert [o[:3] for o in results] == [([0, 1], [90.0], None)] * 2
    assert str(results[0][3]).startswith('another process of the run has gone (')


def test_nccl_is_told_to_end_a_run_whose_peer_has_gone(monkeypatch):
    calls = []
    for name in ('init_process_group', 'new_group', 'destroy_process_group'):
        note = lambda *a, name=name, **k: calls.append((name, *a, *k.values()))
        monkeypatch.setattr(torch.distributed, name, note)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    monkeypatch.setattr(torch.cuda, 'set_device', lambda i: None)
    monkeypatch.setattr(os, 'environ', dict(WORLD_SIZE='2', RANK='0', TORCH_NCCL_DUMP_ON_TIMEOUT='1'))
    with processes('cuda'):
        half_an_hour = parallel._long
    begun = [('init_process_group', 'cpu:gloo,cuda:nccl', half_an_hour), ('new_group', 'gloo', half_an_hour)]
    assert calls == [*begun, ('destroy_process_group',)]
    assert os.environ['TORCH_NCCL_ASYNC_ERROR_HANDLING'] == '3' and os.environ['TORCH_NCCL_DUMP_ON_TIMEOUT'] == '1'
    assert parallel._patience().total_seconds() + 30 <= 120
    os.environ['MERU_PEER_SECONDS'] = '300'
    assert parallel._patience().total_seconds() == 300


def test_not_a_number_in_one_process_stops_all(team, tmp_path):
    run = Run(tmp_path / 'run', make_config('smoke', **SMOKE))
    team.start(2, train, run.folder, True)
    _, errs = team.end()
    assert all(o.exitcode == 1 for o in team.members) and all(
        'at step 6. That step touched no parameter' in o for o in errs
    ), errs
    assert run.step == 6 and len(json.loads((run.folder / 'bad_batch.json').read_text())) == 32


def test_a_head_trains_on_cached_features(team, made_up, tmp_path):
    "Three processes do what one does."
    config = make_config(
        'head_poincare', data=str(made_up), steps=6, batch_size=32, log_every=1, val_every=3, save_every=6
    )
    one, three = (Run(tmp_path / o, config) for o in ('one', 'three'))
    team.run(1, train, one.folder)
    team.run(3, train, three.folder)
    for a, b in zip(one.rows(), three.rows()):
        for k in ('loss', 'grad_norm', 'logit_scale', *(['val_loss', 'val_top1'] if a['step'] % 3 == 0 else [])):
            assert a[k] == pytest.approx(b[k], rel=1e-4), (k, a, b)
    assert three.read('run.json')['failures'] == {}


def half_is_damaged():
    "What the held-out pairs say where one process can read none of its own."
    cfg = make_config('smoke')
    torch.manual_seed(0)
    model, held_out = build_model(cfg), open_data(cfg)[1]
    half = _Part(held_out.shards, held_out.start, held_out.start + len(held_out) // 2)
    want = _validate(model, make_loader(cfg, half))
    with processes('cpu'):
        loader = make_loader(cfg, held_out)
        if rank() == 1:
            loader.eval_batches = lambda: iter(())
        return _validate(model, loader), want


def test_a_process_without_a_good_held_out_pair_still_validates(team):
    for got, want in team.run(2, half_is_damaged):
        assert got == pytest.approx(want, rel=1e-5)


# what is refused


def test_a_stop_amid_a_decode_is_no_damaged_picture(monkeypatch):
    monkeypatch.setattr('PIL.Image.open', lambda *a, **k: trainer._stop())
    with pytest.raises(PeerLost, match='torchrun stopped this process'):
        decode_image(b'GIF89a')


def test_the_cause_is_told_whatever_the_processes_do(tmp_path, monkeypatch):
    class Stuck:  # goes only when it is killed
        stdin, killed = io.BytesIO(), False

        def wait(self, seconds=None):
            if not self.killed:
                raise subprocess.TimeoutExpired('torchrun', seconds)

        def kill(self):
            self.killed = True

    def fails(run, child, on_log):
        raise PermissionError('the cause')

    monkeypatch.setattr('meru.training.launch._start', lambda *a: child)
    monkeypatch.setattr('meru.training.launch._follow', fails)
    child = Stuck()
    with pytest.raises(PermissionError, match='the cause'):
        launch(Run(tmp_path, make_config('smoke')), 2)
    assert child.killed and child.stdin.closed


def test_bad_numbers_of_processes(tmp_path):
    run = Run(tmp_path / 'run', make_config('smoke'))
    with pytest.raises(ValueError, match='processes = 0: there must be at least one'):
        launch(run, 0)
    with pytest.raises(ValueError, match='33 processes share batch_size = 32: each needs a pair'):
        launch(run, 33)
    with pytest.raises(ValueError, match='processes = 1.5 is not of type int'):
        launch(run, 1.5)
    with pytest.raises(ValueError, match='4 processes share val_pairs = 3'):
        _check_processes(4, batch_size=32, val_pairs=3)
    assert not run.begun


@pytest.mark.parametrize(
    'path, says',
    [('nowhere/config.json', 'holds no run'), ('run.json', 'must be the config.json'), ('config.json', 'is not JSON')],
)
def test_bad_configs(path, says, tmp_path):
    (tmp_path / 'config.json').write_text('{')
    with pytest.raises(SystemExit, match=says):
        main(['--config', str(tmp_path / path)])


def test_the_last_word_is_said_though_torchrun_ends_the_process_meanwhile(tmp_path, monkeypatch):
    run = Run(tmp_path / 'run', make_config('smoke', **SMOKE))

    def lose_a_peer(run):
        raise PeerLost('another process of the run has gone')

    def step(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return 7

    monkeypatch.setattr(trainer, 'fit', lose_a_peer)
    monkeypatch.setattr(Run, 'step', property(step))
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit, match='process 0: another .*keeps its checkpoint of step 7'):
            main(['--config', str(run.folder / 'config.json')])
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_port_in_use():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        s.listen()
        port = s.getsockname()[1]
        with patch.dict(os.environ, RANK='0', WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port)):
            with pytest.raises(ValueError, match=f'port {port} is in use'):
                with processes('cpu'):
                    pass


def test_one_device_for_two_processes():
    with (
        patch.dict(os.environ, RANK='0', WORLD_SIZE='2'),
        pytest.raises(ValueError, match="needs its own: use 'cuda' or 'auto'"),
    ):
        with processes('cuda:1'):
            pass


def different():  # what each process sees
    with processes('cpu'):
        try:
            parallel.agree(config=dict(seed=rank(), lr=0.1), data='emoji', step=5 * rank())
        except ValueError as e:
            return str(e)


def test_processes_that_see_different_things(team):
    message = 'process 1 of 2 has config.seed = 1, step = 5, but process 0 has 0, 0'
    assert team.run(2, different) == [f'{message}: all must run the same code on the same folders'] * 2


# as a person runs it


def test_the_notebook_follows_two_processes(run_cells, tmp_path):
    error, messages = run_cells('train', preset='smoke', out=tmp_path / 'run', processes=2, log='csv')
    assert not error, error
    table = (tmp_path / 'run' / 'curves.csv').read_text().splitlines()
    assert [o.split(',')[0] for o in table] == ['step', '2', '4', '6', '8', '10', '12']
    record = json.loads((tmp_path / 'run' / 'run.json').read_text())
    assert 'finished' in record and record['sessions'][0]['processes'] == 2
    assert '100%' in messages and '384/384' in messages


def test_on_a_gpu_batch_norms_become_pytorchs_own():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    parallel.sync_batch_norms(model, 'cuda')
    assert type(model[1]) is torch.nn.SyncBatchNorm
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and len(before) == 7
