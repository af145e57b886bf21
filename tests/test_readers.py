"""Texts, tables, tars and folders: the same bytes mean the same rows in every door, and what is left out is counted."""

import csv
import io
import json
import os
import shutil
import tarfile
import pyarrow
import pyarrow.parquet
import pytest
from pathlib import Path
from hypothesis import given, settings, strategies as st
from meru.data.download import make_fetch_config
from meru.data.fetch import fetch
from meru.data.image_text import (
    FileRows,
    PathIndex,
    find_paths,
    read_folder,
    read_listing,
    read_table,
    read_texts,
    walk_files,
)
from meru.data.shards import SampleError, Shards
from meru.data.tables import _TableColumns, _table_rows
from meru.data.tar_samples import ShardError, open_tar, _tar_members, tar_samples
from meru.data.text_files import LeftOut, caption_texts, decode_text, json_lines, split_lines, _text_lines
from meru.evaluation.datasets import holds_one, read_data
from test_cases import fill, lines, pic, seen, tar_bytes

COLUMNS = _TableColumns((('file', 'path'), ('caption', 'captions')), free=('caption',))
WORDS = st.text(st.characters(exclude_categories=['Cs', 'Cc']), min_size=1).filter(str.strip)


def rows_of(name, data):
    return list(_table_rows(io.BytesIO(data), name, COLUMNS))


# texts


@given(WORDS, st.sampled_from(['utf-8', 'utf-8-sig', 'utf-16', 'utf-32']))
def test_a_text_in_any_marked_encoding_comes_back(text, codec):
    assert decode_text(text.encode(codec)).text == text.removeprefix('\ufeff') or codec == 'utf-8'
    assert ''.join(_text_lines(io.BytesIO(text.encode(codec)))) in (text, text.removeprefix('\ufeff'))


def test_windows_quotes_and_accents():
    assert decode_text(b'\x93caf\xe9\x94') == ('“café”', True)
    assert decode_text(b'\x81') == ('\x81', True)


@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_lines_end_as_files_end_them(end):
    text = end.join(['a\u2028b', 'c\x85d', 'e\x0bf'])
    assert split_lines(text) == [o.strip('\r\n') for o in _text_lines(io.BytesIO(text.encode()))]
    assert len(split_lines(text)) == 3


def test_one_bad_byte_costs_no_other_line_its_accents():
    noted = LeftOut()
    assert list(_text_lines(io.BytesIO('é\n'.encode() + b'\xe9\n' + 'é'.encode()), noted)) == ['é\n', 'é\n', 'é']
    assert noted.counts == {'read_as_latin1': 1} and noted.examples == {'read_as_latin1': 'line 2'}


def test_json_lines_of_every_kind_of_fault():
    data = '\ufeff{"a": 1}\n[1]\n' + '[' * 200_000 + '\n{"a": \n\n"x"\n' + '1' * 5000
    found = list(json_lines(io.BytesIO(data.encode())))
    assert [o.number for o in found] == [1, 2, 3, 4, 6, 7]
    assert [bool(o.problem) for o in found] == [False, False, True, True, False, True]


# tables


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5))
def test_what_a_program_writes_is_what_is_read(pairs):
    want = [dict(file=a, caption=b) for a, b in pairs]
    text = io.StringIO(newline='')
    csv.writer(text).writerows([('file', 'caption'), *pairs])
    parquet = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(want), parquet)
    files = {
        't.csv': text.getvalue().encode(),
        't.jsonl': '\n'.join(map(json.dumps, want)).encode(),
        't.json': json.dumps(want).encode(),
        't.parquet': parquet.getvalue(),
    }
    for name, data in files.items():
        assert [(o.values, o.problem) for o in rows_of(name, data)] == [(o, '') for o in want], name


def test_a_tsv_that_is_quoted_throughout():
    data = b'"file"\t"caption"\n"0.png"\t"a ""red"" one"\n"1.png"\t"two\tparts"\n'
    assert [o.values['caption'] for o in rows_of('t.tsv', data)] == ['a "red" one', 'two\tparts']


def test_every_row_is_a_row_or_a_problem():
    text = b'file,caption\n0.png,a\n1.png\n\n2.png,b,c\n3.png,"d\ne"\n4.png,"f" g\n5.png,"h\n'
    assert [(o.number, o.problem) for o in rows_of('t.csv', text)] == [
        (2, ''),
        (3, 'bad_row'),
        (5, 'bad_row'),
        (6, ''),
        (8, ''),
        (9, ''),
    ]


