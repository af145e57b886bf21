"""Other people's data: every layout says the same thing, and what is damaged is named."""

import io
import json
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
from conftest import ROOT
from meru.evaluation.datasets import *
from meru.evaluation.datasets import _find_nouns, _noun_names, _noun_parents, _nouns
from meru.evaluation.datasets import (
    _Store,
    _imagenet_ids,
    _read_class_folder,
    _json,
    _objects,
    _read_table,
    _text,
    _read_wds,
    _set_id,
    _zeroshot_sets,
)
from meru.data.emoji import emoji_rows
from meru.evaluation.hierarchy import _ancestor_overlap, _tree_metrics
from meru.data.shards import Sample, write_shards

pytestmark = pytest.mark.usefixtures('in_root')
LOCAL = ROOT / 'data' / 'local'


def local(name):
    if not (LOCAL / name).exists():
        pytest.skip(f'data/local/{name} is not here')
    return LOCAL / name


def png(colour='red', size=(12, 8)):
    f = io.BytesIO()
    Image.new('RGB', size, colour).save(f, 'PNG')
    return f.getvalue()


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def pack(folder):
    out = folder.with_suffix('.zip')
    with zipfile.ZipFile(out, 'w') as z:
        for f in sorted(folder.rglob('*')):
            z.write(f, f.relative_to(folder))
    return out


def tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w') as t:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))


# --- files and pictures


def test_folder_and_zip_are_the_same(tmp_path):
    for name in ('a/1.png', 'a/.hidden.png', '.git/2.png', '__MACOSX/a/1.png', 'b.txt'):
        write(tmp_path / 'd' / name, png())
    folder, packed = _Store(tmp_path / 'd'), _Store(pack(tmp_path / 'd'))
    assert folder.files == packed.files == ['a/1.png', 'b.txt'] and folder.images == packed.images == ['a/1.png']
    assert folder.read('a/1.png') == packed.read('a/1.png') and folder.find('*.txt') == ['b.txt']


def test_damaged_stores_are_named(tmp_path):
    write(tmp_path / 'x.zip', b'PK broken')
    write(tmp_path / 'd' / 'l.jsonl', '{}\n\n{"a": 1}\nnot\n')
    write(tmp_path / 'd' / 'j.json', '{')
    write(tmp_path / 'd' / 't.txt', b'\xff\xfe\xfa')
    with pytest.raises(ValueError, match='x.zip is neither'):
        _Store(tmp_path / 'x.zip')
    with pytest.raises(FileNotFoundError, match='absent'):
        _Store(tmp_path / 'absent')
    store = _Store(tmp_path / 'd')
    with pytest.raises(ValueError, match='line 4 of l.jsonl'):
        _objects(store, 'l.jsonl')
    with pytest.raises(ValueError, match='j.json .* is not JSON'):
        _json(store, 'j.json')
    with pytest.raises(ValueError, match='t.txt .* is not UTF-8'):
        _text(store, 't.txt')


def test_all_damaged_pictures_are_named_at_once(tmp_path):
    for i in range(20):
        write(tmp_path / 'd' / f'{i:02}.png', png() if i % 3 else png()[:40])
        write(tmp_path / 'd' / f'{i:02}.txt', 'red')
    with pytest.raises(ValueError, match='7 pictures: .*00.png cannot be used.*12.png.*; and 2 more; mend them') as e:
        read_data(tmp_path / 'd', 16).pictures[:4]
    assert all(f'{i:02}.png' in str(e.value) for i in (0, 3, 6, 9, 12)) and '01.png' not in str(e.value)


def test_damaged_pictures_with_captions_are_left_out_and_named(tmp_path):
    for i in range(5):
        write(tmp_path / 'd' / f'{i}.png', png() if i != 2 else png()[:40])
        write(tmp_path / 'd' / f'{i}.txt', f'number {i}')
    task, damaged = read_data(tmp_path / 'd', 16).usable()
    assert [Path(key).name for key in task.pictures.keys] == ['0.png', '1.png', '3.png', '4.png']
    assert [task.texts[i] for i in task.owner.argsort()] == [f'number {i}' for i in (0, 1, 3, 4)]
    assert len(task.pictures[:4]) == 4 and len(damaged) == 1 and '2.png cannot be used: ' in damaged[0]
    assert task.usable()[1] == []


