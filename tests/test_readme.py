"""README's tables are those of the committed runs, its Python prints what it says, and its links lead somewhere."""

import json
import re
import pytest
from conftest import ROOT

README = (ROOT / 'README.md').read_text(encoding='utf-8')
REFERENCE = ROOT / 'outputs' / 'reference'
RUNS = ('demo', 'demo_poincare', 'demo_flat', 'demo_clip', 'pairs')
CONTROLS = ('pairs_clip', 'pairs_euclid', 'pairs_poincare', 'tree', 'tree_clip')
BY_ANGLE = dict(whole_chain_first='text_angle_chain_first', style_nearest_true='style_angle_nearest_true')
ROWS = {  # question in README -> entry of metrics.json
    'Unseen style, right name of 1,919': 'style_top1',
    'Unseen concept, right name of 192': 'concept_top1',
    'Unseen style, first text true': 'style_nearest_true',
    'Text: its whole chain before all else': 'whole_chain_first',
    'Text: walk to the root through its chain': 'text_path_whole',
    "Own drawing in its name's cone": 'cone_own_name',
    'Another drawing in that cone': 'cone_other_name',
}


def metrics(run):
    return json.loads((REFERENCE / run / 'metrics.json').read_text())


def result(name):
    return json.loads((ROOT / f'outputs/benchmarks/{name}.json').read_text())


def cells(first):
    line = next(o for o in README.splitlines() if o.startswith(f'| {first} |'))
    return [o.strip() for o in line.strip().strip('|').split('|')][1:]


def shown(value):
    return '–' if value is None else f'{100 * value:.1f}%'


def as_learned(run, key):
    "By the reading that its chains were learned by."
    config = json.loads((REFERENCE / run / 'config.json').read_text())
    return BY_ANGLE.get(key, key) if config.get('chain_reading') == 'cone_angle' else key


@pytest.mark.parametrize('question', ROWS)
def test_what_the_demo_learns(question):
    key = ROWS[question]
    values = [metrics(run).get(as_learned(run, key)) for run in RUNS]
    values.append(metrics('demo').get(f'pixel_{key}'))
    assert cells(question) == [shown(o) for o in values]


def test_the_demo_took_as_long_as_it_says():
    seconds = json.loads((REFERENCE / 'demo/run.json').read_text())['seconds']
    assert f'{seconds:.0f} s' in cells('`demo`')


def speeds():
    "Times as fast as a peer, from the committed results."
    loss = {o['case']: o['ratio']['published']['median'] for o in result('loss')['rows'] if 'published' in o['ratio']}
    return {
        'loss and gradients, 4,096 x 64': loss['lorentz 4096 x 64, 2 threads'],
        'loss and gradients, 4,096 x 512': loss['lorentz 4096 x 512, 2 threads'],
        'loader, 224-pixel pictures': min(
            result('loader')[kind]['ratio']['baseline']['median'] for kind in ('enlarged', 'tiled')
        ),
    }


@pytest.mark.parametrize('what', speeds())
def test_speeds(what):
    assert cells(what)[1] == f'{speeds()[what]:.1f}'


def test_the_python_prints_what_it_says(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    code = re.search(r'```python\n(.*?)```', README, re.S)[1]
    exec(code, {})
    printed = re.findall(r'print\(.*\)\s+# (.*)', code)
    assert printed and capsys.readouterr().out.splitlines() == printed


@pytest.mark.parametrize('target', sorted(set(re.findall(r'\]\((?!http)([^)#]+)\)', README))))
def test_links(target):
    assert (ROOT / target).exists()


@pytest.mark.parametrize('preset', re.findall(r'-p preset (\w+)', README))
def test_presets_are_there(preset):
    from meru.training.config import presets

    assert preset in presets


@pytest.mark.parametrize('run', RUNS + CONTROLS)
def test_reference_runs_are_complete(run):
    "Each cited run has its config, record and figures, was made from a clean tree, and names its commit."
    record = json.loads((REFERENCE / run / 'run.json').read_text())
    files = {o.name for o in (REFERENCE / run).iterdir()}
    assert record['finished'] and record['commit'] and not record['dirty']
    assert {'config.json', 'metrics.json', 'metrics.jsonl', 'train.ipynb', 'evaluate.ipynb', 'figures'} <= files


@pytest.mark.parametrize('name', ('loss', 'head', 'step', 'processes', 'search', 'generality'))
def test_results_come_from_a_clean_tree(name):
    assert not result(name)['machine']['dirty'] and not result(name)['quick']


@pytest.mark.parametrize('preset', ['vit_s', 'vit_b', 'vit_l'])
def test_pairs_at_once_on_each_card(preset):
    row = next(o for o in result('memory')['rows'] if o['preset'] == preset)
    heads = next(o for o in README.splitlines() if o.startswith('| [pairs at once]'))
    assert [int(o) for o in re.findall(r'\d+', heads.split('|', 2)[2])] == [o['gb'] for o in row['cards']]
    assert f'of {row["pairs"]:,} on ' in heads
    assert cells(f'`{preset}`') == [f'{o["micro_batch"] or row["pairs"]:,}' for o in row['cards']]


def test_the_loss_keeps_its_digits():
    assert max(o['gradient_error']['ours'] for o in result('loss')['rows']) < 2e-6


def test_the_figures_of_safety_are_those_of_the_committed_runs():
    kills, fuzz = (
        json.loads((REFERENCE / f'robustness/{name}.json').read_text())['rows'] for name in ('kills', 'fuzz')
    )
    killed, inputs = sum(row['kills'] for row in kills), sum(row['inputs'] for row in fuzz)
    assert f'{killed:,} kills and {inputs:,} mutated files left' in README
    assert not any(row['different'] for row in kills) and not any(row['faults'] for row in fuzz)
