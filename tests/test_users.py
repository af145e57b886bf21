"""Three kinds of new user with nothing but README: a student, somebody with 200 photos, a researcher.

Each step that README names has its test, here or where `STEPS` says; here, too, from folders whose names have blanks
and umlauts and which are not the project's.
"""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
import pytest
from conftest import ROOT
from PIL import Image
from test_heads import next_command
from test_pictures import as_table, photos, towers  # noqa: F401, fixtures
import meru
from meru import gallery
from meru.evaluation.comparison import compare_runs, CompareConfig
from meru.evaluation.suites import EvalConfig, evaluate_folder, load_evaluated
from meru.evaluation.traversal import traverse, TraverseConfig
from meru.hub import publish, PublishConfig
from meru.image_index import open_image_index, SearchConfig
from meru.training.trainer import open_data

README = (ROOT / 'README.md').read_text(encoding='utf-8')
STEPS = {
    'make demo': 'install what_make_does_without_make',
    'make controls': 'install what_make_does_without_make',
    'make test': 'install commands_hand_on_their_status',
    'make lab': 'users jupyterlab_opens_at_the_root',
    'make docs': 'docs the_command',
    'python -m meru demo': 'users a_student_types_the_demo_and_goes_on',
    'python -m meru serve': 'gallery meru_serve_hands_over',
    'import meru': 'readme the_python_prints_what_it_says',
    'pip install -e': 'package wheel_installs_and_works_outside_the_checkout',
    'nbs/00_geometry.ipynb': 'pages page_runs',
    'nbs/train.ipynb': 'notebooks train_leaves_a_complete_record',
    'nbs/evaluate.ipynb': 'users a_student_types_the_demo_and_goes_on',
    'nbs/fetch.ipynb': 'fetch the_same_command_again_changes_nothing',
    'nbs/embed.ipynb': 'heads embed_as_a_person_runs_it',
    'nbs/pictures.ipynb': 'pictures the_command',
    'nbs/check.ipynb': 'checks the_notebook_answers_three_questions',
    'nbs/compare.ipynb': 'comparison compare_notebook',
    'nbs/traverse.ipynb': 'traversal traverse_notebook',
    'nbs/publish.ipynb': 'hub publish_as_a_person_runs_it',
    'nbs/benchmark.ipynb': 'benchmarks_suites from_the_command_line',
    'nbs/reports/98_library.ipynb': 'pages page_runs',
    'explorer.html': 'explorer a_run_becomes_a_page',
}


def test_each_step_of_readme_has_its_test():
    commands = re.findall(
        r'make \w+|python -m meru \w+|pip install -e|import meru\b|nbs/\w+\.ipynb|explorer\.html', README
    )
    commands = {o for o in commands if not re.match(r'nbs/\d', o)} | {'nbs/00_geometry.ipynb'}
    without = {'make shards', 'python -m meru or'}  # words of a table
    assert commands - without <= set(STEPS), commands - set(STEPS)
    for step, (file, name) in {step: o.split() for step, o in STEPS.items()}.items():
        tests = (ROOT / f'tests/test_{file}.py').read_text(encoding='utf-8')
        assert f'def test_{name}' in tests, step
        assert step in README or step.split('/')[-1] in README, f'{step} has gone'


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    "A person's own folder, where they stand."
    place = tmp_path / 'Müllers Ordner'
    place.mkdir()
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def copy(elsewhere, monkeypatch):
    "The project under a path with blanks and umlauts; the student stands in it."
    copy = elsewhere / 'meru für mich'
    copy.mkdir()
    for path in ROOT.iterdir():
        if path.name not in ('outputs', '.git', '.venv'):
            (copy / path.name).symlink_to(path)
    monkeypatch.chdir(copy)
    return copy


