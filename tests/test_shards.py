"""The loader's promises: one order, resumable, damage counted, foreign shards named; and the embedded data."""

import hashlib
import io
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import tarfile
import zlib
from functools import partial
from importlib.util import find_spec
from pathlib import Path
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from conftest import ROOT
from meru.data.images import decode_image, ImageAugment
from meru.data.shards import Sample, Shards, dataset_id, make_manifest, write_shards
from meru.data.emoji import embedded_data, emoji_rows, _emoji_splits, _without_person
from meru.data.loader import _batch_bytes, _cpu_quota, _epoch_order, Loader, sample_rng, _spare_cores
from meru.data.tokenizer import Tokenizer, augment_caption
from meru.training.config import make_config
from meru.training.step import to_device

pytestmark = [
    pytest.mark.filterwarnings('ignore:.*multi-threaded.*fork.*:DeprecationWarning'),
    pytest.mark.filterwarnings('ignore:This DataLoader will create:UserWarning'),
]  # more workers than cores, on purpose
TOK = Tokenizer(1024, 16)
FULL = ImageAugment(
    crop_scale=(0.4, 1.0),
    flip=0.5,
    brightness=0.3,
    contrast=0.3,
    saturation=0.3,
    hue=0.05,
    grey=0.1,
    degrees=15,
    shear=5,
    translate=0.05,
)
PROBS = (0.1, 0.2, 0.3, 0.4)


def picture(i, fmt='PNG', size=(24, 20)):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(i).integers(0, 255, (*size, 3), dtype=np.uint8)).save(out, fmt)
    return out.getvalue()


def samples(n):
    return [
        Sample(
            f'row {i}',
            picture(i, ('PNG', 'JPEG', 'WEBP')[i % 3], (20 + i % 5, 24)),
            f'caption {i}',
            {'levels': ['thing', f'kind {i % 3}', f'name {i}', f'name {i}, round']},
        )
        for i in range(n)
    ]


@pytest.fixture
def folder(tmp_path):
    write_shards(samples(23), tmp_path / 'data', shard_size=10)
    return tmp_path / 'data'


@pytest.fixture
def loader(folder):
    return partial(
        Loader,
        Shards(folder),
        TOK,
        image_size=16,
        batch_size=5,
        seed=3,
        augment=FULL,
        level_probs=PROBS,
        augment_text=partial(augment_caption, mask=0.2, shuffle=0.3, drop=0.2),
    )


def take(l, n, start=0):
    batches = l.batches(start)
    try:
        return list(itertools.islice(batches, n))
    finally:
        batches.close()


def same(a, b):
    return len(a) == len(b) and all(x.keys == y.keys and all(map(torch.equal, x[:3], y[:3])) for x, y in zip(a, b))


# order, workers, resume


@pytest.mark.parametrize('workers', [1, 3, 5])
@pytest.mark.parametrize('cache', [True, False])
def test_the_number_of_workers_and_the_cache_do_not_matter(loader, workers, cache):
    assert same(take(loader(workers=workers, cache=cache), 9), take(loader(), 9))


@pytest.mark.parametrize('room, says', [(1e9, ''), (3.5 * 3840, 'one waits'), (0, 'through pipes')])
def test_batches_that_shared_memory_does_not_hold_come_another_way(loader, monkeypatch, capsys, room, says):
    monkeypatch.setattr('meru.data.loader._free_shared', lambda: room)
    whole, l = take(loader(), 3), loader(workers=2)
    assert _batch_bytes(l) == 3840 == 5 * 3 * 16 * 16
    assert same(take(l, 3), whole) and says in capsys.readouterr().out


def test_workers_follow_the_machine(monkeypatch, tmp_path):
    monkeypatch.setattr('os.sched_getaffinity', lambda pid: set(range(16)))
    monkeypatch.setattr('meru.data.loader._cpu_quota', lambda: 13.0)
    assert [_spare_cores(n) for n in (0, 1, 2, 8, 32)] == [12, 12, 5, 1, 1]
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '2')
    assert _spare_cores() == 5


