"What an update takes is foretold, and a GPU that is too small says what to set."

import json
import re
from ast import literal_eval
from dataclasses import replace
from pathlib import Path
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from meru.geometry import get_geometry
from meru.losses import pairwise
from meru.losses.pairwise import contrastive_loss
from meru.models import pretrained
from meru.models.pretrained import Towers
from meru.training import feeding, memory, trainer
from meru.training.config import make_config, presets
from meru.training.memory import fitting_config, step_memory
from meru.training.run import Run
from meru.training.trainer import fit

pytestmark = pytest.mark.usefixtures('in_root')
TINY = dict(image_size=64, patch_size=8, image_width=128, image_depth=1, image_heads=2, text_width=64, text_depth=1)
TINY |= dict(text_heads=1, vocab_size=514, context_length=16, batch_size=64)


@pytest.fixture(scope='module')
def whole():
    return step_memory(make_config('vit_s_clip', **TINY))


def test_all_that_outlives_an_update_is_counted(whole):
    model = sum(p.numel() for p in memory.build_model(make_config('vit_s_clip', **TINY)).parameters())
    batch = 64 * (3 * 64 * 64 + 8 * 16 + 8)
    assert 12 * model + batch < whole.between < 1.05 * (12 * model + batch)  # weights and two moments


@pytest.mark.parametrize('preset', ['smoke', 'smoke_parts', 'tree', 'head_pictures'])
def test_every_kind_of_tower_is_foretold(preset):
    small = step_memory(replace(presets[preset], batch_size=32))
    assert 0 < small.between < small.peak and (small.pairs, small.at_once) == (32, 32)


def test_real_tensors_never_meet_the_fake_ones(whole):
    geometry = get_geometry('lorentz')
    points = geometry.exp_map0(torch.randn(64, 8), torch.tensor(1.0)).requires_grad_()
    contrastive_loss(geometry, points, points.detach().roll(1, 0), torch.tensor(1.0), torch.tensor(10.0)).backward()
    assert type(points.grad) is torch.Tensor and points.grad.isfinite().all()


def test_a_gpu_says_what_it_has_and_auto_makes_it_fit(whole, monkeypatch, capsys):
    room = (whole.between + whole.peak) // 2
    monkeypatch.setattr(memory, 'pick_device', lambda name: 'cuda')
    monkeypatch.setattr(memory, '_room', lambda device: room)
    assert fitting_config('vit_s_clip', **TINY) == make_config('vit_s_clip', **TINY)
    told = capsys.readouterr().out
    assert 'On cuda an update of 64 pairs takes 0.0' in told and 'Set -p micro_batch auto' in told
    fitted = fitting_config('vit_s_clip', micro_batch='auto', **TINY)
    told = capsys.readouterr().out
    assert 0 < fitted.micro_batch < 64 and step_memory(fitted).peak <= room
    assert f', {fitted.micro_batch} at once,' in told and 'Set -p' not in told


def test_what_is_enough_is_typed_in_the_sentence(whole, monkeypatch):
    cfg, room = make_config('vit_s_clip', **TINY), (whole.between + whole.peak) // 2
    told = memory._told(cfg, 'cuda', room)
    assert re.search(r'Set -p micro_batch auto or .*-p batch_size \d\d \(trains otherwise\)\.', told)
    for name, value in re.findall(r'-p (recompute|patch_dropout|batch_size) (\S+)', told):
        assert step_memory(replace(cfg, **{name: literal_eval(value)})).peak <= room
    assert 'Take a smaller model' in memory._told(cfg, 'cuda', whole.between // 2)


def test_pictures_with_parts_fit_as_pairs_do(monkeypatch, capsys):
    "Parts and the texts of chains go through the towers a few at a time; their count is held to three per cent."
    tiny = TINY | dict(batch_size=16, image_depth=3)
    whole = step_memory(make_config('vit_b_parts_clip', **tiny))
    monkeypatch.setattr(memory, '_room', lambda device: int(0.6 * whole.peak))
    fitted = fitting_config('vit_b_parts_clip', micro_batch='auto', **tiny)
    assert fitted.micro_batch == 4 and 'an update of 16 pairs, 4 at once, takes' in capsys.readouterr().out
    assert step_memory(fitted).peak == pytest.approx(memory._in_thread(memory._updated, fitted, 16)[1], rel=0.03)


def test_a_tower_that_normalises_over_the_batch_wants_a_smaller_one(monkeypatch):
    monkeypatch.setattr(memory, '_room', lambda device: 150 * 2**20)
    with pytest.raises(MemoryError, match='update of 512 pairs takes .*take a smaller model or batch_size'):
        fitting_config('demo', micro_batch='auto', batch_size=512)


class Pretrained(torch.nn.Module):
    "A tower that was read from a file; both of its maps are one."

    width = 6

    def __init__(self):
        super().__init__()
        self.norm, self.first, self.second = torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(self.norm(x.float().flatten(1)[:, :6])))


def test_pretrained_towers_are_foretold(monkeypatch):
    def tokenizer(texts):
        return torch.ones(len(texts), 7, dtype=torch.int64)

    towers = Towers(Pretrained(), Pretrained(), tokenizer, 8, (0.5,) * 3, (0.25,) * 3, 'of a test')
    monkeypatch.setitem(pretrained._registered, 'of a test', towers)
    given = dict(image_tower='backbone', text_tower='backbone', backbone='of a test', image_size=8, batch_size=8)
    cfg = make_config('vit_s_clip', workers=0, **given)
    assert memory._longest_text(cfg) == 7 and feeding._flops_per_pair(cfg, 7) > 0
    weights = sum(p.numel() for p in memory.build_model(cfg).parameters())
    assert 12 * weights < step_memory(cfg).between < 12 * weights + 80 * 512  # a tensor has 512 bytes at least


