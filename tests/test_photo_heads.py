"Heads on photos: from two folders of pictures and texts to a study, with towers of a few numbers."

import json
import torch
from PIL import Image
from types import SimpleNamespace
from meru.benchmarks import photo_heads
from meru.benchmarks.photo_heads import _photo_heads_suite, _read_photos, _split_of, _tiers_of
from meru.data.images import resize_image


def listed(folder, name, rows):
    "Pictures of one colour each, and their lines."
    for i, row in enumerate(rows):
        Image.new('RGB', (12, 8), (20 * i, 255 - 20 * i, 90)).save(folder / row['file'])
    (folder / name).write_text('\n'.join(map(json.dumps, rows)))


def towers(backbone):
    "What stands for two nets: means of colours, and lengths of texts."
    resize = lambda picture: resize_image(picture, 8)
    return SimpleNamespace(resize=resize, id=f'{backbone}, made up')


def means(pictures, *_):
    return torch.cat([pictures.float().mean((2, 3)), pictures[:, :, 0, 0].float() ** 2], 1).half()


def lengths(texts, *_):
    return torch.tensor([[len(text), len(set(text)), text.count('a')] for text in texts]).half()


def test_from_pictures_to_a_study(tmp_path, monkeypatch):
    "Every text gets its features once, every photo its own chains, and a split only its own."
    flickr, hierarcaps = tmp_path / 'flickr', tmp_path / 'hierarcaps'
    flickr.mkdir(), hierarcaps.mkdir()
    scenes = ['a dog runs on grass', 'The bus, in the rain', 'so it goes', 'a lion near two dogs']
    rows = []
    for i in range(12):
        split = ('train', 'dev', 'test')[i % 3]
        rows.append(dict(file=f'{i}.png', split=split, captions=[scenes[i // 3], f'{scenes[i // 3]} {i}']))
    listed(flickr, 'pairs.jsonl', [*rows, dict(file='left.png', captions=['of no split'])])
    chain = ['animal', 'dog', 'a dog runs']
    listed(
        hierarcaps, 'h.jsonl', [dict(file='a.png', hierarchy=chain), dict(file='b.png', hierarchy=['bus', 'a', 'b'])]
    )
    monkeypatch.setattr(photo_heads, 'load_towers', towers)
    monkeypatch.setattr(photo_heads, '_encode_pictures', means)
    monkeypatch.setattr(photo_heads, '_encode_texts', lengths)
    path = tmp_path / 'kept' / 'photos.safetensors'
    found = _read_photos(path, str(flickr), str(hierarcaps))
    assert {split: len(images) for split, images in found.images.items()} == dict(train=4, dev=4, test=4, tiers=2)
    assert found.texts[''] == 0 and 'of no split' not in found.texts and found.tiers[0] == chain
    nouns = _split_of(found, 'test', 'nouns')
    assert nouns.owner.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    depth = (nouns.chains >= 0).sum(1).tolist()
    assert depth[4:6] == [1, 1] and min(depth[:4]) > 5  # a caption without a noun stands alone
    assert (_split_of(found, 'test', 'words').chains >= 0).sum(1).tolist()[:4] == [2, 2, 3, 3]
    assert _tiers_of(found).chains.shape == (2, 3)
    monkeypatch.setattr(photo_heads, 'load_towers', None)  # not asked again
    monkeypatch.setattr(photo_heads, '_plain_ways', ['Lorentz', 'inner product'])
    *_, result = _photo_heads_suite(str(path), chains=('captions', 'words'), dims=(2,), seeds=2, steps=2)
    assert result['features'] == found.id and result['sizes']['test'] == 4
    assert [table['chains'] for table in result['tables']] == ['captions', 'words']
    assert {run['config']['chains'] for run in result['tables'][1]['runs']} == {'words'}
    lines = {line['key']: line for line in result['tables'][1]['table']}
    assert lines['HierarCaps_threshold_tau']['differences']['inner product']['over'] in ('photos', 'seeds')
    assert all(0 <= line['means']['Lorentz'][0] <= 1 for key, line in lines.items() if 'tau' not in key)
    again = [*_photo_heads_suite(str(path), chains=('captions',), dims=(2,), seeds=2, steps=2)][-1]
    assert again['tables'] == result['tables'][:1]  # what is finished is read, seconds and all
