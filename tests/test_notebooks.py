"""The run notebooks, as a person runs them."""

import ast
import json
import re
import pytest
from conftest import ROOT
from meru.core import field_docs

RUNS = sorted(ROOT.glob('nbs/[a-z]*.ipynb'))


@pytest.fixture(scope='module')
def smoke(papermill, tmp_path_factory):
    "A finished smoke run."
    home = tmp_path_factory.mktemp('smoke')
    done = papermill('train', home / 'train.ipynb', '-p', 'preset', 'smoke', '-p', 'out', home / 'run')
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


def test_the_same_command_again_changes_nothing(smoke, run_cells):
    before = (smoke / 'last.safetensors').read_bytes(), (smoke / 'run.json').read_text()
    error, printed = run_cells('train', preset='smoke', out=smoke)
    assert not error and 'is finished' in printed
    assert f'Next: papermill nbs/evaluate.ipynb {smoke}/evaluate.ipynb -p run {smoke}' in printed
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


def _config_names():
    "Run notebook -> the names that its config or its suites take."
    from meru.benchmarks.suites import suites
    from meru.data.download import FetchConfig
    from meru.evaluation.ablation import AblateConfig
    from meru.evaluation.comparison import CompareConfig
    from meru.evaluation.suites import EvalConfig
    from meru.evaluation.traversal import TraverseConfig
    from meru.hub import PublishConfig
    from meru.image_index import SearchConfig
    from meru.models.embedding import EmbedConfig
    from meru.pictures import PicturesConfig
    from meru.training.checks import CheckConfig
    from meru.training.config import TrainConfig

    configs = dict(train=TrainConfig, evaluate=EvalConfig, compare=CompareConfig, ablate=AblateConfig)
    configs |= dict(traverse=TraverseConfig, embed=EmbedConfig, fetch=FetchConfig)
    configs |= dict(search=SearchConfig, publish=PublishConfig, pictures=PicturesConfig, check=CheckConfig)
    names = {k: set(field_docs(cls)) for k, cls in configs.items()}
    names['train'] |= {'preset', 'out', 'processes'}
    names['fetch'] |= {'out'}
    names['benchmark'] = {'suite', 'out', 'quick'}.union(*(field_docs(o.run) for o in suites.values()))
    return names


@pytest.mark.parametrize('path', RUNS, ids=lambda o: o.stem)
def test_papermill_lists_every_parameter_and_knows_it(path, caplog):
    from papermill.inspection import inspect_notebook
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    listed = inspect_notebook(str(path))
    assert set(listed) == _config_names()[path.stem]
    assert all(o['help'] for o in listed.values())
    parameterize_notebook(load_notebook_node(str(path)), dict.fromkeys(listed, 1))
    assert not [o for o in caplog.messages if 'parse' in o or 'unknown' in o]


@pytest.mark.parametrize('path', RUNS, ids=lambda o: o.stem)
def test_no_parameter_bears_the_name_of_something_imported(path):
    cells = [c for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'code']
    at = next(i for i, c in enumerate(cells) if 'parameters' in c['metadata'].get('tags', []))
    trees = [ast.parse(''.join(c['source'])) for c in cells[: at + 1]]
    imported = {a.asname or a.name for t in trees for o in t.body if hasattr(o, 'names') for a in o.names}
    assert not imported & {o.targets[0].id for o in trees[-1].body}


def _last_words(path):
    "The source of the last code cell."
    return ''.join([c for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'code'][-1]['source'])


@pytest.mark.parametrize('path', RUNS, ids=lambda o: o.stem)
def test_a_run_ends_with_result_folder_and_a_command_that_is_known(path):
    words = _last_words(path)
    assert 'closing(' in words or 'pictures.tell()' in words  # which prints the same
    for notebook, given in re.findall(r'papermill nbs/(\w+)\.ipynb([^\n]*)', words):
        assert set(re.findall(r'-p (\w+)', given)) <= _config_names()[notebook], given


def _told():
    "What people read: the pages of the project's root and of data, and the prose of the notebooks."
    for path in (*ROOT.glob('*.md'), *ROOT.glob('data/**/*.md'), *ROOT.glob('outputs/**/*.md')):
        yield path, path.read_text(encoding='utf-8')
    for path in ROOT.glob('nbs/**/*.ipynb'):
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        yield path, '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')


def test_every_command_that_is_told_takes_its_parameters():
    names, commands = _config_names(), 0
    for path, text in _told():
        for notebook, given in re.findall(r'papermill (?:--help-notebook )?nbs/(\w+)\.ipynb([^\n`]*)', text):
            assert set(re.findall(r' -p (\w+) ', f'{given} ')) <= names[notebook], f'{path}: {notebook}{given}'
            commands += 1
    assert commands > 30