@pytest.mark.parametrize('text, cores', [('max 100000\n', math.inf), ('250000 100000\n', 2.5), (None, math.inf)])
def test_a_containers_share_of_the_cores(monkeypatch, tmp_path, text, cores):
    if text:
        (tmp_path / 'cpu.max').write_text(text)
    monkeypatch.setattr('meru.data.loader.Path', lambda _: tmp_path / 'cpu.max')
    assert _cpu_quota() == cores


@pytest.mark.parametrize('drop_last', [True, False])
def test_resuming_anywhere_is_like_never_stopping(loader, drop_last):
    whole = take(loader(drop_last=drop_last), 12)
    for step in range(12):
        assert same(take(loader(drop_last=drop_last), 1, step), whole[step : step + 1])
    assert same(take(loader(drop_last=drop_last, workers=2), 4, 8), whole[8:])


def test_an_epoch_visits_every_sample_once(loader):
    l = loader(drop_last=False)
    keys = [k for b in take(l, l.steps_per_epoch) for k in b.keys]
    assert l.steps_per_epoch == 5 and len(keys) == len(set(keys)) == 23
    assert loader().steps_per_epoch == 4


def test_seed_and_epoch_change_everything(loader):
    a, b = take(loader(), 8), take(loader(seed=4), 1)
    assert a[0].keys != b[0].keys and a[0].keys != a[4].keys
    one = loader(batch_size=23)
    x, y = take(one, 2)
    first, second = dict(zip(x.keys, x.images)), dict(zip(y.keys, y.images))
    assert sum(torch.equal(first[k], second[k]) for k in first) < 3


def test_what_happens_to_a_sample_does_not_depend_on_its_place(loader):
    x, y = take(loader(batch_size=23), 1)[0], take(loader(batch_size=4), 5)
    images, ids = dict(zip(x.keys, x.images)), dict(zip(x.keys, x.text_ids))
    for b in y:
        for k, image, i in zip(b.keys, b.images, b.text_ids):
            assert torch.equal(image, images[k]) and i == ids[k]


def texts_of(batches):
    return {k: TOK.decode(t) for b in batches for k, t in zip(b.keys, b.tokens)}


def test_words_follow_seed_epoch_and_index_alone(loader, folder):
    words = partial(augment_caption, mask=0.2, shuffle=0.5, drop=0.2)
    kw = dict(level_probs=(0.0, 0.0, 0.0, 1.0), augment_text=words, drop_last=False)
    whole = take(loader(batch_size=23, **kw), 3)
    assert (
        texts_of(whole[:1])
        == texts_of(take(loader(batch_size=4, **kw), 6))
        == texts_of(take(loader(batch_size=3, workers=2, augment=None, **kw), 8))
    )
    assert texts_of(whole[:1]) != texts_of(whole[1:2]) != texts_of(whole[2:]) and texts_of(whole[:1]) != texts_of(
        take(loader(batch_size=23, **kw | dict(seed=9)), 1)
    )
    for epoch in range(3):  # the words' draws come after the 33 for level and picture, whatever those are used for
        for i, o in enumerate(Shards(folder)):
            rng = sample_rng(3, epoch, i)
            rng.random(33)
            assert texts_of(whole[epoch : epoch + 1])[o.key] == TOK.decode(TOK([words(o.meta['levels'][3], rng)])[0])


def test_one_of_several_captions_is_drawn_by_seed_epoch_and_index_alone(tmp_path, folder):
    several = [
        o._replace(meta=dict(captions=[f'{word} {i}' for word in ('caption', 'one', 'two')]))
        for i, o in enumerate(samples(12))
    ]
    write_shards(several + samples(23)[12:], tmp_path / 'several')
    make = partial(Loader, Shards(tmp_path / 'several'), TOK, 8, seed=3, drop_last=False)
    whole = take(make(23), 30)
    assert all(texts_of([o]) == texts_of(take(make(5), 5, 5 * i)) for i, o in enumerate(whole[:2]))
    assert same(whole[:2], take(make(23, workers=2), 2))
    drawn = [TOK.decode(t) for b in whole for k, t in zip(b.keys, b.tokens) if int(k[-3:]) < 12]
    shares = [sum(o.startswith(word) for o in drawn) / 360 for word in ('caption', 'one', 'two')]
    assert min(shares) > 0.26 and sum(shares) == pytest.approx(1)
    plain = take(Loader(Shards(folder), TOK, 8, 23, seed=3), 1)[0]  # those of one caption are as they were
    rest = {t for k, t in texts_of(whole[:1]).items() if int(k[-3:]) >= 12}
    assert len(rest) == 11 and rest < set(texts_of([plain]).values())


