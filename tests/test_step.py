"The fast ways through a step compute what the plain way computes."

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
import meru.training.trainer as T
from meru.losses import pairwise
from meru.models.model import build_model
from meru.training.config import make_config
from meru.training.run import Run
from meru.core import file_sha256
from meru.data.loader import Batch, TextChains
from meru.training.step import _ahead, compile_blocks, gradients, _Kept, to_device

pytestmark = pytest.mark.usefixtures('in_root')
VIT = replace(
    make_config('smoke'),
    image_tower='vit',
    image_size=16,
    patch_size=4,
    image_width=16,
    image_depth=2,
    image_heads=2,
    dropout=0.0,
    text_width=16,
    text_depth=2,
    text_heads=2,
    embed_dim=8,
    batch_size=12,
    learn_curv=True,
)
GEOMETRIES = ['lorentz', 'poincare', 'euclidean', 'sphere']


def pairs(n=12, dtype=torch.float64):
    "Twelve pairs, some of them with the same text."
    g = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 4000, (n, 9), generator=g)
    tokens[:, -1] = 4095
    return Batch(
        torch.rand(n, 3, 16, 16, generator=g, dtype=dtype),
        tokens,
        torch.arange(n) // 2 * 2 % 7,
        list(map(str, range(n))),
    )


def found(cfg, dtype=torch.float64, batch=None, way=gradients):
    "Loss and every gradient."
    torch.manual_seed(0)
    model = build_model(cfg).train().to(dtype)
    loss = way(model, batch or pairs(dtype=dtype), cfg)['loss']
    return loss.item(), {n: p.grad for n, p in model.named_parameters()}


def apart(a, b):
    a, b = (torch.cat([o.flatten() for o in x.values()]) for x in (a, b))
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize('geometry', GEOMETRIES)
@pytest.mark.parametrize(
    'dtype, tolerance', [(torch.float64, 1e-12), (torch.float32, 1e-5)]
)  # float32: as far as its rounding goes with several threads
def test_parts_have_the_gradient_of_the_batch(geometry, dtype, tolerance):
    cfg = replace(VIT, geometry=geometry, entail_weight=0.2 * (geometry != 'sphere'))
    if dtype == torch.float64:
        cfg = replace(cfg, margin=0.1, hard_beta=0.2)
    (loss, grads), (plain_loss, plain) = found(replace(cfg, micro_batch=4, recompute=True), dtype), found(cfg, dtype)
    assert abs(loss - plain_loss) < tolerance * 10 and apart(grads, plain) < tolerance
    assert all(g.isfinite().all() and g.any() for g in grads.values()), 'a gradient was lost'
    for k in grads:
        if k.startswith('log_'):
            torch.testing.assert_close(grads[k], plain[k], rtol=tolerance * 10, atol=tolerance)


@pytest.mark.parametrize('kind', ['levels', 'parts'])
def test_chains_go_through_in_parts_too(kind):
    "Fewer general texts than pairs, and a part of each picture: no share of them is whole."
    how = dict(part_weight=0.5) if kind == 'parts' else dict(chain_weight=1.0)
    cfg = replace(VIT, chains=kind, level_probs=(), entail_weight=0.4, cone_within=1.2, **how)
    ids, general = torch.arange(1, 13), torch.arange(20, 25)
    above = general[ids % 5]
    rows, owners = torch.stack([above, ids], 1), None
    if kind == 'parts':
        rows, owners = torch.cat([rows, torch.stack([0 * above, above], 1)]), torch.arange(24)
    chains = TextChains(pairs().tokens[:5, :7].flip(1), general, rows, owners)
    images = torch.cat([pairs().images, pairs().images.flip(3)])[: len(rows)]
    batch = pairs()._replace(images=images, text_ids=ids, chains=chains)
    (loss, grads), (plain_loss, plain) = (found(replace(cfg, micro_batch=n), batch=batch) for n in (4, 0))
    assert abs(loss - plain_loss) < 1e-11 and apart(grads, plain) < 1e-12
    assert all(g.isfinite().all() and g.any() for g in grads.values()), 'a gradient was lost'


