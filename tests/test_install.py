"""Installing: one source of metadata, a lock that fits it, and nothing that only Unix has."""

import configparser
import ctypes
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from types import SimpleNamespace
import pytest
from conftest import ROOT
from packaging.requirements import Requirement
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


# imported where it is used, by an extra that INSTALL.md names; or used only where it is there
ELSEWHERE = dict(
    faiss='faiss',
    pillow_heif='heic',
    img2dataset='fetch',
    pyspark='spark',
    onnxscript='onnx',
    transformers='transformers',
    starlette='serve',
    uvicorn='serve',
    wandb='logs',
    fsspec='remote',
    aiohttp='remote',
)
IF_THERE = {'triton'}  # torch brings it where it runs
OTHER_NAMES = dict(PIL='pillow', open_clip='open-clip-torch', faiss='faiss-cpu')


def imported(path, whole):
    "Modules that a source or a notebook imports by name: anywhere, or where no line is indented."
    source = path.read_text(encoding='utf-8')
    if path.suffix == '.ipynb':
        source = '\n'.join(
            ''.join(cell['source']) for cell in json.loads(source)['cells'] if cell['cell_type'] == 'code'
        )
    return re.findall(rf'^{" *" if whole else ""}(?:import|from) (\w+)', source, re.M)


@cache
def needs_of(name, extra):
    "What an installed distribution asks for, here."
    with suppress(metadata.PackageNotFoundError):  # an extra that is not installed
        needs = map(Requirement, metadata.requires(name) or [])
        return [o for o in needs if o.marker is None or o.marker.evaluate(dict(extra=extra))]
    return []


def brought_by(*groups):
    "Distributions that these lines of settings.ini bring, and what those bring, here."
    left, seen = [Requirement(o) for name in groups for o in SETTINGS[name].split()], set()
    while left:
        one = left.pop()
        for extra in {'', *one.extras}:
            if (plain(one.name), extra) not in seen:
                seen.add((plain(one.name), extra))
                left += needs_of(plain(one.name), extra)
    return {name for name, _ in seen}


def test_what_is_imported_is_what_is_asked_for():
    "`pip install -e '.[notebooks,towers]'` brings all that the library and the run notebooks import."

    def distribution(module):
        return plain(OTHER_NAMES.get(module, module))

    def without(files, brought, whole=False):
        names = {o for path in files for o in imported(path, whole)}
        return {o for o in names - sys.stdlib_module_names - {'meru'} if distribution(o) not in brought}

    library = [o for o in (ROOT / 'meru').rglob('*.py') if o.name != 'automodel.py']  # that is for transformers
    notebooks = [o for o in (ROOT / 'nbs').glob('*.ipynb') if not o.name[0].isdigit()]
    notebooks += (ROOT / 'nbs/reports').glob('9[0-7]*.ipynb')
    named = {plain(Requirement(o).name) for o in SETTINGS['requirements'].split()}
    assert without(library, named) == set() and {'torch', 'regex'} <= named
    both = brought_by('requirements', 'notebooks_requirements')
    assert without(notebooks, both) == set() and {'pandas', 'pyarrow', 'ipython', 'ipykernel'} <= both
    library = [o for o in library if o.parent.name != 'benchmarks']  # nor is that in the wheel
    later = without(library, both | brought_by('towers_requirements'), whole=True) - IF_THERE
    assert later <= set(ELSEWHERE), later
    for name in later:
        assert distribution(name) in brought_by(f'{ELSEWHERE[name]}_requirements'), name


@pytest.mark.parametrize('version', ['3.11', '3.12', '3.13'])
@pytest.mark.parametrize('system', ['linux', 'darwin', 'win32'])
def test_each_system_has_one_version_of_each(system, version):
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
    'command, runs', [('demo', ['demo']), ('controls', ['demo_poincare', 'demo_flat', 'demo_clip'])]
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

    @contextmanager
    def started(args, **how):
        asked.append(args)
        yield SimpleNamespace(wait=lambda: 3, terminate=lambda: None)

    monkeypatch.setattr(commands.subprocess, 'Popen', started)
    assert commands._main(['test']) == commands._main(['lab', '--no-browser']) == 3
    assert asked[0][1:4] == ['-m', 'pytest', 'tests'] and asked[1][1:] == ['-m', 'jupyter', 'lab', '--no-browser']


def test_a_command_that_is_ended_ends_what_it_began(tmp_path):
    "As `kill` does it to `python -m meru serve`."
    child = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    script = f"from meru.__main__ import _python; raise SystemExit(_python('-c', {child!r}))"
    with subprocess.Popen([sys.executable, '-c', script], cwd=ROOT) as command:
        until = time.monotonic() + 50
        while not ((tmp_path / 'pid').exists() and (tmp_path / 'pid').read_text()) and time.monotonic() < until:
            time.sleep(0.1)
        command.terminate()
        assert command.wait(timeout=30)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / 'pid').read_text()), 0)


def test_the_page_names_what_there_is():
    page = (ROOT / 'INSTALL.md').read_text(encoding='utf-8')
    extras = set(re.findall(r'^\| `(\w+)` \|', page, re.M))
    assert extras == {k.removesuffix('_requirements') for k in SETTINGS if k.endswith('_requirements')}
    assert 'INSTALL.md' in (ROOT / 'README.md').read_text(encoding='utf-8')


def test_the_image_has_what_the_tests_look_for():
    "And no Java without Spark, which the lock leaves out."
    lines = (ROOT / 'Dockerfile').read_text().splitlines()
    apt = set(next(o for o in lines if 'apt-get install' in o).split())
    assert {'git', 'g++', 'chromium', 'chromium-driver'} <= apt
    assert 'RUN pip install --no-cache-dir -r requirements.lock' in lines
    assert any('-jre' in o for o in apt) == any(plain(o).startswith('pyspark') for o in LOCK)
    assert 'STOPSIGNAL SIGINT' in lines  # as the first process of a container Python does not hear SIGTERM
