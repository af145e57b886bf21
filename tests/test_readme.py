"""README's numbers are those of the committed runs, and its links lead somewhere."""

import json, re
import pytest
from conftest import ROOT

README = (ROOT / 'README.md').read_text(encoding='utf-8')
REFERENCE = ROOT / 'outputs' / 'reference'
RUNS = ('demo', 'demo_poincare', 'demo_euclid', 'demo_clip')
ROWS = {  # question in README -> entry of metrics.json
    'Unseen style, right name of 1,919': 'style_top1',
    '… among the first five': 'style_top5',
    '… right group of ten': 'style_group',
    'Unseen concept, right name of 192': 'concept_top1',
    'Name to drawing, recall at 1': 'text_to_image_r1',
    'Kendall τ of level and radius, within chains': 'chain_tau',
    "Own drawing in its text's cone": 'cone_own',
    'Another drawing in that cone': 'cone_other',
}


def metrics(run):
    return json.loads((REFERENCE / run / 'metrics.json').read_text())


def shown(value, unit):
    if value is None:
        return '–'
    return f'{100 * value:.1f} %' if unit == '%' else f'{value:.2f}'


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
def test_links(target):
    assert (ROOT / target).exists()


def test_readme_is_short():
    assert len(README.splitlines()) < 150


@pytest.mark.parametrize('run', RUNS)
def test_reference_runs_are_complete(run):
    "Each cited run has its config, record and figures, was made from a clean tree, and names its commit."
    record = json.loads((REFERENCE / run / 'run.json').read_text())
    assert record['finished'] and record['commit'] and not record['dirty']
    assert {'config.json', 'metrics.json', 'metrics.jsonl', 'train.ipynb', 'evaluate.ipynb', 'figures'} <= {
        p.name for p in (REFERENCE / run).iterdir()
    }


def result(name):
    return json.loads((ROOT / f'outputs/benchmarks/{name}.json').read_text())


def speeds():
    "What the table of speeds must say, from the committed results."
    loss, step = ({r['case']: r['ratio'] for r in result(k)['rows']} for k in ('loss', 'step'))

    def times(ratio, *peers):
        return '; '.join(f'{ratio[k]["median"]:.1f}' for k in peers)

    return {
        f'{what} x {dim}': times(loss[f'lorentz {pairs} x {dim}, 2 threads'], 'published', 'published_once', 'compiled')
        for what, pairs, dim in (
            ('loss and gradients, 4,096 pairs', 4096, 64),
            ('the same, 4,096', 4096, 512),
            ('the same, 512', 512, 512),
        )
    } | {
        'head on cached features, 4,096 pairs x 64': times(result('head')['rows'][0]['ratio'], 'published'),
        'training step of `demo`': times(step['demo'], 'plain'),
        'training step of a small ViT': times(step['small'], 'plain', 'open_clip'),
        'loader, 224-pixel pictures, a core': times(result('loader')['enlarged']['ratio'], 'obvious_batches'),
        'ranks, 25,000 texts x 5,000 images, a core': times(result('ranks'), 'ratio'),
    }


@pytest.mark.parametrize('what', speeds())
def test_speeds(what):
    line = next(l for l in README.splitlines() if l.startswith(f'| {what} |'))
    assert line.split('|')[3].strip() == speeds()[what]


def test_measured_sentences():
    "The numbers of search, processes and memory."
    search, spread, memory = (
        result('search'),
        result('processes')['rows'][1]['ratio']['1 process'],
        result('loss')['memory']['bytes'],
    )
    small, large = (search['rows'][i] for i in (0, 2))
    for row, n in ((small, '100,000 points of radius 0.5 to 6'), (large, 'a million')):
        assert re.search(
            rf'{row["recall_at_10"]["cells"]:.3f} at {row["ratio"]["exact"]["median"]:.1f} times .*?{n}', README
        )
    assert (
        f'inner products finds {small["recall_at_10"]["naive_graph"]:.2f}, one of lifted vectors {small["recall_at_10"]["lifted_graph"]:.2f} at {1 / small["ratio"]["lifted_graph"]["median"]:.1f} times'
        in README
        and f'(a million x 64 in {search["exact_memory"]["peak_bytes"] / 1e9:.2f} GB)' in README
    )
    assert f'train `demo` at {spread["median"]:.1f} times the speed of one' in README
    ours, theirs = ([f'{o / 1e6:,.0f}' for o in memory[k].values()] for k in ('ours', 'published'))
    lorentz = [r for r in result('loss')['rows'] if r['geometry'] == 'lorentz']
    least = min(lorentz, key=lambda r: r['ratio']['published']['median'])
    sure = least['ratio']['published']
    assert sure['median'] >= 2 and least['case'] == 'lorentz 512 x 512, 2 threads'
    assert (
        f'(512 x 512, two threads: {sure["median"]:.2f}, {sure["low"]:.2f} to {sure["high"]:.2f} over {least["rounds"]} rounds)'
        in README
    )
    assert (
        f'adds {ours[0]}, {ours[1]} and {ours[2]} MB' in README
        and f'formula {theirs[0]}, {theirs[1]} and {theirs[2]} MB' in README
    )
    assert max(r['gradient_error']['ours'] for r in result('loss')['rows']) < 2e-6


@pytest.mark.parametrize('name', ('loss', 'head', 'step', 'processes', 'search', 'generality'))
def test_results_come_from_a_clean_tree(name):
    assert not result(name)['machine']['dirty'] and not result(name)['quick']


@pytest.mark.parametrize(
    'name, shown_as',
    [
        ('best sphere', 'the sphere reaches text to image R@1/5/10 of {} and image to text {} at 512'),
        ('best Lorentz, one radius', 'Lorentz at one radius {} and {}'),
        ('best Lorentz', 'with free radii {} and {}'),
    ],
)
def test_the_best_recipe_of_the_ablation(name, shown_as):
    runs = [
        r['metrics'] for r in json.loads((REFERENCE / 'ablation/results.json').read_text())['runs'] if r['name'] == name
    ]
    assert len(runs) == 3
    recalls = [
        '/'.join(f'{100 * sum(r[f"{way}_r{k}"] for r in runs) / 3:.1f}' for k in (1, 5, 10))
        for way in ('text_to_image', 'image_to_text')
    ]
    assert shown_as.format(*recalls) in README


def test_the_ideas_around_the_best_recipe():
    held = json.loads((REFERENCE / 'ablation/results.json').read_text())['runs']
    mean = lambda name, key: (lambda o: sum(o) / len(o))(
        [r['metrics'][key] for r in held if (r['group'], r['name']) == ('best ideas', name)]
    )
    moved = {
        r['name']: 100 * (mean(r['name'], 'text_to_image_r10') - mean('one radius', 'text_to_image_r10'))
        for r in held
        if r['group'] == 'best ideas'
    }
    assert (
        f'{len(held)} runs' in README
        and f'free radii, clipped or not (−{-moved.pop("free radii"):.1f})' in README
        and 'no idea moves text to image at ten by more than 0.1' in README
    )
    moved.pop('clipping')  # clips free radii
    assert max(map(abs, moved.values())) < 0.15 and mean('entailment', 'text_below') > 0.999