def test_without_triton_a_gpus_chunks_are_counted(monkeypatch):
    monkeypatch.setattr('meru.losses.triton_kernels.triton', None)
    monkeypatch.setattr(pairwise, '_AT_ONCE', 2**16)
    cfg = make_config('head_clip', batch_size=1024)
    chunks = memory._in_thread(memory._updated, cfg, 1024)[1]
    monkeypatch.setattr(pairwise, '_AT_ONCE', 2**20)
    whole = memory._in_thread(memory._updated, cfg, 1024)[1]
    assert 3 * 4 * 2**20 < whole - chunks < 12 * 4 * 2**20  # some matrices of all logits


def test_processes_share_the_bytes(whole):
    half = step_memory(replace(make_config('vit_s_clip', **TINY), batch_size=128), processes=2)
    assert half == whole


@pytest.mark.parametrize('preset', ['vit_s', 'vit_b', 'vit_l'])
def test_looking_at_held_out_pairs_takes_less_than_an_update(preset):
    "Of as many pairs as go through a tower together; on the card of 24 GB that README names, in float32."
    row = next(
        o for o in json.loads(Path('outputs/benchmarks/memory.json').read_text())['rows'] if o['preset'] == preset
    )
    card = row['cards'][0]

    def looked():
        cfg = make_config(preset)
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), memory._LiveBytes() as live:
            model = memory._fake_model(cfg).eval()
            batch = memory._fake_batch(cfg, card['micro_batch'])
            model.encode_image(batch.images), model.encode_text(batch.tokens)
            return live.most + 2 * 4 * model.param_count  # moments of the optimiser

    assert memory._in_thread(looked) < card['peak'] <= card['room']


def test_held_out_pairs_are_looked_at_in_parts_of_the_batch(tmp_path, monkeypatch):
    "As many at once as in training: their whole number would not fit."
    cfg = make_config('vit_s_clip', **TINY | dict(batch_size=32, micro_batch=8, data='emoji', val_pairs=128, workers=0))
    for world, most in ((1, 8), (8, 4)):
        monkeypatch.setattr(trainer, 'world', lambda: world)
        monkeypatch.setattr(trainer, 'agree', lambda **what: None)
        monkeypatch.setattr(trainer, '_open_together', trainer.open_data)
        run = Run(tmp_path / f'{world}', cfg)
        _, held_out = trainer._open_session(run, memory.build_model(cfg), 0, 'cpu')
        assert held_out.batch_size == most


def test_a_gpu_out_of_memory_ends_the_run_in_a_sentence(tmp_path, monkeypatch):
    def too_much(*args):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 12.00 GiB.\nOf the allocated memory')

    monkeypatch.setattr(trainer, 'update', too_much)
    run = Run(tmp_path / 'run', make_config('smoke', val_pairs=128))
    says = (
        'too small for 32 pairs at once .*allocate 12.00 GiB.*set a smaller -p batch_size and another -p out. .*step 0'
    )
    with pytest.raises(MemoryError, match=says):
        fit(run)
    with pytest.raises(SystemExit, match='process 0: the GPU is too small'):
        trainer.main(['--config', str(run.folder / 'config.json')])


def test_a_run_goes_on_with_what_its_memory_error_advises(tmp_path, monkeypatch):
    "In the same folder, from its checkpoint, as often as it is told so."
    asked = TINY | dict(batch_size=16, data='emoji', val_pairs=128, workers=0, steps=4, warmup=1, save_every=2)
    original, step_now = trainer.update, []

    def too_much(model, opt, batch, cfg, step, *others, **named):
        step_now.append(step)
        if step == 2 and (cfg.micro_batch > 4 or not cfg.micro_batch):
            raise torch.OutOfMemoryError('CUDA out of memory.')
        return original(model, opt, batch, cfg, step, *others, **named)

    monkeypatch.setattr(trainer, 'update', too_much)
    advised = {}
    for told in ('-p micro_batch auto', '-p micro_batch 4 or -p recompute True'):
        run = Run(tmp_path / 'run', make_config('vit_s_clip', **asked | advised))
        with pytest.raises(MemoryError, match=rf'set {told}\. .* goes on from step 2\.'):
            fit(run)
        advised = dict(micro_batch=4 if advised else 8)
    run = Run(tmp_path / 'run', make_config('vit_s_clip', **asked | advised, recompute=True))
    fit(run)
    assert run.finished and step_now[-2:] == [2, 3]


def test_other_programs_on_the_card_leave_less_room(monkeypatch):
    for free, room in ((24, int(0.95 * 24 * 2**30) - 2**30), (20, int(0.95 * 20 * 2**30))):
        monkeypatch.setattr('torch.cuda.mem_get_info', lambda device: (free * 2**30, 24 * 2**30))
        assert memory._room('cuda') == room


def test_the_most_that_a_gpu_held_is_recorded(monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    monkeypatch.setattr('torch.cuda.max_memory_allocated', lambda: 12 * 2**30)
    assert trainer._gpu_peak() == 12 * 2**30
