"""The wheel holds the library, and the library works outside the checkout."""

import importlib
import subprocess
import sys
import zipfile
import pytest
import meru


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


PUBLIC = """
    Geometry ImageIndex Lorentz Model ModelConfig Pretrained Run Shards Tokenizer TrainConfig
    build_index build_model contrastive_loss entailment_loss evaluate_folder explore fit from_pretrained
    get_geometry load_index load_released load_run make_config open_folder open_image_index presets
""".split()


def test_the_public_names():
    assert sorted(meru._home) == sorted(PUBLIC)
    for name in PUBLIC:
        thing = getattr(meru, name)
        assert name in dir(meru)
        assert isinstance(thing, dict) or thing.__module__ == f'meru.{meru._home[name]}', name


def run(script):
    done = subprocess.run([sys.executable, '-W', 'always', '-c', script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def test_every_module_is_reached_from_the_package():
    run("""
import meru
assert callable(meru.training.run.load_run) and callable(meru.losses.entailment.entailment_loss)
assert callable(meru.search.exact.exact_search) and callable(meru.data.images.decode_image)
assert callable(meru.geometry.get_geometry)
""")


def test_old_modules_answer_with_a_warning():
    done = run("""
import meru, meru.shards
from meru.run import make_config
from meru.losses import contrastive_loss
from meru.search import build_index
for thing in (meru.run.load_run, make_config, meru.shards.Shards, contrastive_loss, build_index):
    print(f'{thing.__module__}.{thing.__qualname__}')
""")
    homes = ('training.run.load_run', 'training.config.make_config', 'data.shards.Shards')
    homes = (*homes, 'losses.pairwise.contrastive_loss', 'search.index.build_index')
    assert done.stdout.split() == [f'meru.{o}' for o in homes]
    for home in homes:
        assert f'is now meru.{home}' in done.stderr and 'DeprecationWarning' in done.stderr


def test_old_modules_have_heirs():
    for modules in meru._moved.values():
        for module in modules.split():
            importlib.import_module(f'meru.{module}')


@pytest.mark.parametrize(
    'code, says',
    [
        ('meru.form_pretrained', 'near it: from_pretrained'),
        ('meru.trainng', 'near it: training'),
        ('meru.training.rnu', 'near it: run'),
        ('meru.run.laod_run', 'near it: load_run'),
    ],
)
def test_a_typo_names_the_nearest(code, says):
    with pytest.raises(AttributeError, match=says):
        eval(code)


def test_the_import_takes_milliseconds():
    script = """
import sys, time, warnings, importlib, difflib
start = time.process_time()
import meru
assert time.process_time() - start < 0.1
assert not {'torch', 'numpy', 'matplotlib', 'huggingface_hub', 'tensorboard', 'wandb'} & set(sys.modules)
"""
    run(script)
