"""Comparison: tests of differences against what is known, and refusals."""

import itertools, json
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from scipy import stats
from meru.evaluation.statistics import *
from meru.evaluation.comparison import *
from meru.evaluation.comparison import _Measured, _measure_run
from conftest import ROOT


def test_flips_are_the_exact_test():
    "All sign patterns by hand."
    d = torch.tensor([0.3, -0.1, 0.4, 0.2, 0.25, -0.05])
    signs = torch.tensor(list(itertools.product([-1, 1], repeat=6))).float()
    exact = ((signs @ d).abs() >= d.sum().abs() - 1e-6).double().mean().item()
    assert flip_test(d, flips=40_000) == pytest.approx(exact, abs=0.01)
    assert flip_test(-d) == flip_test(d) and flip_test(d, seed=1) == pytest.approx(flip_test(d), abs=0.03)


def test_flips_are_uniform_where_nothing_differs():
    gen = torch.Generator().manual_seed(0)
    p = [flip_test(torch.randn(60, generator=gen), flips=500) for _ in range(200)]
    assert 0.01 < np.mean(np.array(p) < 0.05) < 0.10 and 0.45 < np.mean(p) < 0.55


def test_drawings_of_a_concept_count_once():
    d, groups = torch.ones(40), torch.arange(40) // 8
    assert flip_test(d) < 1e-3 and flip_test(d, groups) == pytest.approx(2 / 32, abs=0.02)


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_by_its_definition(p):
    "The smallest level at which step-down rejection still reaches each test."
    got, ordered = holm(p), sorted(p)
    steps = [max((len(p) - k) * ordered[k] for k in range(j + 1)) for j in range(len(p))]
    assert sorted(got) == pytest.approx([min(1, x) for x in steps]) and all(a >= b for a, b in zip(got, p))


@settings(max_examples=30)
@given(st.lists(st.integers(-9, 9), min_size=3, max_size=6, unique=True))
def test_t_is_scipys(d):
    assert t_test([float(x) for x in d]) == pytest.approx(stats.ttest_1samp(d, 0).pvalue)


def run(name, seed, value, values=(), **config):
    return _Measured(
        name,
        seed,
        dict(seed=seed, **config),
        dict(dataset='d'),
        dict(style_top1=value, cone_auc=value if name != 'clip' else None, cosine_agreement=0.9),
        dict(values),
    )


def test_a_table_by_hand():
    "Two of three drawings gained at each seed; the sphere has no cones."
    hits = dict(style_top1=torch.tensor([1.0, 1.0, 1.0])), dict(style_top1=torch.tensor([0.0, 0.0, 1.0]))
    runs = [
        r
        for s in range(3)
        for r in (
            run('meru', s, 0.9 + 0.01 * s, hits[0]),
            run('clip', s, 0.5, hits[1]),
            run('flat', s, 0.9 + 0.01 * s, hits[0]),
        )
    ]
    table = {line['key']: line for line in compare(runs, 'meru')}
    top1 = table['style_top1']
    assert top1['means']['meru'][0] == pytest.approx(0.91) and top1['differences']['clip']['mean'] == pytest.approx(
        0.41
    )
    assert (
        top1['differences']['clip']['p'] == pytest.approx(2 / 4, abs=0.02) and not top1['differences']['clip']['sure']
    )
    assert top1['differences']['flat'] | dict(p_holm=1.0, sure=False) == dict(
        mean=0.0, low=0.0, high=0.0, p=1.0, over='drawings', p_holm=1.0, sure=False
    )
    assert 'clip' not in table['cone_auc']['means'] and table['cone_auc']['differences']['flat']['over'] == 'seeds'
    assert table['cosine_agreement']['better'] == 0 and 'sure' not in table['cosine_agreement']['differences']['clip']
    assert '| – |' in means_table(list(table.values()), dict(pixels={}))
    assert 'not told apart in 1 (unseen style, right name first)' in conclusion([top1], 'meru')


def test_better_is_lower_where_it_is():
    runs = [
        _Measured(n, s, dict(seed=s), dict(dataset='d'), dict(a_tree_error=v + 0.001 * s), {})
        for s in range(4)
        for n, v in (('meru', 2.0), ('clip', 3.0))
    ]
    (line,) = compare(runs, 'meru')
    assert (
        line['question'] == 'a: tree-induced error, edges'
        and line['better'] == -1
        and line['differences']['clip']['mean'] == pytest.approx(-1)
        and line['differences']['clip']['sure']
    )
    assert 'surely better in 1' in conclusion([line], 'meru') and 'surely worse in 1' in conclusion(
        [compare(runs, 'clip')[0]], 'clip'
    )


def test_a_measure_that_is_none_at_some_seeds(monkeypatch, tmp_path):
    import meru.evaluation.comparison as c

    def measured(folder, exam, asked, fresh=False):
        name, seed = folder.name.split('_s')
        r = run(name, int(seed), 0.5 + 0.1 * int(seed) + 0.1 * (name == 'flat'))
        return r._replace(metrics=r.metrics | dict(cone_auc=None if seed == '1' else 0.7, chain_tau=0.2))

    monkeypatch.setattr(c, '_find_runs', lambda asked: [ROOT / f'{n}_s{s}' for s in (0, 1) for n in ('meru', 'flat')])
    monkeypatch.setattr(c, '_kept_measure', measured)
    monkeypatch.setattr(c, 'read_exam', lambda *a: None)
    monkeypatch.setattr(c, 'load_config', lambda f: __import__('types').SimpleNamespace(image_size=32))
    runs, base, controls, table = compare_runs(CompareConfig(out=str(tmp_path)))
    assert controls['untrained'] == dict(style_top1=pytest.approx(0.55), cosine_agreement=0.9, chain_tau=0.2)
    figure = plot_comparison(table, base, controls)
    assert len([ax for ax in figure.axes if ax.axison]) == len([l for l in table if l['key'] in c.shown and l['means']])