@pytest.mark.parametrize('name', ['t.csv', 't.tsv', 't.jsonl', 't.json', 't.parquet'])
def test_nothing_is_no_row_or_a_named_error(name):
    try:
        assert rows_of(name, b'') == []
    except ValueError as e:
        assert str(e).startswith(name)


@pytest.mark.parametrize(
    'value, texts',
    [
        ('red', ['red']),
        (['a', None, ' b ', '', float('nan')], ['a', 'b']),
        (None, []),
        (float('nan'), []),
        (3, []),
        ({'en': 'a'}, []),
        (['a', ['b']], ['a']),
        ('half \ud800', []),
        ('null \0', []),
    ],
)
def test_captions_of_a_cell(value, texts):
    assert caption_texts(value) == texts


def same_table(folder):
    "One table in every format, with one fault of each kind that all of them can have."
    pairs = [('0.png', 'a'), ('1.png', 'b, "c"'), ('0.png', 'd'), ('', 'nobody'), ('2.png', ''), ('gone.png', 'e')]
    rows = [dict(file=a, caption=b) for a, b in pairs]
    with open(folder / 't.csv', 'w', newline='') as f:
        csv.writer(f).writerows([('file', 'caption'), *pairs])
    (folder / 't.tsv').write_text('\n'.join('\t'.join(o) for o in [('file', 'caption'), *pairs]))
    (folder / 't.jsonl').write_text(lines(*rows))
    (folder / 't.json').write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / 't.parquet')
    return ['t.csv', 't.tsv', 't.jsonl', 't.json', 't.parquet']


def test_the_same_table_is_the_same_in_every_format(tmp_path):
    fill(tmp_path, {f'{i}.png': pic() for i in range(3)})
    found = [read_table(tmp_path / o) for o in same_table(tmp_path)]
    assert len({o.id for o in found}) == 1 and {str(o.left_out.counts) for o in found} == {"Counter({'no_file': 1})"}
    assert {k: o.captions for k, o in found[0].entries.items()} == {
        '0.png': ['a', 'd'],
        '1.png': ['b, "c"'],
        '2.png': [],
        'gone.png': ['e'],
    }


@pytest.mark.parametrize('kind', ['csv', 'tsv', 'jsonl', 'json', 'parquet'])
def test_the_same_table_is_the_same_in_every_door(kind, tmp_path):
    home = fill(tmp_path / 'in', {f'{i}.png': pic() for i in range(3)})
    same_table(home)
    (home / f't.{kind}').rename(home / f'captions.{kind}')
    rows, folder = read_table(home / f'captions.{kind}'), read_folder(home)
    assert rows.id == folder.id
    cfg = make_fetch_config(pairs=str(home / f'captions.{kind}'), processes=1)
    books = fetch(tmp_path / 'out', cfg)['books']
    assert (books['rows'], books['malformed'], books['stored']) == (5, 1, 2)
    assert books['failed'] == dict(no_caption=1, missing_file=1)
    with pytest.raises(ValueError, match=f'captions.{kind}'):
        read_data(home, 8)


@pytest.mark.parametrize('kind', ['csv', 'tsv', 'jsonl', 'json', 'parquet'])
def test_evaluate_reads_every_table(kind, tmp_path):
    pairs = [('a/1.png', 'red'), ('b/1.png', 'green'), ('a/1.png', 'a red one')]
    fill(tmp_path, {'a/1.png': pic('red'), 'b/1.png': pic('green')})
    rows = [dict(file=a, caption=b) for a, b in pairs]
    text = {',': 'csv', '\t': 'tsv'}
    if kind in text.values():
        sep = next(k for k, v in text.items() if v == kind)
        (tmp_path / f'captions.{kind}').write_text('\n'.join(sep.join(o) for o in [('file', 'caption'), *pairs]))
    elif kind == 'parquet':
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / 'captions.parquet')
    else:
        (tmp_path / f'captions.{kind}').write_text(lines(*rows) if kind == 'jsonl' else json.dumps(rows))
    task = read_data(tmp_path, 8)
    assert task.texts == ['red', 'a red one', 'green'] and task.owner.tolist() == [0, 0, 1]
    assert [seen(o) for o in task.pictures[:]] == ['red', 'green']


