"""Comparison: differences against what is known, records, and refusals."""

import json
import pytest
import re
import torch
from meru.evaluation.measures import *
from meru.evaluation.measures import _flat_key
from meru.evaluation.comparison import *
from meru.evaluation.comparison import _Comparison, _Difference, _measure_run, _MeasuredRun
from conftest import ROOT
from test_heads import next_command, printed_by


def run(name, seed, value, values=(), **config):
    cone = Measure('', 'cone_auc', value if name != 'clip' else None)
    measures = [Measure('style', 'top1', value, 0.1), cone, Measure('', 'cosine_agreement', 0.9)]
    return _MeasuredRun(name, seed, dict(seed=seed, **config), dict(dataset='d'), Measures(measures), dict(values))


def test_a_table_by_hand():
    "Two of three drawings gained at each seed; the sphere has no cones."
    key = ('style', 'top1')
    all_three, one = {key: torch.ones(3)}, {key: torch.tensor([0.0, 0.0, 1.0])}
    runs = []
    for s in range(3):
        runs += [run('meru', s, 0.9 + 0.01 * s, all_three), run('clip', s, 0.5, one)]
        runs += [run('flat', s, 0.9 + 0.01 * s, all_three)]
    lines = compare(runs, 'meru')
    table = {(line.question.dataset, line.question.name): line for line in lines}
    top1 = table[key]
    assert top1.means['meru'].mean == pytest.approx(0.91)
    assert top1.differences['clip'].mean == pytest.approx(0.41)
    assert top1.differences['clip'].p == pytest.approx(2 / 4, abs=0.02) and not top1.differences['clip'].significant
    assert top1.differences['flat'] == _Difference(0.0, 0.0, 0.0, 1.0, 'drawings', 1.0, False)
    assert 'clip' not in table['', 'cone_auc'].means and table['', 'cone_auc'].differences['flat'].over == 'seeds'
    agreement = table['', 'cosine_agreement']
    assert agreement.better == 0 and agreement.differences['clip'].p_holm is None
    assert '| – |' in means_table(lines, dict(pixels=Measures()))
    assert 'not told apart in 1 (unseen style, right name first)' in conclusion([top1], 'meru')


def test_the_record_has_the_keys_of_the_committed_one():
    committed = json.loads((ROOT / 'outputs' / 'reference' / 'comparison' / 'comparison.json').read_text())
    runs = [run(name, s, 0.5 + 0.1 * s) for s in (0, 1) for name in ('meru', 'flat')]
    controls = dict(chance=Measures(m._replace(value=m.chance) for m in runs[0].measures))
    record = json.loads(json.dumps(comparison_record(_Comparison(runs, 'meru', controls, compare(runs, 'meru')))))
    assert set(record) | {'asked', 'machine'} == set(committed) and record['protocol'] == 'ours'
    assert set(record['runs'][0]) == set(committed['runs'][0])
    line, old = record['table'][0], committed['table'][0]
    assert set(line) == set(old) and (line['key'], line['question']) == (old['key'], old['question'])
    assert set(line['differences']['flat']) == set(old['differences']['demo_clip'])
    assert record['controls']['chance']['style_top1'] == 0.1


def test_drawings_of_a_concept_flip_together():
    "Forty drawings of five concepts, all gained: significant one by one, not concept by concept."
    key, groups = ('concept', 'top1'), torch.arange(40) // 8
    runs = []
    for s in range(2):
        for name, hit in (('meru', 1.0), ('clip', 0.0)):
            measures = Measures([Measure('style', 'top1', hit), Measure('concept', 'top1', hit)])
            values = {key: torch.full((40,), hit)}
            runs.append(_MeasuredRun(name, s, dict(seed=s), dict(dataset='d'), measures, values))
    p = lambda groups: {line.question.dataset: line for line in compare(runs, 'meru', groups)}['concept'].differences
    assert p({})['clip'].p < 1e-3 and p(dict(concept=groups))['clip'].p == pytest.approx(2 / 32, abs=0.02)