RED = {'captions.jsonl': '{"file": "a.png", "caption": "red"}', 'a.png': png()}


def zipped(path, files=RED):
    with zipfile.ZipFile(path, 'w') as z:
        for name, data in files.items():
            z.writestr(name, data)
    return path


def flagged(data, local, central, value):
    "Set a field of every header of a zip."
    data = bytearray(data)
    for sign, offset in ((b'PK\3\4', local), (b'PK\1\2', central)):
        at = data.find(sign)
        while at >= 0:
            data[at + offset] = value
            at = data.find(sign, at + 1)
    return bytes(data)


@pytest.mark.parametrize(
    'spoil, says',
    [
        (lambda d: flagged(d, 6, 8, 1), 'captions.jsonl in .*x.zip cannot be read: .*encrypted'),
        (lambda d: flagged(d, 8, 10, 99), 'captions.jsonl in .*x.zip cannot be read: .*compression method'),
        (lambda d: d.replace(b'red', b'rod', 1), 'captions.jsonl in .*x.zip cannot be read: Bad CRC-32'),
        (lambda d: d.replace(b'IHDR', b'IHDr', 1), 'a.png in .*x.zip cannot be read: Bad CRC-32'),
        (lambda d: d.replace(b'PK\1\2', b'PK\1\3', 1), 'x.zip cannot be read as a zip file'),
        (lambda d: d[:-9], 'x.zip is neither a folder nor a zip file'),
    ],
)
def test_a_spoilt_zip_is_named(spoil, says, tmp_path):
    path = zipped(tmp_path / 'x.zip')
    assert read_data(path, 4).texts == ['red']
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=says):
        read_data(path, 4).pictures[:]


@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_two_files_of_one_name_in_a_zip_are_refused(tmp_path):
    with zipfile.ZipFile(zipped(tmp_path / 'x.zip'), 'a') as z:
        z.writestr('a.png', png('blue'))
    with pytest.raises(ValueError, match='x.zip holds two files called a.png'):
        read_data(tmp_path / 'x.zip', 4)


def test_pictures_decode_only_what_is_asked_for():
    decoded = []

    def read(key):
        decoded.append(key)
        return torch.full((3, 4, 6), key, dtype=torch.uint8)

    p = Pictures(range(100), read, 2)
    assert len(p) == 100 and not decoded
    assert p[10:13][:, 0, 0, 0].tolist() == [10, 11, 12] and sorted(decoded) == [10, 11, 12]
    assert p.take([5, 3])[:][:, 0, 0, 0].tolist() == [5, 3]


# --- the nouns


def test_nouns_are_one_tree():
    up = _noun_parents()
    assert {p for p in up.values()} <= set(_nouns()) and [i for i in _nouns() if i not in up] == ['n00001740']
    assert len(_imagenet_ids()) == 1000 == len(set(_imagenet_ids())) and _imagenet_ids() == sorted(_imagenet_ids())
    names = _noun_names(_imagenet_ids())
    assert len(set(names)) == 1000 and names[0] == 'tench'
    _ancestor_overlap(_imagenet_ids(), up)  # raises at a cycle or a gap


def test_wordnet_measures_by_hand():
    "cat for dog: dog < canine < carnivore > feline > cat, four edges; carnivore and 11 above it in common."
    cat, dog = _find_nouns(['cat', 'dog'])
    depth = lambda i: 1 + (depth(_nouns()[i].up) if _nouns()[i].up else 0)
    up = depth('n02075296')
    got = _tree_metrics(torch.tensor([0]), torch.tensor([1]), _ancestor_overlap([cat, dog], _noun_parents()))
    assert {m.name: m.value for m in got} == dict(
        tree_error=4,
        lca_height=2,
        jaccard=pytest.approx(up / (up + 4)),
        hier_precision=pytest.approx(up / (up + 2)),
        hier_recall=pytest.approx(up / (up + 2)),
    )


