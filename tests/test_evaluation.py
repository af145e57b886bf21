"""Evaluation suites: an oracle finds everything, a guesser nothing, controls stay controls."""

import io
import json
import math
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from PIL import Image
from conftest import ROOT
from meru.evaluation import emoji_suite
from meru.evaluation.emoji_suite import *
from meru.evaluation.emoji_suite import _model_metrics, _pixel_metrics, _unseen_style
from meru.evaluation.emoji_suite import _read_split
from meru.evaluation.measures import *
from meru.evaluation.measures import _flatten, _unflatten
from meru.evaluation.suites import *
from meru.evaluation.suites import _cached_pairs, _examine_captions, _Report
from meru.geometry import geometries, get_geometry
from meru.models.model import ModelConfig
from meru.data.shards import Sample, write_shards
from meru.data.tokenizer import Tokenizer

NAMES = [
    f'thing {i}' for i in range(12)
]  # two groups > four subgroups > twelve names; the last of each subgroup is unseen
UNSEEN = {2, 5, 8, 11}


def colour(i):
    return [20 * i + 10, 255 - 20 * i, (90 * i) % 200 + 20]


def sample(i, style):
    "Name `i` is a plain picture of its own colour, a shade apart from style to style."
    pixels = np.full((16, 16, 3), colour(i), np.uint8) - np.uint8(style)
    f = io.BytesIO()
    Image.fromarray(pixels).save(f, 'PNG')
    chain = [f'group {i // 6}', f'subgroup {i // 3}', NAMES[i], f'{NAMES[i]}, detail']
    return Sample(f's{style}/{i}', f.getvalue(), NAMES[i], dict(levels=chain))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp('data')
    seen = [i for i in range(12) if i not in UNSEEN]
    parts = dict(
        train=[(i, s) for i in seen for s in (0, 1)],
        val=[(i, 2) for i in seen],
        test_style=[(i, 3) for i in seen],
        test_concept=[(i, s) for i in sorted(UNSEEN) for s in (0, 1)],
    )
    for split, pairs in parts.items():
        write_shards([sample(*p) for p in pairs], out / split)
    return out


class Oracle(torch.nn.Module):
    "Knows every colour and word: images at radius 3 in the direction of their name, texts at their level's radius."

    def __init__(self, geometry):
        super().__init__()
        self.geometry, self.scalar = get_geometry(geometry), torch.nn.Parameter(torch.tensor(1.0))
        self.colours = torch.tensor([colour(i) for i in range(12)]).float()

    curv = property(lambda self: self.scalar)

    def directions(self, i):
        return torch.nn.functional.one_hot(i, 12).float()

    def encode_image(self, images):
        i = torch.cdist(images.float().mean((2, 3)), self.colours).argmin(1)
        return self.geometry.exp_map0(3 * self.directions(i), self.curv)

    def encode_text(self, tokens):
        return self.geometry.exp_map0(tokens.float(), self.curv)


def words(texts):
    "The oracle's tokens are already tangent vectors: the mean of the names below, at the level's radius."
    out = torch.zeros(len(texts), 12)
    for row, t in zip(out, texts):
        kind, number = t.replace(',', '').split()[:2]
        width, radius = dict(group=(6, 0.1), subgroup=(3, 0.15), thing=(1, 2.5 if 'detail' in t else 2.0))[kind]
        row[width * int(number) : width * (int(number) + 1)] = radius / math.sqrt(width)
    return out


@pytest.mark.parametrize('name', geometries)
def test_an_oracle_finds_everything(name, folder):
    model = Oracle(name)
    test_set = read_test_set(folder, 16)
    emb = encode_test_set(model, words, test_set)
    res = _flatten(_model_metrics(model.geometry, test_set, emb))
    for k in (
        'style_top1',
        'style_subgroup',
        'style_group',
        'concept_top1',
        'concept_all_top1',
        'image_to_text_r1',
        'text_to_image_r1',
    ):
        assert res[k] == 1, k
    assert (
        res['style_tree_error'] == 0
        and res['style_images'] == 8
        and res['concept_classes'] == 4
        and res['style_classes'] == 12
    )
    assert res['style_chance'] == pytest.approx(1 / 12) and res['concept_chance'] == pytest.approx(1 / 4)
    assert res['image_to_text_candidates'] == 8
    if model.geometry.has_radius:
        assert res['chain_tau'] == 1
    if model.geometry.has_cones:
        assert res['cone_own_name'] == 1 and res['cone_other_name'] == 0 and res['cone_auc'] > 0.9
    json.dumps(res, allow_nan=False)