def test_threads_do_not_matter(loader):
    before, found = torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            found.append(take(loader(batch_size=20), 3))
    finally:
        torch.set_num_threads(before)
    assert same(*found)


def test_generators_are_independent():
    u = np.array([[[sample_rng(s, e, i).random(8) for i in range(-1, 20)] for e in range(5)] for s in range(5)])
    assert len(np.unique(u)) == u.size
    orders = {tuple(_epoch_order(50, s, e)) for s in range(5) for e in range(5)}
    assert len(orders) == 25 and all(sorted(o) == list(range(50)) for o in orders)


# texts


def test_levels_come_at_their_rates(folder):
    l = Loader(Shards(folder), TOK, 8, 23, level_probs=(0.5, 0.0, 0.25, 0.25))
    texts = [TOK.decode(t) for b in take(l, 40) for t in b.tokens]
    share = sum(o == 'thing' for o in texts) / len(texts)
    assert 0.45 < share < 0.55 and not any(o.startswith('kind') for o in texts)


def test_equal_texts_have_equal_ids_whatever_their_augmentation(folder):
    l = Loader(
        Shards(folder), TOK, 8, 23, level_probs=(1.0, 0.0, 0.0, 0.0), augment_text=partial(augment_caption, mask=0.5)
    )
    b = take(l, 1)[0]
    assert b.text_ids.unique().numel() == 1 and b.tokens.unique(dim=0).shape[0] == 2
    assert take(Loader(Shards(folder), TOK, 8, 23), 1)[0].text_ids.unique().numel() == 23


def test_evaluation_is_one_pass_in_order(folder):
    batches = list(Loader(Shards(folder), TOK, 16, 5, augment=FULL, level_probs=PROBS).eval_batches())
    assert [len(b.keys) for b in batches] == [5, 5, 5, 5, 3]
    assert [TOK.decode(t) for b in batches for t in b.tokens] == [
        TOK.decode(TOK([f'caption {i}'])[0]) for i in range(23)
    ]


def test_levels_that_are_not_there(tmp_path):
    write_shards([o._replace(meta={}) for o in samples(6)], tmp_path / 'plain')
    with pytest.raises(ValueError, match='no_levels'):
        take(Loader(Shards(tmp_path / 'plain'), TOK, 8, 2, level_probs=PROBS), 1)
    assert len(take(Loader(Shards(tmp_path / 'plain'), TOK, 8, 2), 1)[0].keys) == 2


@pytest.mark.parametrize(
    'bad,message',
    [
        (dict(batch_size=24), '23 pairs'),
        (dict(batch_size=0), '1 to 23'),
        (dict(level_probs=(0.5, 0.4)), 'sum to 1'),
        (dict(level_probs=(1.5, -0.5)), 'non-negative'),
    ],
)
def test_impossible_settings(loader, bad, message):
    with pytest.raises(ValueError, match=message):
        loader(**bad)


# damage

HEADER = b'IHDR' + (70_000).to_bytes(4, 'big') * 2 + b'\x08\x02\0\0\0'
BOMB = picture(0)[:12] + HEADER + zlib.crc32(HEADER).to_bytes(4, 'big') + picture(0)[33:]