def test_unknown_and_ambiguous_names():
    with pytest.raises(KeyError, match="1 of 2 .*'gryphon'"):
        _find_nouns(['dog', 'gryphon'])
    with pytest.raises(ValueError, match="'crane' stands for 2 synsets"):
        _find_nouns(['crane'])
    with pytest.raises(KeyError, match='n00000000'):
        _noun_names(['n00000000'])
    assert _find_nouns(['TENCH']) == ['n01440764']


# --- the table of sets


def test_the_twenty_sets():
    sets = _zeroshot_sets()
    names = """imagenet food101 cifar10 cifar100 cub2011 sun397 cars aircraft dtd pets
        caltech101 flowers102 stl10 eurosat resisc45 country211 mnist clevr pcam sst2"""
    assert list(sets) == names.split()
    for i, e in sets.items():
        assert e['title'] and e['get'] and e['licence'] and len(set(e['prompts'])) == len(e['prompts']) > 1, i
        assert all(p.count('{}') == 1 for p in e['prompts']), i
        assert not [k for k, n in Counter(e.get('labels', ())).items() if n > 1], i
        assert _set_id(i) == i and all(_set_id(a) == i for a in e.get('alias', ()))
    assert (ROOT / 'data' / 'zeroshot' / 'README.md').exists() and 'Princeton' in (
        ROOT / 'data' / 'wordnet' / 'LICENSE.md'
    ).read_text()


def test_torchvision_classes_take_these_arguments():
    import inspect
    import torchvision.datasets as tv

    for i, e in _zeroshot_sets().items():
        if how := e.get('torchvision'):
            for args in (how['test'], how['train'] or {}):
                inspect.signature(getattr(tv, how['name']).__init__).bind(None, 'root', **args)


def test_cifar_has_its_synsets():
    e = _zeroshot_sets()['cifar10']
    assert list(e['synsets']) == e['labels'] and set(e['synsets'].values()) <= set(_nouns())


# --- class names


def test_class_folder(tmp_path):
    home = tmp_path / 'sets'
    for name, count in [('two_words', 2), ('one', 1)]:
        for i in range(count):
            write(home / name / f'{i}.PNG', png())
    write(home / 'one' / 'notes.txt', 'not a picture')
    (home / '.hidden').mkdir()
    task = read_data(home, 4)
    assert task.classes == ['one', 'two words'] and task.targets.tolist() == [0, 1, 1] and task.train is None
    assert task.pictures.keys == ['one/0.PNG', 'two_words/0.PNG', 'two_words/1.PNG'] and survey(home)[0] == [home]
    (home / 'none').mkdir()
    for path in (home, pack(home)):
        with pytest.raises(ValueError, match='none of .* holds no image'):
            _read_class_folder(path, 4)
    with pytest.raises(ValueError, match='no class folders'):
        _read_class_folder(home / 'one', 4)
    with pytest.raises(FileNotFoundError, match='absent'):
        _read_class_folder(home / 'absent', 4)


def test_splits_of_class_folders(tmp_path):
    for part, n in dict(train=3, val=1).items():
        for c in ('10', '9'):
            for i in range(n):
                write(tmp_path / part / c / f'{i}.png', png())
    task = _read_class_folder(tmp_path, 4)
    assert (
        task.classes == ['9', '10'] and task.targets.tolist() == [1, 0] and len(task.train[0]) == 6
    )  # files in order, classes by number
    write(tmp_path / 'other' / '1' / '0.png', png())
    (tmp_path / 'val').rename(tmp_path / 'odd')
    with pytest.raises(ValueError, match='none is called test or val'):
        _read_class_folder(tmp_path, 4)


def test_numbered_folders_take_the_tables_names(tmp_path):
    for i in range(10):
        write(tmp_path / 'mnist_pictures' / 'test' / str(i) / '0.png', png())
    task = _read_class_folder(tmp_path / 'mnist_pictures', 4)
    assert task.classes[0] == 'zero' and task.classes[9] == 'nine' and 'handwritten' in task.prompts[0]
    with pytest.raises(KeyError, match="'zero'"):
        task.synsets()


