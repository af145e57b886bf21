"""Search: exact in blocks and from files, inverted lists, what is kept on disk, what a database gets."""

import json
import subprocess
import sys
from importlib.util import find_spec
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from conftest import ROOT
from meru.geometry import geometries, get_geometry
from meru.search.exact import _FileVectors, exact_search, nearest
from meru.search.index import *
from meru.search.index import _fit_centres, _assign

LORENTZ, ONE = get_geometry('lorentz'), torch.tensor(1.0)


def brute(g, x, y, curv, k):
    "Every distance in float64, sorted."
    return torch.stack([g.dist(o[None], y.double(), curv.double()) for o in x.double()]).topk(k, largest=False)


@pytest.mark.parametrize('name', geometries)
@pytest.mark.parametrize('curv', [0.3, 2.0])
def test_exact_search_is_brute_force(name, curv):
    g, c = get_geometry(name), torch.tensor(curv)
    x, y = (g.exp_map0(torch.randn(n, 7, generator=torch.Generator().manual_seed(n)), c) for n in (40, 500))
    true, found = brute(g, x, y, c, 10), exact_search(g, x, y, c, 10, budget=600)
    assert torch.equal(found.row, true.indices)
    torch.testing.assert_close(found.distance.double(), true.values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('shell', shells)
def test_float32_products_alone_would_be_wrong_but_the_search_is_not(shell):
    points = clustered_points(LORENTZ, 3050, shell, dim=16, topics=5)
    y, x = points[:3000], points[3000:]
    true = brute(LORENTZ, x, y, ONE, 10).indices
    assert torch.equal(nearest(LORENTZ, x, y, ONE, 10), true)


def test_near_duplicates_far_out_need_float64():
    g = torch.Generator().manual_seed(0)
    far = 6 * torch.nn.functional.normalize(torch.ones(1, 8) + 1e-3 * torch.randn(800, 8, generator=g), dim=1)
    y = LORENTZ.exp_map0(far, ONE)
    true = brute(LORENTZ, y[:50], y, ONE, 10).indices
    one_look = (LORENTZ.query_vectors(y[:50], ONE) @ LORENTZ.gallery_vectors(y, ONE).T).topk(10).indices
    assert recall_at_k(nearest(LORENTZ, y[:50], y, ONE, 10), true) == 1 > recall_at_k(one_look, true)


@pytest.mark.parametrize('kind', ['npy', 'safetensors'])
def test_a_gallery_on_disk_is_read_in_blocks(kind, tmp_path, monkeypatch):
    y = clustered_points(LORENTZ, 40_000, 'narrow', dim=16)
    path = tmp_path / f'gallery.{kind}'
    np.save(path, y.numpy()) if kind == 'npy' else save_file(dict(other=y[:3].clone(), points=y), path)
    seen, read = [], _FileVectors.__getitem__
    monkeypatch.setattr(_FileVectors, '__getitem__', lambda self, rows: (seen.append(rows), read(self, rows))[1])
    assert torch.equal(
        exact_search(LORENTZ, y[:20], _FileVectors(path), ONE).row, exact_search(LORENTZ, y[:20], y, ONE).row
    )
    assert (
        max(o.stop - o.start for o in seen if isinstance(o, slice)) <= 2**14
        and max(len(o) for o in seen if torch.is_tensor(o)) <= 20 * 36
    )


def test_a_gallery_on_disk_that_is_broken_is_named(tmp_path):
    y = torch.randn(100, 4)
    save_file(dict(points=y, flat=y[0].clone(), ids=torch.arange(4)), tmp_path / 'a.safetensors')
    np.save(tmp_path / 'b.npy', y.numpy())
    (tmp_path / 'b.npy').write_bytes((tmp_path / 'b.npy').read_bytes()[:-9])
    (tmp_path / 'c.safetensors').write_bytes(b'\xff' * 40)
    for file, name, says in (
        ('a.safetensors', 'x', 'has no tensor .x.; it has'),
        ('a.safetensors', 'flat', 'not rows of floating-point'),
        ('a.safetensors', 'ids', 'cannot be read as points'),
        ('b.npy', '', 'b.npy ends too early'),
        ('c.safetensors', 'points', 'c.safetensors cannot be read'),
    ):
        with pytest.raises(ValueError, match=says):
            _FileVectors(tmp_path / file, name)
    y[70, 1] = torch.nan
    save_file(dict(points=y), tmp_path / 'd.safetensors')
    with pytest.raises(ValueError, match='gallery points .* row 70'):
        exact_search(LORENTZ, y[:2], _FileVectors(tmp_path / 'd.safetensors'), ONE)


def test_a_million_points_fit_into_two_gigabytes():
    "In a process of its own, whose highest memory counts."
    code = (
        'import torch\nfrom meru.search.exact import exact_search\nfrom meru.geometry import Lorentz\n'
        'torch.set_num_threads(1)\n'
        'y = torch.randn(1_000_000, 64, generator=torch.Generator().manual_seed(0))\n'
        'hits = exact_search(Lorentz(), y[:8], y, torch.tensor(1.))\n'
        'assert hits.row[:, 0].tolist() == list(range(8))\n'
        "print(next(int(o.split()[1]) for o in open('/proc/self/status') if o.startswith('VmHWM')))"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-1500:]
    assert 256_000 < int(done.stdout) < 2_000_000  # kB; the gallery itself is 256 MB


needs_faiss = pytest.mark.skipif(find_spec('faiss') is None, reason='pip install faiss-cpu')


@pytest.fixture(scope='module')
def gallery():
    points = clustered_points(LORENTZ, 20_300, 'wide', dim=32, topics=60)
    y, x = points[:20_000], points[20_000:]
    return y, x, exact_search(LORENTZ, x, y, ONE).row


@needs_faiss
def test_lists_find_what_a_graph_of_products_does_not(gallery):
    y, x, true = gallery
    index = build_index(y, 'lorentz', 1.0, queries=x[:100])
    assert index.centres is not None and index.nprobe < len(index.centres) / 8
    found = index.search(x)
    assert recall_at_k(found.row, true) > 0.97
    torch.testing.assert_close(found.distance, LORENTZ.dist(x[:, None], y[found.row], ONE))
    import faiss

    naive = faiss.IndexHNSWFlat(33, 16, faiss.METRIC_INNER_PRODUCT)
    naive.add(LORENTZ.gallery_vectors(y[:8000], ONE).numpy())
    near = exact_search(LORENTZ, x, y[:8000], ONE).row
    assert recall_at_k(torch.from_numpy(naive.search(LORENTZ.query_vectors(x, ONE).numpy(), 10)[1]), near) < 0.3


@needs_faiss
def test_a_list_chosen_without_the_querys_sign_would_be_the_wrong_one(gallery):
    y, _, _ = gallery
    centres = _fit_centres(LORENTZ, y, ONE, 50)
    right = _assign(LORENTZ, y[:500], centres, ONE)
    assert torch.equal(right, torch.stack([LORENTZ.dist(o[None], centres, ONE).argmin() for o in y[:500]]))
    assert (
        (LORENTZ.gallery_vectors(y[:500], ONE) @ LORENTZ.gallery_vectors(centres, ONE).T).argmax(1) == right
    ).double().mean() < 0.5


@needs_faiss
@pytest.mark.parametrize('name', geometries)
def test_every_geometry_with_all_lists_is_exact_also_after_add_and_load(name, tmp_path):
    g, c = get_geometry(name), torch.tensor(0.7)
    x, y = (g.exp_map0(torch.randn(n, 6, generator=torch.Generator().manual_seed(n)), c) for n in (30, 600))
    index = build_index(y[:500], name, 0.7, 'm', dict(key=list(range(500))), n_lists=12)
    index.add(y[500:], key=list(range(500, 600)))
    save_index(index, tmp_path / 'i')
    true = brute(g, x, y, c, 10).indices
    for o in (index, load_index(tmp_path / 'i', 'm')):
        assert torch.equal(o.search(x, nprobe=12).row, true) and len(o) == len(o.columns['key']) == 600
    assert torch.equal(build_index(y, name, 0.7, n_lists=0).search(x).row, true)


@needs_faiss
def test_more_is_asked_than_the_lists_hold():
    y = clustered_points(LORENTZ, 300, 'narrow', dim=8)
    index = build_index(y, 'lorentz', 1.0, n_lists=40, recall=0.1)
    assert torch.equal(index.search(y[:5], k=200, nprobe=1).row, exact_search(LORENTZ, y[:5], y, ONE, 200).row)


@needs_faiss
@pytest.mark.parametrize('name', ['points.safetensors', 'index.json'])
@pytest.mark.parametrize('at', [20, 200, -40])
def test_a_flipped_byte_is_refused_by_name(name, at, tmp_path):
    save_index(
        build_index(torch.randn(50, 6), 'lorentz', 1.0, 'm', dict(key=[f'{i}' for i in range(50)]), n_lists=4), tmp_path
    )
    data = bytearray((tmp_path / name).read_bytes())
    data[at] ^= 4
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=name):
        load_index(tmp_path)


