"Every suite runs from one command in its short form, and says what it did."

import json
import matplotlib.pyplot as plt
import multiprocessing
import os
import pytest
from conftest import ROOT
from meru.benchmarks import gpu
from meru.benchmarks.suites import _Suite, _ratios, draw_ratios, record_suite, suites


def sized(
    n: int = 4,  # how many
    wide: bool = False,  # or narrow
):
    return dict(n=n, wide=wide, rows=[dict(case='a', ratio=dict(plain=dict(median=2.0, low=1.0, high=3.0)))])


@pytest.fixture(autouse=True)
def made_up(monkeypatch):
    monkeypatch.setitem(suites, 'made_up', _Suite(sized, dict(n=1)))


def test_a_suite_writes_its_result(tmp_path):
    found = record_suite('made_up', tmp_path / 'b', wide=True)
    assert (found['n'], found['wide'], found['quick']) == (4, True, False)
    assert json.loads((tmp_path / 'b/made_up.json').read_text()) == found and found['machine']['cores'] >= 1


def test_the_short_form_yields_to_what_is_asked(tmp_path):
    assert record_suite('made_up', tmp_path, quick=True)['n'] == 1
    assert record_suite('made_up', tmp_path, quick=True, n=2)['n'] == 2


@pytest.mark.parametrize(
    'given, says',
    [(dict(m=3), "unknown parameter 'm'; known are: suite, out, quick, n, wide"), (dict(n='many'), 'not of type int')],
)
def test_refuses_unknown_names_and_wrong_types(given, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        record_suite('made_up', tmp_path, **given)
    with pytest.raises(ValueError, match='known are: loader, '):
        record_suite('sorting', tmp_path)
    assert not list(tmp_path.iterdir())


def test_finds_every_ratio():
    one = dict(median=1.0, low=1.0, high=1.0)
    assert list(_ratios(dict(ratio=one))) == [('', one)]
    assert [k for k, _ in _ratios(sized() | dict(tiled=dict(ratio=dict(obvious=one)), machine=dict(cores=2)))] == [
        'a, plain',
        'tiled, obvious',
    ]


def test_what_takes_long_writes_what_it_has(tmp_path, monkeypatch):
    def long():
        yield dict(rows=[1])
        assert json.loads((tmp_path / 'long.json').read_text())['rows'] == [1]
        raise ZeroDivisionError

    monkeypatch.setitem(suites, 'long', _Suite(long, {}))
    with pytest.raises(ZeroDivisionError):
        record_suite('long', tmp_path)
    assert json.loads((tmp_path / 'long.json').read_text())['rows'] == [1]


def test_from_the_command_line(papermill, tmp_path):
    "The suite for a GPU to its end on a CPU, every part of it."
    notebook = tmp_path / 'out.ipynb'
    done = papermill('benchmark', notebook, '-p', 'suite', 'gpu', '-p', 'quick', 'true', '-p', 'out', tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / 'gpu.json').read_text())
    rows = {name: part['rows'] for name, part in result['parts'].items()}
    assert result['quick'] and not any(part['error'] for part in result['parts'].values())
    assert not [row for part in rows.values() for row in part if 'error' in row]
    assert rows['kernels'][0] == dict(case='engine', says='_tile_sums') and len(rows['kernels']) > 15
    assert all(row['worst_error'] < 1e-4 for row in rows['kernels'][1:])
    assert [row['case'].split(',')[0] for row in rows['loss'][-3:]] == ['bf16', 'tf32x3', 'ieee']
    steps = ['small, ours', 'small, ours in two parts', 'small, open_clip']
    assert [row['case'] for row in rows['step']] == steps
    assert [row['case'] for row in rows['head']] == ['ours', 'published', 'fed', 'fed, not recorded']
    assert rows['head'][3]['same_bits']
    assert rows['decode'][0]['mean_levels'] < 0.5 and rows['decode'][0]['pictures'] == 4
    assert rows['resume'] == [dict(case='smoke', killed_after=2, steps=6, same_bits=True)]
    assert rows['demo'][-1]['case'] == 'smoke, step 12' and (tmp_path / 'gpu.png').stat().st_size > 3000
    printed = notebook.read_text()
    assert '| killed after step 2, resumed | the same bits |' in printed and 'step, small, ours, 8 pairs' in printed


def test_a_part_that_hangs_or_dies_leaves_its_rows(monkeypatch):
    card = gpu._Card('cpu', (64, 96), ('small',), 8, 'smoke', 12, True)

    class Quick:  # as a process: this one
        exitcode = -9

        def __init__(self, target, args):
            self.target, self.args = target, args

        def start(self):
            name, _, pipe = self.args
            pipe.send(dict(case='first'))
            if name == 'runs':
                pipe.send('')
            self.open = os.dup(pipe.fileno()) if name == 'hangs' else None

        def kill(self):
            if self.open:
                os.close(self.open)

        def join(self, seconds=None):
            pass

    context = multiprocessing.get_context('spawn')
    monkeypatch.setattr(type(context), 'Process', Quick)
    first = [dict(case='first')]
    assert gpu._apart('runs', card, 5) == dict(rows=first, error='')
    assert gpu._apart('dies', card, 5) == dict(rows=first, error='its process ended with -9')
    assert gpu._apart('hangs', card, 0.1) == dict(rows=first, error='not done after 0 s')


@pytest.mark.parametrize(
    'name', sorted(o.stem for o in (ROOT / 'outputs/benchmarks').glob('*.json') if o.stem in suites)
)
def test_a_committed_result_can_be_drawn(name):
    "What the last cell but one of `nbs/benchmark.ipynb` does: by the suite's own drawing, or a bar for each ratio."
    result = json.loads((ROOT / f'outputs/benchmarks/{name}.json').read_text())
    ax = (suites[name].draw or draw_ratios)(result)
    assert ax.lines or ax.patches or ax.collections or ax.texts
    plt.close('all')
