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