def test_twin_names_are_refused(tmp_path):
    for name in ('a_b', 'a b'):
        write(tmp_path / name / '0.png', png())
    with pytest.raises(ValueError, match="2 classes called 'a b'"):
        _read_class_folder(tmp_path, 4)


def test_torchvision_layout(tmp_path):
    for kind, colour in dict(AnnualCrop='red', River='blue').items():
        write(tmp_path / 'eurosat' / 'eurosat' / '2750' / kind / '0.png', png(colour))
    task = read_data(tmp_path / 'eurosat', 4)
    assert task.classes == ['annual crops', 'a river'] and task.targets.tolist() == [0, 1] and task.train is None
    assert task.pictures[:][:, :, 0, 0].tolist() == [[255, 0, 0], [0, 0, 255]] and task.used.startswith(
        'data/zeroshot/sets.json; torchvision reads all'
    )
    (tmp_path / 'pcam').mkdir()
    with pytest.raises((RuntimeError, ValueError)):
        read_data(tmp_path / 'pcam', 4)


def test_clever_counts_start_at_three(tmp_path):
    home = tmp_path / 'clevr' / 'clevr' / 'CLEVR_v1.0'
    for split in ('train', 'val'):
        scenes = [dict(image_filename=f'{split}_{n}.png', objects=[{}] * n) for n in (3, 10)]
        write(home / 'scenes' / f'CLEVR_{split}_scenes.json', json.dumps(dict(scenes=scenes)))
        for s in scenes:
            write(home / 'images' / split / s['image_filename'], png())
    task = read_data(tmp_path / 'clevr', 4)
    assert {task.classes[i] for i in task.targets} == {'three', 'ten'} and len(task.train[0]) == 2


def wds(home, labels=(b'1', b'0'), classes='blue\nred\n'):
    tar(
        home / 'test' / '0.tar',
        {
            f'{k}{i}.{s}': d
            for i, (l, c) in enumerate(zip(labels, ('red', 'blue')))
            for k, s, d in (('s', 'png', png(c)), ('s', 'cls', l))
        },
    )
    write(home / 'classnames.txt', classes)
    write(home / 'zeroshot_classification_templates.txt', 'a {c}.\n\nthe {c}\n')
    write(home / 'test' / 'nshards.txt', '1')


def test_webdataset_layout(tmp_path):
    wds(tmp_path / 'wds_x')
    task = read_data(tmp_path / 'wds_x', 4)
    assert task.classes == ['blue', 'red'] and task.prompts == ['a {}.', 'the {}'] and task.targets.tolist() == [1, 0]
    assert task.pictures[:][:, :, 0, 0].tolist() == [[255, 0, 0], [0, 0, 255]] and task.used == 'its own prompts'


@pytest.mark.parametrize(
    'kw, says',
    [
        (dict(labels=(b'2', b'0')), "label '2'"),
        (dict(labels=(b'x', b'0')), "label 'x'"),
        (dict(classes='blue\n'), "label '1'"),
    ],
)
def test_bad_webdataset_labels(tmp_path, kw, says):
    wds(tmp_path / 'd', **kw)
    with pytest.raises(ValueError, match=says):
        _read_wds(tmp_path / 'd', 4)


def test_short_webdatasets(tmp_path):
    wds(tmp_path / 'd')
    write(tmp_path / 'd' / 'test' / 'nshards.txt', '3')
    with pytest.raises(ValueError, match='says 3 shards'):
        _read_wds(tmp_path / 'd', 4)
    tar(tmp_path / 'd' / 'test' / '0.tar', {'s0.png': png()})
    write(tmp_path / 'd' / 'test' / 'nshards.txt', '1')
    with pytest.raises(ValueError, match='0.tar has only png'):
        _read_wds(tmp_path / 'd', 4)
    (tmp_path / 'd' / 'test' / '0.tar').unlink()
    with pytest.raises(FileNotFoundError, match='no tar'):
        _read_wds(tmp_path / 'd', 4)


