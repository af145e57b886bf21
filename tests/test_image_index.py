"A folder of pictures as a person has it: encoded once, cfg in words, damaged files named."

import json
import zipfile
from dataclasses import replace
from importlib.util import find_spec
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT
from meru.core import locked
from meru.hub import from_pretrained, Pretrained
from meru.models.model import build_model
from meru.image_index import *
from meru.image_index import ImageIndex
from meru.search.index import _has_radii, move_along_ray
from meru.training.config import make_config


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "Thirty drawings, a caption, a torn file, a film; and a small untrained model."
    home = tmp_path_factory.mktemp('home')
    torch.manual_seed(0)
    Pretrained(build_model(make_config('smoke')).eval()).save_pretrained(home / 'model')
    Pretrained(build_model(make_config('smoke_clip')).eval()).save_pretrained(home / 'clip')
    (home / 'drawings' / 'deeper').mkdir(parents=True)
    with zipfile.ZipFile(ROOT / 'data/emoji/drawings.zip') as z:
        for i, name in enumerate([o for o in z.namelist() if o.startswith('emojione/')][:30]):
            (home / 'drawings' / ('deeper' if i % 2 else '.') / f'{i:02d}.webp').write_bytes(z.read(name))
    (home / 'drawings' / '04.txt').write_text('a keycap\nthe digit four\n')
    (home / 'drawings' / '04.png').write_bytes((home / 'drawings' / '06.webp').read_bytes())  # two pictures of one name
    (home / 'drawings' / 'torn.jpg').write_bytes(b'\xff\xd8\xff torn')
    (home / 'drawings' / 'film.MOV').write_bytes(b'')
    return home


@pytest.fixture
def cfg(home):
    return SearchConfig(
        images=str(home / 'drawings'), query='a dog on a beach', model=str(home / 'model'), out=str(home / 'kept'), k=5
    )


def test_the_command(home, papermill):
    args = [
        '-p',
        'images',
        home / 'drawings',
        '-p',
        'query',
        'a dog on a beach',
        '-p',
        'model',
        home / 'model',
        '-p',
        'out',
        home / 'kept',
        '-p',
        'generality',
        '0.25',
    ]
    done = papermill('search', home / 'out.ipynb', *args)
    assert done.returncode == 0, done.stderr[-2000:]
    printed = (home / 'out.ipynb').read_text()
    assert (
        '31 pictures, 4 texts, 2 left out' in printed
        and 'torn.jpg' in printed
        and '1 files that are no pictures' in printed
        and 'encode' in printed
    )
    assert {'hits.png', 'generality.png', 'vectors.parquet', 'features.safetensors'} <= {
        o.name for o in (home / 'kept').iterdir()
    }
    assert (home / 'kept' / 'hits.png').stat().st_size > 5000