@pytest.mark.parametrize('text', ['[]', '3', 'null', '{'])
def test_a_description_that_is_none_is_refused_by_name(text, tmp_path):
    save_index(build_index(torch.randn(50, 6), 'lorentz', 1.0), tmp_path)
    (tmp_path / 'index.json').write_text(text)
    with pytest.raises(ValueError, match='index.json is damaged'):
        load_index(tmp_path)


def test_what_does_not_belong_is_refused(tmp_path):
    index = build_index(torch.randn(50, 6), 'lorentz', 1.0, 'm', dict(key=list(range(50))))
    save_index(index, tmp_path)
    with pytest.raises(ValueError, match="index of model 'm', but 'n' asks"):
        load_index(tmp_path, 'n')
    with pytest.raises(ValueError, match='without a time component'):
        index.add(torch.randn(3, 7), key=[1, 2, 3])
    with pytest.raises(ValueError, match='3 values of each column: key'):
        index.add(torch.randn(3, 6), key=[1, 2])
    with pytest.raises(ValueError, match='added points must be finite.*row 1'):
        index.add(torch.tensor([[1.0] * 6, [torch.inf] * 6]), key=[1, 2])
    with pytest.raises(ValueError, match=r'k must lie in 1\.\.50'):
        index.search(torch.randn(1, 6), k=51)
    for name, points in (
        ('poincare', torch.eye(3) * 1.1),
        ('sphere', torch.eye(3) * 0.9),
        ('lorentz', torch.eye(3) * 1e20),
    ):
        with pytest.raises(ValueError, match=f'3 rows do not lie in {name} space, first: row 0'):
            build_index(points, name, 1.0)
    assert len(index) == 50