def test_test_set_by_hand(folder):
    test_set = read_test_set(folder, 16)
    assert torch.bincount(test_set.levels).tolist() == [2, 4, 12, 12]
    for split, d in test_set.drawings.items():
        assert d.damaged == 0 and d.images.shape[1:] == (3, 16, 16)
        for rows, chain, target in zip(test_set.chains[split], d.chains, test_set.targets(split)):
            assert (
                tuple(test_set.texts[i] for i in rows) == chain and test_set.texts[test_set.names[target]] == chain[2]
            )
    above = test_set.chain_of[test_set.texts.index('thing 7')]
    assert [test_set.texts[i] for i in above[:3]] == ['group 1', 'subgroup 2', 'thing 7'] and above[3] == -1


def test_a_folder_of_tests_alone_asks_about_what_was_learned(folder, tmp_path, monkeypatch):
    "As `contrast`: what is trained on lies among the embedded drawings, and so do the pixels that a control knows."
    for split in ('test_style', 'test_concept'):
        (tmp_path / split).symlink_to(folder / split)
    monkeypatch.setattr(emoji_suite, 'embedded_data', lambda: folder)
    alone, whole = read_test_set(tmp_path, 16), read_test_set(folder, 16)
    assert alone.texts == whole.texts and _pixel_metrics(alone) == _pixel_metrics(whole)
    with pytest.raises(FileNotFoundError, match='nowhere'):
        read_test_set(tmp_path / 'nowhere', 16)


def test_pixels_name_what_was_drawn_and_nothing_else(folder):
    res = _flatten(_pixel_metrics(read_test_set(folder, 16)).labelled(model=''))
    assert res['style_top1'] == 1 and res['concept_top1'] == res['concept_all_top1'] == 0
    assert res['concept_all_group'] > res['concept_all_group_chance'] - 0.25


@pytest.fixture(scope='module')
def tiny():
    cfg = ModelConfig(
        embed_dim=8,
        image_tower='conv',
        image_size=16,
        conv_width=8,
        image_width=32,
        image_depth=1,
        text_width=64,
        text_depth=1,
        text_heads=1,
        context_length=16,
        vocab_size=600,
    )
    return untrained(cfg, 7)


def test_whole_evaluation(folder, tiny):
    before = torch.random.get_rng_state()
    measures, emb, test_set = evaluate_emoji(tiny, Tokenizer(600, 16), folder, 16)
    res = _flatten(measures)
    assert _unflatten(res) == measures
    assert torch.equal(before, torch.random.get_rng_state())
    assert res['damaged'] == 0 and res['pixel_style_top1'] == 1
    assert json.loads(json.dumps(res, allow_nan=False)) == res
    assert all(measures.find(name, dataset, who) for _, name, dataset in questions for who in ('', 'untrained'))
    again, *_ = evaluate_emoji(tiny, Tokenizer(600, 16), folder, 16)
    assert again == measures
    other = _flatten(evaluate_emoji(tiny, Tokenizer(600, 16), folder, 16, seed=1)[0])
    changed = {k for k in res if other[k] != res[k]}
    assert changed and all(k.startswith('untrained_') for k in changed)
    assert set(emb.image_points) == {'test_style', 'test_concept'} and len(emb.text_points) == len(test_set.texts) == 30
    assert len(_unseen_style(test_set, emb)[1]) == 2 + 4 + 8 + 8  # no text of an unseen concept


def test_summary_shows_dashes_for_what_is_not_there(folder, tiny):
    res, *_ = evaluate_emoji(tiny, Tokenizer(600, 16), folder, 16)
    blind = Measures(m._replace(value=None) if (m.name, m.model) == ('cone_auc', '') else m for m in res)
    rows = emoji_table(blind).splitlines()
    assert rows[0] == '| protocol: ours | model | untrained | pixels | chance |' and len(rows) == len(questions) + 2
    row = [question.name for question in questions].index('cone_auc')
    auc = rows[2 + row].split(' | ')
    assert auc[1] == '–' and auc[3] == '–' and auc[4] == '0.500 |'
    chance = lambda name, dataset='': res.find(name, dataset).chance
    assert chance('top5', 'concept') == 1 and chance('top5', 'style') == pytest.approx(5 / 12)
    assert chance('group', 'style') == pytest.approx(_flatten(res)['style_group_chance']) and chance('cone_own') is None


