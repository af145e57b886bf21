"""The run notebooks, as a person runs them."""

import json
import pytest


@pytest.fixture(scope='module')
def smoke(papermill_command, tmp_path_factory):
    "A finished smoke run."
    home = tmp_path_factory.mktemp('smoke')
    done = papermill_command('train', home / 'train.ipynb', '-p', 'preset', 'smoke', '-p', 'out', home / 'run')
    assert done.returncode == 0, done.stderr[-2000:]
    return home / 'run'


def test_train_leaves_a_complete_record(smoke):
    record = json.loads((smoke / 'run.json').read_text())
    assert {
        'commit',
        'dirty',
        'torch',
        'device',
        'threads',
        'dataset',
        'finished',
        'seconds',
        'checkpoints',
        'failures',
    } <= set(record)
    assert (smoke / 'figures' / 'curves.png').stat().st_size > 5_000
    assert json.loads((smoke / 'config.json').read_text())['steps'] == 12


def test_evaluate_writes_metrics_and_figures(smoke, papermill):
    done = papermill('evaluate', smoke.parent / 'evaluate.ipynb', '-p', 'run', smoke)
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = json.loads((smoke / 'metrics.json').read_text())
    assert {p.name for p in (smoke / 'figures').iterdir()} >= {
        'curves.png',
        'disk.png',
        'radii.png',
        'similarity.png',
        'tree.png',
        'way.png',
    }
    assert {'style_top1', 'pixel_style_top1', 'untrained_style_top1', 'concept_top1', 'chain_tau', 'cone_own'} <= set(
        metrics
    )
    assert metrics['checkpoint_sha256'] == json.loads((smoke / 'run.json').read_text())['checkpoints']['last']
    assert metrics['pixel_style_top1'] > 0.3 > metrics['untrained_style_top1']
    assert 100_000 < (smoke / 'explorer.html').stat().st_size < 10_000_000


def test_the_same_command_again_changes_nothing(smoke, run_cells):
    before = (smoke / 'last.safetensors').read_bytes(), (smoke / 'run.json').read_text()
    error, said = run_cells('train', preset='smoke', out=smoke)
    assert not error and 'is finished' in said
    assert before == ((smoke / 'last.safetensors').read_bytes(), (smoke / 'run.json').read_text())


def test_a_bad_parameter_ends_the_command(papermill_command, tmp_path):
    done = papermill_command('train', tmp_path / 't.ipynb', '-p', 'out', tmp_path / 'run', '-p', 'stepps', '3')
    assert done.returncode != 0 and "unknown parameter 'stepps'; known are: preset, out" in done.stderr, done.stderr[
        -1500:
    ]


@pytest.mark.parametrize(
    'given, says',
    [
        (dict(stepps=3), "unknown parameter 'stepps'; known are: preset, out"),
        (dict(steps='many'), 'not of type int'),
        (dict(preset='demmo'), "unknown preset 'demmo'; known are: smoke"),
        (dict(preset='smoke', data='data/nowhere'), 'data/nowhere'),
        (dict(preset='smoke', init='outputs/nowhere'), 'outputs/nowhere'),
    ],
)
def test_bad_parameters_end_the_run(given, says, run_cells, tmp_path):
    assert says in run_cells('train', out=tmp_path / 'run', **given)[0]


def test_another_config_is_refused(smoke, run_cells):
    assert 'seed (there 0, asked 7)' in run_cells('train', preset='smoke', out=smoke, seed=7)[0]


def test_evaluate_without_a_run_says_so(run_cells, tmp_path):
    assert 'holds no run' in run_cells('evaluate', run=tmp_path / 'nowhere')[0]
