"""Shared by the tests: where the project is, and how a notebook is run."""

import io
import json
import multiprocessing.util
import os
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from hypothesis import settings
from pages import run_page, run_papermill

os.environ.setdefault('GOMP_SPINCOUNT', '1000')
WORKERS = int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', 1))
if WORKERS > 1:  # each its share of the cores, or threads of one wait for those of another
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1) // WORKERS)))
settings.register_profile('repeatable', derandomize=True, deadline=None)
settings.load_profile('repeatable')
ROOT = Path(__file__).parent.parent
LONGEST = (
    'fetch users trainer distributed features evaluation comparison heads explorer step notebooks benchmark image_index'
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    "A worker takes a whole file, whose tests share what they made, or one page; the longest first."
    order = LONGEST.split()

    def rank(item):
        stem = item.path.stem.removeprefix('test_')
        return order.index(stem) if stem in order else len(order)

    for item in items:
        if item.path.stem != 'test_pages':
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=rank)


@pytest.fixture(scope='session', autouse=True)
def temporary(tmp_path_factory):
    "What programs leave in the temporary folder goes with the tests' own."
    multiprocessing.util.get_temp_dir()  # outlives the tests' folder and removes itself
    os.environ['TMPDIR'] = tempfile.tempdir = str(tmp_path_factory.mktemp('tmp'))


@pytest.fixture(scope='session')
def root():
    return ROOT


def _command(notebook, out, args):
    out.parent.mkdir(parents=True, exist_ok=True)
    return [str(a) for a in (ROOT / 'nbs' / f'{notebook}.ipynb', out, *args)]


@pytest.fixture(scope='session')
def papermill_command():
    "Run a notebook of `nbs/` as a person would, with a kernel of its own; the finished process."

    def run(notebook, out, *args, cwd=ROOT):
        program = str(Path(sys.executable).parent / 'papermill')
        cmd = [program, *_command(notebook, out, args)]
        return subprocess.run(cmd, cwd=cwd, capture_output=True, text=True, timeout=900)

    return run


@pytest.fixture(scope='session')
def papermill(fork, tmp_path_factory):
    "The same, but in a process forked from a warm one: what the command would say and leave, some ten seconds sooner."

    def run(notebook, out, *args, cwd=ROOT, **env):
        cmd = _command(notebook, out, args)
        folder = tmp_path_factory.mktemp('papermill')
        status, _ = fork(run_papermill, cmd, cwd, env, folder, seconds=900)
        printed, err = ((folder / name).read_text() if (folder / name).exists() else '' for name in ('out', 'err'))
        return subprocess.CompletedProcess(cmd, status, printed, err if isinstance(status, int) else status)

    return run


def _once(notebook, given, before=''):
    "The cells one by one, parameters after the cell that is tagged so, until one fails."
    from IPython.core.interactiveshell import InteractiveShell

    os.chdir(ROOT)
    shell, error = InteractiveShell(), ''
    shell.run_cell(before)
    with redirect_stdout(io.StringIO()) as printed:
        for cell in json.loads((ROOT / 'nbs' / f'{notebook}.ipynb').read_text(encoding='utf-8'))['cells']:
            if cell['cell_type'] != 'code':
                continue
            done = shell.run_cell(''.join(cell['source']))
            if 'parameters' in cell['metadata'].get('tags', []):
                shell.user_ns |= given
            if not done.success:
                error = str(done.error_in_exec or done.error_before_exec)
                break
    return error, printed.getvalue()


def _cells(notebook, several, before, pipe):
    pipe.send([_once(notebook, given, before) for given in several])


@pytest.fixture(scope='session')
def fork():
    "Run `work(*args, pipe)` in a process forked from one that has imported everything; what it sent."
    context = multiprocessing.get_context('forkserver')
    preload = [
        'papermill.cli',
        'meru.training.launch',
        'meru.image_index',
        'meru.evaluation.ablation',
        'torch._dynamo',
        'nbdev.process',
    ]
    context.set_forkserver_preload([*preload, 'execnb.shell', 'fastcore.test', 'matplotlib.pyplot'])

    def run(work, *args, seconds=300):
        ours, theirs = context.Pipe(False)
        child = context.Process(target=work, args=(*args, theirs))
        child.start()
        theirs.close()
        try:
            return ours.recv() if ours.poll(seconds) else ('it did not end', '')
        except EOFError:
            child.join(5)
            return f'its process ended with {child.exitcode}', ''
        finally:
            child.kill()
            child.join()

    return run


@pytest.fixture(scope='session')
def run_cells(fork):
    "A run notebook without a kernel of its own; its error, and what it printed."

    def run(notebook, **given):
        done = several(notebook, [given])
        return done[0] if isinstance(done, list) else done

    def several(notebook, all_given, before='', seconds=300):
        "The same a few times in one process, for a list of parameters; `before` is code that is run first."
        texts = [{k: str(v) if isinstance(v, Path) else v for k, v in given.items()} for given in all_given]
        return fork(_cells, notebook, texts, before, seconds=seconds)

    run.several = several
    return run


@pytest.fixture(scope='session')
def page(fork):
    "A page in a process of its own; its error, and pairs of stored and new texts that differ."
    return lambda path: fork(run_page, path, seconds=600)


@pytest.fixture
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope='session')
def made_up(tmp_path_factory):
    "Features of 400 pairs that share half of their numbers."
    import torch
    from meru.models.feature_cache import save_cache, _save_part

    folder = tmp_path_factory.mktemp('cache')
    shared = torch.randn(400, 1, 16, generator=torch.Generator().manual_seed(0)).half()
    _save_part(
        folder / 'part.safetensors',
        dict(image=shared, text=shared[..., :8].contiguous(), text_image=torch.arange(400)),
        dict(
            keys=[f'{i}.jpg' for i in range(400)],
            splits=['train'] * 320 + ['dev'] * 40 + ['test'] * 40,
            captions=[f'caption {i}' for i in range(400)],
            damaged={},
        ),
    )
    save_cache(folder, [folder / 'part.safetensors'], dataset='made up', towers='none', augment={}, seed=0, views=1)
    return folder