def test_a_student_types_the_demo_and_goes_on(copy):
    "In short form; what the terminal shows last is the table, the explorer's path and what to type next."
    done = subprocess.run([sys.executable, '-m', 'meru', 'demo', 'smoke'], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.findall(r'^nbs/\w+', done.stdout, re.M) == ['nbs/train', 'nbs/evaluate']
    evaluated = done.stdout.split('nbs/evaluate.ipynb\n')[1]
    assert 'Next: papermill nbs/evaluate.ipynb outputs/smoke/evaluate.ipynb -p run outputs/smoke' in done.stdout
    head, _, *rows, _, explorer, folder, following = evaluated.strip().splitlines()
    assert head == '| protocol: ours | model | untrained | pixels | chance |' and folder == 'Folder: outputs/smoke'
    assert len(rows) > 30 and rows[0].startswith('| unseen style, right name first | 0.')
    run, (page, size) = copy / 'outputs/smoke', explorer.removeprefix('Explorer: ').rsplit(': ', 1)
    assert page == 'outputs/smoke/explorer.html' and size.endswith(' MB')
    assert 100_000 < (copy / page).stat().st_size < 10**7
    assert next_command(following) == ('traverse', dict(run='outputs/smoke'))
    metrics = json.loads((run / 'metrics.json').read_text())
    names = {'style_top1', 'pixel_style_top1', 'untrained_style_top1', 'concept_top1', 'chain_tau', 'cone_own'}
    assert names <= set(metrics) and metrics['pixel_style_top1'] > 0.3 > metrics['untrained_style_top1']
    assert metrics['checkpoint_sha256'] == json.loads((run / 'run.json').read_text())['checkpoints']['last']
    figures = {'curves.png', 'disk.png', 'radii.png', 'similarity.png', 'tree.png', 'way.png'}
    assert figures <= {o.name for o in (run / 'figures').iterdir()}
    pictures = {f'outputs/bilder/{colour}/{i}.png': colour for colour in ('red', 'blue') for i in range(2)}
    for name, colour in pictures.items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (32, 32), colour).save(copy / name)
    page = meru.explore('outputs/smoke', data='outputs/bilder')
    assert page.path == run / 'explorer_bilder.html' and page.path.stat().st_size > 20_000
    (copy / 'worte.txt').write_text('a dog\nan animal\n')
    cfg = TraverseConfig(run='outputs/smoke', text='a dog | a cat', pool='worte.txt')
    starts, paths = traverse(*load_evaluated(EvalConfig(run=cfg.run)), cfg)
    assert [o.name for o in starts] == ['a dog', 'a cat'] and all(path[-1].text == '[root]' for path in paths)


@pytest.fixture
def album(elsewhere, photos):  # noqa: F811
    "Thirty photos with a table of captions, HEIC and AVIF among them, and a damaged one."
    source, captions = photos
    some = dict(list(captions.items())[:30])
    as_table(source, some, elsewhere / 'Urlaub am Meer')
    images = elsewhere / 'Urlaub am Meer/images'
    for name in sorted(o.name for o in images.iterdir() if o.name not in some):
        (images / name).unlink()
    first, second, third = list(some)[:3]
    for name, kind in ((first, 'HEIF'), (second, 'AVIF')):
        if kind == 'HEIF':
            pytest.importorskip('pillow_heif', reason="pip install 'meru[heic]'").register_heif_opener()
        with Image.open(images / name) as picture:
            picture.load()
        picture.save(images / name, kind)  # the bytes decide, not the name
    (images / third).write_bytes((images / third).read_bytes()[:900])
    return third


MINE = """
import torch
from torch import nn
from torch.nn import functional as F
from meru.geometry import Euclidean, register
from meru.models.pretrained import Towers


class Colours(nn.Module):
    width = 108

    def forward(self, pixels):
        return F.adaptive_avg_pool2d(pixels, 6).flatten(1)


class Words(nn.EmbeddingBag):
    width = 16

    def __init__(self):
        super().__init__(512, self.width, mode='sum', padding_idx=0)


def tokenizer(texts):
    rows = [[1 + sum(word.encode()) % 511 for word in text.lower().split()[:12]] for text in texts]
    return torch.tensor([row + [0] * (12 - len(row)) for row in rows])


@register
class Folded(Euclidean):
    name, has_cones = 'folded', False


torch.manual_seed(0)
Towers(Colours(), Words(), tokenizer, 24, (0.5,) * 3, (0.25,) * 3, 'colours, 1').register()
"""


