"""Traversals: which texts lie on a path, against a slow search, and the notebook as a person runs it."""

import json
import os
import re
from functools import partial
import pytest
import torch
from PIL import Image
from meru.geometry import geometries, get_geometry
from meru.data.image_text import read_texts
from meru.data.images import resize_image
from meru.evaluation.traversal import *
from meru.evaluation.traversal import _path_between, _path_to_root, _read_starts, _root_of, _Start, _Stop, _TextPool
from conftest import ROOT

c = torch.tensor(0.8, dtype=torch.float64)
square = partial(resize_image, size=16)


def scattered(name, n=40, seed=0):
    "Random texts in a geometry, and a pool of them."
    g, gen = get_geometry(name), torch.Generator().manual_seed(seed)
    v = torch.randn(n, 3, generator=gen, dtype=torch.float64)
    root = torch.zeros(3, dtype=torch.float64) if g.has_radius else torch.tensor([1.0, 0, 0], dtype=torch.float64)
    return _TextPool([f't{i}' for i in range(n)], g.exp_map0(v, c), root, g, c)


@pytest.mark.parametrize('name', geometries)
@pytest.mark.parametrize('cones', [True, False])
def test_nearest_is_what_a_slow_search_finds(name, cones):
    pool = scattered(name)
    pool.cones = cones
    g, walk = (
        pool.geometry,
        pool.geometry.exp_map0(torch.randn(25, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64), c),
    )
    for point, got in zip(walk, pool.nearest(walk).tolist()):
        inside = lambda t: not (cones and g.has_cones) or g.exterior_angle(t, point, c) <= g.half_aperture(t, c)
        allowed = {-1: g.dist(pool.root, point, c).item()} | {
            i: g.dist(t, point, c).item() for i, t in enumerate(pool.points) if inside(t)
        }
        assert got == min(allowed, key=allowed.get)


@pytest.mark.parametrize('name', [n for n, g in geometries.items() if g.has_dist])
def test_home_is_downhill_and_ends_at_the_root(name):
    pool = scattered(name)
    for i, start in enumerate(pool.points[:6]):
        stops = _path_to_root(pool, start, 20)
        assert (
            stops[0].text == f't{i}'
            and stops[0].distance == 0
            and stops[-1].text == '[root]'
            and len({s.text for s in stops}) == len(stops)
        )
        assert [s.radius for s in stops] == sorted([s.radius for s in stops], reverse=True)


def test_lorentz_and_poincare_meet_the_same():
    "One space, two pictures of it."
    a, b = scattered('lorentz'), scattered('poincare')
    for x, y in zip(a.points[:8], b.points[:8]):
        assert [s.text for s in _path_to_root(a, x)] == [s.text for s in _path_to_root(b, y)]
        assert [s.text for s in _path_between(a, x, a.points[9])] == [s.text for s in _path_between(b, y, b.points[9])]


def test_across_is_the_same_way_back():
    pool = scattered('lorentz')
    there, back = (
        _path_between(pool, pool.points[0], pool.points[1]),
        _path_between(pool, pool.points[1], pool.points[0]),
    )
    assert {s.text for s in there} == {s.text for s in back} and there[0].text == 't0' and there[-1].text == 't1'


def test_the_shipped_pool_is_what_its_readme_builds():
    code = re.search(r'```python\n(.*?)with open', (ROOT / 'data' / 'pool' / 'README.md').read_text(), re.S)[1]
    built = {}
    exec(code, built)
    rows = [json.loads(l) for l in (ROOT / 'data' / 'pool' / 'texts.jsonl').read_text().splitlines()]
    assert {r['text']: r['source'] for r in rows} == built['texts'] and read_texts(
        ROOT / 'data' / 'pool' / 'texts.jsonl'
    ) == list(built['texts'])


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "Reference checkpoints with room for a real tokenizer's ids, two pictures, a few texts."
    home = tmp_path_factory.mktemp('walks')
    for name in ('meru', 'clip'):
        saved = torch.load(ROOT / 'tests' / 'parity' / f'{name}_tiny.pth', weights_only=True)
        saved['model']['textual.token_embed.weight'] = saved['model']['textual.token_embed.weight'].repeat(2, 1)
        torch.save(saved, home / f'{name}.pth')
    (home / 'photos').mkdir()
    for name in ('red', 'blue'):
        Image.new('RGB', (40, 30), name).save(home / 'photos' / f'{name}.png')
    (home / 'pool.txt').write_text('a red thing\na blue thing\na thing\n')
    return home