def test_better_is_lower_where_it_is():
    runs = []
    for s in range(4):
        for name, value in (('meru', 2.0), ('clip', 3.0)):
            measures = Measures([Measure('a', 'tree_error', value + 0.001 * s)])
            runs.append(_MeasuredRun(name, s, dict(seed=s), dict(dataset='d'), measures, {}))
    (line,) = compare(runs, 'meru')
    assert line.question.text == 'a: tree-induced error, edges' and line.better == -1
    assert line.differences['clip'].mean == pytest.approx(-1) and line.differences['clip'].significant
    assert 'significantly better in 1' in conclusion([line], 'meru')
    assert 'significantly worse in 1' in conclusion(compare(runs, 'clip'), 'clip')


def test_a_measure_that_is_none_at_some_seeds(monkeypatch, tmp_path):
    import meru.evaluation.comparison as c

    def measured(folder, test_set, cfg, control=False):
        name, seed = folder.name.split('_s')
        r = run(name, int(seed), 0.5 + 0.1 * int(seed) + 0.1 * (name == 'flat'))
        cone = Measure('', 'cone_auc', None if seed == '1' else 0.7)
        return r._replace(measures=Measures([r.measures[0], cone, r.measures[2], Measure('', 'chain_tau', 0.2)]))

    monkeypatch.setattr(c, '_find_runs', lambda cfg: [ROOT / f'{n}_s{s}' for s in (0, 1) for n in ('meru', 'flat')])
    monkeypatch.setattr(c, '_measure_once', measured)
    monkeypatch.setattr(c, '_pixel_metrics', lambda test_set: Measures())
    monkeypatch.setattr(c, 'read_test_set', lambda *a: None)
    monkeypatch.setattr(
        c, 'load_config', lambda f: __import__('types').SimpleNamespace(image_size=32, image_tower='conv')
    )
    found = compare_runs(CompareConfig(out=str(tmp_path)))
    means = {_flat_key(m): m.value for m in found.controls['untrained']}
    assert means == dict(style_top1=pytest.approx(0.55), cosine_agreement=0.9, chain_tau=0.2)
    figure = plot_comparison(found.table, found.base, found.controls)
    drawn = [line for line in found.table if found.base in line.means and line.question.name != 'cosine_agreement']
    assert len([ax for ax in figure.axes if ax.axison]) == len(drawn) == 2


@pytest.fixture(scope='module')
def trained(papermill, tmp_path_factory):
    "Two presets, two seeds, two steps each, trained by the notebook."
    home = tmp_path_factory.mktemp('compare')
    (home / 'compare.yaml').write_text(
        f'presets: smoke smoke_clip\nseeds: 2\nsteps: 2\n'
        f'folder: {home / "runs"}\nout: {home / "out"}\ndata: {home / "hues"}\n'
    )
    from PIL import Image

    for i in range(6):
        (home / 'hues' / f'thing {i}').mkdir(parents=True)
        for j in range(2):
            Image.new('RGB', (16, 16), (40 * i, 255 - 40 * i, 90 * j)).save(home / 'hues' / f'thing {i}' / f'{j}.png')
    done = papermill('compare', home / 'out.ipynb', '-f', home / 'compare.yaml')
    assert done.returncode == 0, done.stderr[-2000:]
    return home


def test_compare_ends_with_its_table_and_a_command_that_runs(trained, run_cells):
    printed = printed_by(trained / 'out.ipynb')
    assert re.search(r'\| hues: .*\| .* ± ', printed) and 'smoke against smoke_clip' in printed
    notebook, given = next_command(printed)
    assert (notebook, given['run']) == ('traverse', str(trained / 'runs' / 'smoke_s1'))
    assert given['beside'] == str(trained / 'runs' / 'smoke_clip_s1')
    error, printed = run_cells(notebook, **given | dict(out=trained / 'walks'))
    starts = json.loads((trained / 'walks' / 'walks.json').read_text(encoding='utf-8'))['walks']
    assert not error and len(starts) == 2 * 8, error  # of the pictures that were asked about, by both


def test_an_interval_without_zero_that_is_not_significant_is_explained():
    runs = [run(name, seed, 0.5 + 0.01 * seed + 0.1 * (name == 'flat')) for seed in (0, 1) for name in ('meru', 'flat')]
    line = compare(runs, 'meru')[0]
    narrow = line.differences['flat']._replace(mean=-0.1, low=-0.2, high=-0.05, p=0.03, p_holm=0.2, significant=False)
    said = conclusion([line._replace(differences=dict(flat=narrow))], 'meru')
    assert 'leaves out zero: 1; an interval is for one measure alone, p is corrected for all 1 (Holm)' in said
    wide = narrow._replace(high=0.05)
    assert 'leaves out zero' not in conclusion([line._replace(differences=dict(flat=wide))], 'meru')


