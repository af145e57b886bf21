"""Evaluate, traverse, compare and publish take a head, a saved model or a name of the hub as they take a run."""

import json
import pytest
import torch
from conftest import ROOT
from pathlib import Path
from PIL import Image
from kills import _towers
from meru.evaluation.comparison import compare_runs, CompareConfig, means_table
from meru.evaluation.emoji_suite import evaluate_emoji
from meru.evaluation.suites import EvalConfig, evaluate_folder, evaluate_with_control, load_evaluated
from meru.evaluation.traversal import traverse, TraverseConfig
from meru.explorer import _data_of, explore, explored
from meru.hub import Pretrained, publish, PublishConfig
from meru.models.feature_cache import _save_part, save_cache
from meru.models.model import build_model
from meru.training.config import make_config
from meru.training.run import load_config, load_run, Run, save_checkpoint

COMMIT = 'c0ffee' + '0' * 34


def head(geometry='lorentz'):
    "A head on the features that the stand-in towers give."
    torch.manual_seed(0)
    widths = dict(image_width=432, text_width=64, embed_dim=8, backbone='thumbnails and words')
    config = make_config('head_lorentz', **widths, geometry=geometry, steps=4, warmup=1, data='nowhere')
    return build_model(config).eval()


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A run of a head, the same saved and on the hub; six photos with captions; a few texts."
    home = tmp_path_factory.mktemp('doors')
    run = Run(home / 'run', head().cfg)
    save_checkpoint(run.last, head(), step=4)
    run.record(finished='now', dataset=dict(train='d'))
    Pretrained(head(), run.read('run.json')).save_pretrained(home / 'saved')
    hub = home / 'hub' / 'models--some--head'
    (hub / 'refs').mkdir(parents=True)
    (hub / 'refs' / 'main').write_text(COMMIT)
    Pretrained(head()).save_pretrained(hub / 'snapshots' / COMMIT)
    (home / 'photos').mkdir()
    for i in range(6):
        Image.new('RGB', (40, 30), (40 * i, 255 - 40 * i, 90)).save(home / 'photos' / f'{i}.png')
    rows = [dict(file=f'{i}.png', captions=[f'shade {i}', f'tint {i}']) for i in range(6)]
    (home / 'photos' / 'captions.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    (home / 'pool.txt').write_text('a red thing\na blue thing\na thing\n')
    return home


def towers(*_):
    "Averages of pixels and a table of words."
    made = _towers()
    made.image_tower.width, made.text_tower.width = 432, 64
    return made


@pytest.fixture(autouse=True)
def offline(home, monkeypatch):
    "The hub's cache of this file, and towers that need no download."
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(home / 'hub'))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setattr('meru.models.model.load_towers', towers)


def name(home, kind):
    return 'some/head' if kind == 'hub' else str(home / kind)


@pytest.mark.parametrize('kind', ['run', 'saved', 'hub'])
def test_one_name_opens_all(kind, home):
    model = load_run(name(home, kind))
    assert torch.equal(model.image_proj.weight, head().image_proj.weight) and not model.training
    assert load_config(name(home, kind)).backbone == 'thumbnails and words'


@pytest.mark.parametrize('kind', ['run', 'saved', 'hub'])
def test_a_head_is_evaluated_on_photos(kind, home, tmp_path):
    cfg = EvalConfig(run=name(home, kind), data=str(home / 'photos'), out=str(tmp_path))
    model, tokenizer = load_evaluated(cfg)
    report = evaluate_with_control(model, tokenizer, cfg.data, model.resize)
    assert report.measures.value('image_to_text_candidates', 'photos') == 12
    own, control = (report.measures.value('text_to_image_median_rank', 'photos', who) for who in ('', 'untrained'))
    assert 1 <= own <= 6 and 1 <= control <= 6 and cfg.file.exists()
    assert cfg.name == dict(hub='head').get(kind, kind)


def test_where_results_go(home):
    assert EvalConfig(run=str(home / 'run')).folder == home / 'run'
    assert EvalConfig(run=str(home / 'saved')).folder.parts[-2:] == ('outputs', 'saved')
    assert EvalConfig(run='some/head@0123').folder.parts[-2:] == ('outputs', 'head')


@pytest.mark.parametrize('kind', ['run', 'saved', 'hub'])
def test_a_head_walks_to_the_root(kind, home):
    cfg = TraverseConfig(run=name(home, kind), images=str(home / 'photos'), pool=str(home / 'pool.txt'), count=2)
    starts, paths = traverse(*load_evaluated(EvalConfig(run=cfg.run, out=str(home / 'out'))), cfg)
    assert [o.name for o in starts] == ['0', '5'] and starts[0].picture.shape == (3, 24, 24)
    assert all(path[-1].text == '[root]' for path in paths)