PHOTOS = {'labels.csv': 'image,text\nin/1.png,"red, all"\nin/2.png,green\nin/1.png,a red one\n'}
PHOTOS['pairs.tsv'] = 'in/1.png\tred, all\nin/2.png\tgreen\nin/1.png\ta red one\n'
PHOTOS['words.txt'] = 'path\ttitle\n1.png\tred, all\n2.png\tgreen\n1.png\ta red one\n'
PHOTOS['beside'] = {'in/1.txt': 'red, all\na red one\n', 'in/2.txt': 'green', 'about.txt': 'taken in spring'}


@pytest.mark.parametrize('layout', PHOTOS)
@pytest.mark.parametrize('zipped', [False, True])
def test_evaluate_finds_the_captions_that_every_command_finds(layout, zipped, tmp_path):
    files = PHOTOS[layout] if layout == 'beside' else {layout: PHOTOS[layout]}
    folder = tmp_path / 'mine'
    fill(folder, {'in/1.png': pic('red'), 'in/2.png': pic('green'), 'in/3.png': pic('blue')} | files)
    rows = read_folder(folder)
    captions = {file: o.captions for file, o in rows.entries.items() if o.captions and file.endswith('.png')}
    assert captions == {'in/1.png': ['red, all', 'a red one'], 'in/2.png': ['green']}
    if zipped:
        folder = shutil.make_archive(str(tmp_path / 'packed'), 'zip', folder)
    task = read_data(folder, 8)
    assert task.pictures.keys == list(captions) and task.texts == sum(captions.values(), [])
    assert holds_one(Path(folder)) and [seen(o) for o in task.pictures[:]] == ['red', 'green']


def test_two_tables_are_an_error_of_evaluate_too(tmp_path):
    both = {'a.csv': 'file,caption\n0.png,red', 'b.csv': 'file,caption\n0.png,green'}
    fill(tmp_path, {'0.png': pic()} | both)
    with pytest.raises(ValueError, match='two tables of captions, a.csv and b.csv: rename the one that is meant'):
        read_data(tmp_path, 8)


# pictures by their path

CAPTIONS = {'x/1.png': 'red', 'y/1.png': 'green'}
LISTS = {
    'captions.jsonl': lambda names: lines(*(dict(file=f, captions=[c]) for f, c in names.items())),
    'captions_val2017.json': lambda names: json.dumps(
        dict(
            images=[dict(id=i, file_name=f) for i, f in enumerate(names)],
            annotations=[dict(image_id=i, caption=c) for i, c in enumerate(names.values())],
        )
    ),
    'dataset_coco.json': lambda names: json.dumps(
        dict(
            images=[
                dict(
                    filepath=f.rpartition('/')[0], filename=f.rpartition('/')[2], split='test', sentences=[dict(raw=c)]
                )
                for f, c in names.items()
            ]
        )
    ),
    'flickr.token': lambda names: '\n'.join(f'{f}#0\t{c}' for f, c in names.items()),
    'results.csv': lambda names: (
        'image_name| comment_number| comment\n' + '\n'.join(f'{f}| 0| {c}' for f, c in names.items())
    ),
    'h.jsonl': lambda names: lines(*(dict(file=f, hierarchy=['patch', c]) for f, c in names.items())),
}


@pytest.mark.parametrize('layout', LISTS)
@pytest.mark.parametrize('above', ['', 'images/'])
def test_equal_base_names_are_two_pictures_in_every_layout(layout, above, tmp_path):
    fill(tmp_path, {layout: LISTS[layout](CAPTIONS)} | {f'{above}{f}': pic(c) for f, c in CAPTIONS.items()})
    assert [seen(o) for o in read_data(tmp_path, 8).pictures[:]] == ['red', 'green']


@pytest.mark.parametrize('layout', LISTS)
def test_a_missing_picture_is_named_in_every_layout(layout, tmp_path):
    fill(tmp_path, {layout: LISTS[layout](CAPTIONS), 'x/1.png': pic(), 'z/1.png': pic('blue')})
    with pytest.raises(ValueError, match=r'1.png, which is not there|1.png may be'):
        read_data(tmp_path, 8)