def test_compare_notebook(trained):
    record = json.loads((trained / 'out' / 'comparison.json').read_text())
    assert [(r['name'], r['seed'], r['config']['steps']) for r in record['runs']] == [
        (n, s, 2) for s in (0, 1) for n in ('smoke', 'smoke_clip')
    ]
    keys = {line['key']: line for line in record['table']}
    assert {'hues_top1', 'hues_probe_top1', 'wordnet_depth_tau'} <= set(keys) and 'smoke_clip' not in keys[
        'wordnet_depth_tau'
    ]['means']
    assert (
        record['base'] == 'smoke'
        and record['controls']['chance']['hues_top1'] == pytest.approx(1 / 6)
        and 'untrained' in record['controls']
    )
    assert (trained / 'out' / 'comparison.png').stat().st_size > 5_000 and 'smoke against smoke_clip' in (
        trained / 'out.ipynb'
    ).read_text()


def test_measured_once(trained, monkeypatch):
    import meru.evaluation.comparison as c

    cfg = CompareConfig(
        runs='',
        presets='smoke smoke_clip',
        seeds=2,
        steps=2,
        folder=str(trained / 'runs'),
        data=str(trained / 'hues'),
        out=str(trained / 'out'),
    )
    monkeypatch.setattr(c, '_measure_run', lambda *a, **k: pytest.fail('measured again'))
    again = c._measure_once(trained / 'runs' / 'smoke_s0', None, cfg)
    assert again.name == 'smoke' and again.seed == 0 and 0 <= again.measures.value('top1', 'hues') <= 1


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


def test_the_committed_comparison_is_of_clean_runs():
    record = json.loads((ROOT / 'outputs' / 'reference' / 'comparison' / 'comparison.json').read_text())
    assert len(record['runs']) == 20 and all(r['config']['steps'] == 4000 for r in record['runs'])
    assert not any(r['record']['dirty'] for r in record['runs'])
    assert {r['name'] for r in record['runs']} == {'demo', 'demo_poincare', 'demo_flat', 'demo_clip'}


def test_two_runs_of_one_seed():
    "The interval and p are over photos; what is not known photo by photo is a difference alone."
    hits = dict(good=torch.ones(40), poor=torch.arange(40) % 4 == 0, fair=torch.arange(40) % 2 == 0)
    runs = []
    for seed, (name, each) in enumerate(hits.items()):
        each = each.double()
        measures = Measures(
            [Measure('photos', 'text_to_image_r1', float(each.mean())), Measure('photos', 'cone_auc', 0.5)]
        )
        runs.append(_MeasuredRun(name, seed, {}, {}, measures, {('photos', 'text_to_image_r1'): each}))
    recall, cones = compare(runs, 'good')
    worse = recall.differences['poor']
    assert (worse.mean, worse.over, worse.significant) == (pytest.approx(0.75), 'photos', True)
    assert worse.low < 0.75 < worse.high and worse.p < 0.001
    assert recall.differences['fair'].mean == pytest.approx(0.5)
    assert cones.differences['poor'].p is None and not cones.differences['poor'].significant
    assert '| photos: caption to picture, recall at 1 | 1.000 | 0.250 | 0.500 |' in means_table([recall], {})
    assert '| photos: cone margin, AUC | +0.000 | +0.000 |' in differences_table([recall, cones], 'good')
    assert 'good against poor**, of 1 measures: significantly better in 1' in conclusion([recall, cones], 'good')
    json.dumps(comparison_record(_Comparison(runs, 'good', {}, [recall, cones])))
    assert means_table([recall], {}).startswith('| protocol: ours |')
    cut = recall._replace(protocol='ours, 40 pictures')
    assert '| photos: caption to picture, recall at 1 [ours, 40 pictures] |' in means_table([cut], {})
    record = comparison_record(_Comparison(runs, 'good', {}, [cut, cones]))
    assert record['protocols'] == dict(photos_text_to_image_r1='ours, 40 pictures')


def test_a_single_name_is_no_comparison():
    with pytest.raises(ValueError, match='name at least two'):
        compare([run('meru', s, 0.5) for s in range(2)], 'meru')
