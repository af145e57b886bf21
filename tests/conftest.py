"""Shared by the tests: where the project is, and how a notebook is run."""

import io, json, multiprocessing, os, subprocess, sys
from contextlib import redirect_stdout
from pathlib import Path
import pytest
from hypothesis import settings

os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
settings.register_profile('repeatable', derandomize=True, deadline=None)
settings.load_profile('repeatable')
ROOT = Path(__file__).parent.parent
LONGEST = (
    'fetch trainer distributed features evaluation comparison heads explorer step notebooks benchmark photos'.split()
)  # a worker takes a whole file: the longest first


def pytest_collection_modifyitems(items):
    name = lambda o: o.path.stem.removeprefix('test_')
    items.sort(key=lambda o: LONGEST.index(name(o)) if name(o) in LONGEST else len(LONGEST))


@pytest.fixture(scope='session')
def root():
    return ROOT


@pytest.fixture(scope='session')
def papermill():
    "Run a notebook of `nbs/` as a person would; the finished process."

    def run(notebook, out, *args, cwd=ROOT):
        out.parent.mkdir(parents=True, exist_ok=True)
        cmd = [Path(sys.executable).parent / 'papermill', ROOT / 'nbs' / f'{notebook}.ipynb', out, *args]
        return subprocess.run([str(a) for a in cmd], cwd=cwd, capture_output=True, text=True, timeout=900)

    return run


def _cells(notebook, given, pipe):
    "The cells one by one, parameters after the cell that is tagged so, until one fails."
    from IPython.core.interactiveshell import InteractiveShell

    os.chdir(ROOT)
    shell, error = InteractiveShell(), ''
    with redirect_stdout(io.StringIO()) as said:
        for cell in json.loads((ROOT / 'nbs' / f'{notebook}.ipynb').read_text(encoding='utf-8'))['cells']:
            if cell['cell_type'] != 'code':
                continue
            done = shell.run_cell(''.join(cell['source']))
            if 'parameters' in cell['metadata'].get('tags', []):
                shell.user_ns |= given
            if not done.success:
                error = str(done.error_in_exec or done.error_before_exec)
                break
    pipe.send((error, said.getvalue()))


@pytest.fixture(scope='session')
def run_cells():
    "A run notebook without a kernel of its own, in a process forked from one that has imported everything; its error, and what it printed."
    fork = multiprocessing.get_context('forkserver')
    fork.set_forkserver_preload(['meru.training.launch', 'meru.album', 'meru.evaluation.ablation', 'torch._dynamo'])

    def run(notebook, **given):
        ours, theirs = fork.Pipe(False)
        child = fork.Process(
            target=_cells, args=(notebook, {k: str(v) if isinstance(v, Path) else v for k, v in given.items()}, theirs)
        )
        child.start()
        theirs.close()
        try:
            return ours.recv() if ours.poll(300) else ('it did not end', '')
        finally:
            child.kill()
            child.join()

    return run


@pytest.fixture
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope='session')
def made_up(tmp_path_factory):
    "Features of 400 pairs that share half of their numbers."
    import torch
    from meru.models.feature_cache import save_cache, save_part

    folder = tmp_path_factory.mktemp('cache')
    shared = torch.randn(400, 1, 16, generator=torch.Generator().manual_seed(0)).half()
    save_part(
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