def printed_in(notebook):
    "What the code of a finished notebook printed."
    cells = json.loads(notebook.read_text(encoding='utf-8'))['cells']
    outputs = [o for cell in cells for o in cell.get('outputs', []) if o.get('name') == 'stdout']
    return '\n'.join(''.join(o['text']) for o in outputs)


def test_somebody_with_photos_goes_on_by_what_is_said(elsewhere, album, towers, papermill):  # noqa: F811
    "One command from a folder that is not the project's; then what it says, by the paths that it says."
    out = elsewhere / 'was daraus wird'
    given = dict(folder='Urlaub am Meer', out=out, towers=towers, passes=2)
    typed = [o for pair in given.items() for o in ('-p', *pair)]
    done = papermill('pictures', elsewhere / 'OUT mein.ipynb', *typed, cwd=elsewhere)
    assert done.returncode == 0, done.stderr[-2000:]
    report = printed_in(elsewhere / 'OUT mein.ipynb')
    assert '29 pictures, of which 29 have captions, by labels.csv.' in report
    assert f'Left out, 1: images/{album} (' in report and f'- {out}/explorer.html' in report
    _, notebook, _, *words = shlex.split(re.findall('Next: (.*)', report)[-1])
    assert Path(notebook) == ROOT / 'nbs/search.ipynb'
    asked = dict(zip(words[1::3], words[2::3], strict=True))
    index = open_image_index(SearchConfig(**asked | dict(out=str(out))))
    assert len(index.pictures) == 29 and asked['images'] == 'Urlaub am Meer'
    assert asked['query'] in (elsewhere / 'Urlaub am Meer' / 'labels.csv').read_text(
        encoding='utf-8'
    )  # one's own words
    words = shlex.split(re.findall('In the browser: (.*)', report)[-1])
    assert words[:4] == ['python', '-m', 'meru', 'serve']
    shown = vars(gallery._arguments().parse_args(words[4:]))
    assert shown | dict(folder='Urlaub am Meer', model=f'{out}/model', out=str(out)) == shown
    model = meru.from_pretrained('was daraus wird/model')
    assert model.embed_images(f'Urlaub am Meer/images/{Path(index.pictures.columns["file"][0]).name}').shape[1] == 64
    assert publish(PublishConfig(f'{out}/model', f'{elsewhere}/zum Weitergeben', licence='mit')).record['passes'] <= 2
    measured = evaluate_folder(model.inputs.model, model.inputs.tokenizer, 'Urlaub am Meer', model.inputs.resize)
    assert any(f'without images/{album} (' in note for note in measured.notes)
    names = f"'{out}/model' '{elsewhere}/zum Weitergeben'"
    found = compare_runs(CompareConfig(runs=names, data=f'{out}/pairs', out=str(elsewhere / 'verglichen')))
    assert [run.name for run in found.runs] == ['was daraus wird', 'zum Weitergeben']