def test_damaged_drawings_are_counted(folder, tmp_path):
    bad = sample(0, 0)
    write_shards([sample(0, 0), sample(1, 0), bad._replace(meta={})], tmp_path / 'part')
    d = _read_split(tmp_path / 'part', 16)
    assert d.damaged == 1 and len(d.keys) == len(d.images) == len(d.chains) == 2
    write_shards([bad._replace(meta={})], tmp_path / 'none')
    with pytest.raises(ValueError, match='none of the 1 samples'):
        _read_split(tmp_path / 'none', 16)
    with pytest.raises(FileNotFoundError, match='test_style'):
        _read_split(tmp_path / 'test_style', 16)


def test_a_broken_model_is_named(folder, tiny):
    test_set = read_test_set(folder, 16)

    class Broken(Oracle):
        def encode_image(self, images):
            return super().encode_image(images).index_fill(0, torch.tensor([1]), math.nan)

    with pytest.raises(ValueError, match='image points must be finite, but 1 of 8 rows .*000000001'):
        encode_test_set(Broken('lorentz'), words, test_set)


# --- photos


def paint(path, colour='red'):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (16, 16), colour).save(path)


def caption_set(home, n=12, extra=0):
    for i in range(n):
        paint(home / 'images' / f'{i}.png', (20 * i, 255 - 20 * i, 90))
    (home / 'captions.jsonl').write_text(
        '\n'.join(json.dumps(dict(file=f'{i}.png', captions=[f'shade {i}', f'tint {i}'])) for i in range(n + extra))
    )


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "Good sets, and beside each a way to spoil one."
    home = tmp_path_factory.mktemp('photos')
    for animal, colour in dict(dog='brown', tench='olive', frog='green').items():
        for i in range(4):
            paint(home / 'animals' / animal / f'{i}.png', colour)
    for thing, colour in dict(gryphon='gold', dog='brown').items():
        for i in range(2):
            paint(home / 'fables' / 'test' / thing / f'{i}.png', colour)
            paint(home / 'fables' / 'train' / thing / f'{i}.png', colour)
    paint(home / 'holes' / 'rose' / '0.png')
    paint(home / 'holes' / 'lily' / '0.png')
    (home / 'holes' / 'fern').mkdir()
    caption_set(home / 'pairs')
    caption_set(home / 'lost', extra=1)
    for i in range(6):
        paint(home / 'steps' / f'{i}.png', (40 * i, 0, 0))
    (home / 'steps' / 'h.jsonl').write_text(
        '\n'.join(
            json.dumps(dict(file=f'{i}.png', hierarchy=['red', f'red {i // 2}', f'dark red {i}'])) for i in range(6)
        )
    )
    (home / 'torn' / 'a').mkdir(parents=True)
    (home / 'torn' / 'a' / '0.png').write_bytes(b'\x89PNG\r\n\x1a\n cut')
    paint(home / 'torn' / 'b' / '0.png')
    return home


def test_one_bad_set_does_not_take_the_others(photos, tiny):
    report = evaluate_folder(tiny, Tokenizer(600, 16), photos, 16)
    m, messages = _flatten(report.measures), report.skipped
    assert {k for k in messages if 'everything' in k} == {'holes: everything', 'lost: everything', 'torn: everything'}
    assert (
        'fern' in messages['holes: everything']
        and '12.png, which is not there' in messages['lost: everything']
        and 'a/0.png' in messages['torn: everything']
    )
    assert "'gryphon'" in messages['fables: WordNet measures'] and not any(k.startswith('animals:') for k in messages)
    assert (
        m['wordnet_edges'] == 1808
        and -1 <= m['wordnet_depth_tau'] <= 1
        and m['animals_images'] == 12
        and m['animals_chance'] == pytest.approx(1 / 3)
        and m['animals_probe_top1'] == 1
        and m['animals_probe_images'] == 6
    )
    assert m['fables_probe_top1'] == 1 and m['fables_probe_images'] == 4 and 'fables_tree_error' not in m
    assert (
        m['pairs_image_to_text_candidates'] == 24
        and m['pairs_text_to_image_queries'] == 24
        and m['pairs_text_to_image_r1_chance'] == pytest.approx(1 / 12)
    )
    assert {
        'pairs_cone_auc',
        'pairs_gromov_delta',
        'pairs_cosine_agreement',
        'steps_chain_tau',
        'steps_level_tau',
        'steps_path_precision',
        'steps_cone_own_level1',
        'steps_radius_level3_q50',
    } <= set(m)
    assert json.loads(json.dumps(m, allow_nan=False)) == m and '\n' not in ''.join(messages.values())
    assert len([v for v in messages.values() if v.startswith('not in ')]) == 24 and 'torchvision' in messages['MNIST']
    assert evaluate_folder(tiny, Tokenizer(600, 16), photos, 16).measures == report.measures


