"""A path means the same in every door: with `~`, and relative from the root, from `nbs/` and from elsewhere."""

import shutil
from dataclasses import replace
import pytest
import torch
from conftest import ROOT
from meru.core import RunFolder
from meru.data.download import make_fetch_config
from meru.data.fetch import fetch
from meru.data.shards import Sample, Shards, write_shards
from meru.evaluation.comparison import _named_runs
from meru.evaluation.datasets import read_data, survey
from meru.evaluation.suites import EvalConfig, load_evaluated
from meru.evaluation.traversal import _read_starts
from meru.explorer import explore
from meru.hub import from_pretrained, Pretrained, publish, PublishConfig
from meru.image_index import SearchConfig, open_image_index
from meru.models.embedding import embed, EmbedConfig, open_rows
from meru.models.feature_cache import open_cache
from meru.models.model import build_model
from meru.search.index import build_index, load_index, save_index
from meru.training.config import make_config
from meru.training.run import load_config, load_run, Run, save_checkpoint
from meru.training.trainer import _begin, open_data
from test_cases import fill, lines, pic
from test_features import towers


@pytest.fixture(scope='module')
def things(tmp_path_factory):
    "A set of pictures, shards, a run and a saved model, to be copied."
    home = tmp_path_factory.mktemp('things')
    rows = lines(*(dict(file=f'{o}.png', caption=o) for o in ('red', 'green')))
    fill(home / 'set', {'captions.jsonl': rows} | {f'{o}.png': pic(o) for o in ('red', 'green')})
    write_shards([Sample(o, pic(o), o, {}) for o in ('red', 'green', 'blue')], home / 'shards')
    cfg = make_config('smoke', data='shards', val_pairs=1)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    run = Run(home / 'run', cfg)
    save_checkpoint(run.last, model, step=12)
    run.record(finished='2024-01-01')
    Pretrained(model).save_pretrained(home / 'saved')
    (home / 'pool.txt').write_text('a dog\na cat\n')
    return home


@pytest.fixture(params=['home', 'root', 'nbs', 'elsewhere'])
def prefix(request, things, tmp_path, monkeypatch):
    "What stands before a name: `~/`, or nothing in a project that is entered from one folder or another."
    project, place = tmp_path / 'project', tmp_path / 'elsewhere'
    shutil.copytree(things, project)
    (project / 'settings.ini').write_text('')
    (project / 'data').symlink_to(ROOT / 'data')
    (project / 'nbs').mkdir()
    place.mkdir()
    if request.param == 'home':
        monkeypatch.setenv('HOME', str(project))
    elif request.param == 'elsewhere':
        monkeypatch.setattr('meru.core._holding', lambda folder: None if folder == place else project)
    monkeypatch.chdir(dict(root=project, nbs=project / 'nbs').get(request.param, place))
    yield '~/' if request.param == 'home' else ''
    assert not list(place.iterdir()) and not list((project / 'nbs').iterdir()), 'something was written by surprise'


def test_what_is_read(prefix, tmp_path):
    def at(name):
        return f'{prefix}{name}'

    assert [o.caption for o in Shards(at('shards'))] == ['red', 'green', 'blue']
    assert sum(map(len, open_data(make_config('smoke', data=at('shards'), val_pairs=1)))) == 3
    assert read_data(at('set'), 8).texts == ['red', 'green'] and len(survey(at('set'))[0]) == 1
    for data in ('set', 'set/captions.jsonl'):
        assert len(open_rows(EmbedConfig(data=at(data), out='x'))) == 2
    table = EmbedConfig(data=at('set/captions.jsonl'), out='x', images=at('set') if prefix else '')
    assert open_rows(table)[1].captions == ['green']
    weights = load_run(at('run')).state_dict()
    for name in ('run', 'saved'):
        assert load_config(at(name)).data == 'shards'
        begun, *_ = _begin(Run(tmp_path / name, make_config('smoke', seed=5, init=at(name))), 'cpu')
        for model in (begun, from_pretrained(at(name)).model):
            assert all(torch.equal(a, b) for a, b in zip(weights.values(), model.state_dict().values(), strict=True))
    assert torch.equal(load_evaluated(EvalConfig(run=at('run')))[0].text_proj.weight, weights['text_proj.weight'])
    assert EvalConfig(run='x', checkpoint=at('a.pth')).file == tmp_path / 'project/a.pth'
    assert _named_runs(at('r*')) == [str(tmp_path / 'project/run')]
    assert [o.name for o in _read_starts(at('set'), towers().resize, 8)] == ['green', 'red']
    assert [o.name for o in _read_starts(at('set/red.png'), towers().resize, 8)] == ['red']
    red = from_pretrained(at('saved')).embed_images(at('set/red.png'))
    assert torch.equal(red, from_pretrained(at('saved')).embed_images(pic('red')))


def test_what_is_written(prefix, tmp_path):
    project = tmp_path / 'project'

    def at(name):
        return f'{prefix}{name}'

    assert RunFolder(at('new_run'), make_config('smoke')).folder == project / 'new_run'
    books = fetch(at('fetched'), make_fetch_config(pairs=at('set'), processes=1))['books']
    assert books['stored'] == 2 and (project / 'fetched/manifest.json').exists()
    cache = embed(EmbedConfig(data=at('set'), out=at('features')), towers())
    assert cache.folder == project / 'features' and open_cache(at('features')).id == cache.id
    index = build_index(torch.randn(4, 3), 'lorentz', 1.0, 'm', {})
    save_index(index, at('index'))
    assert len(load_index(at('index'))) == 4 and (project / 'index/index.json').exists()
    publish(PublishConfig(at('run'), at('published')))
    assert (project / 'published/model.safetensors').exists()
    write_shards([Sample('a', pic(), 'a', {})], at('more'))
    assert len(Shards(project / 'more')) == 1
    assert explore(at('run'), data=at('set')).path == project / 'run/explorer_set.html'


def test_a_search(prefix, tmp_path):
    project = tmp_path / 'project'
    cfg = SearchConfig(
        images=f'{prefix}set', query=f'{prefix}set/red.png', model=f'{prefix}saved', texts=f'{prefix}pool.txt'
    )
    cfg = replace(cfg, out=f'{prefix}kept')
    index = open_image_index(cfg)
    assert index.folder == project / 'set' and (project / 'kept/cache.json').exists() and len(index.texts) == 2
    assert torch.equal(index.query_point(cfg.query), index.query_point(str(project / 'set/red.png')))