def tar_of(path, rows):
    "A tar like a downloader's, whatever its rows (key, {extension: bytes}) hold, with img2dataset's pax headers."
    with tarfile.open(path, 'w', format=tarfile.PAX_FORMAT) as tar:
        for key, members in rows:
            for ext, data in members.items():
                info = tarfile.TarInfo(f'{key}.{ext}')
                info.size, info.mtime = len(data), 1700000000.25
                tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def damaged(tmp_path):
    good = lambda i: {'png': picture(i), 'json': b'{}', 'txt': b'text %d' % i}
    rows = [good(i) for i in range(14)]
    rows[1]['png'] = picture(1)[:200]
    rows[2] = {'jpg': b'<html>404 not found</html>', 'txt': b'two'}
    rows[3]['png'] = BOMB
    rows[5]['txt'] = b' \n'
    rows[6].pop('png')
    rows[8].pop('txt')
    rows[9]['txt'] = b'\xff\xfe\xff'
    rows[11]['json'] = b'{"broken": '
    rows[13]['txt'] = b''
    (tmp_path / 'damaged').mkdir()
    tar_of(tmp_path / 'damaged/00000.tar', [(f'{i:05d}', o) for i, o in enumerate(rows)])
    make_manifest(tmp_path / 'damaged')
    return tmp_path / 'damaged'


REASONS = dict(
    truncated=1, not_an_image=1, too_many_pixels=1, empty_caption=2, no_image=1, no_caption=1, bad_text=1, bad_json=1
)
GOOD = ['00000', '00004', '00007', '00010', '00012']


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('cache', [True, False])
def test_damaged_samples_are_counted_and_replaced_by_the_next_good_one(damaged, workers, cache):
    l = Loader(Shards(damaged), TOK, 8, 14, workers=workers, cache=cache)
    batch = take(l, 1)[0]
    expected = [next((g for g in GOOD if int(g) >= i), GOOD[0]) for i in _epoch_order(14, 0, 0)]
    assert batch.keys == expected and dict(l.failures) == REASONS


def test_evaluation_leaves_damaged_samples_out(damaged):
    l = Loader(Shards(damaged), TOK, 8, 4)
    assert [k for b in l.eval_batches() for k in b.keys] == GOOD and dict(l.failures) == REASONS


def test_nothing_usable_is_an_error(tmp_path):
    (tmp_path / 'bad').mkdir()
    tar_of(tmp_path / 'bad/00000.tar', [('0', {'jpg': b'<html>', 'txt': b'a'}), ('1', {'jpg': b'<html>', 'txt': b'b'})])
    make_manifest(tmp_path / 'bad')
    with pytest.raises(ValueError, match='not_an_image.*2'):
        take(Loader(Shards(tmp_path / 'bad'), TOK, 8, 1), 1)


# shards and manifests


def test_a_flipped_byte_is_named(folder):
    data = bytearray((folder / '00001.tar').read_bytes())
    data[700] ^= 4
    (folder / '00001.tar').write_bytes(data)
    with pytest.raises(ValueError, match='00001.tar does not have the sha256'):
        Shards(folder, verify='hashes')


def test_a_flipped_header_byte_is_named_at_once(folder):
    data = bytearray((folder / '00001.tar').read_bytes())
    data[3] ^= 4
    (folder / '00001.tar').write_bytes(data)
    with pytest.raises(ValueError, match='00001.tar is damaged'):
        Shards(folder)