def test_a_root_on_the_sphere_needs_the_training_pairs(home):
    model, tokenizer = load_evaluated(EvalConfig(run=str(home / 'run'), out=str(home / 'out')))
    flat = head('sphere')
    flat.image_tower, flat.text_tower, flat.resize = model.image_tower, model.text_tower, model.resize
    cfg = TraverseConfig(images=str(home / 'photos'), pool=str(home / 'pool.txt'))
    with pytest.raises(ValueError, match='nowhere holds no features.*walk to a picture with -p to FILE'):
        traverse(flat, tokenizer, cfg)


@pytest.mark.parametrize('kind', ['run', 'saved', 'hub'])
def test_all_are_published(kind, home, tmp_path):
    model = publish(PublishConfig(name(home, kind), str(tmp_path / 'out'), licence='mit'))
    assert torch.equal(model.model.image_proj.weight, head().image_proj.weight)
    assert 'license: mit' in (tmp_path / 'out' / 'README.md').read_text()


@pytest.mark.parametrize('kind', ['run', 'saved', 'hub'])
def test_all_are_explored(kind, home, tmp_path, monkeypatch):
    (tmp_path / 'outputs').mkdir()
    (tmp_path / 'data').symlink_to(ROOT / 'data')
    monkeypatch.setattr('meru.core._holding', lambda folder: tmp_path)  # the project's root, where outputs lie
    page = explore(name(home, kind), data=str(home / 'photos'), controls=[]).path
    where = home / 'run' if kind == 'run' else tmp_path / 'outputs' / Path(name(home, kind)).name
    assert page == where / 'explorer_photos.html'
    data = json.loads(_data_of(page.read_text(encoding='utf-8')))
    texts = data['items']['text']
    assert texts[:6] == [f'shade {i}' for i in range(6)] and data['atlas'] and len(texts) == 12
    with pytest.raises(FileNotFoundError, match='there is no .*nowhere: name a dataset with data=FOLDER'):
        explore(name(home, kind))


@pytest.mark.parametrize('kind', ['run', 'saved', 'hub'])
def test_the_page_of_an_evaluation_lies_with_its_results(kind, home, tmp_path):
    said = explored(name(home, kind), 'last', str(home / 'photos'), str(tmp_path / 'out'))
    assert said.startswith('explorer_photos.html: ') and (tmp_path / 'out' / 'explorer_photos.html').exists()


def test_a_run_and_two_saved_models_side_by_side(home, tmp_path):
    runs = f'{home / "run"} {home / "saved"} some/head'
    found = compare_runs(CompareConfig(runs=runs, data=str(home / 'photos'), out=str(tmp_path)))
    assert [run.name for run in found.runs] == ['run', 'saved', 'head'] and found.base == 'run'
    recall = next(line for line in found.table if line.question.name == 'text_to_image_r1')
    difference = recall.differences['saved']
    assert (difference.mean, difference.p, difference.over) == (0.0, 1.0, 'photos')  # one model by three names
    assert 'head' in means_table(found.table, found.controls)


def test_runs_of_one_name_are_told_apart(home, tmp_path):
    import shutil

    shutil.copytree(home / 'run', tmp_path / 'b' / 'run')
    runs = f'{home / "run"} {tmp_path / "b" / "run"}'
    found = compare_runs(CompareConfig(runs=runs, data=str(home / 'photos'), out=str(tmp_path / 'out')))
    assert [run.name for run in found.runs] == [f'{home.name}/run', 'b/run']


# never an empty table


def test_a_head_and_the_drawings():
    with pytest.raises(ValueError, match='sees photos, not the drawings: .*-p data FOLDER'):
        evaluate_emoji(head(), None, 'nowhere', 32)


def test_a_cache_without_a_test_part(tmp_path):
    about = dict(keys=['0.jpg', '1.jpg'], splits=['train'] * 2, captions=['a', 'b'], damaged={})
    features = dict(image=torch.ones(2, 1, 16).half(), text=torch.ones(2, 1, 8).half(), text_image=torch.arange(2))
    _save_part(tmp_path / 'part.safetensors', features, about)
    save_cache(tmp_path, [tmp_path / 'part.safetensors'], dataset='d', towers='none', augment={}, seed=0, views=1)
    model = build_model(make_config('head_lorentz', image_width=16, text_width=8, data='nowhere'))
    with pytest.raises(ValueError, match="of the split train, and none of test: give the table .* a column 'split'"):
        evaluate_folder(model, lambda x: x, tmp_path, 224)


def test_photos_without_captions(home, tmp_path):
    Image.new('RGB', (40, 30), 'red').save(tmp_path / 'a.png')
    model, tokenizer = load_evaluated(EvalConfig(run=str(home / 'run'), data=str(tmp_path)))
    with pytest.raises(ValueError, match='could be measured: .*What can be read: .*captions'):
        evaluate_folder(model, tokenizer, tmp_path, model.resize)