def test_a_researcher_with_encoders_and_a_geometry_of_their_own(elsewhere, photos, papermill):  # noqa: F811
    "One file of theirs, and every command knows both: features, a head, its walks, a folder to give away."
    source, captions = photos
    shutil.copytree(source, elsewhere / 'Fotos')
    parts = ['test' if i % 4 == 0 else 'train' for i in range(40)]
    rows = [dict(file=name, captions=captions[name], split=part) for name, part in zip(captions, parts)]
    (elsewhere / 'Fotos/captions.jsonl').write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')
    (elsewhere / 'mine.py').write_text(MINE, encoding='utf-8')

    def command(notebook, plugins='mine.py', **given):
        typed = [o for pair in given.items() for o in ('-p', *pair)]
        return papermill(notebook, elsewhere / 'OUT.ipynb', *typed, cwd=elsewhere, MERU_PLUGINS=plugins)

    def run(notebook, **given):
        done = command(notebook, **given)
        assert done.returncode == 0, done.stderr[-2000:]
        return printed_in(elsewhere / 'OUT.ipynb')

    features, head, gift = (str(elsewhere / name) for name in ('Merkmale', 'Kopf', 'Geschenk'))
    said = run('embed', data='Fotos', towers='colours, 1', out=features)
    assert '40 pictures' in said and 'colours, 1' in said
    recipe = dict(geometry='folded', steps=3, warmup=1, batch_size=16, log_every=1)
    assert '3 steps' in run('train', preset='head_euclid', data='Merkmale', out=head, **recipe)
    assert 'recall at 10' in run('evaluate', run='Kopf', data='Merkmale')
    assert '[root]' in run('traverse', run='Kopf', images='Fotos')
    assert 'Next: hf upload' in run('publish', run='Kopf', out=gift, licence='mit')
    said = command('traverse', plugins='', run='Kopf', images='Fotos').stderr
    assert "geometry = 'folded' is not one of" in said and 'your own by MERU_PLUGINS' in said
    done = subprocess.run(
        [sys.executable, '-c', "import mine, meru; print(meru.from_pretrained('Geschenk').embed_texts('a dog').shape)"],
        cwd=elsewhere,
        env=os.environ | dict(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
    )
    assert done.stdout == 'torch.Size([1, 64])\n', done.stderr[-2000:]


@pytest.fixture
def lab(elsewhere):
    "JupyterLab as `make lab` starts it, from another folder; fetches what is under an address."
    with socket.socket() as one:
        one.bind(('127.0.0.1', 0))
        port = one.getsockname()[1]
    options = ['--no-browser', f'--port={port}', '--IdentityProvider.token=open', '--allow-root']
    with open(elsewhere / 'log', 'w') as log:
        server = subprocess.Popen([sys.executable, '-m', 'meru', 'lab', *options], cwd=ROOT, stdout=log, stderr=log)

    def fetch(path):
        for _ in range(300):
            with suppress(ConnectionError, urllib.error.URLError):
                return urllib.request.urlopen(f'http://127.0.0.1:{port}/{path}?token=open', timeout=30).read()
            time.sleep(0.1)
        raise AssertionError((elsewhere / 'log').read_text())

    yield fetch
    fetch_shutdown = urllib.request.Request(f'http://127.0.0.1:{port}/api/shutdown?token=open', method='POST')
    urllib.request.urlopen(fetch_shutdown, timeout=30)
    assert server.wait(30) == 0


def test_jupyterlab_opens_at_the_root(lab):
    "README, reports and explorer are where a person looks for them."
    names = {o['name'] for o in json.loads(lab('api/contents'))['content']}
    assert {'README.md', 'nbs', 'outputs', 'data'} <= names
    assert json.loads(lab('api/contents/nbs/reports/90_demo.ipynb'))['type'] == 'notebook'
    assert b'press Trust HTML' in lab('files/outputs/reference/demo/explorer.html')


def test_a_column_that_is_missing_is_named_not_one_that_is_there(tmp_path):
    Image.new('RGB', (8, 8)).save(tmp_path / 'a.png')
    (tmp_path / 'captions.csv').write_text('image,beschreibung\na.png,ein Hund\n')
    with pytest.raises(ValueError, match="captions.csv has no column 'caption'; it has image, beschreibung"):
        meru.open_folder(tmp_path)


def test_features_are_not_proposed_into_a_folder_of_photos(tmp_path):
    config = meru.make_config('head_poincare', data=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f'-p data {tmp_path} .*-p out outputs/{tmp_path.name}_features'):
        open_data(config)