def test_limit_and_a_single_set(photos, tiny):
    report = evaluate_folder(tiny, Tokenizer(600, 16), photos / 'pairs', 16, limit=5)
    found = report.measures
    assert found.value('image_to_text_queries', 'pairs') == 5
    assert found.value('image_to_text_candidates', 'pairs') == 10
    assert '| caption to picture, recall at 5 | ours, 5 pictures |' in photo_summary(report)
    assert _flatten(found)['protocols']['pairs_cone_auc'] == 'ours, 5 pictures'
    with pytest.raises(FileNotFoundError, match='absent'):
        evaluate_folder(tiny, Tokenizer(600, 16), photos / 'absent', 16)


@pytest.mark.parametrize('what, says', [('holes', 'the class folder fern'), ('lost', '12.png, which is not there')])
def test_a_folder_without_any_result_is_refused(what, says, photos, tiny):
    "Never an empty table: what is missing is named with the remedy."
    with pytest.raises(
        ValueError, match=f'nothing in .*{what} could be measured: .*{says}.*What can be read: one folder'
    ):
        evaluate_folder(tiny, Tokenizer(600, 16), photos / what, 16)


def test_an_empty_folder_is_refused(tmp_path, tiny):
    with pytest.raises(ValueError, match='could be measured: .*What can be read'):
        evaluate_folder(tiny, Tokenizer(600, 16), tmp_path, 16)


def test_nan_features_spoil_only_what_needs_them(photos, tiny):
    class Broken(Oracle):
        "Dark pictures break it."

        cfg = tiny.cfg

        def encode_image(self, images):
            x = super().encode_image(images)
            return x.masked_fill((images.float().mean((1, 2, 3)) < 20)[:, None], math.nan)

        def project_text(self, tokens):
            return tokens.float()

        def lift_text(self, v):
            return self.geometry.exp_map0(v, self.curv)

    tokens = lambda texts: torch.nn.functional.one_hot(torch.tensor([len(t) % 12 for t in texts]), 12)
    report = evaluate_folder(Broken('lorentz'), tokens, photos, 16)
    assert (
        'image points must be finite' in report.skipped['steps: everything']
        and '0.png' in report.skipped['steps: everything']
    )
    assert report.measures.find('top1', 'animals') and report.measures.find('image_to_text_r1', 'pairs')


def test_oracle_names_photos(tmp_path):
    "Twelve colours, each in its class folder, named by a model that knows them."
    for i in range(12):
        paint(tmp_path / 'hues' / f'thing_{i}' / '0.png', tuple(colour(i)))
    for name in geometries:

        class Knows(Oracle):
            cfg = ModelConfig(geometry=name, entail_weight=0.0)

            def project_text(self, tokens):
                return tokens.float()

            def lift_text(self, v):
                return self.geometry.exp_map0(v, self.curv)

        spell = lambda texts: words([f'thing {"".join(c for c in t if c.isdigit())}' for t in texts])
        report = evaluate_folder(Knows(name), spell, tmp_path / 'hues', 16)
        assert report.measures.value('top1', 'hues') == report.measures.value('per_class', 'hues') == 1, name
        assert (
            'nothing to fit a probe on' in report.skipped['hues: linear probe']
            and "'thing 0'" in report.skipped['hues: WordNet measures']
        )


def test_report_hides_no_mistake_of_ours():
    report = _Report()
    with pytest.raises(TypeError):
        report.attempt('x', 'y', lambda: 1 + '')
    report.attempt('x', 'y', lambda: (_ for _ in ()).throw(ValueError('two\nlines')))
    assert report.skipped == {'x: y': 'two'} and not report.measures


def test_thin_shell_is_said(photos, tiny):
    report = evaluate_folder(tiny, Tokenizer(600, 16), photos / 'pairs', 16)
    thin = Measures(m._replace(value=0.999) if m.name == 'cosine_agreement' else m for m in report.measures)
    assert 'cosine ranks as' in photo_summary(SimpleNamespace(notes=[], measures=thin, skipped={}, rules=report.rules))
    assert not remarks(Measures(Measure(d, 'cosine_agreement', v) for d, v in (('a', 0.98), ('b', None))))
    rows = photo_summary(report).splitlines()
    assert rows[2].startswith('| pairs | picture to caption, recall at 1 | ours | ') and rows[2].endswith(
        '| – | 0.083 |'
    )


