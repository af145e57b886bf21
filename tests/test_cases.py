"""Small inputs that once went wrong without a word, or stopped everything: each with the right value."""

import io
import json
import os
import tarfile
import numpy as np
import pytest
import torch
from PIL import Image
from meru.data.download import make_fetch_config
from meru.data.fetch import fetch, read_pairs
from meru.data.loader import Source
from meru.data.shards import SampleError, Shards, make_manifest
from meru.data.tokenizer import Tokenizer
from meru.evaluation.datasets import read_data
from meru.models.embedding import EmbedConfig, embed, open_rows
from meru.models.mining import sheet_rows
from meru.models.pretrained import Towers

COLOURS = dict(red=(250, 0, 0), green=(0, 250, 0), blue=(0, 0, 250))


def pic(colour='red', kind='PNG'):
    out = io.BytesIO()
    Image.new('RGB', (24, 24), COLOURS[colour]).save(out, kind)
    return out.getvalue()


def seen(pixels):
    mean = pixels.float().mean((1, 2)).numpy()
    return next(k for k, v in COLOURS.items() if np.abs(mean - v).max() < 9)


def fill(folder, files):
    "Write files, whatever bytes their names are."
    for name, data in files.items():
        path = os.fsencode(folder) + b'/' + (name if isinstance(name, bytes) else name.encode())
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'wb') as file:
            file.write(data if isinstance(data, bytes) else data.encode())
    return folder


def lines(*rows):
    return ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)


def tar_bytes(members, form=tarfile.PAX_FORMAT):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w', format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def shards(folder, members, form=tarfile.PAX_FORMAT):
    fill(folder, {'00000.tar': tar_bytes(members, form)})
    make_manifest(folder)
    return Shards(folder)


def pairs(stems):
    return [member for stem in stems for member in ((f'{stem}.png', pic()), (f'{stem}.txt', stem.encode()))]


class Words(torch.nn.Module):
    def forward(self, x):
        return torch.ones(len(x), 4)


def embedded(data, tmp_path):
    towers = Towers(Words(), Words(), Tokenizer(4096, 16), 16, (0.5,) * 3, (0.5,) * 3, 'toy')
    return embed(EmbedConfig(data=str(data), out=str(tmp_path / 'features')), towers)


THREE = {f'{i}.png': pic() for i in range(3)}


# evaluate


def test_e1_two_folders_with_one_base_name_are_two_pictures(tmp_path):
    rows = lines(dict(file='a/1.png', caption='red'), dict(file='b/1.png', caption='green'))
    task = read_data(fill(tmp_path, {'captions.jsonl': rows, 'a/1.png': pic(), 'b/1.png': pic('green')}), 8)
    assert [seen(o) for o in task.pictures[0:2]] == ['red', 'green']


def test_e2_coco_takes_its_own_folder(tmp_path):
    listing = dict(images=[dict(id=1, file_name='0.png')], annotations=[dict(image_id=1, caption='green')])
    files = {'annotations/captions_val2017.json': json.dumps(listing), 'val2017_small/0.png': pic()}
    with pytest.raises(ValueError, match='names the image val2017/0.png, which is not there'):
        read_data(fill(tmp_path / 'b', files | {'val2017/1.png': pic()}), 8)
    task = read_data(fill(tmp_path / 'a', files | {'val2017/0.png': pic('green')}), 8)
    assert [seen(o) for o in task.pictures[0:1]] == ['green']


def test_e3_another_folders_picture_does_not_replace_a_missing_one(tmp_path):
    rows = lines(dict(file='train/1.png', caption='red'))
    with pytest.raises(ValueError, match='names the image train/1.png, which is not there'):
        read_data(fill(tmp_path, {'captions.jsonl': rows, 'thumbs/1.png': pic('green')}), 8)


def test_e4_five_lines_for_one_picture_are_five_captions(tmp_path):
    rows = [dict(file='0.png', caption=f'c {i}') for i in range(5)] + [dict(file='1.png', caption='x')]
    task = read_data(fill(tmp_path, {'captions.jsonl': lines(*rows)} | THREE), 8)
    assert task.texts == ['c 0', 'c 1', 'c 2', 'c 3', 'c 4', 'x'] and task.owner.tolist() == [0] * 5 + [1]


def test_e5_captions_red_is_one_caption(tmp_path):
    rows = lines(dict(file='0.png', captions='red'))
    assert read_data(fill(tmp_path, {'captions.jsonl': rows} | THREE), 8).texts == ['red']


@pytest.mark.parametrize('caption', [None, float('nan'), {'en': 'red'}, 7, 'red \ud83d', ' '])
def test_e6_a_caption_that_is_none_is_named(caption, tmp_path):
    rows = json.dumps(dict(file='0.png', caption=caption))
    with pytest.raises(ValueError, match='captions.jsonl'):
        read_data(fill(tmp_path, {'captions.jsonl': rows} | THREE), 8)


