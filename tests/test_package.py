"""The wheel holds the library, and the library works outside the checkout."""

import subprocess, sys, zipfile
import pytest


@pytest.fixture(scope='module')
def wheel(root, tmp_path_factory):
    out = tmp_path_factory.mktemp('wheel')
    src = out / 'src'
    subprocess.run(['git', 'clone', '-q', '--no-local', str(root), str(src)], check=True)
    subprocess.run(
        [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', str(out), str(src)],
        check=True,
    )
    return next(out.glob('meru-*.whl'))


def test_wheel_installs_and_works_outside_the_checkout(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as z:
        z.extractall(tmp_path)
    script = (
        'import torch, meru, meru.training.trainer; from meru.geometry import get_geometry; '
        "g = get_geometry('lorentz'); c = torch.tensor(1.); x = g.exp_map0(torch.ones(1, 3), c); "
        'print(meru.__file__, float(g.radius(x, c)))'
    )
    done = subprocess.run(
        [sys.executable, '-P', '-c', script],
        cwd=tmp_path,
        env={'PYTHONPATH': str(tmp_path)},
        capture_output=True,
        text=True,
    )
    path, radius = done.stdout.split()
    assert path.startswith(str(tmp_path)) and abs(float(radius) - 3**0.5) < 1e-6, done.stderr


def test_run_time_requirements_are_lean(wheel):
    with zipfile.ZipFile(wheel) as z:
        meta = z.read(next(n for n in z.namelist() if n.endswith('METADATA'))).decode()
    needs = [l for l in meta.splitlines() if l.startswith('Requires-Dist') and 'extra ==' not in l]
    assert needs and not any(n in l for l in needs for n in ('nbdev', 'jupyter', 'img2dataset', 'papermill')), needs
    assert {f'Provides-Extra: {e}' for e in ('notebooks', 'fetch', 'dev')} <= set(meta.splitlines())


def test_the_explorer_finds_its_page(wheel):
    with zipfile.ZipFile(wheel) as z:
        assert {f'meru/assets/explorer.{e}' for e in ('html', 'css', 'js')} <= set(z.namelist())


def test_benchmarks_stay_at_home(wheel):
    "They are tools of the workshop: not in the wheel, and nothing in the wheel imports them."
    with zipfile.ZipFile(wheel) as z:
        modules = {name: z.read(name).decode() for name in z.namelist() if name.endswith('.py')}
    assert 'meru/evaluation/ablation.py' in modules and not [name for name in modules if 'benchmarks' in name]
    assert not [name for name, text in modules.items() if 'benchmarks' in text and name != 'meru/_modidx.py']
