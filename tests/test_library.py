"""Use as a library: the databases of the page, and a model, losses and a listener of one's own in `fit`."""

import json
import pytest
import torch
from conftest import ROOT
from torch import nn
from meru.geometry import geometries, get_geometry
from meru.losses.pairwise import contrastive_loss
from meru.losses.entailment import entailment_loss
from meru.models.model import build_model, Model
from meru.search.exact import nearest
from meru.search.index import clustered_points, database_queries, database_vectors
from meru.training.config import make_config
from meru.training.run import load_checkpoint, load_run, Run
from meru.training.trainer import fit

PAGE = json.loads((ROOT / 'nbs' / 'reports' / '98_library.ipynb').read_text(encoding='utf-8'))
CELLS = [''.join(c['source']) for c in PAGE['cells'] if c['cell_type'] == 'code']


@pytest.mark.filterwarnings('ignore')  # of the databases' own
@pytest.mark.parametrize('space', [o for o in geometries if o in ('lorentz', 'poincare', 'euclidean', 'sphere')])
@pytest.mark.parametrize('package', ['qdrant_client', 'lancedb', 'chromadb', 'duckdb'])
def test_a_database_finds_what_exact_search_finds(package, space, capsys):
    pytest.importorskip(package, reason=f'{package} is not installed: pip install {package.replace("_", "-")}')
    code = next(o for o in CELLS if f'import {package}' in o or f'from {package} import' in o)
    import tempfile

    geometry, curv = get_geometry(space), torch.tensor(1.0)
    points = clustered_points(geometry, 200, 'wide', dim=8, topics=20, inner=4)
    gallery, asked = points[:190], points[190:]
    given = dict(vectors=database_vectors(geometry, gallery, curv), queries=database_queries(geometry, asked, curv))
    given['tempfile'] = tempfile
    if package == 'chromadb':
        code = code.replace("'pictures'", f"'pictures-{space}'")  # its clients in memory share one store
    exec(code, given)
    truth = nearest(geometry, asked, gallery, curv, k=5)
    right = sum(len(set(a) & set(b)) for a, b in zip(given['found'], truth.tolist()))
    assert right >= 49, f'{right} of 50'  # the graph of an index may miss one


class Tower(nn.Module):
    width = 16

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 * 32 * 32, self.width)

    def forward(self, images):
        return self.linear(images.flatten(1))


def shell(model, out):
    return dict(shell=out['text_points'].square().sum(1).mean())


def own_model(config):
    torch.manual_seed(0)
    return Model(Tower(), build_model(config).text_tower, config)


@pytest.fixture
def config():
    return make_config('smoke', steps=4, warmup=1, val_pairs=32, batch_size=16, save_every=2, log_every=1, val_every=4)


def test_losses_are_added_logged_and_on_record(config, tmp_path):
    run, lines = Run(tmp_path / 'a', config), []
    fit(run, quiet=True, losses=shell, on_log=lines.append)
    assert lines == run.rows() and [row['step'] for row in lines] == [1, 2, 3, 4]
    for row in lines:
        parts = row['contrastive'] + 0.2 * row['entailment'] + row['shell']
        assert row['loss'] == pytest.approx(parts, rel=1e-5)
    assert run.read('run.json')['own'] == dict(towers=[], losses=f'{__name__}.shell')
    plain = Run(tmp_path / 'b', config)
    fit(plain, quiet=True)
    assert 'shell' not in plain.rows()[-1] and 'own' not in plain.read('run.json')


def test_a_part_of_the_batch_at_a_time_gives_the_same(tmp_path):
    from dataclasses import replace
    from meru.training.step import gradients
    from meru.training.trainer import make_loader, open_data

    config = make_config('vit_s', image_size=32, image_width=64, image_depth=1, image_heads=2, text_width=64)
    small = dict(text_depth=1, text_heads=1, context_length=16, vocab_size=600, compile='off', amp='off')
    config = replace(config, **small, embed_dim=8, data='emoji', batch_size=8, workers=0)
    batch = next(make_loader(config, open_data(config)[0]).batches(0))
    grads = []
    for cfg in (config, replace(config, micro_batch=4)):
        torch.manual_seed(0)
        model = build_model(cfg)
        gradients(model, batch, cfg, losses=shell)
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)


def test_a_tower_of_ones_own_resumes_and_opens(config, tmp_path):
    class Cut(Run):
        def log(self, row):
            super().log(row)
            if row['step'] == 3:
                raise KeyboardInterrupt

    whole = fit(Run(tmp_path / 'whole', config), quiet=True, model=own_model(config))
    with pytest.raises(KeyboardInterrupt):
        fit(Cut(tmp_path / 'cut', config), quiet=True, model=own_model(config))
    run = Run(tmp_path / 'cut', config)
    with pytest.raises(ValueError, match='was begun with .*Tower.*give the same, or another folder'):
        fit(run, quiet=True)
    again = fit(run, quiet=True, model=own_model(config))
    assert torch.equal(whole.image_tower.linear.weight, again.image_tower.linear.weight)
    opened = own_model(config)
    load_checkpoint(run.last, opened)
    assert torch.equal(opened.image_tower.linear.weight, whole.image_tower.linear.weight)
    with pytest.raises(ValueError, match='trained with towers of your own .*Tower.*load_checkpoint'):
        load_run(run.folder)


def test_what_cannot_be_is_said(config, tmp_path):
    other = own_model(make_config('smoke', steps=5, warmup=1))
    with pytest.raises(ValueError, match='made for another config than the run'):
        fit(Run(tmp_path / 'a', config), quiet=True, model=other)
    with pytest.raises(ValueError, match="a loss of your own is called 'contrastive'"):
        fit(Run(tmp_path / 'b', config), quiet=True, losses=lambda model, out: dict(contrastive=out['loss']))
    with pytest.raises(TypeError, match='losses returned a Tensor: return a dict'):
        fit(Run(tmp_path / 'c', config), quiet=True, losses=lambda model, out: out['loss'])
    with pytest.raises(TypeError, match="your loss 'mine' is a number, which trains nothing"):
        fit(Run(tmp_path / 'n', config), quiet=True, losses=lambda model, out: dict(mine=out['loss'].item()))
    with pytest.raises(TypeError, match='Flatten has no width: set self.width'):
        Model(nn.Flatten(), build_model(config).text_tower, config)


def test_a_curvature_may_be_a_number():
    points, c = torch.randn(2, 5, 16), torch.tensor(0.7)
    for space in map(get_geometry, [*geometries, 'product']):
        x, y = space.exp_map0(points, 0.7)
        assert torch.equal(x, space.exp_map0(points[0], c))
        for method in (space.dist, space.scores, space.cdist):
            assert torch.equal(method(x, y, 0.7), method(x, y, c))
        assert torch.equal(space.radius(x, curv=0.7), space.radius(x, c))
        assert contrastive_loss(space, x, y, 0.7, 10) == contrastive_loss(space, x, y, c, torch.tensor(10.0))
        if space.has_cones:
            assert torch.equal(space.half_aperture(x, 0.7, 0.2), space.half_aperture(x, c, 0.2))
            assert entailment_loss(space, x, y, 0.7) == entailment_loss(space, x, y, c)