def test_list_of_tiny_imagenet(tmp_path):
    home = tmp_path / 'tiny'
    write(home / 'images' / 'a.JPEG', png())
    write(home / 'val_annotations.txt', 'a.JPEG\tn02084071\t0\t0\t1\t1\n')
    assert read_data(home, 4).classes == ['dog'] and read_data(home, 4).synsets() == ['n02084071']
    write(home / 'val_annotations.txt', 'a.JPEG\tn02084071\t0\nb.JPEG\tn02084071\t0\n')
    with pytest.raises(ValueError, match='image b.JPEG, which is not there'):
        read_data(home, 4)


# --- captions

SAID = {'a.png': ['one, two', 'three'], 'b.png': ['"four" is said']}


def listings():
    rows = [(f, t, i) for f, ts in SAID.items() for i, t in enumerate(ts)]
    ids = {f: 7 * i + 3 for i, f in enumerate(SAID)}
    return {
        'captions.jsonl': '\n'.join(json.dumps(dict(file=f, captions=t)) for f, t in SAID.items()),
        'annotations/captions_val2017.json': json.dumps(
            dict(
                images=[dict(id=ids[f], file_name=f) for f in SAID],
                annotations=[dict(image_id=ids[f], caption=t) for f, t, _ in rows],
            )
        ),
        'dataset_flickr30k.json': json.dumps(
            dict(
                images=[dict(filename=f, split='test', sentences=[dict(raw=t) for t in ts]) for f, ts in SAID.items()]
                + [dict(filename='not_here.png', split='train', sentences=[dict(raw='x')])]
            )
        ),
        'Flickr8k.token.txt': '\n'.join(f'{f}#{i}\t{t}' for f, t, i in rows),
        'results.csv': 'image_name| comment_number| comment\n' + '\n'.join(f'{f}| {i}| {t}' for f, t, i in rows),
        'captions.txt': 'image,caption\n' + '\n'.join(f'{f},"{t.replace(chr(34), chr(34) * 2)}"' for f, t, _ in rows),
    }


@pytest.mark.parametrize('name', listings())
@pytest.mark.parametrize('zipped', [False, True])
def test_every_caption_layout(tmp_path, name, zipped):
    home = tmp_path / 'set'
    for f, c in zip(SAID, ('red', 'blue')):
        write(home / 'pictures' / f, png(c))
    write(home / name, listings()[name])
    task = read_data(pack(home) if zipped else home, 4)
    assert task.texts == [t for ts in SAID.values() for t in ts] and task.owner.tolist() == [0, 0, 1]
    assert task.pictures[:][:, :, 0, 0].tolist() == [[255, 0, 0], [0, 0, 255]]
    (home / 'pictures' / 'b.png').unlink()
    with pytest.raises(ValueError, match=r'names the image b.png, which is not there \(1 of 2'):
        read_data(home, 4)


def test_test_lists_and_splits(tmp_path):
    for f in SAID:
        write(tmp_path / 'f' / f, png())
    write(tmp_path / 'f' / 'x.token', listings()['Flickr8k.token.txt'])
    write(tmp_path / 'f' / 'Flickr_8k.testImages.txt', 'b.png\n')
    assert read_data(tmp_path / 'f', 4).texts == ['"four" is said']
    write(tmp_path / 'f' / 'Flickr_8k.testImages.txt', 'c.png\n')
    with pytest.raises(ValueError, match='c.png'):
        read_data(tmp_path / 'f', 4)
    write(tmp_path / 'j' / 'a.png', png())
    write(
        tmp_path / 'j' / 'captions.jsonl',
        '{"file": "a.png", "captions": ["x"], "split": "test"}\n{"file": "gone.png", "caption": "y", "split": "train"}',
    )
    assert read_data(tmp_path / 'j', 4).texts == ['x']