@pytest.mark.parametrize('layout', LISTS)
def test_a_bare_name_that_fits_two_pictures_is_an_error_in_every_layout(layout, tmp_path):
    fill(tmp_path, {layout: LISTS[layout]({'1.png': 'red'}), 'x/1.png': pic(), 'y/1.png': pic()})
    with pytest.raises(ValueError, match='1.png may be x/1.png or y/1.png'):
        read_data(tmp_path, 8)


def test_lists_of_another_machine():
    files = PathIndex(['images/a/1.png', 'images/b/1.png', '2.png'])
    assert files.find('/home/me/images/a/1.png') == 'images/a/1.png'
    assert files.find('D:\\set\\images\\b\\1.png') == 'images/b/1.png'
    assert files.find('b/1.png') == 'images/b/1.png' and files.find('./2.png') == '2.png'
    assert files.find('/home/me/a/2.png') is None and files.find('') is None


def test_two_names_do_not_share_a_file():
    found = find_paths(['u/1.png', 'v/1.png'], PathIndex(['1.png']))
    assert found.paths == {} and len(found.ambiguous) == 2


@pytest.mark.parametrize('data', ['[]', '{}', '{"images": 3}', '{"images": [3], "annotations": []}', '[' * 10**5, ''])
@pytest.mark.parametrize('name', ['captions_val2017.json', 'dataset_coco.json'])
def test_json_of_another_shape_is_named(name, data, tmp_path):
    with pytest.raises(ValueError, match=name):
        read_data(fill(tmp_path, {name: data, '0.png': pic()}), 8)


# folders


def test_a_folder_without_permission_is_counted_and_named(tmp_path, monkeypatch):
    fill(tmp_path, {'open/0.png': pic(), 'open/0.txt': 'a', 'shut/1.png': pic()})
    scandir = os.scandir

    def refusing(path):
        if str(path).rstrip('/').endswith('shut'):
            raise PermissionError(13, 'Permission denied')
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', refusing)
    rows = read_folder(tmp_path)
    assert rows.files == ['open/0.png'] and rows.left_out.record() == {
        'unreadable_folder': {'count': 1, 'example': 'shut/: Permission denied'}
    }
    with pytest.raises(ValueError, match='cannot be read whole: unreadable_folder, shut/'):
        read_data(tmp_path, 8)


def test_links_in_circles_end(tmp_path):
    fill(tmp_path, {'a/0.png': pic(), 'b/1.png': pic()})
    for here, there in (('a/up', '..'), ('a/b', '../b'), ('b/a', '../a'), ('gone', 'nowhere')):
        os.symlink(there, tmp_path / here)
    walk = walk_files(tmp_path)
    assert walk.files == ['a/0.png', 'b/1.png'] and walk.left_out.counts == {'linked_again': 3, 'broken_link': 1}


def test_hashes_are_kept_while_size_and_time_stand(tmp_path, monkeypatch):
    fill(tmp_path, {f'{i}.png': pic() for i in range(5)})
    rows = read_folder(tmp_path, uncaptioned=True)
    first, stamps = rows.id, rows.hashes.stamps
    again = read_folder(tmp_path, uncaptioned=True)
    again.hashes.stamps = dict(stamps)
    monkeypatch.setattr('meru.data.image_text.file_sha256', lambda path: pytest.fail(f'{path} was read'))
    assert again.id == first
    monkeypatch.undo()
    fill(tmp_path, {'3.png': pic('blue')})
    os.utime(tmp_path / '3.png', ns=(1, 1))
    third = read_folder(tmp_path, uncaptioned=True)
    third.hashes.stamps = dict(stamps)
    assert third.id == read_folder(tmp_path, uncaptioned=True).id != first


def test_a_file_of_texts(tmp_path):
    noted = LeftOut()
    fill(
        tmp_path,
        {'a.txt': 'red\u2028round\r\n\r\nblue\r\n'.encode('utf-16'), 'b.jsonl': '{"text": ["a", null, 3]}\n"b"'},
    )
    assert read_texts(tmp_path / 'a.txt') == ['red\u2028round', 'blue']
    assert read_texts(tmp_path / 'b.jsonl', noted) == ['a', 'b'] and noted.counts == {'caption_not_text': 1}
    with pytest.raises(FileNotFoundError, match='there is no file of texts'):
        read_texts(tmp_path / 'c.txt')
    with pytest.raises(ValueError, match='holds no text'):
        read_texts(fill(tmp_path, {'d.txt': b'a\0b'}) / 'd.txt')


