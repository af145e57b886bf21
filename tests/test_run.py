"""The config refuses what it does not know; a run's folder has one owner; checkpoints are whole or not there."""

import json
import pytest
import torch
from safetensors.torch import save_file
from meru.training import run as R
from meru.training.config import make_config
from meru.core import write_json


@pytest.mark.parametrize(
    'given, says',
    [
        (dict(stepps=1), "unknown parameter 'stepps'"),
        (dict(steps='1'), 'steps'),
        (dict(steps=1.5), 'steps'),
        (dict(steps=True), 'steps'),
        (dict(cache=1), 'cache'),
        (dict(lr=float('inf')), 'lr'),
        (dict(betas=[0.9]), 'betas'),
        (dict(crop_scale=[0.5, 'x']), 'crop_scale'),
        (dict(seed=-1), 'seed'),
        (dict(batch_size=0), 'batch_size'),
        (dict(level_probs=[0.5, 0.2]), 'level_probs'),
        (dict(geometry='torus'), 'geometry'),
        (dict(amp='fp64'), 'amp'),
    ],
)
def test_bad_values_are_named(given, says):
    with pytest.raises(ValueError, match=says):
        make_config('smoke', **given)


def test_folder_refuses_another_config(tmp_path):
    R.Run(tmp_path, make_config('smoke')).log(dict(step=1))
    with pytest.raises(ValueError, match='seed .there 0, asked 1.'):
        R.Run(tmp_path, make_config('smoke', seed=1))


def test_checkpoint_of_another_model_is_named(tmp_path):
    R.save_checkpoint(tmp_path / 'a.safetensors', torch.nn.Linear(2, 3), step=1)
    with pytest.raises(ValueError, match='a.safetensors holds another model.*weight'):
        R.load_checkpoint(tmp_path / 'a.safetensors', torch.nn.Linear(3, 2))


def test_damaged_checkpoint_is_not_read(tmp_path):
    path = tmp_path / 'a.safetensors'
    R.save_checkpoint(path, torch.nn.Linear(2, 3), step=1)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(ValueError, match='a.safetensors is damaged'):
        R.load_checkpoint(path, torch.nn.Linear(2, 3))
    for at in range(0, len(whole), 5):
        path.write_bytes(bytes(b ^ (16 * (i == at)) for i, b in enumerate(whole)))
        with pytest.raises(
            ValueError, match='a.safetensors (is damaged|holds another model|is no checkpoint of a run, or is damaged)'
        ):
            R.load_checkpoint(path, torch.nn.Linear(2, 3))


def test_a_checkpoint_without_a_hash_is_read(tmp_path):
    "As versions before this one wrote it."
    layer = torch.nn.Linear(2, 3)
    tensors = {f'model.{k}': v.detach() for k, v in layer.state_dict().items()}
    save_file(tensors, tmp_path / 'a.safetensors', metadata=dict(state='{"step": 4}'))
    assert R.load_checkpoint(tmp_path / 'a.safetensors', torch.nn.Linear(2, 3)) == dict(step=4)


@pytest.mark.parametrize(
    'change, says',
    [
        (lambda cached: [cached], 'config.json holds no JSON object, but a list'),
        (lambda cached: cached | dict(warp=9), "config.json has the field 'warp'.*update meru"),
        (lambda cached: cached | dict(seed=-1), 'config.json: seed = -1 is not at least 0'),
    ],
)
def test_a_config_that_is_none_is_named(tmp_path, change, says):
    run = R.Run(tmp_path, make_config('smoke'))
    (tmp_path / 'config.json').write_text(json.dumps(change(run.read('config.json'))))
    with pytest.raises(ValueError, match=says):
        R.load_config(tmp_path)


def test_checkpoint_bytes_depend_on_content_alone(tmp_path):
    layer = torch.nn.Linear(4, 4)
    for n in 'ab':
        R.save_checkpoint(tmp_path / n, layer, step=1, best=0.5)
    assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()


def test_write_that_fails_leaves_the_old_file(tmp_path):
    write_json(tmp_path / 'a.json', dict(x=1))
    with pytest.raises(ValueError):
        write_json(tmp_path / 'a.json', dict(x=float('nan')))
    assert json.loads((tmp_path / 'a.json').read_text()) == dict(x=1)


def test_rewind_drops_a_torn_line(tmp_path):
    run = R.Run(tmp_path, make_config('smoke'))
    for i in range(4):
        run.log(dict(step=i))
    with open(tmp_path / 'metrics.jsonl', 'a') as f:
        f.write('{"step": 4')
    run.rewind(2)
    assert [r['step'] for r in run.rows()] == [0, 1, 2]


def test_a_younger_field_at_its_default_does_not_refuse_an_older_run(tmp_path):
    run = R.Run(tmp_path / 'old', make_config('smoke'))
    run.log(dict(step=1))
    config = run.read('config.json')
    del config['margin']
    write_json(run.folder / 'config.json', config)
    R.Run(run.folder, make_config('smoke'))
    with pytest.raises(ValueError, match=r'margin \(there 0.0, asked 0.5\)'):
        R.Run(run.folder, make_config('smoke', margin=0.5))


def test_a_run_killed_while_its_request_was_written_can_begin(tmp_path):
    "Half a file is nothing: neither ours nor safetensors' own."
    for name in ('config.json.tmp', '.tmpa1b2c3', '.lock.stale.7'):
        (tmp_path / name).write_text('{"steps"')
    assert R.Run(tmp_path, make_config('smoke')).read('config.json')['steps'] == 12


@pytest.mark.parametrize(
    'line', ['[]', '{"loss": 1}', '{"step": "3"}', '{"step": 1', '\ufeff', '[' * 100_000], ids=range(6)
)
def test_a_line_of_the_log_that_is_none_is_named(line, tmp_path):
    run = R.Run(tmp_path, make_config('smoke'))
    run.log(dict(step=1))
    with open(tmp_path / 'metrics.jsonl', 'a') as f:
        f.write(line + '\n')
    with pytest.raises(ValueError, match='line 2 of .*metrics.jsonl is no record of a step'):
        run.rows()


def test_a_log_on_a_full_disk_is_named(tmp_path):
    run = R.Run(tmp_path, make_config('smoke'))
    (tmp_path / 'metrics.jsonl').symlink_to('/dev/full')
    with pytest.raises(OSError, match='metrics.jsonl could not be written: .*No space left on device'):
        run.log(dict(step=1))