@pytest.mark.parametrize('verify', ['sizes', 'hashes'])
@pytest.mark.parametrize('cut', [10, 512, 1024, 5000, 0.5])
def test_a_truncated_shard_is_named(folder, verify, cut):
    data = (folder / '00001.tar').read_bytes()
    (folder / '00001.tar').write_bytes(data[: int(len(data) * cut) if cut < 1 else -cut])
    with pytest.raises(ValueError, match='00001.tar'):
        Shards(folder, verify)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flip_anywhere_is_named_or_quarantined(folder, place, bit):
    path = folder / '00001.tar'
    whole = path.read_bytes()
    data, at = bytearray(whole), int(place * len(whole))
    data[at] ^= 1 << bit
    try:
        path.write_bytes(data)
        with pytest.raises(ValueError, match='00001.tar'):
            Shards(folder, 'hashes')
        rest = Shards(folder, 'hashes', 'quarantine')
        assert [(o['shard'], o['samples'], o['reason']) for o in rest.lost] == [
            ('00001.tar', 10, 'sha256')
        ] and '00001.tar' in rest.lost[0]['message']
        assert [o.caption for o in rest] == [f'caption {i}' for i in range(23) if i // 10 != 1]
    finally:
        path.write_bytes(whole)


def cut(path):
    path.write_bytes(path.read_bytes()[:-700])


def flip_header(path):
    path.write_bytes(b'?' + path.read_bytes()[1:])


@pytest.mark.parametrize('damage,reason', [(os.remove, 'missing'), (cut, 'bytes'), (flip_header, 'unreadable')])
def test_quarantine_goes_on_without_what_differs(folder, damage, reason):
    whole = Shards(folder)
    assert whole.lost == []
    damage(folder / '00001.tar')
    with pytest.raises(ValueError, match='00001.tar'):
        Shards(folder)
    rest = Shards(folder, damaged='quarantine')
    assert [(o['shard'], o['samples'], o['reason']) for o in rest.lost] == [('00001.tar', 10, reason)] and len(
        rest
    ) == 13
    assert rest.id != whole.id and json.dumps(rest.lost)
    batch = take(Loader(rest, TOK, 8, 13, workers=2), 1)[0]
    assert sorted(batch.keys) == [f'{i // 10:05d}{i % 10}' for i in range(23) if i // 10 != 1]


def test_a_quarantined_set_has_the_id_of_what_is_left(folder):
    os.remove(folder / '00000.tar')
    os.remove(folder / '00000_stats.json')
    rest = Shards(folder, damaged='quarantine').id
    make_manifest(folder)
    assert Shards(folder).id == rest


def test_quarantine_does_not_excuse_a_wrong_manifest_or_an_empty_folder(folder):
    shutil.copy(folder / '00000.tar', folder / '00009.tar')
    with pytest.raises(ValueError, match='00009.tar .* is not in its manifest'):
        Shards(folder, damaged='quarantine')
    os.remove(folder / '00009.tar')
    for o in folder.glob('*.tar'):
        cut(o)
    with pytest.raises(ValueError, match='No shard of .* is whole: Shard .*00000.tar has'):
        Shards(folder, damaged='quarantine')
    with pytest.raises(ValueError, match="'fail' or 'quarantine'"):
        Shards(folder, damaged='skip')


def test_a_truncated_shard_gets_no_manifest(folder):
    data = (folder / '00002.tar').read_bytes()
    (folder / '00002.tar').write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match='00002.tar is truncated'):
        make_manifest(folder)


def test_missing_extra_and_unfinished_shards_are_named(folder):
    shutil.copy(folder / '00000.tar', folder / '00009.tar')
    with pytest.raises(ValueError, match='00009.tar .* is not in its manifest'):
        Shards(folder)
    with pytest.raises(ValueError, match='00009.tar .* no _stats.json'):
        make_manifest(folder)
    os.remove(folder / '00009.tar')
    os.remove(folder / '00001.tar')
    with pytest.raises(ValueError, match='00001.tar is in the manifest'):
        Shards(folder)


def test_a_manifest_that_was_edited(folder):
    manifest = json.loads((folder / 'manifest.json').read_text())
    manifest['shards'][0]['count'] = 9
    (folder / 'manifest.json').write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match='00000.tar holds 10 samples; its manifest says 9'):
        Shards(folder)
    manifest['shards'][0].update(count=10, sha256='0' * 64)
    (folder / 'manifest.json').write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match='contradicts itself'):
        Shards(folder)


def test_missing_folder_and_missing_manifest_name_the_remedy(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match='fetch.ipynb.*-p data emoji'):
        Shards(tmp_path / 'nowhere')
    os.remove(folder / 'manifest.json')
    with pytest.raises(FileNotFoundError, match='make_manifest'):
        Shards(folder)
    with pytest.raises(FileNotFoundError, match='no .tar file'):
        make_manifest(tmp_path)
    make_manifest(folder)
    assert len(Shards(folder)) == 23
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos' / 'a.jpg').write_bytes(b'')
    with pytest.raises(
        FileNotFoundError, match='photos holds no shards: papermill nbs/fetch.ipynb .* -p pairs .*photos'
    ):
        Shards(tmp_path / 'photos')