def test_columns_of_other_names(tmp_path):
    fill(tmp_path, {'0.png': pic(), 't.csv': 'image,text,split\n0.png,a,test\n'})
    rows = read_table(tmp_path / 't.csv', 'image', 'text')
    assert isinstance(rows, FileRows) and rows[0].captions == ['a'] and rows[0].split == 'test'
    listing = read_listing(io.BytesIO(b'file_name,captions\n0.png,a\n'), 't.csv')
    assert listing.captions == {'0.png': ['a']}


# tars


def test_a_tar_with_a_file_of_more_than_eight_gigabytes():
    info = tarfile.TarInfo('big.jpg')
    info.size = 2**33 + 5
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        walk = _tar_members(io.BytesIO(info.tobuf(form)), 'x.tar')
        assert next(walk).size == 2**33 + 5
        with pytest.raises(ShardError, match='truncated'):
            next(walk)


@pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_a_picture_that_is_a_link_is_told(kind):
    info = tarfile.TarInfo('0.png')
    info.type, info.linkname = kind, '/etc/passwd'
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w') as tar:
        tar.addfile(info)
    assert tar_samples(out, 'x.tar')[0].problem == '0.png is no plain file'


def test_an_archive_that_unpacks_to_much_more_than_it_is(tmp_path):
    import gzip

    (tmp_path / 'x.tar.gz').write_bytes(gzip.compress(bytes(2**27)))
    with pytest.raises(ShardError, match='much more than it is'):
        open_tar(tmp_path / 'x.tar.gz')


def test_every_member_of_a_foreign_shard_is_stored_or_counted(tmp_path):
    from meru.data.fetch import _mirror_rows

    members = [
        ('a/1.png', pic()),
        ('a/1.txt', b'a'),
        ('b.1.png', pic()),
        ('c.npy', b''),
        ('d.txt', b'\0'),
        ('e.png', pic()),
    ]
    rows = _mirror_rows(io.BytesIO(tar_bytes(members)), 'x.tar')
    assert [(o['url'], o['caption'], o['problem']) for o in rows] == [
        ('a/1', 'a', None),
        ('b', '', 'odd_members'),
        ('c', '', None),
        ('d', '', 'bad_text'),
        ('e', '', None),
    ]


def test_shards_know_their_samples_by_whole_paths(tmp_path):
    from meru.data.shards import make_manifest

    fill(
        tmp_path,
        {
            '00000.tar': tar_bytes(
                [('v1.5/0.png', pic()), ('v1.5/0.txt', b'a'), ('v2/0.png', pic('blue')), ('v2/0.txt', b'b')]
            )
        },
    )
    make_manifest(tmp_path)
    assert [(o.key, o.caption) for o in Shards(tmp_path)] == [('v1.5/0', 'a'), ('v2/0', 'b')]


def test_a_row_of_empty_fields_is_a_row_and_a_blank_line_is_none():
    assert [(o.number, o.values['caption']) for o in rows_of('t.csv', b'file,caption\n,\n\n \na,b\n')] == [
        (2, ''),
        (5, 'b'),
    ]
    assert [(o.number, o.values['caption']) for o in rows_of('t.tsv', b'file\tcaption\n\t\n\na\tb\n')] == [
        (2, ''),
        (4, 'b'),
    ]


def test_a_name_longer_than_any_file_has_is_a_missing_file(tmp_path):
    table = 'file,caption\n' + 'a' * 5000 + '.png,x\n0.png,y\n'
    rows = read_table(fill(tmp_path, {'t.csv': table, '0.png': pic()}) / 't.csv')
    assert rows[1].captions == ['y'] and rows.id
    with pytest.raises(SampleError) as e:
        rows[0]
    assert e.value.reason == 'missing_file'


@pytest.mark.parametrize(
    'text',
    [
        '[]',
        '7',
        '{}',
        '{"shards": 3}',
        '[' * 200_000,
        '{"name": "a", "id": "", "shards": [{"name": "../../x.tar", "count": 1, "bytes": 1, "sha256": ""}]}',
        '{"name": "a", "id": "", "shards": [{"name": "x.tar", "count": "1", "bytes": 1, "sha256": ""}]}',
    ],
)
def test_a_manifest_of_another_shape_is_named(text, tmp_path):
    with pytest.raises(ValueError, match='manifest.json is no manifest of shards'):
        Shards(fill(tmp_path, {'manifest.json': text}))