def test_e7_separators_within_a_line_are_no_line_ends(tmp_path):
    rows = lines(dict(file='0.png', caption='red\u2028round'), dict(file='1.png', caption='gr\x85een'))
    assert read_data(fill(tmp_path, {'captions.jsonl': rows} | THREE), 8).texts == ['red\u2028round', 'gr\x85een']


def test_e8_flickr30k_with_its_broken_row(tmp_path):
    text = 'image_name| comment_number| comment\n0.png| 0| red\n0.png| 4   A dog runs across the grass .\n'
    assert read_data(fill(tmp_path, {'results.csv': text} | THREE), 8).texts == ['red', 'A dog runs across the grass .']


@pytest.mark.parametrize('packed', [False, True])
def test_e9_clip_benchmarks_layout_keeps_equal_names_apart(packed, tmp_path):
    import gzip

    data = tar_bytes(pairs(['a/s', 'b/s', 'c/s']))
    tar = {'test/0.tar.gz': gzip.compress(data)} if packed else {'test/0.tar': data}
    task = read_data(fill(tmp_path, {'dataset_type.txt': 'retrieval'} | tar), 8)
    assert task.texts == ['a/s', 'b/s', 'c/s'] and [seen(o) for o in task.pictures[:]] == ['red'] * 3


def test_e10_a_linked_folder_of_pictures(tmp_path):
    fill(tmp_path / 'd', {'captions.jsonl': lines(dict(file='img/0.png', caption='red'))})
    os.symlink(fill(tmp_path / 'elsewhere', {'0.png': pic()}), tmp_path / 'd/img')
    assert read_data(tmp_path / 'd', 8).texts == ['red']


def test_e11_captions_of_a_shard_that_are_a_text(tmp_path):
    shards(tmp_path, [*pairs(['0']), ('0.json', b'{"captions": "ab"}')])
    assert read_data(tmp_path, 8).texts == ['ab']


# shards


def test_s1_dots_in_a_key_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="22.05.png belongs to sample '22'"):
        shards(tmp_path, pairs(['22.05', '22.06', 'x']))