def test_parts_drop_the_same_patches_twice():
    "The reference keeps all parts in one graph; it draws the same seeds."
    cfg = replace(VIT, patch_dropout=0.5, micro_batch=4)

    def one_graph(model, batch, cfg):
        seeds, u, v = torch.randint(2**62, (3,)).tolist(), [], []
        for i, seed in enumerate(seeds):
            torch.manual_seed(seed)
            u.append(model.project_image(batch.images[4 * i : 4 * i + 4]))
            v.append(model.project_text(batch.tokens[4 * i : 4 * i + 4]))
        out = model.losses(model.lift_image(torch.cat(u)), model.lift_text(torch.cat(v)), batch.text_ids)
        out['loss'].backward()
        return out

    (loss, grads), (one_loss, one) = found(cfg), found(cfg, way=one_graph)
    assert abs(loss - one_loss) < 1e-12 and apart(grads, one) < 1e-12
    assert apart(grads, found(replace(cfg, patch_dropout=0.0))[1]) > 1e-3


def test_parts_in_bfloat16_lose_no_gradient():
    "A copy of a weight made without gradients must not serve the pass that needs them."
    cfg = replace(VIT, amp='bf16')
    (_, grads), (_, plain) = found(replace(cfg, micro_batch=4), torch.float32), found(cfg, torch.float32)
    assert all(g.any() for g in grads.values()) and apart(grads, plain) < 0.03


def test_memory_follows_the_part():
    def kept(**changes):
        with _Kept() as k:
            found(replace(VIT, **changes))
        assert k.now == 0
        return k.most

    whole = kept()
    assert kept(micro_batch=2) < whole / 3 and kept(recompute=True) < whole / 2


def test_deferred_and_immediate_checks_give_the_same_bits(tmp_path, monkeypatch):
    for waits in (False, True):
        monkeypatch.setattr(T, '_waits', lambda device: waits)
        T.fit(Run(tmp_path / str(waits), make_config('smoke')), quiet=True)
    assert file_sha256(tmp_path / 'True/last.safetensors') == file_sha256(tmp_path / 'False/last.safetensors')


def test_a_bad_batch_is_named_later_and_touches_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(T, '_waits', lambda device: True)
    real = T.Loader.batches

    def poisoned(self, start):
        for i, b in enumerate(real(self, start), start):
            yield b._replace(images=b.images.float() * torch.nan) if i in (5, 6) else b

    monkeypatch.setattr(T.Loader, 'batches', poisoned)
    run = Run(tmp_path, make_config('smoke', log_every=4))
    with pytest.raises(T.NonFinite, match='at step 5.*bad_batch.json'):
        T.fit(run, quiet=True)
    model, opt, state = T._begin(run, 'cpu')
    loader = T.make_loader(run.config, T.open_data(run.config)[0])
    assert state['step'] == 4 and json.loads((tmp_path / 'bad_batch.json').read_text()) == loader.batch_at(5).keys
    before = {k: v.clone() for k, v in model.named_parameters()}
    bad = loader.batch_at(4)
    assert T.update(model, opt, bad._replace(images=bad.images.float() * torch.nan), run.config, 4)['bad']
    assert all(torch.equal(v, before[k]) for k, v in model.named_parameters())
    assert {float(s['step']) for s in opt.state.values()} == {4.0}


class Stream:
    "Notes what is asked of a GPU's streams."

    def __init__(self, name, notes):
        self.name, self.notes = name, notes

    def __enter__(self):
        self.notes.append(f'on {self.name}')

    def __exit__(self, *_):
        self.notes.append(f'off {self.name}')

    def record_event(self):
        self.notes.append('event')
        return len(self.notes)

    def wait_event(self, event):
        self.notes.append(f'{self.name} waits')


def test_the_next_batch_travels_while_a_step_is_computed(monkeypatch):
    notes, batches = [], [pairs(4), pairs(5), pairs(6)]
    side, main = Stream('side', notes), Stream('main', notes)
    monkeypatch.setattr(torch.cuda, 'Stream', lambda device: side)
    monkeypatch.setattr(torch.cuda, 'stream', lambda stream: stream)
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda: main)
    monkeypatch.setattr(torch.Tensor, 'record_stream', lambda o, stream: notes.append(f'read on {stream.name}'))

    def move(batch):
        notes.append(f'send {len(batch.images)}')
        return batch

    for batch in _ahead(batches, move, 'cuda'):
        notes.append(f'step {len(batch.images)}')
    send = lambda n: ['on side', f'send {n}', 'event', 'off side']
    step = lambda n: ['main waits', *['read on main'] * 3, f'step {n}']
    assert notes == send(4) + send(5) + step(4) + send(6) + step(5) + step(6)
    assert [len(o.images) for o in _ahead(batches, lambda o: o, 'cpu')] == [4, 5, 6]