def test_what_has_no_suffix_is_counted_and_what_is_hidden_is_not(tmp_path):
    from meru.data.shards import make_manifest

    folder = tarfile.TarInfo('v1.5')
    folder.type = tarfile.DIRTYPE
    members = [('a.png', pic()), ('a.txt', b'a'), ('photo', pic()), ('b/._a.png', b'Mac'), ('.DS_Store', b'Mac')]
    fill(tmp_path, {'00000.tar': folder.tobuf() + tar_bytes(members)})
    make_manifest(tmp_path)
    found = Shards(tmp_path)
    assert len(found) == 2 and found[0].caption == 'a'
    with pytest.raises(SampleError) as e:
        found[1]
    assert e.value.reason == 'no_image'


@pytest.mark.parametrize('length', ['-5', '0', '+18', '99', ' 18'])
def test_a_pax_header_of_an_impossible_length_is_named(length):
    info = tarfile.TarInfo('x' * 120 + '.png')
    data = info.tobuf(tarfile.PAX_FORMAT) + bytes(1024)
    at = data.index(b' path=')
    start = data.rindex(b'\0', 0, at) + 1
    spoilt = data[:start] + length.encode().rjust(at - start, b'0') + data[at:]
    with pytest.raises(ShardError, match='Shard x.tar is damaged'):
        list(_tar_members(io.BytesIO(spoilt), 'x.tar'))


def test_a_film_called_jpg_is_not_read(tmp_path):
    fill(tmp_path, {'a.png': pic(), 'a.txt': 'a', 'b.png': pic(), 'b.txt': '', 'film.jpg': b'', 'film.txt': 'a film'})
    os.truncate(tmp_path / 'film.jpg', 10**12)  # of holes
    os.truncate(tmp_path / 'b.txt', 10**12)
    rows = read_folder(tmp_path)
    assert rows.noted.record() == {'too_large': {'count': 1, 'example': 'b.txt'}}
    with pytest.raises(ValueError, match='more bytes than any picture has: .*film.jpg, 1,000,000,000,000 bytes') as e:
        rows[rows.files.index('film.jpg')]
    assert e.value.reason == 'too_large'


def parquet_of(table):
    out = io.BytesIO()
    pyarrow.parquet.write_table(table, out)
    return out.getvalue()


TWICE = dict(
    csv=b'caption,file,caption\na,0.png,b\n',
    tsv=b'caption\tfile\tcaption\na\t0.png\tb\n',
    parquet=parquet_of(pyarrow.table([['a'], ['0.png'], ['b']], names=['caption', 'file', 'caption'])),
)


@pytest.mark.parametrize('kind', TWICE)
def test_two_columns_of_one_name_are_refused(kind):
    with pytest.raises(ValueError, match=f"t.{kind} has 2 columns called 'caption'"):
        read_listing(io.BytesIO(TWICE[kind]), f't.{kind}')


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_spoilt_parquet_file_is_read_or_named(data):
    spoilt = bytearray(parquet_of(pyarrow.table(dict(caption=['a dog', 'b', None], file=['0.png', '1.png', '2.png']))))
    for _ in range(data.draw(st.integers(1, 3))):
        spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
    try:
        read_listing(io.BytesIO(bytes(spoilt)), 't.parquet')
    except ValueError as e:
        assert 't.parquet' in str(e)


@pytest.mark.parametrize(
    'values, captions',
    [
        (pyarrow.array([b'a', b'\xff']), [[], []]),
        (pyarrow.array([dict(en='a'), None]), [[], []]),
        (pyarrow.array([['a', None, 'b'], []]), [['a', 'b'], []]),
        (pyarrow.array(['a', 'b']).dictionary_encode(), [['a'], ['b']]),
        (pyarrow.array([1, 2], pyarrow.timestamp('ns')), [[], []]),
        (pyarrow.nulls(2), [[], []]),
    ],
    ids=['bytes', 'struct', 'list', 'dictionary', 'time', 'null'],
)
def test_parquet_columns_of_every_kind(values, captions):
    table = pyarrow.table(dict(caption=values, file=['0.png', '1.png']))
    assert list(read_listing(io.BytesIO(parquet_of(table)), 't.parquet').captions.values()) == captions