@pytest.fixture(scope='module')
def trained(papermill, tmp_path_factory):
    "Two presets, two seeds, two steps each, trained by the notebook."
    home = tmp_path_factory.mktemp('compare')
    (home / 'asked.yaml').write_text(
        f'presets: smoke smoke_clip\nseeds: 2\nsteps: 2\nfolder: {home / "runs"}\nout: {home / "out"}\ndata: {home / "hues"}\n'
    )
    from PIL import Image

    for i in range(6):
        (home / 'hues' / f'thing {i}').mkdir(parents=True)
        for j in range(2):
            Image.new('RGB', (16, 16), (40 * i, 255 - 40 * i, 90 * j)).save(home / 'hues' / f'thing {i}' / f'{j}.png')
    done = papermill('compare', home / 'out.ipynb', '-f', home / 'asked.yaml')
    assert done.returncode == 0, done.stderr[-2000:]
    return home


def test_compare_notebook(trained):
    held = json.loads((trained / 'out' / 'comparison.json').read_text())
    assert [(r['name'], r['seed'], r['config']['steps']) for r in held['runs']] == [
        (n, s, 2) for s in (0, 1) for n in ('smoke', 'smoke_clip')
    ]
    keys = {line['key']: line for line in held['table']}
    assert {'hues_top1', 'hues_probe_top1', 'wordnet_depth_tau'} <= set(keys) and 'smoke_clip' not in keys[
        'wordnet_depth_tau'
    ]['means']
    assert (
        held['base'] == 'smoke'
        and held['controls']['chance']['hues_top1'] == pytest.approx(1 / 6)
        and 'untrained' in held['controls']
    )
    assert (trained / 'out' / 'comparison.png').stat().st_size > 5_000 and 'smoke against smoke_clip' in (
        trained / 'out.ipynb'
    ).read_text()


def test_measured_once(trained, monkeypatch):
    import meru.evaluation.comparison as c

    asked = CompareConfig(
        runs='',
        presets='smoke smoke_clip',
        seeds=2,
        steps=2,
        folder=str(trained / 'runs'),
        data=str(trained / 'hues'),
        out=str(trained / 'out'),
    )
    monkeypatch.setattr(c, '_measure_run', lambda *a, **k: pytest.fail('measured again'))
    again = c._kept_measure(trained / 'runs' / 'smoke_s0', None, asked)
    assert again.name == 'smoke' and again.seed == 0 and 0 <= again.metrics['hues_top1'] <= 1


def test_an_unknown_parameter_ends_it(run_cells, tmp_path):
    assert (
        "unknown parameter 'sedes'; known are: runs, presets" in run_cells('compare', out=tmp_path / 'out', sedes=3)[0]
    )


def test_unfinished_runs_are_refused(trained, tmp_path):
    import shutil

    shutil.copytree(trained / 'runs' / 'smoke_s0', tmp_path / 'cut_s0')
    record = json.loads((tmp_path / 'cut_s0' / 'run.json').read_text())
    del record['finished']
    (tmp_path / 'cut_s0' / 'run.json').write_text(json.dumps(record))
    with pytest.raises(ValueError, match='cut_s0 is not finished'):
        _measure_run(tmp_path / 'cut_s0', None, CompareConfig(data=str(trained / 'hues')))


def test_the_committed_page_tells_the_committed_numbers():
    home = ROOT / 'outputs' / 'reference' / 'comparison'
    held, page = json.loads((home / 'comparison.json').read_text()), (home / 'README.md').read_text()
    lines = [[c.strip() for c in l.strip('|').split('|')] for l in page.splitlines() if l.startswith('| ') and '±' in l]
    says = {line['question']: line for line in held['table']} | {
        'Kendall τ of level and radius, within chains': next(l for l in held['table'] if l['key'] == 'chain_tau')
    }
    assert len(lines) >= 10
    for question, *cells in lines:
        means, key = says[question]['means'], says[question]['key']
        told = [
            f'{m[0]:.3f} ± {m[2] - m[0]:.3f}' if (m := means.get(n)) else '–'
            for n in ('demo', 'demo_clip', 'demo_euclid', 'demo_poincare')
        ]
        told += [
            f'{v:.3f}' if (v := held['controls'][c].get(key)) is not None else '–'
            for c in ('pixels', 'untrained', 'chance')
        ]
        assert cells == told, question
    differences = [d for line in held['table'] for d in line['differences'].values() if 'sure' in d]
    assert (
        f'all {len(differences)} tests' in page
        and not any(d['sure'] for d in differences)
        and 'Nothing is sure' in page
    )
    assert (
        len(held['runs']) == 12
        and not any(r['record']['dirty'] for r in held['runs'])
        and all(r['config']['steps'] == 1000 for r in held['runs'])
    )
