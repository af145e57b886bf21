"""Installing: one source of metadata, a lock that fits it, and nothing that only Unix has."""

import configparser
import ctypes
import re
import subprocess
import sys
import tomllib
from types import SimpleNamespace
import pytest
from conftest import ROOT
from meru.training.config import make_config
from meru.training.trainer import pick_device

SETTINGS = configparser.ConfigParser(delimiters=['='])
SETTINGS.read(ROOT / 'settings.ini', encoding='utf-8')
SETTINGS = SETTINGS['DEFAULT']
LOCK = [o for o in (ROOT / 'requirements.lock').read_text().splitlines() if not o.startswith('#')]
plain = lambda name: re.sub('[-_.]+', '-', name).lower()


def test_pyproject_repeats_settings():
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    assert project['name'] == SETTINGS['lib_name'] and project['requires-python'] == f'>={SETTINGS["min_python"]}'
    assert {'version', 'dependencies', 'optional-dependencies'} <= set(project['dynamic'])


def test_the_lock_pins_all_that_settings_ask_for():
    pinned = {plain(o.split('==')[0]) for o in LOCK}
    wanted = ' '.join(v for k, v in SETTINGS.items() if k.endswith('requirements') and k != 'spark_requirements')
    missing = {plain(re.match(r'[\w.-]+', o)[0]) for o in wanted.split()} - pinned
    assert not missing and all(re.fullmatch(r'[\w.-]+==[\w.+!]+( ;.*)?', o) for o in LOCK)


@pytest.mark.parametrize('version', ['3.11', '3.12', '3.13'])
@pytest.mark.parametrize('system', ['linux', 'darwin', 'win32'])
def test_each_system_has_one_version_of_each(system, version):
    from packaging.requirements import Requirement

    here = dict(
        sys_platform=system,
        platform_system=dict(linux='Linux', darwin='Darwin', win32='Windows')[system],
        os_name='nt' if system == 'win32' else 'posix',
        platform_machine=dict(linux='x86_64', darwin='arm64', win32='AMD64')[system],
        python_version=version,
        python_full_version=f'{version}.6',
        implementation_name='cpython',
        platform_python_implementation='CPython',
    )
    lines = [Requirement(o) for o in LOCK]
    names = [plain(o.name) for o in lines if o.marker is None or o.marker.evaluate(here)]
    assert len(names) == len(set(names)) and {'torch', 'numpy', 'papermill', 'simplejpeg', 'tokenizers'} <= set(names)
    assert ('pywinpty' in names) == (system == 'win32') and ('triton' in names) == (system == 'linux')
    assert ('standard-imghdr' in names) == (version == '3.13')


def test_no_unix_module_is_needed():
    "All of the package, as Windows would import it."
    script = """
import importlib, pathlib, signal, sys, os
for name in ('fcntl', 'grp', 'pwd', 'resource', 'termios', 'tty', 'syslog'):
    sys.modules[name] = None
for module, names in ((os, 'killpg fork getpgid setsid'), (signal, 'SIGKILL SIGALRM SIGHUP')):
    for name in names.split():
        delattr(module, name)
import meru
folder = pathlib.Path(meru.__file__).parent
for path in sorted(folder.rglob('*.py')):
    parts = path.relative_to(folder).with_suffix('').parts
    own = parts[-1] not in ('__init__', '_modidx', '__main__', 'automodel')  # the last is for transformers, which asks
    if own and 'benchmarks' not in parts:
        importlib.import_module('.'.join(('meru', *parts)))
print('all')
"""
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == 'all', done.stderr[-1500:]


@pytest.mark.parametrize('handle, code, alive', [(7, 259, True), (7, 1, False), (0, 5, True), (0, 87, False)])
def test_a_process_of_windows(handle, code, alive, monkeypatch):
    "259: it still runs. Without a handle: 5, access denied, is somebody else's; 87 is nobody."
    from meru import core

    def exit_code(handle, place):
        place._obj.value = code
        return 1

    system = SimpleNamespace(
        OpenProcess=lambda *a: handle,
        GetLastError=lambda: code,
        GetExitCodeProcess=exit_code,
        CloseHandle=lambda handle: None,
    )
    monkeypatch.setattr(ctypes, 'windll', SimpleNamespace(kernel32=system), raising=False)
    monkeypatch.setattr(core.sys, 'platform', 'win32')
    monkeypatch.setattr(core.os, 'kill', lambda *a: pytest.fail('on Windows that is Ctrl-C'))
    assert core._answers(4321) is alive


def test_apples_gpu_is_a_device():
    import torch

    assert make_config('smoke', device='mps').device == 'mps'
    if not torch.backends.mps.is_available():
        with pytest.raises(ValueError, match="device = 'mps', but torch sees no GPU of Apple"):
            pick_device('mps')


@pytest.mark.parametrize(
    'command, runs', [('demo', ['demo']), ('controls', ['demo_clip', 'demo_euclid', 'demo_poincare'])]
)
def test_what_make_does_without_make(command, runs, monkeypatch, tmp_path):
    import papermill
    from meru import __main__ as commands

    asked = []
    monkeypatch.setattr(commands, 'project_path', lambda path: tmp_path / path)
    monkeypatch.setattr(papermill, 'execute_notebook', lambda *args, **kw: asked.append(args))
    assert commands._main([command]) == 0
    assert [args[1] for args in asked] == [
        tmp_path / 'outputs' / run / f'{name}.ipynb' for run in runs for name in ('train', 'evaluate')
    ]
    assert [args[2] for args in asked[:2]] == [
        dict(preset=runs[0], out=f'outputs/{runs[0]}'),
        dict(run=f'outputs/{runs[0]}'),
    ]


def test_commands_hand_on_their_status(monkeypatch):
    from meru import __main__ as commands

    asked = []
    monkeypatch.setattr(
        commands.subprocess, 'run', lambda args, **kw: asked.append(args) or SimpleNamespace(returncode=3)
    )
    assert commands._main(['test']) == commands._main(['lab', '--no-browser']) == 3
    assert asked[0][1:4] == ['-m', 'pytest', 'tests'] and asked[1][1:] == ['-m', 'jupyter', 'lab', '--no-browser']


def test_the_page_names_what_there_is():
    page = (ROOT / 'INSTALL.md').read_text(encoding='utf-8')
    extras = set(re.findall(r'^\| `(\w+)` \|', page, re.M))
    assert extras == {k.removesuffix('_requirements') for k in SETTINGS if k.endswith('_requirements')}
    assert 'INSTALL.md' in (ROOT / 'README.md').read_text(encoding='utf-8')
    assert 'requirements.lock' in (ROOT / 'Dockerfile').read_text() and 'has not been built' in page