def test_samples_come_back_as_written(folder):
    shards = Shards(folder)
    for i, want in enumerate(samples(23)):
        got = shards[i]
        assert (got.image, got.caption, got.meta['levels']) == (want.image, want.caption, want.meta['levels'])
        assert got.key == got.meta['key'] == f'{i // 10:05d}{i % 10}' and got.meta['url'] == want.key
    assert shards[-1] == shards[22]
    with pytest.raises(IndexError):
        shards[23]
    assert len(list(shards)) == 23


def test_writing_twice_gives_the_same_bytes_and_never_overwrites(folder, tmp_path):
    write_shards(samples(23), tmp_path / 'again', shard_size=10, name='data')
    assert sorted(os.listdir(folder)) == sorted(os.listdir(tmp_path / 'again'))
    assert all((folder / o).read_bytes() == (tmp_path / 'again' / o).read_bytes() for o in os.listdir(folder))
    with pytest.raises(FileExistsError, match='exists already'):
        write_shards(samples(2), folder)


def test_a_failed_write_leaves_nothing(tmp_path):
    def broken():
        yield from samples(15)
        raise OSError('disk full')

    with pytest.raises(OSError, match='disk full'):
        write_shards(broken(), tmp_path / 'new', shard_size=10)
    assert not os.listdir(tmp_path)


def test_the_id_follows_the_bytes(folder, tmp_path):
    other = samples(23)
    other[5] = other[5]._replace(caption='changed')
    write_shards(other, tmp_path / 'other', shard_size=10)
    a, b = Shards(folder).id, Shards(tmp_path / 'other').id
    assert a != b and a == dataset_id(
        [o['sha256'] for o in json.loads((folder / 'manifest.json').read_text())['shards']]
    )


def test_foreign_members_are_never_read(tmp_path):
    (tmp_path / 'f').mkdir()
    tar_of(
        tmp_path / 'f/00000.tar',
        [
            ('a/0', {'cls': b'1', 'pth': b'evil', 'jpeg': picture(0, 'JPEG'), 'txt': b'one', 'json': b'{}'}),
            ('a/1', {'JPG': picture(1, 'JPEG'), 'txt': b'two'}),
        ],
    )
    make_manifest(tmp_path / 'f')
    shards = Shards(tmp_path / 'f')
    assert [(o.key, o.caption) for o in shards] == [('a/0', 'one'), ('a/1', 'two')]


def test_members_that_lie_apart_are_read_one_by_one(tmp_path):
    (tmp_path / 'f').mkdir()
    rows = [('a', {'png': picture(0), 'txt': b'one'}), ('b', {'png': picture(1), 'txt': b'two', 'bin': bytes(40_000)})]
    tar_of(tmp_path / 'f/00000.tar', [*rows, ('a', {'json': b'{"far": 1}'})])
    make_manifest(tmp_path / 'f')
    shards = Shards(tmp_path / 'f')
    first, second = shards
    assert (first.key, first.image, first.caption, first.meta) == ('a', picture(0), 'one', dict(far=1))
    assert (second.key, second.image, second.caption, second.meta) == ('b', picture(1), 'two', {})


def test_what_is_only_cut_comes_as_decoders_have_it_and_is_laid_out_on_the_device(folder):
    "Colours last in memory from the loader, planes for the model."
    cut, cfg = ImageAugment(crop_scale=(0.5, 1.0)), make_config('smoke')
    batch = Loader(Shards(folder), TOK, 16, 5, augment=cut, cache=False).batch_at(0)
    kept = Loader(Shards(folder), TOK, 16, 5, augment=cut).batch_at(0)
    assert batch.images.is_contiguous(memory_format=torch.channels_last) and torch.equal(batch.images, kept.images)
    planes = to_device(batch, cfg, 'cpu').images
    assert planes.is_contiguous() and torch.equal(planes, batch.images)


