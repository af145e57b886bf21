"""README's numbers are those of the committed runs, and its links lead somewhere."""
import json, re
import pytest
from conftest import ROOT

README = (ROOT/'README.md').read_text(encoding='utf-8')
REFERENCE = ROOT/'outputs'/'reference'
RUNS = ('demo', 'demo_poincare', 'demo_euclid', 'demo_clip')
ROWS = {  # question in README -> entry of metrics.json
    'Unseen style, right name of 1,919': 'style_top1', '… among the first five': 'style_top5', '… right group of ten': 'style_group',
    'Unseen concept, right name of 192': 'concept_top1', 'Name to drawing, recall at 1': 'text_to_image_r1',
    'Kendall τ of level and radius, within chains': 'chain_tau', "Own drawing in its text's cone": 'cone_own',
    "Another drawing in that cone": 'cone_other'}


def metrics(run): return json.loads((REFERENCE/run/'metrics.json').read_text())


def shown(value, unit):
    if value is None: return '–'
    return f'{100*value:.1f} %' if unit == '%' else f'{value:.2f}'


def expected_row(question):
    key, all_metrics = ROWS[question], [metrics(r) for r in RUNS]
    unit = '' if 'tau' in key else '%'
    cells = [shown(m.get(key), unit) for m in all_metrics]
    pixels, untrained = (shown(all_metrics[0].get(f'{who}_{key}'), unit) for who in ('pixel', 'untrained'))
    return [question, *cells, pixels, untrained]


@pytest.mark.parametrize('question', ROWS)
def test_table(question):
    line = next(l for l in README.splitlines() if l.startswith(f'| {question} |'))
    assert [c.strip() for c in line.strip().strip('|').split('|')] == expected_row(question)


@pytest.mark.parametrize('target', sorted(set(re.findall(r'\]\((?!http)([^)#]+)\)', README))))
def test_links(target): assert (ROOT/target).exists()


def test_readme_is_short(): assert len(README.splitlines()) < 150


@pytest.mark.parametrize('run', RUNS)
def test_reference_runs_are_complete(run):
    "Each cited run has its config, record and figures, was made from a clean tree, and names its commit."
    record = json.loads((REFERENCE/run/'run.json').read_text())
    assert record['finished'] and record['commit'] and not record['dirty']
    assert {'config.json', 'metrics.json', 'metrics.jsonl', 'train.ipynb', 'evaluate.ipynb', 'figures'} <= {p.name for p in (REFERENCE/run).iterdir()}
