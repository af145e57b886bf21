"""Shared by the tests: where the project is, and how a notebook is run."""
import os, subprocess, sys
from pathlib import Path
import pytest
from hypothesis import settings

os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
settings.register_profile('repeatable', derandomize=True, deadline=None)
settings.load_profile('repeatable')
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope='session')
def root(): return ROOT


@pytest.fixture(scope='session')
def papermill():
    "Run a notebook of `nbs/` as a person would; the finished process."
    def run(notebook, out, *args, cwd=ROOT):
        out.parent.mkdir(parents=True, exist_ok=True)
        cmd = [Path(sys.executable).parent/'papermill', ROOT/'nbs'/f'{notebook}.ipynb', out, *args]
        return subprocess.run([str(a) for a in cmd], cwd=cwd, capture_output=True, text=True, timeout=900)
    return run


@pytest.fixture
def in_root(monkeypatch): monkeypatch.chdir(ROOT)


@pytest.fixture(scope='session')
def made_up(tmp_path_factory):
    "Features of 400 pairs that share half of their numbers."
    import torch
    from meru.features import save_cache, save_part
    folder = tmp_path_factory.mktemp('cache')
    shared = torch.randn(400, 1, 16, generator=torch.Generator().manual_seed(0)).half()
    save_part(folder/'part.safetensors', dict(image=shared, text=shared[..., :8].contiguous(), text_image=torch.arange(400)),
              dict(keys=[f'{i}.jpg' for i in range(400)], splits=['train']*320 + ['dev']*40 + ['test']*40, captions=[f'caption {i}' for i in range(400)], damaged={}))
    save_cache(folder, [folder/'part.safetensors'], dataset='made up', towers='none', augment={}, seed=0, views=1)
    return folder