def test_a_real_img2dataset_folder_loads(tmp_path):
    if find_spec('img2dataset') is None:
        pytest.skip('img2dataset is an extra: pip install .[fetch]')
    for i in range(7):
        (tmp_path / f'{i}.jpg').write_bytes(picture(i, 'JPEG'))
    (tmp_path / 'list.csv').write_text(
        'url,caption\n' + ''.join(f'file://{tmp_path}/{i}.jpg,picture {i}\n' for i in range(8))
    )
    args = dict(
        url_list=tmp_path / 'list.csv',
        input_format='csv',
        url_col='url',
        caption_col='caption',
        output_format='webdataset',
        output_folder=tmp_path / 'out',
        processes_count=1,
        thread_count=2,
        image_size=16,
        resize_mode='keep_ratio',
        number_sample_per_shard=5,
    )
    cmd = [Path(sys.executable).parent / 'img2dataset', *itertools.chain(*[(f'--{k}', v) for k, v in args.items()])]
    subprocess.run(
        list(map(str, cmd)),
        check=True,
        capture_output=True,
        timeout=300,
        env=os.environ | {'NO_ALBUMENTATIONS_UPDATE': '1', 'WANDB_MODE': 'disabled'},
    )
    with pytest.raises(FileNotFoundError, match='make_manifest'):
        Shards(tmp_path / 'out')
    make_manifest(tmp_path / 'out')
    shards = Shards(tmp_path / 'out', verify='hashes')
    assert sorted(o.caption for o in shards) == [f'picture {i}' for i in range(7)]
    assert len(take(Loader(shards, TOK, 8, 7), 1)[0].keys) == 7
    ours = Sample('file', picture(0, 'JPEG'), 'picture 0', {})
    write_shards([ours], tmp_path / 'ours', shard_size=5)
    assert (
        list(Shards(tmp_path / 'ours')[0].meta) == list(shards[0].meta) and Shards(tmp_path / 'ours')[0].key == '000000'
    )


# the embedded drawings


@pytest.fixture(scope='module')
def rows():
    return emoji_rows(ROOT / 'data/emoji')


def test_the_splits_keep_their_promises(rows):
    splits = _emoji_splits(rows)
    names = {k: {o['name'] for o in v} for k, v in splits.items()}
    assert {k: len(v) for k, v in splits.items()} == dict(train=7050, val=294, test_style=957, test_concept=874)
    assert (
        not names['test_concept'] & (names['train'] | names['val'] | names['test_style'])
        and len(names['test_concept']) == 192
    )
    assert {o['style'] for o in splits['test_style']} == {'emojione'} and all(
        o['style'] != 'emojione' for o in splits['train'] + splits['val']
    )
    assert {o['style'] for o in splits['test_concept']} == {o['style'] for o in rows}
    assert len({o['file'] for v in splits.values() for o in v}) == len(rows) == 9175
    for s in {o['subgroup'] for o in rows}:
        n = len({o['name'] for o in rows if o['subgroup'] == s})
        held = len({o['name'] for o in splits['test_concept'] if o['subgroup'] == s})
        assert abs(held - n / 10) < 1, s


def test_only_permissive_licences(rows):
    assert {o['license'] for o in rows} == {'Apache-2.0', 'CC-BY-4.0', 'MIT'}
    assert {o['style'] for o in rows} == {'twemoji', 'noto', 'noto-v1', 'fluent', 'fluent-flat', 'emojione', 'fxemoji'}


def test_packing_gives_the_promised_bytes_twice(in_root, tmp_path, monkeypatch):
    (tmp_path / 'settings.ini').write_text('')
    shutil.copytree(ROOT / 'data/emoji', tmp_path / 'data/emoji', ignore=shutil.ignore_patterns('shards', '*.tmp'))
    here = embedded_data()
    monkeypatch.chdir(tmp_path)
    there = embedded_data()
    ids = json.loads((ROOT / 'data/emoji/dataset_ids.json').read_text())
    for split in ids:
        assert Shards(here / split, 'hashes').id == Shards(there / split, 'hashes').id == ids[split]
    assert sorted(os.listdir(tmp_path / 'data/emoji')) == [
        'LICENSES.md',
        'dataset_ids.json',
        'drawings.zip',
        'emoji.jsonl',
        'shards',
    ]
    (there / 'train/manifest.json').unlink()
    assert len(Shards(embedded_data() / 'train')) == 7050


