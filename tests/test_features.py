"Feature caches: made block by block, refused when wrong, mined for hard batches."

import csv
import io
import json
import os
import subprocess
import sys
import time
from collections import Counter
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch import nn
from meru.core import locked
from meru.models.pretrained import Towers
from meru.models.feature_cache import _import_flickr8k, open_cache
from meru.training.config import make_config
from meru.training.step import to_device
from meru.training.trainer import _room_for
from meru.models.embedding import EmbedConfig, embed, embed_folder, open_rows
from meru.models.mining import (
    FeatureBatches,
    _clashes,
    _hard_order,
    _near_duplicates,
    _neighbours,
    _pair_ids,
    summary,
)
from meru.data.tokenizer import Tokenizer
from conftest import ROOT

LOCAL = ROOT / 'data/local'


def local(name):
    if not (LOCAL / name).exists():
        pytest.skip(f'data/local/{name} is not here')
    return LOCAL / name


class Pixels(nn.Module):
    "Frozen as can be; `fail_at` stands for a kill."

    def __init__(self, fail_at=None):
        super().__init__()
        self.calls, self.fail_at = 0, fail_at

    def forward(self, x):
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        return F.adaptive_avg_pool2d(x, 4).flatten(1)


class Words(nn.Module):
    def forward(self, ids):
        return (F.one_hot(ids % 32, 32) * (ids != 0)[..., None]).float().sum(1)


def towers(fail_at=None, name='pixels'):
    return Towers(Pixels(fail_at), Words(), Tokenizer(4096, 16), 16, (0.5,) * 3, (0.5,) * 3, name)


def picture(i, kind='PNG'):
    rng, out = np.random.default_rng(i), io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (20 + i % 5, 24, 3), dtype=np.uint8)).save(out, kind)
    return out.getvalue()


@pytest.fixture
def photos(tmp_path):
    "Twenty pictures with two captions each, in a folder of their own."
    home = tmp_path / 'photos'
    home.mkdir()
    for i in range(20):
        (home / f'{i:02d}.png').write_bytes(picture(i))
        (home / f'{i:02d}.txt').write_text(f'thing number {i}\nanother view of thing {i}\n')
    return home


def config(data, tmp_path, out='out', **kw):
    return EmbedConfig(
        data=str(data), out=str(tmp_path / out), **dict(dict(views=2, word_drop=0.4, batch_size=6), **kw)
    )


def content(folder):
    return [(folder / o).read_bytes() for o in ('features.safetensors', 'cache.json')]


def test_a_killed_run_ends_with_the_same_bytes(photos, tmp_path):
    whole = embed(config(photos, tmp_path), towers())
    with pytest.raises(KeyboardInterrupt):
        embed(config(photos, tmp_path, 'cut'), towers(fail_at=6))
    assert len(list((tmp_path / 'cut/parts').glob('*.safetensors'))) == 2 and not (tmp_path / 'cut/cache.json').exists()
    with pytest.raises(FileNotFoundError, match='no finished feature cache'):
        open_cache(tmp_path / 'cut')
    rest = towers()
    embed(config(photos, tmp_path, 'cut'), rest)
    assert (
        content(tmp_path / 'out') == content(tmp_path / 'cut') and rest.image_tower.calls == 4
    )  # two blocks, two views
    assert (
        not (tmp_path / 'cut/parts').exists() and whole.image.shape == (20, 2, 48) and whole.text.shape == (40, 2, 32)
    )


def test_one_process_at_a_time_writes_a_cache(photos, tmp_path):
    "A finished cache is read by any number."
    cfg = config(photos, tmp_path)
    with locked(tmp_path / 'out'), pytest.raises(BlockingIOError, match='out is in use by process'):
        embed(cfg, towers())
    assert not (tmp_path / 'out/cache.json').exists()
    cache = embed(cfg, towers())
    with locked(tmp_path / 'out'):
        assert embed(cfg, towers()).id == cache.id