def test_it_is_encoded_once_and_goes_on_where_it_was(cfg, home, monkeypatch):
    import meru.models.embedding as F

    seen, encode, there = [], F._encode_block, replace(cfg, out=str(home / 'once'), batch_size=10)

    def stop_at_second(*args):
        seen.append(args[1])
        if len(seen) == 2:
            raise KeyboardInterrupt
        return encode(*args)

    monkeypatch.setattr(F, '_encode_block', stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        open_image_index(there)
    assert len(open_image_index(there).pictures) == 31
    assert [o.start for o in seen] == [0, 10, 10, 20, 30]
    points = open_image_index(there).pictures.points
    assert len(seen) == 5
    torch.testing.assert_close(
        points, open_image_index(replace(cfg, out=str(home / 'other'))).pictures.points, rtol=1e-3, atol=1e-5
    )  # batches of another size


def test_a_picture_finds_itself_and_texts_are_found(cfg):
    index = open_image_index(cfg)
    file = index.folder / 'deeper' / '07.webp'
    rows = hit_rows(index, cfg, search(index, replace(cfg, query=str(file))))
    assert (
        rows[0]['file'] == 'deeper/07.webp'
        and rows[0]['distance'] < 0.02
        and [o['distance'] for o in rows] == sorted(o['distance'] for o in rows)
    )
    texts = replace(cfg, find='texts', query='a keycap')
    assert [(o['text'], o['file']) for o in hit_rows(index, texts, search(index, texts))][:2] == [
        ('a keycap', '04.png'),
        ('a keycap', '04.webp'),
    ]


def test_generality_moves_the_query_along_its_ray(cfg):
    index = open_image_index(cfg)
    g, c, x = index.pictures.space, index.pictures.c, index.query_point('a dog')
    for level in (-0.5, 0.0, 0.5):
        y = move_along_ray(g, x, c, level)
        assert g.radius(y, c).item() == pytest.approx((1 - level) * g.radius(x, c).item(), rel=1e-4)
        torch.testing.assert_close(torch.nn.functional.cosine_similarity(x, y), torch.ones(1))
    assert [level for level, _ in sweep_generality(index, cfg)] == [-0.5, 0.0, 0.3, 0.6, 0.9]
    nearest_to_root = g.radius(index.pictures.points, c).argmin().item()
    assert search(index, replace(cfg, generality=0.999)).row[0, 0] == nearest_to_root


def test_the_sphere_has_no_radii(cfg, home):
    there = replace(cfg, model=str(home / 'clip'), out=str(home / 'sphere'))
    index = open_image_index(there)
    assert [level for level, _ in sweep_generality(index, there)] == [0.0]
    with pytest.raises(ValueError, match='all points are as far from the root'):
        search(index, replace(there, generality=0.5))


def test_pictures_on_one_shell_have_no_radii(cfg, home):
    torch.manual_seed(0)
    model = build_model(make_config('smoke', tangent='leaves')).eval()
    Pretrained(model).save_pretrained(home / 'shell')
    there = replace(cfg, model=str(home / 'shell'), out=str(home / 'shells'))
    index = open_image_index(there)
    assert not _has_radii(index.pictures) and _has_radii(index.texts)
    assert [level for level, _ in sweep_generality(index, there)] == [0.0]
    with pytest.raises(ValueError, match='generality is 0.5, but here all points are as far from the root'):
        search(index, replace(there, generality=0.5))
    search(index, replace(there, find='texts', generality=0.5))


def test_one_projection_may_serve_both(cfg, home):
    torch.manual_seed(0)
    model = build_model(make_config('smoke', shared_proj=True, image_width=64, text_width=64)).eval()
    Pretrained(model).save_pretrained(home / 'shared')
    index = open_image_index(replace(cfg, model=str(home / 'shared'), out=str(home / 'shared kept')))
    with torch.no_grad():
        point = model.encode_text(index.towers.tokenizer(['a keycap']))
    torch.testing.assert_close(index.query_point('a keycap'), point)
    at = index.texts.columns['text'].index('a keycap')
    torch.testing.assert_close(index.texts.points[at], point[0], rtol=1e-2, atol=1e-3)  # features are kept in float16


def test_one_process_at_a_time_writes_and_any_number_asks(cfg, home, tmp_path):
    new = replace(cfg, out=str(tmp_path / 'kept'))
    with locked(tmp_path / 'kept'), pytest.raises(BlockingIOError, match='kept is in use by process'):
        open_image_index(new)
    index = open_image_index(new)
    (tmp_path / 'kept' / '.tmpAb3dE9').write_text('half')
    with locked(tmp_path / 'kept'):
        assert len(open_image_index(new).pictures) == len(index.pictures)
    assert not (tmp_path / 'kept' / '.tmpAb3dE9').exists()


def test_an_index_of_another_model_is_not_taken(cfg, home):
    place = home / 'kept2'
    index = open_image_index(replace(cfg, out=str(place)))
    kept = next(place.glob('index_*'))
    about = json.loads((kept / 'index.json').read_text())
    with pytest.raises(ValueError, match='sphere|holds other features'):
        open_image_index(replace(cfg, out=str(place), model=str(home / 'clip')))
    (kept / 'points.safetensors').write_bytes((kept / 'points.safetensors').read_bytes()[:-1] + b'\0')
    with pytest.raises(ValueError, match='points.safetensors does not have the sha256'):
        open_image_index(replace(cfg, out=str(place)))
    assert about['model'] == index.pictures.model


@pytest.mark.parametrize(
    'changed, says',
    [
        (dict(images='nowhere'), 'there is no folder nowhere'),
        (dict(images=''), 'images is empty: give -p images'),
        (dict(query=''), 'query is empty'),
        (dict(generality=1.0), 'generality = 1.0 is not at least -2, below 1'),
        (dict(find='films'), "find = 'films' is not one of pictures, texts"),
        (dict(k=0), 'k = 0 is not at least 1'),
    ],
)
def test_bad_questions(cfg, changed, says):
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        replace(cfg, **changed)


def test_folders_without_a_picture(cfg, tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='There is no picture .* in .*empty'):
        open_image_index(replace(cfg, images=str(tmp_path / 'empty'), out=str(tmp_path / 'a')))
    (tmp_path / 'torn').mkdir()
    (tmp_path / 'torn' / 'a.jpg').write_bytes(b'no')
    with pytest.raises(ValueError, match='None of the pairs for .* can be used'):
        open_image_index(replace(cfg, images=str(tmp_path / 'torn'), out=str(tmp_path / 'b')))
    (tmp_path / 'shards').mkdir()
    (tmp_path / 'shards' / 'manifest.json').write_text('{}')
    with pytest.raises(ValueError, match='holds shards, not pictures'):
        replace(cfg, images=str(tmp_path / 'shards'))


@pytest.mark.parametrize('query, says', [('lost/dog.jpg', 'no picture lost/dog.jpg'), (' ', 'query is empty')])
def test_a_question_that_is_none_is_refused(query, says):
    with pytest.raises((FileNotFoundError, ValueError), match=says):
        ImageIndex.query_point(None, query)


def test_a_misspelt_name_ends_the_command(run_cells, tmp_path):
    assert "unknown parameter 'image'; known are: images, query, model" in run_cells('search', image=tmp_path)[0]


COCO = ROOT / 'data/local/coco_val_ccby_263_128.zip'


@pytest.mark.skipif(not COCO.exists(), reason=f'{COCO.name} is not in data/local')
@pytest.mark.skipif(find_spec('efficientnet_lite_pytorch') is None, reason="pip install 'meru[towers]'")
def test_the_command_on_photos(run_cells, tmp_path):
    with zipfile.ZipFile(COCO) as z:
        for name in [o for o in z.namelist() if o.endswith('.jpg')][:24]:
            z.extract(name, tmp_path / 'photos')
    torch.manual_seed(0)
    Pretrained(
        build_model(make_config('head_lorentz', backbone='lite2+minilm', image_width=1280, text_width=384)).eval()
    ).save_pretrained(tmp_path / 'head')
    photo = next((tmp_path / 'photos').rglob('*.jpg'))
    error, printed = run_cells(
        'search', images=tmp_path / 'photos', query=photo, model=tmp_path / 'head', out=tmp_path / 'kept'
    )
    assert not error, error
    assert (
        '24 pictures, 0 texts, 0 left out' in printed and (tmp_path / 'kept' / 'generality.png').stat().st_size > 10_000
    )


def points_of(index):
    return dict(zip(index.pictures.columns['file'], index.pictures.points))


def test_only_what_is_new_is_encoded(cfg, home, tmp_path, monkeypatch):
    import shutil
    import meru.models.embedding as F

    shutil.copytree(home / 'drawings', tmp_path / 'drawings')
    there, seen, encode = (
        replace(cfg, images=str(tmp_path / 'drawings'), out=str(tmp_path / 'kept')),
        [],
        F._encode_block,
    )

    def watched(rows, numbers, *rest):
        seen.extend(rows.files[i] for i in numbers)
        return encode(rows, numbers, *rest)

    monkeypatch.setattr(F, '_encode_block', watched)
    before = open_image_index(there)
    seen.clear()
    (tmp_path / 'drawings' / 'new.webp').write_bytes((home / 'drawings' / '02.webp').read_bytes())
    (tmp_path / 'drawings' / '08.webp').write_bytes(
        (home / 'drawings' / '06.webp').read_bytes()
    )  # the same name, another picture
    (tmp_path / 'drawings' / '00.webp').unlink()
    (tmp_path / 'drawings' / '04.txt').write_text('another caption\n')
    with monkeypatch.context() as m:  # cut off before the end
        m.setattr('meru.models.feature_cache._write_tensors', lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            open_image_index(there)
    assert sorted(seen) == ['04.png', '04.webp', '08.webp', 'new.webp', 'torn.jpg']
    after = open_image_index(replace(there, batch_size=64))
    assert len(seen) == 5, 'encoded again'
    whole = points_of(open_image_index(replace(there, out=str(tmp_path / 'whole'))))
    assert whole.keys() == points_of(after).keys() == {*points_of(before), 'new.webp'} - {'00.webp'}
    for k, x in points_of(after).items():
        torch.testing.assert_close(x, whole[k], rtol=1e-2, atol=1e-4)
    assert not torch.allclose(
        points_of(after)['08.webp'], points_of(before)['08.webp'], rtol=1e-2
    ) and after.left_out.keys() == {'torn.jpg', '*.mov'}
    assert (
        sorted(after.texts.columns['text']) == ['another caption'] * 2
        and points_of(open_image_index(there)).keys() == whole.keys()
    )


def test_a_folder_that_changed_while_it_was_encoded(cfg, home, tmp_path, monkeypatch):
    import shutil
    import meru.models.embedding as F

    shutil.copytree(home / 'drawings' / 'deeper', tmp_path / 'drawings')
    there = replace(cfg, images=str(tmp_path / 'drawings'), out=str(tmp_path / 'kept'), batch_size=10)
    with monkeypatch.context() as m:
        m.setattr(F, 'save_cache', lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            open_image_index(there)
    (tmp_path / 'drawings' / 'new.webp').write_bytes((home / 'drawings' / '02.webp').read_bytes())
    assert len(open_image_index(there).pictures) == 16


def test_two_folders_of_one_name_have_places_of_their_own(cfg, tmp_path):
    for o in 'ab':
        (tmp_path / o / 'Pictures').mkdir(parents=True)
    a, b = (replace(cfg, images=str(tmp_path / o / 'Pictures'), out='').place for o in 'ab')
    assert a != b and a.parent == b.parent == ROOT / 'outputs' / 'search' and a.name.startswith('Pictures-')


def test_texts_without_a_picture_are_counted(cfg, home, tmp_path):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'a.webp').write_bytes((home / 'drawings' / '02.webp').read_bytes())
    for o in ('a.txt', 'b.txt', 'c.TXT'):
        (tmp_path / 'mine' / o).write_bytes(b'')
    index = open_image_index(replace(cfg, images=str(tmp_path / 'mine'), out=str(tmp_path / 'kept')))
    assert index.left_out == {'*.txt': '2 files that are no pictures and have none of their name'}


def test_vectors_of_another_model_stay(cfg, home):
    place = home / 'two models'
    torch.manual_seed(1)
    model = from_pretrained(cfg.model)
    model.model.image_proj.weight.data.mul_(0.5)  # another head on the same towers
    model.save_pretrained(home / 'other')
    files = []
    for name in ('model', 'other', 'model'):
        there = replace(cfg, model=str(home / name), out=str(place))
        files.append(export_vectors(open_image_index(there), there.place))
    assert files[0] == files[2] == place / 'vectors.parquet' and files[1].name.startswith('vectors_')
    made_by = [json.loads(pq.read_schema(o).metadata[b'meru'])['model'].split('#')[0] for o in files[:2]]
    assert made_by[0] != made_by[1] and files[1].stem == f'vectors_{made_by[1]}'


def test_a_second_question_looks_at_no_picture(cfg, home, monkeypatch):
    there = replace(cfg, out=str(home / 'second'))
    first = open_image_index(there)
    monkeypatch.setattr('meru.image_index.build_index', None)  # nothing is lifted again
    monkeypatch.setattr('meru.image_index.decode_image', None)  # nor is a torn file decoded
    second = open_image_index(there)
    assert torch.equal(first.pictures.points, second.pictures.points) and first.left_out == second.left_out