def test_the_root_of_clip(home):
    from meru.models.released import load_released

    model = load_released(home / 'clip.pth', 4)
    saved = torch.load(home / 'clip.pth', weights_only=True)
    saved['root'] = torch.arange(1.0, 1 + model.cfg.embed_dim)
    torch.save(saved, home / 'with_root.pth')
    del saved['root']
    torch.save(saved, home / 'rootless.pth')
    root = _root_of(model, home / 'with_root.pth')
    assert root.norm() == pytest.approx(1) and root[1] == pytest.approx(2 * root[0].item())
    with pytest.raises(ValueError, match="rootless.pth .* without a 'root'"):
        _root_of(model, home / 'rootless.pth')
    assert not _root_of(load_released(home / 'meru.pth', 4), home / 'meru.pth').any()


def test_a_folder_with_one_picture(home, tmp_path):
    Image.new('RGB', (20, 30), 'green').save(tmp_path / 'green.PNG')
    (start,) = _read_starts(str(tmp_path), square, 8)
    assert start.name == 'green' and start.picture.shape == (3, 16, 16)
    assert [s.name for s in _read_starts(str(tmp_path / 'green.PNG'), square, 8)] == ['green']


def test_what_of_a_folder_cannot_be_entered_or_named_is_told(tmp_path, capsys):
    Image.new('RGB', (20, 30), 'green').save(tmp_path / 'a.png')
    Image.new('RGB', (20, 30), 'green').save(os.fsencode(tmp_path) + b'/caf\xe9.png')
    (tmp_path / 'loop').symlink_to(tmp_path)
    assert [s.name for s in _read_starts(str(tmp_path), square, 8)] == ['a']
    assert 'Left out: 1 name_not_utf8 (first: caf\\xe9.png), 1 linked_again (first: loop)' in capsys.readouterr().out


def test_a_damaged_picture_of_a_folder_is_named_and_left_out(tmp_path, capsys):
    for name in ('a', 'c'):
        Image.new('RGB', (20, 30), 'green').save(tmp_path / f'{name}.png')
    (tmp_path / 'b.png').write_bytes(b'no picture')
    assert [s.name for s in _read_starts(str(tmp_path), square, 8)] == ['a', 'c']
    assert f'Left out: {tmp_path / "b.png"} cannot be used' in capsys.readouterr().out
    with pytest.raises(ValueError, match='b.png cannot be used'):
        _read_starts(str(tmp_path / 'b.png'), square, 8)
    for name in ('a', 'c'):
        (tmp_path / f'{name}.png').unlink()
    with pytest.raises(ValueError, match='b.png cannot be used'):
        _read_starts(str(tmp_path), square, 8)


def test_dollar_signs_in_names_and_captions_are_no_formula(tmp_path):
    import matplotlib.pyplot as plt

    picture = torch.zeros(3, 16, 16, dtype=torch.uint8)
    starts = [_Start('$$', picture), _Start(r'a $\nothing$ text', None)]
    path = [_Stop('$x^$', 0, 1.0, 0.0), _Stop('[root]', 3, 0.0, 0.0)]
    figure = plot_paths(starts, {'$$ model': [path, path]})
    figure.savefig(tmp_path / 'paths.png')
    assert '$x^$' in {text.get_text() for ax in figure.axes for text in ax.texts}
    plt.close(figure)


def test_a_table_of_paths_keeps_its_columns():
    path = [_Stop('a | b', 0, 1.0, 0.0), _Stop('[root]', 3, 0.0, 0.0)]
    table = path_table([_Start('start', None)], dict(m=[path]))
    assert table.splitlines()[2] == r'| start | m | a \| b (1.00), [root] (0.00) |'
    assert path_record([_Start('start', None)], dict(m=[path])) == [
        dict(start='start', model='m', stops=[stop._asdict() for stop in path])
    ]


def test_traverse_notebook(home, papermill):
    done = papermill(
        'traverse',
        home / 't.ipynb',
        '-p',
        'checkpoint',
        home / 'meru.pth',
        '-p',
        'image_heads',
        4,
        '-p',
        'images',
        home / 'photos',
        '-p',
        'pool',
        home / 'pool.txt',
        '-p',
        'to',
        home / 'photos' / 'red.png',
        '-p',
        'out',
        home / 'out',
    )
    assert done.returncode == 0, done.stderr[-2000:]
    saved = json.loads((home / 'out' / 'walks.json').read_text())
    assert (
        [w['start'] for w in saved['walks']] == ['blue', 'red']
        and all(w['stops'] for w in saved['walks'])
        and saved['cones'] is True
    )
    assert (home / 'out' / 'walks.png').stat().st_size > 3_000
    assert {s['text'] for w in saved['walks'] for s in w['stops']} <= {
        'a red thing',
        'a blue thing',
        'a thing',
        '[root]',
    }