@pytest.mark.parametrize('form', [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_s2_long_names(form, tmp_path):
    stems = ['n' * 120 + '0', 'n' * 120 + '1', 'x', 'f.1/' + 'm' * 150]
    found = shards(tmp_path, pairs(stems), form)
    assert [(o.key, o.caption) for o in found] == [(o, o) for o in stems]


def test_s3_names_that_posix_lays_in_two_fields(tmp_path):
    stem = 'folder' * 15 + '/' + 'name' * 20
    assert [o.key for o in shards(tmp_path, pairs([stem]), tarfile.USTAR_FORMAT)] == [stem]


def test_s4_one_base_name_in_three_folders(tmp_path):
    assert [o.key for o in shards(tmp_path, pairs(['a/1', 'b/1', 'c/1']))] == ['a/1', 'b/1', 'c/1']


def test_s5_members_of_two_folders_are_no_pair(tmp_path):
    found = shards(tmp_path, [('a/1.png', pic()), ('b/1.txt', b'other')])
    source = Source(found)
    assert len(found) == 2 and [source.try_get(i) for i in range(2)] == [None, None]
    assert source.damaged == {0: 'no_caption', 1: 'no_image'}


@pytest.mark.parametrize('meta', [b'[' * 200_000, b'["a"]', b'7', b'{"a": ', b'null'])
def test_s6_s7_json_of_another_shape_costs_its_sample(meta, tmp_path):
    with pytest.raises(SampleError) as e:
        Source(shards(tmp_path, [*pairs(['0']), ('0.json', meta)]), levels=2)[0]
    assert e.value.reason == 'bad_json'


def test_s8_two_archives_in_one_file(tmp_path):
    data = tar_bytes(pairs('abc'))
    fill(tmp_path, {'00000.tar': data + data})
    make_manifest(tmp_path)
    assert [o.caption for o in Shards(tmp_path)] == ['a', 'b', 'c'] * 2


def test_s9_the_mirror_keeps_equal_names_apart(tmp_path):
    from meru.data.fetch import _mirror_rows

    rows = _mirror_rows(io.BytesIO(tar_bytes(pairs(['a/1', 'b/1', 'c/1']))), 'x.tar')
    assert [(o['url'], o['caption'], o['problem']) for o in rows] == [(o, o, None) for o in ('a/1', 'b/1', 'c/1')]


def test_s10_members_need_not_be_adjacent(tmp_path):
    members = pairs('abc')
    found = shards(tmp_path, members[::2] + members[1::2])
    assert [o.caption for o in found] == ['a', 'b', 'c']


def test_s11_two_members_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match='two members are called 0.txt'):
        shards(tmp_path, pairs(['0', '0']))
    with pytest.raises(ValueError, match='sample 0 has several: png, jpg'):
        shards(tmp_path, [*pairs(['0']), ('0.jpg', pic(kind='JPEG'))])


def test_s12_a_packed_shard_is_refused_by_name(tmp_path):
    fill(tmp_path, {'00000.tar': tar_bytes(pairs('a')), '00001.tar.gz': b''})
    with pytest.raises(ValueError, match='00001.tar.gz in .* is compressed'):
        make_manifest(tmp_path)


# tables and folders


def test_t1_a_tsv_caption_that_opens_with_a_quote(tmp_path):
    text = 'file\tcaption\n0.png\t"Oh no, said the dog\n1.png\tb\n2.png\tc"\n'
    cache = embedded(fill(tmp_path, {'t.tsv': text} | THREE) / 't.tsv', tmp_path)
    assert cache.captions == ['"Oh no, said the dog', 'b', 'c"']


def test_t2_a_quote_that_never_closes_takes_no_line_along(tmp_path):
    text = 'file,caption\n0.png,"a\n1.png,b\n2.png,c\n'
    assert embedded(fill(tmp_path, {'t.csv': text} | THREE) / 't.csv', tmp_path).captions == ['"a', 'b', 'c']


def test_t3_ten_thousand_lines_behind_an_open_quote(tmp_path):
    text = 'file,caption\n0.png,"a' + '\n1.png,b' * 10_000
    rows = open_rows(EmbedConfig(data=str(fill(tmp_path, {'t.csv': text} | THREE) / 't.csv'), out='x'))
    assert {k: len(o.captions) for k, o in rows.entries.items()} == {'0.png': 1, '1.png': 10_000}


def test_t3_a_field_of_200_000_characters(tmp_path):
    fill(tmp_path, {'t.csv': 'file,caption\n0.png,' + 'a' * 200_000 + '\n'} | THREE)
    assert len(open_rows(EmbedConfig(data=str(tmp_path / 't.csv'), out='x'))[0].captions[0]) == 200_000


def test_t4_a_csv_of_excel_has_semicolons(tmp_path):
    "As it writes them where the comma is for decimals, with a byte order mark and quotes."
    fill(tmp_path, {'t.csv': '\ufeff"file";caption\r\n0.png;"a, b; c"\r\n1.png;d\r\n'} | THREE)
    assert embedded(tmp_path / 't.csv', tmp_path).captions == ['a, b; c', 'd']


def test_t4_a_csv_with_other_separators_is_refused(tmp_path):
    separator = '\t'
    fill(
        tmp_path,
        {'t.csv': separator.join(('caption', 'url')) + '\n' + separator.join(('a', 'http://a.example')) + '\n'},
    )
    with pytest.raises(ValueError, match=r't\.csv separates its columns by'):
        list(read_pairs(tmp_path / 't.csv', 'url', 'caption', 'caption,url'))
    fill(
        tmp_path, {'t.csv': separator.join(('file', 'caption')) + '\n' + separator.join(('0.png', 'a')) + '\n'} | THREE
    )
    with pytest.raises(ValueError, match=r't\.csv separates its columns by'):
        embedded(tmp_path / 't.csv', tmp_path)


def test_t5_a_null_within_a_list_of_captions(tmp_path):
    fill(tmp_path, {'t.jsonl': lines(dict(file='0.png', caption=['a', None, 'b']))} | THREE)
    assert embedded(tmp_path / 't.jsonl', tmp_path).captions == ['a', 'b']


def test_t6_t7_a_caption_that_is_none_costs_its_picture(tmp_path):
    rows = (
        '{"file": "0.png", "caption": NaN}\n{"file": "1.png", "caption": "b"}\n{"file": "2.png", "caption": "\\ud83d"}'
    )
    cache = embedded(fill(tmp_path, {'t.jsonl': rows} | THREE) / 't.jsonl', tmp_path)
    assert cache.keys == ['1.png'] and cache.info['damaged'] == {'no_caption': 2}
    assert cache.info['noted'] == {'bad_text': {'count': 1, 'example': 'line 3 of t.jsonl'}}


def test_t8_a_name_that_is_not_utf8_is_counted(tmp_path):
    files = {b'caf\xe9.png': pic(), b'caf\xe9.txt': 'a', 'ok.png': pic(), 'ok.txt': 'b'}
    cache = embedded(fill(tmp_path / 'in', files), tmp_path)
    assert cache.keys == ['ok.png'] and cache.info['left_out']['name_not_utf8']['count'] == 2
    assert cache.info['left_out']['name_not_utf8']['example'] in ('caf\\xe9.png', 'caf\\xe9.txt')
    books = fetch(tmp_path / 'out', make_fetch_config(pairs=str(tmp_path / 'in'), processes=1))['books']
    assert (books['rows'], books['stored'], books['malformed']) == (3, 1, 2)


def test_t10_t11_texts_in_every_encoding(tmp_path):
    texts = {'a': 'a dog'.encode('utf-16'), 'b': '\ufeffred'.encode(), 'c': 'café'.encode('latin-1'), 'd': b'b\0a\0d\0'}
    files = {f'{k}.png': pic() for k in texts} | {f'{k}.txt': o for k, o in texts.items()}
    cache = embedded(fill(tmp_path / 'in', files), tmp_path)
    assert cache.captions == ['a dog', 'red', 'café'] and cache.info['damaged'] == {'no_caption': 1}
    assert {k: o['example'] for k, o in cache.info['noted'].items()} == {'read_as_latin1': 'c.txt', 'bad_text': 'd.txt'}


def test_t12_a_linked_folder_within_the_folder(tmp_path):
    fill(tmp_path / 'in', {'a.png': pic(), 'a.txt': 'a'})
    os.symlink(fill(tmp_path / 'real', {'b.png': pic(), 'b.txt': 'b'}), tmp_path / 'in/more')
    os.symlink(tmp_path / 'in', tmp_path / 'real/loop')
    cache = embedded(tmp_path / 'in', tmp_path)
    assert cache.keys == ['a.png', 'more/b.png'] and cache.captions == ['a', 'b']
    assert cache.info['left_out'] == {'linked_again': {'count': 1, 'example': 'more/loop'}}


def test_t13_a_text_beside_no_picture_is_a_missing_file(tmp_path):
    fill(tmp_path / 'in', {'a.png': pic(), 'a.txt': 'a', 'b.txt': 'b'})
    books = fetch(tmp_path / 'out', make_fetch_config(pairs=str(tmp_path / 'in'), processes=1))['books']
    assert books['failed'] == {'missing_file': 1}


def test_t14_three_lines_beside_a_picture_are_three_captions_in_every_door(tmp_path):
    fill(tmp_path / 'in', {'a.png': pic(), 'a.txt': 'red\nrot\nrouge\n'})
    fetch(tmp_path / 'out', make_fetch_config(pairs=str(tmp_path / 'in'), processes=1))
    sample = Shards(tmp_path / 'out')[0]
    assert sample.caption == 'red' and sample.meta['captions'] == ['red', 'rot', 'rouge']
    three = ['red', 'rot', 'rouge']
    assert read_data(tmp_path / 'out', 8).texts == three == embedded(tmp_path / 'in', tmp_path).captions
    assert open_rows(EmbedConfig(data=str(tmp_path / 'out'), out='x'))[0].captions == three


def test_t16_two_of_two_hundred_pictures_are_shown(tmp_path):
    table = 'file,caption\n' + ''.join(f'{i}.png,x {i}\n' for i in range(200))
    fill(tmp_path, {'37.png': pic(), '38.png': pic('blue'), 't.csv': table})
    pictures, captions = sheet_rows(open_rows(EmbedConfig(data=str(tmp_path / 't.csv'), out='x')), 24)
    assert [seen(o) for o in pictures] == ['red', 'blue'] and captions == ['x 37', 'x 38']


def test_t16_no_picture_at_all_is_an_error(tmp_path):
    fill(tmp_path, {'t.csv': 'file,caption\n0.png,x\n'})
    with pytest.raises(ValueError, match='none of 1 rows'):
        sheet_rows(open_rows(EmbedConfig(data=str(tmp_path / 't.csv'), out='x')), 24)


def test_t17_a_comma_too_many_costs_its_row(tmp_path):
    fill(tmp_path, {'t.csv': 'file,caption\n0.png,a red, round thing\n1.png,b\n'} | THREE)
    cache = embedded(tmp_path / 't.csv', tmp_path)
    assert cache.captions == ['b'] and cache.info['left_out'] == {'bad_row': {'count': 1, 'example': 'line 2 of t.csv'}}


def test_one_picture_in_a_folder(tmp_path):
    fill(tmp_path, {'a/0.png': pic(), 'captions.jsonl': lines(dict(file='0.png', caption='red'))})
    assert read_data(tmp_path, 8).texts == ['red'] and len(embedded(tmp_path, tmp_path / 'x').keys) == 1


@pytest.mark.parametrize('levels', ['null', '"ab"', '["a"]', '["a", 7]', '["a", " "]', '{"a": 1, "b": 2}', '3'])
def test_levels_of_another_shape_cost_their_sample(levels, tmp_path):
    meta = f'{{"levels": {levels}}}'.encode()
    source = Source(shards(tmp_path, [*pairs('ab'), ('a.json', meta), ('b.json', b'{"levels": ["x", "y"]}')]), levels=2)
    assert source.try_get(0) is None and source.damaged == {0: 'no_levels'} and source.try_get(1).caption == 'b'