LARGE = """
import resource, sys
sys.path.insert(0, 'tests')
from meru.models.mining import sheet_rows
from test_features import EmbedConfig, embed, open_rows, towers
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
cfg = EmbedConfig(data=sys.argv[1], out=sys.argv[1] + '_out', uncaptioned=True)
before = peak()
cache = embed(cfg, towers()._replace(image_size=224))
sheet = sheet_rows(open_rows(cfg))
print(len(cache.keys), len(sheet.pictures), peak() - before)
"""


def test_large_photos_are_not_held_at_full_size(tmp_path):
    "Five photos of 24 megapixels are 360 MB when they are decoded."
    home = tmp_path / 'photos'
    home.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).resize((6000, 4000)).save(
        home / '0.jpg'
    )
    for i in range(1, 5):
        (home / f'{i}.jpg').hardlink_to(home / '0.jpg')
    done = subprocess.run([sys.executable, '-c', LARGE, home], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    kept, shown, megabytes = map(int, done.stdout.split()[-3:])
    assert (kept, shown) == (5, 5) and megabytes < 260, megabytes


def test_a_second_question_reads_no_file(photos, tmp_path, monkeypatch):
    from meru.data import image_text

    read = []
    sha256 = image_text.file_sha256
    monkeypatch.setattr(image_text, 'file_sha256', lambda path: read.append(path.name) or sha256(path))
    opened, whole = [], image_text._read_file
    monkeypatch.setattr(image_text, '_read_file', lambda path: opened.append(path.suffix) or whole(path))
    cfg = config(photos, tmp_path, views=1, word_drop=0.0, uncaptioned=True)
    first = embed_folder(cfg, towers())
    assert sorted(read) == [f'{i:02d}.png' for i in range(20)]
    read.clear()
    opened.clear()
    seen = towers()
    assert embed_folder(cfg, seen).id == first.id and not read and opened == ['.txt'] * 20  # captions alone
    os.utime(photos / '07.png', ns=(0, 10**18))
    assert embed_folder(cfg, seen).id == first.id and read == ['07.png']  # another time, the same content
    (photos / '08.png').write_bytes(picture(99))
    now = embed_folder(cfg, seen)
    assert read == ['07.png', '08.png'] and seen.image_tower.calls == 1
    assert torch.equal(now.image[[*range(8), *range(9, 20)]][:8], first.image[:8])
    assert not torch.equal(now.image[now.keys.index('08.png')], first.image[8])
    (tmp_path / 'out/stamps.json').write_text('{"07.png": 3}')
    assert embed_folder(cfg, seen).id == now.id and seen.image_tower.calls == 1


def test_a_full_disk_names_the_file(tmp_path):
    from meru.core import write_file

    def full(tmp):
        with open('/dev/full', 'wb') as f:
            f.write(bytes(1 << 20))

    with pytest.raises(OSError, match='features.safetensors could not be written.*No space left on device'):
        write_file(tmp_path / 'features.safetensors', full)
    assert not list(tmp_path.iterdir())


def test_a_cut_off_run_does_not_go_on_with_other_settings(photos, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        embed(config(photos, tmp_path), towers(fail_at=4))
    with pytest.raises(ValueError, match='seed .there 0, asked 1'):
        embed(config(photos, tmp_path, seed=1), towers())


def test_views_are_what_they_should_be(photos, tmp_path):
    cache = embed(config(photos, tmp_path), towers())
    plain = embed(config(photos, tmp_path, 'plain', views=1, word_drop=0.0, batch_size=7), towers())
    assert torch.equal(cache.image[:, 0], plain.image[:, 0]) and torch.equal(
        cache.text[:, 0], plain.text[:, 0]
    )  # whatever the block
    assert (cache.image[:, 1] != cache.image[:, 0]).any(1).all() and (cache.text[:, 1] != cache.text[:, 0]).any()
    assert cache.text_image.tolist() == [i for i in range(20) for _ in range(2)] and cache.keys[3] == '03.png'
    other = embed(config(photos, tmp_path, 'other', seed=5), towers())
    assert torch.equal(other.image[:, 0], cache.image[:, 0]) and not torch.equal(other.image[:, 1], cache.image[:, 1])


def test_shards_and_tables_give_the_same_rows(photos, tmp_path):
    pairs = [(f'{i:02d}.png', o) for i in range(20) for o in (f'thing number {i}', f'another view of thing {i}')]
    for suffix, sep in (('csv', ','), ('tsv', '\t')):
        with open(tmp_path / f't.{suffix}', 'w', newline='') as f:
            csv.writer(f, delimiter=sep).writerows([('file', 'caption'), *pairs])
    (tmp_path / 't.jsonl').write_text(
        '\n'.join(json.dumps(dict(file=k, caption=[o for n, o in pairs if n == k])) for k in dict(pairs))
    )
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(
        pyarrow.table(dict(file=[k for k, _ in pairs], caption=[o for _, o in pairs])), tmp_path / 't.parquet'
    )
    ids = {
        s: open_rows(config(tmp_path / f't.{s}', tmp_path, images='photos')).id
        for s in ('csv', 'tsv', 'jsonl', 'parquet')
    }
    assert set(ids.values()) == {open_rows(config(photos, tmp_path)).id}
    (photos / '03.png').write_bytes(picture(99))
    assert open_rows(config(photos, tmp_path)).id not in ids.values()  # another picture, another dataset


def test_every_loss_is_counted(photos, tmp_path):
    (photos / '03.png').write_bytes(picture(3)[:60])
    (photos / '04.png').write_text('<html>')
    (photos / '05.txt').write_text(' \n')
    (photos / '06.txt').unlink()
    (photos / '07.png').unlink()
    cache = embed(config(photos, tmp_path), towers())
    assert (
        cache.info['damaged'] == dict(truncated=1, not_an_image=1, no_caption=2, missing_file=1)
        and len(cache.keys) == 15
    )
    assert summary(cache)['damaged'] == cache.info['damaged']


@pytest.mark.parametrize(
    'make, error, says',
    [
        (lambda d: d, FileNotFoundError, 'no picture'),
        (lambda d: d / 'nowhere', FileNotFoundError, 'no folder or table'),
        (lambda d: (d / 'a.xlsx').write_text('x') and d / 'a.xlsx', ValueError, 'neither a folder nor'),
        (
            lambda d: (d / 'a.csv').write_text('file,text\na.png,hm') and d / 'a.csv',
            ValueError,
            "no column 'caption'; it has file, text",
        ),
        (lambda d: (d / 'a.csv').write_text('file,caption\na.png,hm') and d / 'a.csv', ValueError, 'missing_file'),
        (lambda d: (d / 'a.csv').write_text('file,caption\n') and d / 'a.csv', ValueError, 'names no picture: mend it'),
        (lambda d: (d / 'a.jsonl').write_text('{"file": ') and d / 'a.jsonl', ValueError, 'cannot be read as .jsonl'),
        (lambda d: (d / 'a.txt').write_text('a caption without a picture') and d, FileNotFoundError, 'no picture'),
    ],
)
def test_hostile_data(make, error, says, tmp_path):
    home = tmp_path / 'data'
    home.mkdir()
    with pytest.raises(error, match=says):
        embed(config(make(home), tmp_path), towers())


def test_a_wrong_or_damaged_cache_is_refused(photos, tmp_path):
    cache = embed(config(photos, tmp_path), towers())
    assert open_cache(cache.folder, cache.info['dataset'], 'pixels').id == cache.id
    with pytest.raises(ValueError, match='features of dataset .* but other was asked for'):
        open_cache(cache.folder, 'other')
    with pytest.raises(ValueError, match='features of towers pixels, but other'):
        open_cache(cache.folder, None, 'other')
    with pytest.raises(ValueError, match='towers .there .pixels., asked .else.'):
        embed(config(photos, tmp_path), towers(name='else'))
    about = (cache.folder / 'cache.json').read_text()
    (cache.folder / 'cache.json').write_text(about.replace('thing number 3', 'thing number 4'))
    with pytest.raises(ValueError, match='damaged or was edited'):
        open_cache(cache.folder)
    (cache.folder / 'cache.json').write_text('[]')
    with pytest.raises(ValueError, match='damaged or was edited'):
        open_cache(cache.folder)
    (cache.folder / 'cache.json').write_text(about)
    stored = bytearray((cache.folder / 'features.safetensors').read_bytes())
    for at in (3, len(stored) // 2, len(stored) - 1):
        stored[at] ^= 1
        (cache.folder / 'features.safetensors').write_bytes(stored)
        with pytest.raises(ValueError, match='does not have the sha256'):
            open_cache(cache.folder)
        stored[at] ^= 1


def test_towers_that_overflow_are_noticed(photos, tmp_path):
    loud = towers()._replace(std=(1e-8,) * 3)
    with pytest.raises(ValueError, match='not finite'):
        embed(config(photos, tmp_path), loud)


@settings(max_examples=20)
@given(st.integers(2, 60), st.integers(1, 8), st.integers(0, 99))
def test_neighbours_are_the_nearest(n, d, seed):
    x, k = torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).half(), max(1, min(5, n - 1))
    cosine, row = _neighbours(x, k)
    full = F.cosine_similarity(x[:, None].double(), x[None].double(), dim=-1).fill_diagonal_(-2)
    assert torch.allclose(cosine.double(), full.topk(k).values, atol=1e-3)
    assert (
        torch.allclose(full.gather(1, row), full.topk(k).values, atol=1e-3) and (row != torch.arange(n)[:, None]).all()
    )


def test_faiss_finds_nearly_the_same():
    pytest.importorskip('faiss', reason='faiss-cpu is not installed')
    x = F.normalize(
        torch.randn(40, 16, generator=torch.Generator().manual_seed(0)).repeat(50, 1) + 0.3 * torch.randn(2000, 16),
        dim=-1,
    )
    (c0, r0), (c1, r1) = _neighbours(x, 5), _neighbours(x, 5, exact=100)
    assert (
        (r0 == r1).float().mean() > 0.95
        and (r1 != torch.arange(2000)[:, None]).all()
        and torch.allclose(c0[:, 0], c1[:, 0], atol=0.05)
    )
    assert len(_near_duplicates(x, 0.7, exact=100).unique()) < 200
    assert _near_duplicates(x, 1.1, exact=100).unique().numel() == 2000


def test_without_faiss_it_says_so(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'faiss', None)
    with pytest.raises(ImportError, match='pip install faiss-cpu'):
        _neighbours(torch.randn(20, 4), 2, exact=10)


@settings(max_examples=25)
@given(st.integers(2, 30), st.sampled_from([0.3, 0.8, 0.95]), st.integers(0, 99))
def test_near_duplicates_are_the_connected_components(n, threshold, seed):
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
    reach = F.cosine_similarity(x[:, None], x[None], dim=-1) >= threshold
    for _ in range(6):
        reach = (reach.float() @ reach.float()) > 0
    ids = _near_duplicates(x, threshold)
    assert torch.equal(ids[:, None] == ids, reach)


@settings(max_examples=40)
@given(st.integers(2, 120), st.integers(1, 16), st.integers(1, 40), st.integers(0, 50))
def test_mining_keeps_equal_ids_apart(n, batch_size, kinds, seed):
    rng = np.random.default_rng(seed)
    ids, near = torch.from_numpy(rng.integers(0, kinds, n)), torch.from_numpy(rng.integers(0, n, (n, 4)))
    order = _hard_order(near, ids, batch_size, seed, 3)
    assert sorted(order.tolist()) == list(range(n)) and np.array_equal(
        order, _hard_order(near, ids, batch_size, seed, 3)
    )
    for start in range(0, n, batch_size):  # they meet only where no other id is left
        batch, rest = ids[order[start : start + batch_size]], ids[order[start:]]
        assert len(batch.unique()) == min(len(batch), len(rest.unique()))


def test_neighbours_come_together():
    near = torch.arange(40).view(20, 2).flip(1).reshape(40, 1)  # 0 with 1, 2 with 3, ...
    order = _hard_order(near, torch.arange(40), 8, 0, 0).reshape(-1, 8)
    assert all({o ^ 1 for o in row} == set(row) for row in order.tolist())
    assert _clashes(torch.tensor([1, 1, 1, 2]), 2) == 1 and _clashes(torch.tensor([1, 1, 1, 2]), 4) == 2


def test_pair_ids_join_images_texts_and_duplicates(photos, tmp_path):
    (photos / '11.png').write_bytes(picture(0))  # a copy of picture 0
    (photos / '12.txt').write_text('Thing number 5\n')  # the text of picture 5
    ids = _pair_ids(cache := embed(config(photos, tmp_path, views=1, word_drop=0.0), towers()), threshold=0.999)
    by_key = {}
    for i, image in zip(ids.tolist(), cache.text_image.tolist()):
        by_key.setdefault(cache.keys[image], set()).add(i)
    assert all(len(o) == 1 for o in by_key.values())
    assert (
        by_key['11.png'] == by_key['00.png']
        and by_key['12.png'] == by_key['05.png']
        and len(set.union(*by_key.values())) == 18
    )


@pytest.mark.parametrize('order', ['random', 'hard'])
def test_batches_are_a_pure_function_of_seed_and_step(photos, tmp_path, order):
    cache = embed(config(photos, tmp_path), towers())
    make = lambda **kw: FeatureBatches(cache, batch_size=5, order=order, image_views=True, text_views=True, **kw)
    a, b = make(), make()
    steps = [a.batch_at(i) for i in range(9)]
    for i in (7, 2, 8, 0):
        assert (
            torch.equal(b.batch_at(i).images, steps[i].images)
            and torch.equal(b.batch_at(i).tokens, steps[i].tokens)
            and b.batch_at(i).keys == steps[i].keys
        )
    assert [o.keys for o, _ in zip(b.batches(3), range(3))] == [o.keys for o in steps[3:6]]
    assert sorted(k for o in steps[:4] for k in o.keys) == cache.keys != sorted(k for o in steps[1:5] for k in o.keys)
    assert steps[0].images.dtype == torch.float32 and not torch.equal(make(seed=1).batch_at(0).images, steps[0].images)
    for o in steps:
        rows = [cache.keys.index(k) for k in o.keys]
        assert all((cache.image[i].float() == x).all(1).any() for i, x in zip(rows, o.images))
        assert all(
            (cache.text[cache.text_image == i].flatten(0, 1).float() == x).all(1).any() for i, x in zip(rows, o.tokens)
        )


def test_all_pairs_or_one_caption_an_image(photos, tmp_path):
    cache = embed(config(photos, tmp_path, views=1, word_drop=0.0), towers())
    every = FeatureBatches(cache, batch_size=10, one_caption=False)
    assert len(every) == 40 and sorted(torch.cat([every.epoch_plan(0)[0]]).tolist()) == list(range(40))
    one = FeatureBatches(cache, batch_size=10)
    drawn = [one.epoch_plan(e)[0].sort().values.tolist() for e in range(6)]
    assert all(cache.text_image[o].tolist() == list(range(20)) for o in drawn) and len(set(map(tuple, drawn))) > 1
    assert (
        FeatureBatches(cache, batch_size=12, drop_last=False).steps_per_epoch == 2
        and len(FeatureBatches(cache, batch_size=12, drop_last=False).batch_at(1).keys) == 8
    )
    with pytest.raises(ValueError, match="no split 'dev'; it has train"):
        FeatureBatches(cache, split='dev')


def test_features_lie_where_batches_are_gathered(made_up):
    cache = open_cache(made_up)
    train, dev = (FeatureBatches(cache, split, 20, device='meta') for split in ('train', 'dev'))
    batch, plain = train.batch_at(3), FeatureBatches(cache, 'train', 20).batch_at(3)
    assert {o.device.type for o in batch[:3]} == {'meta'} and train.image_rows is dev.image_rows
    assert batch.keys == plain.keys and batch.images.shape == plain.images.shape and plain.images.is_cpu
    assert [o.images.device.type for o in dev.eval_batches()] == ['meta', 'meta']


class Launches(TorchDispatchMode):
    "Counts what is computed or copied on a device that stands for a GPU."

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.is_meta and not func.is_view:
            self.names[func.__name__] += 1
        return out


def test_a_batch_of_features_on_a_device_is_four_launches_and_no_copy(made_up):
    loader = FeatureBatches(open_cache(made_up), 'train', 20, device='meta')
    loader.batch_at(0)  # the numbers of the epoch travel
    with Launches() as seen:
        batch = to_device(loader.batch_at(1), make_config('head_lorentz'), 'meta')
    assert seen.names == {'index_select.default': 2, '_to_copy.default': 2}  # the latter to float32
    assert batch.images.is_meta and batch.text_ids.is_meta and batch.images.dtype == torch.float32


def test_features_that_would_fill_half_a_gpu_stay(made_up, monkeypatch):
    cache = open_cache(made_up)
    size = cache.image.nbytes + cache.text.nbytes
    for free, where in ((2 * size, 'cuda'), (2 * size - 1, 'cpu')):
        monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (free, free))
        assert _room_for(cache, 'cuda') == where and _room_for(cache, 'cpu') == 'cpu'


def test_the_flickr8k_features_as_a_cache(tmp_path):
    files = local('flickr8k_frozen_features.safetensors'), local('flickr8k_frozen_features.json')
    cache = _import_flickr8k(*files, tmp_path / 'flickr8k')
    assert cache.image.shape == (8091, 1, 1280) and cache.text.shape == (40455, 1, 384)
    assert {k: len(cache.rows(k)) for k in ('train', 'dev', 'test')} == dict(train=6000, dev=1000, test=1000)
    assert cache.captions[0].startswith('A child in a pink dress') and cache.keys[0] == '1000268201_693b08cb0e.jpg'
    assert _import_flickr8k(*files, tmp_path / 'flickr8k').id == cache.id
    loader = FeatureBatches(cache, 'train', 64, order='hard')
    start = time.perf_counter()
    for i in range(93):
        batch = loader.batch_at(i)
    assert 93 * 64 / (time.perf_counter() - start) > 10_000 and len(batch.text_ids.unique()) == 64

    def closest(order):  # mean cosine of each image to the most alike of its batch
        loader, found = FeatureBatches(cache, 'train', 64, order=order), []
        for i in range(20):
            x = F.normalize(loader.batch_at(i).images, dim=1)
            found.append((x @ x.T).fill_diagonal_(-1).amax(1).mean().item())
        return np.mean(found)

    assert closest('hard') > closest('random') + 0.02


@pytest.mark.parametrize(
    'given, says',
    [
        (dict(), 'data is empty'),
        (dict(data='x', out='outputs/tmp_x', view=2), "unknown parameter 'view'; known are: "),
        (dict(data='x', out='y', views=0), 'views = 0 is not at least 1'),
        (dict(data='x', out='y', towers='clip'), "backbone 'clip' is not of the form"),
    ],
)
def test_embed_says_what_is_wrong(given, says, run_cells):
    assert says in run_cells('embed', **given)[0]


@pytest.mark.parametrize('text', ['"x"', '[[]]', 'null', '{', '[' * 100_000], ids=range(5))
@pytest.mark.parametrize('name', ['cache.json', 'parts/plan.json'])
def test_a_description_that_is_no_object_is_named(name, text, photos, tmp_path):
    (tmp_path / 'out/parts').mkdir(parents=True)
    (tmp_path / 'out' / name).write_text(text)
    with pytest.raises(ValueError, match=f'{name} (is not JSON|holds no JSON object)'):
        embed(config(photos, tmp_path), towers())


def test_an_image_tower_sees_a_few_pictures_at_a_time(photos, tmp_path, monkeypatch):
    "Its layers are what fills the memory, whatever the pictures' size; a part file holds as many as `batch_size`."
    seen, forward = [], Pixels.forward
    monkeypatch.setattr(Pixels, 'forward', lambda self, x: seen.append(len(x)) or forward(self, x))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    cache = embed(config(photos, tmp_path, views=1, word_drop=0.0, batch_size=20), towers())
    assert seen == [16, 4] and len(cache.keys) == 20
