"""Live curves: each step once in every place, whatever was killed in between."""

import csv
import re
import sys
import pytest
from conftest import ROOT
from meru.training import curves
from meru.training.config import make_config
from meru.training.curves import LiveCurves, Writer
from meru.training.run import Run
from meru.training.trainer import fit

NAMES = {'loss', 'curv', 'image_radius/median', 'text_radius/low', 'cone_share', 'saturated', 'val_top1', 'lr'}


class Kept(Writer):
    "A person's own: keeps what it is told."

    opened = []

    def __init__(self, run):
        self.lines, self.closed = [], False
        Kept.opened.append(self)

    def write(self, step, scalars):
        self.lines.append((step, scalars['loss']))

    def close(self):
        self.closed = True


class Unplugged(Run):
    "Loses power after a line that lies behind its last checkpoint."

    def log(self, row):
        super().log(row)
        if row['step'] == 6:
            raise KeyboardInterrupt


def packages():
    "The writers whose package is there."
    return [name for name, kind in curves.writers.items() if not kind.needs or curves.find_spec(kind.needs)]


@pytest.fixture(scope='module')
def resumed(tmp_path_factory):
    "A run of eight steps that was killed after the sixth and goes on from the fourth, with all writers there are."
    import os

    os.environ.update(WANDB_MODE='offline', WANDB_SILENT='true')
    log = ','.join([*packages(), 'test_curves:Kept'])
    config = make_config('smoke', image_width=64, steps=8, batch_size=8, val_every=4, val_pairs=16, log=log)
    folder = tmp_path_factory.mktemp('curves') / 'run'
    Kept.opened.clear()
    with pytest.raises(KeyboardInterrupt):
        fit(Unplugged(folder, config), quiet=True)
    run = Run(folder, config)
    fit(run, quiet=True)
    return run


def test_a_table_has_each_step_once(resumed):
    with open(resumed.folder / 'curves.csv', newline='') as file:
        table = list(csv.DictReader(file))
    rows = resumed.rows()
    assert [int(o['step']) for o in table] == [o['step'] for o in rows] == [2, 4, 6, 8]
    assert [float(o['loss']) for o in table] == [o['loss'] for o in rows]
    assert float(table[1]['image_radius/high']) == rows[1]['image_radius'][2] and table[0]['val_top1'] == ''
    assert NAMES <= set(table[0])


def test_ones_own_class_is_told_the_earlier_lines_again(resumed):
    first, second = Kept.opened
    assert [step for step, _ in first.lines] == [2, 4] and [step for step, _ in second.lines] == [2, 4, 6, 8]
    assert first.closed and second.closed


def test_tensorboard_has_each_step_once(resumed):
    pytest.importorskip('tensorboard', reason="pip install -e '.[logs]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(resumed.folder / 'tensorboard'))
    board.Reload()
    rows = resumed.rows()
    assert NAMES <= set(board.Tags()['scalars'])
    assert [(o.step, o.value) for o in board.Scalars('loss')] == [(o['step'], pytest.approx(o['loss'])) for o in rows]
    assert [o.step for o in board.Scalars('val_top1')] == [4, 8]
    spent = board.Scalars('loss')[-1].wall_time - board.Scalars('loss')[0].wall_time
    assert spent == pytest.approx(rows[-1]['seconds'] - rows[0]['seconds'], abs=0.1)


def records(path):
    "The records of a .wandb file: after seven bytes, blocks of 32 KB with parts of crc32, length, kind, and bytes."
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b''
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768  # padding
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], 'little'), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, or last
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b''


def test_weights_and_biases_has_each_step_once(resumed):
    pytest.importorskip('wandb', reason="pip install -e '.[logs]'")
    (folder,) = (resumed.folder / 'wandb').glob('offline-run-*')
    name = resumed.read('run.json')['wandb']
    history = [o.history for o in records(folder / f'run-{name}.wandb') if o.WhichOneof('record_type') == 'history']
    names = {'/'.join(item.nested_key) or item.key for item in history[0].item}
    assert [o.step.num for o in history] == [2, 4, 6, 8] and NAMES - {'val_top1'} <= names


def test_a_writer_that_fails_does_not_end_the_run(tmp_path, monkeypatch):
    class Broken(Kept):
        def write(self, step, scalars):
            raise OSError('no space left')

    monkeypatch.setitem(curves.writers, 'csv', Broken)
    run, told = Run(tmp_path, make_config('smoke', log='csv')), []
    with pytest.warns(UserWarning, match='Broken takes no more lines: OSError'):
        with curves._live_writers(run, told.append) as tell:
            for step in (1, 2):
                tell(dict(step=step, loss=1.0))
    assert [o['step'] for o in told] == [1, 2] and Kept.opened[-1].closed


@pytest.mark.parametrize(
    'log, says',
    [
        ('tensorbord', "log = 'tensorbord' is not off, or csv, tensorboard, wandb or module:Class"),
        ('csv,', 'joined by commas'),
        ('nowhere:Mine', "No module named 'nowhere'"),
    ],
)
def test_unknown_writers_are_refused_before_the_run_begins(log, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        fit(Run(tmp_path, make_config('smoke', log=log)))
    assert not (tmp_path / 'run.json').exists()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(curves, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package tensorboard: pip install -e '\.\[logs\]'"):
        curves._find_writers('csv,tensorboard')


def test_no_module_imports_them_on_its_own():
    "Tensorboard, wandb and IPython are asked for inside functions only."
    for path in (ROOT / 'meru').rglob('*.py'):
        names = re.findall(r'^(?:import|from) (\S+)', path.read_text(encoding='utf-8'), re.M)
        assert not [o for o in names if 'tensorboard' in o or o.split('.')[0] in ('wandb', 'IPython')], path


class Shell:
    "A notebook that remembers what is shown."

    def __init__(self):
        self.figures = []

    def update(self, figure):
        self.figures.append(figure)

    def display(self, figure, display_id):
        self.figures.append(figure)
        return self


def test_the_figure_is_redrawn_now_and_at_the_end(tmp_path, monkeypatch):
    import IPython.display

    shell, run = Shell(), Run(tmp_path, make_config('smoke'))
    monkeypatch.setattr(sys.modules['IPython'], 'get_ipython', lambda: shell)
    monkeypatch.setattr(IPython.display, 'display', shell.display)
    live = LiveCurves(run)
    for step in range(1, 13):
        run.log(dict(step=step, pairs=32 * step, seconds=10.0 * step, loss=1 / step, curv=1.0))
        live(run.rows()[-1])
    assert [o.get_suptitle() for o in shell.figures] == ['step 1 of 12', 'step 12 of 12']
    assert live.draw(run.rows()[:6]).get_suptitle() == 'step 6 of 12, 1 min left'
    assert [len(ax.lines) for ax in shell.figures[-1].axes] == [1, 1]