# --- released checkpoints


@pytest.fixture(scope='module')
def released(tmp_path_factory):
    "The tiny reference checkpoints with room for a real tokenizer's ids."
    home = tmp_path_factory.mktemp('released')
    for name in ('meru', 'clip'):
        saved = torch.load(ROOT / 'tests' / 'parity' / f'{name}_tiny.pth', weights_only=True)
        rows = saved['model']['textual.token_embed.weight']
        saved['model']['textual.token_embed.weight'] = rows.repeat(2, 1)
        torch.save(saved, home / f'{name}.pth')
    saved = torch.load(
        home / 'meru.pth', weights_only=True
    )  # HyCoCLIP trains the same tensors: only what stands beside them differs
    torch.save(dict(model=saved['model'], scaler={}, iteration=500_000), home / 'hycoclip.pth')
    return home


def test_a_run_with_a_backbone_reads_texts_with_its_tokenizer(monkeypatch, tmp_path):
    import meru.evaluation.suites as e

    own = object()
    cfg = ModelConfig(image_tower='backbone', text_tower='backbone', backbone='lite2+minilm')
    monkeypatch.setattr(e, 'load_run', lambda run, checkpoint: SimpleNamespace(cfg=cfg))
    monkeypatch.setattr('meru.models.model.load_towers', lambda name: SimpleNamespace(tokenizer=(name, own)))
    assert load_evaluated(EvalConfig(run='a run', out=str(tmp_path)))[1] == ('lite2+minilm', own)


@pytest.mark.parametrize('name, geometry', [('meru', 'lorentz'), ('clip', 'sphere'), ('hycoclip', 'lorentz')])
def test_released_checkpoint_is_evaluated(name, geometry, released, photos, tmp_path):
    cfg = EvalConfig(
        checkpoint=str(released / f'{name}.pth'), image_heads=4, data=str(photos), out=str(tmp_path / 'out')
    )
    model, tokenizer = load_evaluated(cfg)
    assert model.geometry.name == geometry and not model.training and cfg.folder.is_dir()
    m = evaluate_folder(model, tokenizer, photos / 'steps', model.cfg.image_size).measures
    m = _flatten(m)
    assert (m['steps_cone_auc'] is None) == (geometry == 'sphere') == (m['steps_chain_tau'] is None) and 0 <= m[
        'steps_path_recall'
    ] <= 1


