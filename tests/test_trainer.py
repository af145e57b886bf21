"""A run that is killed at any moment and started again ends with the same bits."""

import os
import signal
from dataclasses import replace
import pytest
import torch
from safetensors.torch import save_file
from meru.core import locked, write_json
from meru.hub import from_pretrained, Pretrained
from meru.models.model import build_model
from meru.training.config import make_config
from meru.training.run import Run
from meru.core import file_sha256
from meru.data.shards import Shards, write_shards
from meru.data.emoji import embedded_data
from meru.training.step import NonFinite
from meru.training.trainer import _begin, fit, main, make_loader, open_data, update, _validate

pytestmark = pytest.mark.usefixtures('in_root')


def test_non_finite_loss_stops_before_the_update(tmp_path, monkeypatch):
    import meru.training.trainer as T

    real = T.Loader.batches

    def poisoned(self, start):
        for i, b in enumerate(real(self, start), start):
            yield b._replace(images=b.images.float() * float('nan')) if i == 6 else b

    monkeypatch.setattr(T.Loader, 'batches', poisoned)
    run = Run(tmp_path, make_config('smoke', val_every=100))
    with pytest.raises(NonFinite, match='at step 6.*bad_batch.json'):
        fit(run)
    model, opt, state = _begin(run, 'cpu')
    assert state['step'] == 4 and all(p.isfinite().all() for p in model.parameters())
    assert len(eval((tmp_path / 'bad_batch.json').read_text())) == 32


def test_init_starts_from_an_earlier_run(tmp_path):
    first = Run(tmp_path / 'a', make_config('smoke'))
    trained = fit(first)
    model, _, state = _begin(Run(tmp_path / 'b', make_config('smoke', init=str(tmp_path / 'a'), seed=5)), 'cpu')
    assert state['step'] == 0
    assert all(torch.equal(a, b) for a, b in zip(trained.state_dict().values(), model.state_dict().values()))
    with pytest.raises(ValueError, match='another model'):
        _begin(Run(tmp_path / 'c', make_config('smoke', init=str(tmp_path / 'a'), embed_dim=64)), 'cpu')


@pytest.mark.parametrize('preset', ['smoke', 'smoke_clip', 'smoke_euclid', 'smoke_poincare'])
def test_every_geometry_trains(preset, tmp_path):
    run = Run(tmp_path, make_config(preset))
    fit(run)
    last = run.rows()[-1]
    assert last['step'] == 12 and last['loss'] > 0 and 0 <= last['val_top1'] <= 1
    assert (last['entailment'] > 0) == (run.config.entail_weight > 0)
    assert run.finished and run.read('run.json')['checkpoints']['last'] == file_sha256(run.last)