@pytest.mark.parametrize(
    'row, says',
    [
        ('{"file": "a.png"}', 'line 1 of captions.jsonl .*lacks'),
        ('{"file": "a.png", "captions": ["", " "]}', 'no caption for a.png'),
        ('', 'names no picture'),
    ],
)
def test_bad_caption_rows(tmp_path, row, says):
    write(tmp_path / 'a.png', png())
    write(tmp_path / 'captions.jsonl', row)
    with pytest.raises(ValueError, match=says):
        _read_table(tmp_path, 4)


def test_some_keeps_captions_with_their_pictures():
    task = Captions(
        'x',
        Pictures(range(10), None, 4),
        [f'{i}{j}' for i in range(10) for j in range(i % 3 + 1)],
        torch.tensor([i for i in range(10) for _ in range(i % 3 + 1)]),
    ).some(4)
    assert task.pictures.keys == [0, 3, 6, 9] and [t[0] for t in task.texts] == [
        str(task.pictures.keys[o]) for o in task.owner
    ]


def test_shards_with_several_captions(tmp_path):
    write_shards(
        [
            Sample(f'{i}', png(c), 'plain', dict(captions=['x', 'y']) if i else {})
            for i, c in enumerate(('red', 'blue'))
        ],
        tmp_path / 's',
    )
    task = read_data(tmp_path / 's', 4)
    assert (
        task.texts == ['plain', 'x', 'y']
        and task.owner.tolist() == [0, 1, 1]
        and task.pictures[:][:, 0, 0, 0].tolist() == [255, 0]
    )


# --- chains


@pytest.mark.parametrize('box', [(0, 6, 20, 14), (5, 0, 15, 20), (0, 0, 20, 20)])
def test_letterbox(box):
    im = Image.new('RGB', (20, 20), 'white')
    im.paste((10, 200, 30), box)
    out = crop_letterbox(torch.from_numpy(np.array(im)).permute(2, 0, 1))
    assert out.shape == (3, box[3] - box[1], box[2] - box[0]) and (out[0] == 10).all()


def test_hierarcaps_numbers_a_text_once_a_level(tmp_path):
    for f in 'abc':
        write(tmp_path / 'images' / f'{f}.png', png())
    rows = [
        dict(file=f'{f}.png', hierarchy=h)
        for f, h in dict(a=['dog', 'dog'], b=['dog', 'big dog'], c=['cat', 'dog']).items()
    ]
    write(tmp_path / 'h.jsonl', '\n'.join(map(json.dumps, rows)))
    task = read_data(tmp_path, 4)
    assert task.texts == ['cat', 'dog', 'big dog', 'dog'] and task.chains.tolist() == [[1, 3], [1, 2], [0, 3]]
    assert task.some(1).texts == ['dog', 'dog']
    write(tmp_path / 'h.jsonl', '\n'.join(map(json.dumps, rows + [dict(file='a.png', hierarchy=['x'])])))
    with pytest.raises(ValueError, match='1, 2 levels'):
        read_data(tmp_path, 4)


# --- what is there


def test_survey_says_how_to_get_what_is_absent(tmp_path):
    write(tmp_path / 'cifar10' / 'test' / 'cat' / '0.png', png())
    write(tmp_path / 'hierarcaps_x' / 'h.jsonl', '{}')
    found, absent = survey(tmp_path)
    assert [p.name for p in found] == ['cifar10', 'hierarcaps_x']
    assert (
        len(absent) == 19 + 3
        and 'CIFAR-10' not in absent
        and 'HierarCaps' not in absent
        and 'torchvision' in absent['MNIST']
    )
    with pytest.raises(FileNotFoundError, match='-p data FOLDER'):
        survey(tmp_path / 'absent')


def test_unknown_layout(tmp_path):
    write(tmp_path / 'x' / 'readme.txt', 'hello')
    with pytest.raises(ValueError, match='no layout that is known'):
        read_data(tmp_path / 'x', 4)