def with_last(x, last):
    return np.append(x, np.broadcast_to(last, (len(x), 1)), 1)


def square(x):
    return (x * x).sum(1, keepdims=True)


FORMULAS = dict(
    lorentz=('(x, −√(1/c + |x|²))', lambda x, c: with_last(x, -np.sqrt(1 / c + square(x)))),
    poincare=(
        '(2x, −(1 + c|x|²)/√c) / (1 − c|x|²)',
        lambda x, c: with_last(2 * x, -(1 + c * square(x)) / c**0.5) / (1 - c * square(x)),
    ),
    euclidean=('(x, −½)', lambda x, c: with_last(x, -0.5)),
    flat=('(x, −½)', lambda x, c: with_last(x, -0.5)),
    sphere=('x', lambda x, c: x),
    inner=('x', lambda x, c: x),
)  # what the exported file says of a query, and the same for numpy


@pytest.mark.parametrize('name', geometries)
def test_a_database_that_knows_parquet_asks_right_with_any_measure(name, tmp_path):
    pq = pytest.importorskip('pyarrow.parquet', reason='pip install pyarrow')
    g, c = get_geometry(name), torch.tensor(0.7)
    x, y = (g.exp_map0(torch.randn(n, 6, generator=torch.Generator().manual_seed(n)), c) for n in (20, 400))
    export_index(build_index(y, name, 0.7, 'm', dict(file=[f'{i}.jpg' for i in range(400)])), tmp_path / 'v.parquet')
    table = pq.read_table(tmp_path / 'v.parquet')
    stored = table['vector'].combine_chunks().flatten().to_numpy().reshape(400, -1)
    queries, true = database_queries(g, x, c).numpy(), brute(g, x, y, c, 5).indices.numpy()
    measures = dict(
        product=-queries @ stored.T,
        l2=((queries[:, None] - stored) ** 2).sum(-1),
        cosine=-queries @ (stored / np.linalg.norm(stored, axis=1, keepdims=True)).T,
    )
    for measure, far in measures.items():
        assert np.mean(far.argsort(1)[:, :5] == true) > 0.97, measure
    about = json.loads(table.schema.metadata[b'meru'])
    formula, row = FORMULAS[name]
    assert formula in about['query'] and about['curv'] == pytest.approx(0.7)
    np.testing.assert_allclose(row(x.double().numpy(), 0.7), queries[:, :-1], rtol=1e-5)
    assert table['file'].to_pylist()[7] == '7.jpg' and json.loads(table.schema.metadata[b'meru'])['geometry'] == name


def test_no_list_is_too_few():
    pytest.importorskip('faiss', reason="pip install 'meru[faiss]'")
    points = clustered_points(LORENTZ, 400, 'narrow', dim=8)
    index = build_index(points, 'lorentz', 1.0, n_lists=8)
    with pytest.raises(ValueError, match='nprobe be at least 1 list; got k = 5, nprobe = 0'):
        index.search(points[:3], 5, nprobe=0)
    assert torch.equal(index.search(points[:3], 5).row, index.search(points[:3], 5, nprobe=index.nprobe).row)