def test_lorentz_and_poincare_are_the_same_model(tmp_path):
    "The two hyperbolic twins differ in numerics alone: the first losses agree to seven digits or so."
    cfgs = [make_config(p) for p in ('smoke', 'smoke_poincare')]
    pairs, _ = open_data(cfgs[0])
    batch, losses = next(make_loader(cfgs[0], pairs).batches(0)), []
    for i, cfg in enumerate(cfgs):
        model, opt, _ = _begin(Run(tmp_path / str(i), cfg), 'cpu')
        losses.append(float(update(model, opt, batch, cfg, 0)['loss'].detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_curvature_moves_and_stays_in_bounds(tmp_path):
    run = Run(tmp_path, make_config('smoke', lr=5e-3, learn_curv=True, steps=40))
    fit(run)
    curvs = [r['curv'] for r in run.rows() if 'curv' in r]
    assert len(set(curvs)) > 1 and all(0.1 - 1e-6 <= c <= 10 + 1e-5 for c in curvs)


def test_finished_run_without_its_checkpoint_says_so(tmp_path):
    run = Run(tmp_path, make_config('smoke'))
    fit(run)
    run.last.unlink()
    with pytest.raises(FileNotFoundError, match='its checkpoint is not here'):
        fit(run)


def test_a_failed_start_does_not_claim_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        fit(Run(tmp_path, make_config('smoke', data='data/typo')))
    assert Run(tmp_path, make_config('smoke')).config.data == 'emoji'


def test_an_extended_run_is_the_run_that_was_asked_for_its_extension_at_once(tmp_path):
    first = Run(tmp_path / 'a', make_config('smoke'))
    fit(first, quiet=True)
    planned = first.read('run.json')['checkpoints']
    longer = Run(tmp_path / 'a', make_config('smoke', extend=6))
    assert not longer.finished and longer.step == 12
    fit(longer, quiet=True)
    at_once = Run(tmp_path / 'b', make_config('smoke', extend=6))
    fit(at_once, quiet=True)
    assert longer.step == 18 and file_sha256(longer.last) == file_sha256(at_once.last)
    record = longer.read('run.json')
    assert longer.finished and record['steps'] == 18 and [o['step'] for o in record['sessions']] == [0, 12]
    assert record['checkpoints']['last'] != planned['last']
    rates = {o['step']: o['lr'] for o in longer.rows() if 'lr' in o}
    assert rates[12] < 0.1 * rates[4] and rates[14] > 0.5 * rates[4]  # to zero, and up again
    for extend in (0, 7):
        with pytest.raises(ValueError, match=f'extend .there 6, asked {extend}.'):
            Run(tmp_path / 'a', make_config('smoke', extend=extend))


def test_an_unfinished_run_is_not_extended(tmp_path):
    Run(tmp_path, make_config('smoke')).log(dict(step=1))
    with pytest.raises(ValueError, match='extend .there 0, asked 6.'):
        Run(tmp_path, make_config('smoke', extend=6))


def test_a_run_goes_on_with_other_workers_and_says_so(tmp_path):
    whole, broken = Run(tmp_path / 'a', make_config('smoke')), Run(tmp_path / 'b', make_config('smoke'))
    fit(whole, quiet=True)
    broken.log = lambda row: (_ for _ in ()).throw(KeyboardInterrupt) if row['step'] == 6 else None
    with pytest.raises(KeyboardInterrupt):
        fit(broken, quiet=True)
    on = Run(tmp_path / 'b', make_config('smoke', workers=1, log_every=3, device='cpu'))
    fit(on, quiet=True)
    assert file_sha256(whole.last) == file_sha256(on.last)
    sessions = on.read('run.json')['sessions']
    assert [(o['step'], o['settings']['workers'], o['settings']['log_every']) for o in sessions] == [
        (0, 0, 2),
        (4, 1, 3),
    ]


def test_a_record_of_an_older_version_goes_on(tmp_path):
    run = Run(tmp_path, make_config('smoke'))
    fit(run, quiet=True)
    record = run.read('run.json')
    record['sittings'] = record.pop('sessions')
    write_json(tmp_path / 'run.json', {k: v for k, v in record.items() if k != 'finished'})
    fit(run, quiet=True)
    assert [o['step'] for o in run.read('run.json')['sessions']] == [0, 12]


def test_two_fits_in_one_folder(tmp_path):
    run = Run(tmp_path, make_config('smoke'))
    with locked(tmp_path), pytest.raises(BlockingIOError, match='is in use by process'):
        fit(run)
    fit(run, quiet=True)
    assert run.finished


def test_init_takes_a_saved_model(tmp_path):
    cfg = make_config('smoke')
    saved, folder = build_model(cfg), tmp_path / 'saved'
    folder.mkdir()
    save_file(saved.state_dict(), folder / 'model.safetensors', metadata=dict(format='pt'))
    model, *_ = _begin(Run(tmp_path / 'run', make_config('smoke', seed=5, init=str(folder))), 'cpu')
    assert all(torch.equal(a, b) for a, b in zip(saved.state_dict().values(), model.state_dict().values()))


@pytest.mark.parametrize('name', ['saved', '~/saved', 'org/saved', 'org/saved@0123'])
def test_init_takes_what_from_pretrained_takes(name, tmp_path, monkeypatch):
    torch.manual_seed(3)
    Pretrained(build_model(make_config('smoke'))).save_pretrained(tmp_path / 'saved')
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setattr('meru.training.run.from_hub', lambda repo, patterns, revision, remedy: tmp_path / 'saved')
    name = str(tmp_path / name) if name == 'saved' else name
    model, *_ = _begin(Run(tmp_path / 'run', make_config('smoke', seed=5, init=name)), 'cpu')
    wanted = from_pretrained(name).model.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(wanted, model.state_dict().values()))


def test_data_that_changed_between_sessions_is_refused(tmp_path):
    run = Run(tmp_path, make_config('smoke'))
    fit(run)
    record = run.read('run.json')
    assert [s['step'] for s in record['sessions']] == [0] and record['sessions'][0]['threads'] >= 1
    run.record(dataset=dict(train='another', val='another'))
    write_json(tmp_path / 'run.json', {k: v for k, v in run.read('run.json').items() if k != 'finished'})
    with pytest.raises(ValueError, match='was begun on .*another'):
        fit(run)


def test_a_quarantined_shard_is_on_record(tmp_path, capsys):
    "One flipped byte: by default the run fails by name; in quarantine it goes on with the rest, and says what it lost."
    data = tmp_path / 'data'
    drawings = Shards(embedded_data() / 'train')
    write_shards((drawings[i] for i in range(200)), data, shard_size=50)
    shard = data / '00001.tar'
    shard.write_bytes(bytes(b ^ (i == 5000) for i, b in enumerate(shard.read_bytes())))
    config = make_config('smoke', data=str(data), steps=2, val_pairs=8)
    with pytest.raises(ValueError, match='00001.tar'):
        fit(Run(tmp_path / 'strict', config))
    run = Run(tmp_path / 'run', replace(config, damaged_shards='quarantine'))
    fit(run)
    record = run.read('run.json')
    assert [(o['shard'], o['samples']) for o in record['lost']] == [
        ('00001.tar', 50)
    ] and 'Left out: 50 pairs.' in capsys.readouterr().out
    assert record['pairs'] == 150 - 8


def test_held_out_pairs_that_are_all_damaged_are_counted(tmp_path):
    model, *_ = _begin(Run(tmp_path, cfg := make_config('smoke')), 'cpu')
    loader = make_loader(cfg, open_data(cfg)[1])
    loader.damaged.update({0: 'truncated', 1: 'truncated', 2: 'format'})
    loader.eval_batches = lambda: iter(())
    with pytest.raises(ValueError, match="none of the held-out pairs can be used .*'truncated': 2, 'format': 1"):
        _validate(model, loader)


def test_a_stop_before_the_config_is_read_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr('meru.training.trainer.load_config', lambda folder: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(
            SystemExit, match='process 0: torchrun stopped this process, since another has ended, before it had begun'
        ):
            main(['--config', str(tmp_path / 'config.json')])
    finally:
        signal.signal(signal.SIGTERM, before)


def test_where_the_system_does_not_say_memory_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr('meru.training.trainer.resource', None)
    run = Run(tmp_path, make_config('smoke', steps=2, warmup=1))
    fit(run, quiet=True)
    assert run.read('run.json')['peak_memory'] is None and run.read('run.json')['held_out_failures'] == {}


def test_deterministic_holds_while_a_run_lasts_and_changes_no_bit_on_a_cpu(tmp_path, monkeypatch):
    short, seen = dict(steps=4, log_every=1, val_pairs=64), []
    plain, strict = Run(tmp_path / 'a', make_config('smoke', **short)), tmp_path / 'b'
    strict = Run(strict, make_config('smoke', deterministic=True, **short))
    fit(plain)
    monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG', raising=False)
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', True)

    def switches():
        cudnn, inductor = torch.backends.cudnn, torch._inductor.config
        products = os.environ.get('CUBLAS_WORKSPACE_CONFIG')
        strict = torch.are_deterministic_algorithms_enabled(), inductor.deterministic
        return *strict, cudnn.deterministic, cudnn.benchmark, products

    fit(strict, on_log=lambda row: seen.append(switches()))
    assert seen == [(True, True, True, False, ':4096:8')] * 4
    assert switches()[:4] == (False, False, False, True)
    assert file_sha256(plain.last) == file_sha256(strict.last)