def test_the_eighth_style_is_as_promised(in_root, rows):
    "Bytes, ids and licence; each drawing is one of a known concept, and no unseen name is learned anywhere."
    home = ROOT / 'data/contrast'
    promised = (ROOT / 'data/README.md').read_text()
    for file in ('drawings.zip', 'emoji.jsonl'):
        assert hashlib.sha256((home / file).read_bytes()).hexdigest() in promised
    ids = json.loads((home / 'dataset_ids.json').read_text())
    parts = {split: Shards(embedded_data('contrast') / split, 'hashes') for split in ids}
    assert {split: part.id for split, part in parts.items()} == ids
    assert {split: len(part) for split, part in parts.items()} == dict(test_style=1438, test_concept=156)
    known = {o['name']: (o['group'], o['subgroup']) for o in rows}
    learned = {o['name'] for split in ('train', 'val') for o in _emoji_splits(rows)[split]}
    for split, part in parts.items():
        samples = list(part)
        assert all(o.meta['license'] == 'MIT' and o.meta['style'] == 'fluent-contrast' for o in samples)
        assert all((o.meta['group'], o.meta['subgroup']) == known[o.caption] for o in samples)
        assert {o.caption in learned for o in samples} == {split == 'test_style'}
    pixels = decode_image(parts['test_style'][0].image)
    assert pixels.shape == (3, 64, 64) and pixels.float().std(0).max() == 0 and pixels.max() == 255  # no colours


def test_changed_drawings_are_noticed(tmp_path, monkeypatch):
    (tmp_path / 'settings.ini').write_text('')
    shutil.copytree(ROOT / 'data/emoji', tmp_path / 'data/emoji', ignore=shutil.ignore_patterns('shards', '*.tmp'))
    lines = (tmp_path / 'data/emoji/emoji.jsonl').read_text().splitlines()[::2]
    (tmp_path / 'data/emoji/emoji.jsonl').write_text('\n'.join(lines))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match='check them out again'):
        embedded_data()
    assert not (tmp_path / 'data/emoji/shards').exists()


def test_outside_a_clone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('meru.core._holding', lambda folder: None)  # as where the package is installed by itself
    with pytest.raises(FileNotFoundError, match='inside a clone'):
        embedded_data()
    with pytest.raises(ValueError, match="there are 'emoji', 'scenes' and 'contrast'"):
        embedded_data('cc3m')


def test_every_embedded_drawing_decodes(in_root):
    for split in ('train', 'val', 'test_style', 'test_concept'):
        l = Loader(Shards(embedded_data() / split), TOK, 16, 64)
        assert sum(len(b.keys) for b in l.eval_batches()) == len(l.shards) and not l.failures


def test_near_twins():
    assert _without_person('man firefighter') == _without_person('firefighter') != _without_person('fire')
    assert _without_person('family: man, boy') == 'family'


def test_resized_pictures_carry_their_augment_params(folder):
    "The draws depend on (seed, epoch, index) alone: from any step, in any number of workers."

    def loader(workers):
        return Loader(Shards(folder), TOK, 16, 5, seed=3, augment=FULL, workers=workers, pre_resize=24)

    ahead = list(itertools.islice(loader(0).batches(), 6))
    assert ahead[0].images.shape == (5, 3, 24, 24) and ahead[0].augment_params.shape == (5, 21)
    for batch in (next(loader(0).batches(5)), next(loader(1).batches(5))):
        assert torch.equal(batch.images, ahead[5].images) and torch.equal(batch.augment_params, ahead[5].augment_params)
    assert not torch.equal(ahead[0].augment_params, ahead[5].augment_params)