# one launch


class Tape(TorchDispatchMode):
    "Stands for a CUDA graph: what is recorded changes nothing; it is computed later, with the host's numbers of then."

    def __init__(self):
        super().__init__()
        self.notes, self.before, self.seed = [], {}, torch.get_rng_state()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for o in tree_leaves(args) if func._schema.is_mutable else ():
            if isinstance(o, torch.Tensor) and id(o) not in self.before:
                self.before[id(o)] = o, o.detach().clone()
        out = func(*args, **kwargs or {})
        self.notes.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def __exit__(self, *error):
        super().__exit__(*error)
        torch.set_rng_state(self.seed)
        for o, value in self.before.values():
            o.copy_(value)

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, out in self.notes:
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs))):
                if isinstance(old, torch.Tensor) and old is not new and not func.is_view:
                    old.copy_(new)


@pytest.fixture
def pretended(monkeypatch):
    "A CPU that takes a GPU's way through loss and update, and has tapes for CUDA graphs."
    stream = SimpleNamespace(wait_stream=lambda other: None)
    cuda = dict(CUDAGraph=Tape, graph=lambda tape: tape, Stream=lambda: stream, current_stream=lambda: stream)
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, 'stream', lambda stream: nullcontext())
    monkeypatch.setattr(pairwise, '_number', lambda x: x.detach())
    monkeypatch.setattr(pairwise, '_engine', lambda left: (pairwise._chunk_sums, pairwise._chunk_slopes))
    monkeypatch.setattr(T, '_waits', lambda device: True)
    rate = T._lr_of
    monkeypatch.setattr(T, '_lr_of', lambda cfg, step: torch.tensor(rate(cfg, step)).item())  # as a GPU holds it


def head_run(folder, data, recorded, monkeypatch):
    "What the lines of a run and its weights say."
    how = dict(steps=9, warmup=2, batch_size=16, log_every=2, val_every=9, save_every=9, val_pairs=40)
    cfg = make_config('head_lorentz', data=str(data), dropout=0.3, grad_clip=0.5, lr=0.01, learn_curv=True, **how)
    monkeypatch.setattr(T, '_is_recorded', lambda *args, **kw: recorded)
    T.fit(run := Run(folder, cfg), quiet=True)
    return file_sha256(run.last), [(row['step'], row['loss'], row['lr'], row['grad_norm']) for row in run.rows()]


def test_a_recorded_update_is_the_update(made_up, tmp_path, monkeypatch, pretended):
    "Other batches, learning rates and dropout, the same bits: nothing of a step is kept in the host."
    plain, repeated = (head_run(tmp_path / str(o), made_up, o, monkeypatch) for o in (False, True))
    assert plain == repeated
    monkeypatch.setattr(pairwise, '_number', lambda x: x.item())  # the tape keeps the first scale and curvature
    assert head_run(tmp_path / 'read', made_up, True, monkeypatch) != plain


def test_what_cannot_be_recorded_is_computed_as_before(made_up, tmp_path, monkeypatch, pretended):
    plain = head_run(tmp_path / 'plain', made_up, False, monkeypatch)

    def refuses(graph):
        raise RuntimeError('operation not permitted when stream is capturing')

    monkeypatch.setattr(torch.cuda, 'graph', refuses)
    with pytest.warns(UserWarning, match='cannot be recorded .operation not permitted') as seen:
        assert head_run(tmp_path / 'again', made_up, True, monkeypatch) == plain
    assert len(seen) == 1


# compiled blocks