def test_evaluate_notebook_on_photos(released, photos, papermill, tmp_path):
    done = papermill(
        'evaluate',
        tmp_path / 'e.ipynb',
        '-p',
        'checkpoint',
        released / 'meru.pth',
        '-p',
        'image_heads',
        4,
        '-p',
        'data',
        photos,
        '-p',
        'out',
        tmp_path / 'out',
        '-p',
        'limit',
        8,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = json.loads((tmp_path / 'out' / f'metrics_{photos.name}.json').read_text())
    assert {'animals_top1', 'pairs_text_to_image_r5', 'steps_path_recall'} <= set(metrics)
    assert (metrics['protocol'], metrics['limit']) == ('paper', 8)
    whose = metrics['protocols']
    assert whose['pairs_text_to_image_r5'] == 'paper, 8 pictures' and whose['pairs_cone_auc'] == 'ours, 8 pictures'
    assert whose['steps_threshold_recall'] == 'HierarCaps' and 'steps_path_recall' not in whose  # six, not cut
    assert whose['animals_top1'] == 'paper, our prompts and names, 8 pictures'
    shown = (tmp_path / 'e.ipynb').read_text()
    assert 'top-1 accuracy, mean of classes' in shown and 'fern' in shown and 'Country211' in shown


@pytest.mark.parametrize(
    'what, says',
    [
        ('open_clip', "no dictionary 'model'"),
        ('partial', 'tensor .* is missing'),
        ('pickle', 'was refused'),
        ('extra', 'unexpected'),
    ],
)
def test_checkpoints_of_another_layout(what, says, released, tmp_path):
    saved = torch.load(released / 'meru.pth', weights_only=True)
    if what == 'open_clip':
        saved = {k: v for k, v in saved['model'].items()}
    if what == 'partial':
        del saved['model']['visual.patch_embed.proj.weight']
    if what == 'extra':
        saved['model']['box_alpha'] = torch.tensor(0.0)
    path = tmp_path / 'other.pth'
    path.write_bytes(b'not a checkpoint') if what == 'pickle' else torch.save(saved, path)
    with pytest.raises(ValueError, match=f'other.pth .*{says}'):
        load_evaluated(EvalConfig(checkpoint=str(path), image_heads=4, out=str(tmp_path / 'o')))
    assert not (tmp_path / 'o').exists()


def test_what_may_be_asked(tmp_path):
    for bad, says in [
        (dict(checkpoint='latest'), "'latest'"),
        (dict(data=''), 'data'),
        (dict(limit=-1), 'limit = -1'),
        (dict(image_heads=-2), 'image_heads = -2'),
        (dict(seed=-1), 'seed = -1'),
    ]:
        with pytest.raises(ValueError, match=says):
            EvalConfig(**bad)
    assert (
        EvalConfig().record.name == 'metrics.json' and EvalConfig(data='data/local').record.name == 'metrics_local.json'
    )
    assert (
        EvalConfig(checkpoint='x/meru_vit_l.pth').folder.name == 'meru_vit_l'
        and EvalConfig(out='outputs/a').folder.name == 'a'
    )
    with pytest.raises(FileNotFoundError, match='no checkpoint'):
        load_evaluated(EvalConfig(checkpoint=str(tmp_path / 'none.pth')))


@pytest.mark.parametrize(
    'name',
    [
        'cifar10_test_32.zip',
        'flickr8k_128_jpg.zip',
        'hierarcaps_test_1000_256.zip',
        'imagenet_samples_1000x1_128.zip',
        'tiny_imagenet_val_32.zip',
    ],
)
def test_real_photos(name, tiny):
    path = ROOT / 'data' / 'local' / name
    if not path.exists():
        pytest.skip(f'data/local/{name} is not here')
    report = evaluate_folder(tiny, Tokenizer(600, 16), path, 16, limit=60)
    own = {k: v for k, v in report.skipped.items() if k.startswith(path.stem)}
    assert set(own) <= {f'{path.stem}: linear probe'} and len(report.measures) > 10
    if 'image' in name or 'cifar' in name:
        assert report.measures.value('tree_error', path.stem) > 4 and report.measures.value('top1', path.stem) < 0.4


def test_cached_features():
    "A head on features finds its pairs where pictures and texts share their features."
    from pathlib import Path
    from meru.models.feature_cache import FeatureCache

    x = torch.randn(12, 8, generator=torch.Generator().manual_seed(0)).half()
    cache = FeatureCache(
        Path('cache'),
        x[:, None],
        x.repeat_interleave(2, 0)[:, None],
        torch.arange(12).repeat_interleave(2),
        dict(splits=['train'] * 4 + ['test'] * 8),
    )
    model = untrained(
        ModelConfig(image_tower='features', text_tower='features', image_width=8, text_width=8, embed_dim=8)
    )
    model.text_proj.weight.data.copy_(model.image_proj.weight)
    report = _Report()
    _examine_captions(model, lambda x: x, _cached_pairs(cache), report)
    m = _flatten(report.measures)
    assert (
        not report.skipped
        and m['cache_image_to_text_r1'] == m['cache_text_to_image_r1'] == 1
        and m['cache_image_to_text_queries'] == 8
        and m['cache_text_to_image_queries'] == 16
    )
    few = _cached_pairs(cache, 3)
    assert torch.equal(few.pictures, x[[4, 8, 11]].float()) and few.owner.tolist() == [0, 0, 1, 1, 2, 2]


def test_the_control_is_untrained_and_seeded(photos, tiny):
    # `tiny` itself is untrained, seed 7
    res = _flatten(evaluate_with_control(tiny, Tokenizer(600, 16), photos / 'pairs', 16, seed=7).measures)
    own = {k: v for k, v in res.items() if not k.startswith('untrained_')}
    assert own and {f'untrained_{k}': v for k, v in own.items()} == {
        k: v for k, v in res.items() if k.startswith('untrained_')
    }
    other = _flatten(evaluate_with_control(tiny, Tokenizer(600, 16), photos / 'pairs', 16, seed=8).measures)
    assert (
        all(other[k] == v for k, v in own.items())
        and other['untrained_pairs_gromov_delta'] != res['untrained_pairs_gromov_delta']
    )