@pytest.mark.parametrize(
    'name, kind, count, classes',
    [
        ('cifar10_test_32.zip', Classification, 10_000, 10),
        ('tiny_imagenet_val_32.zip', Classification, 10_000, 200),
        ('imagenet_samples_1000x1_128.zip', Classification, 1000, 1000),
        ('flickr8k_128_jpg.zip', Captions, 1000, 5000),
        ('hierarcaps_test_1000_256.zip', Chains, 1000, None),
    ],
)
def test_real_data(name, kind, count, classes):
    task = read_data(local(name), 32)
    assert type(task) is kind and len(task.pictures) == count and task.pictures[:4].shape == (4, 3, 32, 32)
    if kind is Classification:
        assert len(task.classes) == classes == len(task.synsets()) == len(set(task.synsets())) and set(
            task.synsets()
        ) <= set(_nouns())
    if kind is Captions:
        assert len(task.texts) == classes
    if kind is Chains:
        assert task.chains.shape == (1000, 4) and crop_letterbox(task.pictures.read(task.pictures.keys[0])).shape[
            1:
        ] < (256, 256)


@pytest.mark.parametrize(
    'images, annotations, says',
    [
        ([dict(id=1, file_name=7)], [dict(image_id=1, caption='a')], 'names the image 7, which is no path'),
        ([dict(id=1, file_name='a.png')], [dict(image_id=[1], caption='a')], 'is not one of COCO: TypeError'),
        ([dict(id=1, file_name='a.png')], [dict(image_id=2, caption='a')], 'for the unlisted image id 2'),
        ([dict(id=1, file_name='a.png')] * 2, [dict(image_id=1, caption='a')], 'one image id to two images'),
        ([dict(id=1, file_name='a.png')], [dict(image_id=1, caption=None)], 'has no caption for a.png'),
    ],
)
def test_a_coco_list_of_another_shape_is_named(images, annotations, says, tmp_path):
    write(tmp_path / 'a.png', png())
    write(tmp_path / 'captions_val2017.json', json.dumps(dict(images=images, annotations=annotations)))
    with pytest.raises(ValueError, match=f'captions_val2017.json of .*{says}'):
        read_data(tmp_path, 4)


def test_clip_benchmarks_layout_names_what_is_wrong(tmp_path):
    write(tmp_path / 'classnames.txt', 'red\n')
    write(tmp_path / 'zeroshot_classification_templates.txt', 'a {c}\n')
    tar(tmp_path / 'test' / '0.tar', {'7.png': b'no picture', '7.cls': b'0'})
    with pytest.raises(ValueError, match='picture 7 of .*0.tar cannot be used: not an image'):
        read_data(tmp_path, 4).pictures[:]
    write(tmp_path / 'test' / 'nshards.txt', b'\xff2')
    with pytest.raises(ValueError, match='nshards.txt says .*2 shards, but there are 1'):
        read_data(tmp_path, 4)
    (tmp_path / 'test' / 'nshards.txt').unlink()
    tar(tmp_path / 'test' / '0.tar', {})
    with pytest.raises(ValueError, match='the tar files of .*test hold no sample'):
        read_data(tmp_path, 4)


def test_senses_of_drawings_are_a_tree_of_known_names():
    "Each row's hypernym stands before it; a drawn name is a concept of the catalogue, in the sense that is drawn."
    lines = (ROOT / 'data/wordnet/senses.tsv').read_text(encoding='utf-8').splitlines()[1:]
    rows = [line.split('\t') for line in lines]
    above, drawn = {}, {}
    for synset, hypernym, names, shown in rows:
        assert hypernym in above or synset == 'n00001740'
        above[synset] = [*above.get(hypernym, []), names]
        drawn |= dict.fromkeys(names.split('|'), synset) if shown else {}
    assert len(rows) == len(above) == 1268 and len(drawn) == 595
    known = {row['name'] for row in emoji_rows(ROOT / 'data/emoji')}
    assert drawn.keys() <= known
    senses = dict(dolphin='whale', hammer='hand tool', mate='beverage', phoenix='mythical being', bank='depository')
    senses |= dict(baseball='ball', peacock='bird', ring='jewelry', fire='combustion', television='receiver')
    for name, hypernym in senses.items():
        assert any(hypernym in text for text in above[drawn[name]]), (name, above[drawn[name]])