def test_general_texts_come_in_few_shapes():
    "Those that fill up are a pair's own and are read by nothing: the loss is the same."
    cfg = replace(VIT, chains='levels', chain_weight=1.0, entail_weight=0.1)
    ids = torch.arange(1, 13)
    chains = TextChains(pairs().tokens[:5, :7], torch.arange(20, 25), torch.stack([20 + ids % 5, ids], 1))
    batch = pairs()._replace(text_ids=ids, chains=chains)
    plain, even = (to_device(batch, replace(cfg, compile=o), 'cpu') for o in ('off', 'on'))
    assert (plain.chains.tokens.shape, even.chains.tokens.shape, even.tokens.shape) == ((5, 7), (128, 16), (12, 16))
    assert found(cfg, batch=plain)[0] == pytest.approx(found(cfg, batch=even)[0], rel=1e-12)


def test_a_few_graphs_for_all_blocks_and_lengths():
    graphs, model = [], build_model(VIT)

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    names = list(model.state_dict())
    compile_blocks(model, count)
    plain = build_model(VIT)
    plain.load_state_dict(model.state_dict())
    assert list(model.state_dict()) == names
    with torch.no_grad():
        for length in (16, 10, 16, 10):
            tokens = nn.functional.pad(pairs().tokens, (0, length - 9))
            assert torch.equal(model.project_text(tokens), plain.project_text(tokens))
    assert len(graphs) == 4  # of each length one for whole blocks, one for the last, which is read at one token


class Unplugged(Run):
    def log(self, row):
        if row['step'] == 6:
            raise KeyboardInterrupt
        super().log(row)


@pytest.mark.filterwarnings('ignore')  # torch.compile's, about its own ways
def test_all_fast_paths_at_once_survive_a_kill(tmp_path, monkeypatch):
    "Compiled blocks, parts, patch dropout, recomputation, bfloat16 and so on, together: the same bits after a kill."
    monkeypatch.setattr(T, '_waits', lambda device: True)
    monkeypatch.setattr(T, 'compile_blocks', lambda model: compile_blocks(model, 'aot_eager'))
    cfg = replace(
        VIT,
        compile='on',
        micro_batch=6,
        patch_dropout=0.25,
        recompute=True,
        augment_on='device',
        amp='bf16',
        flip=0.5,
        steps=8,
    )
    T.fit(Run(tmp_path / 'whole', cfg), quiet=True)
    with pytest.raises(KeyboardInterrupt):
        T.fit(Unplugged(tmp_path / 'broken', cfg), quiet=True)
    T.fit(Run(tmp_path / 'broken', cfg), quiet=True)
    assert file_sha256(tmp_path / 'whole/last.safetensors') == file_sha256(tmp_path / 'broken/last.safetensors')


@pytest.mark.filterwarnings('ignore')  # torch.compile's, about its own ways
def test_inductor_computes_the_same_block():
    if not shutil.which('c++') and not shutil.which('g++'):
        pytest.skip('torch.compile needs a C++ compiler on a CPU')
    grads = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = build_model(replace(VIT, image_depth=1, text_depth=1))
        if compiled:
            compile_blocks(model)
        u = model.project_image(pairs().images.float())
        u.sin().sum().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert apart(grads[1], grads[0]) < 1e-5


@pytest.mark.parametrize(
    'given, says',
    [
        (dict(micro_batch=5), 'does not divide batch_size'),
        (dict(micro_batch=-1), 'micro_batch'),
        (dict(compile='always'), 'is not one of auto, on, off'),
        (dict(augment_on='gpu'), 'is not one of loader, device'),
        (dict(patch_dropout=1.0), 'patch_dropout'),
        (dict(image_tower='conv', micro_batch=4), 'normalises over the batch'),
        (dict(image_tower='conv', patch_dropout=0.5), 'has no patches'),
    ],
)
def test_bad_values_are_named(given, says):
    with pytest.raises(ValueError, match=says):
        replace(VIT, **given)


def test_lengths_are_rounded_only_where_blocks_are_compiled():
    batch = pairs()
    assert (
        to_device(batch, VIT, 'cpu').tokens.shape[1] == 9
        and to_device(batch, replace(VIT, compile='auto'), 'cpu').tokens.shape[1] == 9
    )
    assert torch.equal(
        to_device(batch, replace(VIT, compile='on'), 'cpu').tokens, nn.functional.pad(batch.tokens, (0, 7))
    )
