"""The exam: an oracle passes it, a guesser fails it, controls stay controls."""
import io, json, math
import numpy as np
import pytest, torch
from PIL import Image
from meru.evaluation import *
from meru.geometry import geometries, get_geometry
from meru.model import ModelConfig
from meru.shards import Sample, write_shards
from meru.text import Tokenizer

NAMES = [f'thing {i}' for i in range(12)]  # two groups > four subgroups > twelve names; the last of each subgroup is unseen
UNSEEN = {2, 5, 8, 11}


def colour(i): return [20 * i + 10, 255 - 20 * i, (90 * i) % 200 + 20]


def sample(i, style):
    "Name `i` is a plain picture of its own colour, a shade apart from style to style."
    pixels = np.full((16, 16, 3), colour(i), np.uint8) - np.uint8(style)
    f = io.BytesIO(); Image.fromarray(pixels).save(f, 'PNG')
    chain = [f'group {i // 6}', f'subgroup {i // 3}', NAMES[i], f'{NAMES[i]}, detail']
    return Sample(f's{style}/{i}', f.getvalue(), NAMES[i], dict(levels=chain))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp('data')
    seen = [i for i in range(12) if i not in UNSEEN]
    parts = dict(train=[(i, s) for i in seen for s in (0, 1)], val=[(i, 2) for i in seen],
                 test_style=[(i, 3) for i in seen], test_concept=[(i, s) for i in sorted(UNSEEN) for s in (0, 1)])
    for split, pairs in parts.items(): write_shards([sample(*p) for p in pairs], out/split)
    return out


class Oracle(torch.nn.Module):
    "Knows every colour and every word: images at radius 3 in the direction of their name, texts of a level at their own radius."
    def __init__(self, geometry):
        super().__init__()
        self.geometry, self.scalar = get_geometry(geometry), torch.nn.Parameter(torch.tensor(1.))
        self.colours = torch.tensor([colour(i) for i in range(12)]).float()
    curv = property(lambda self: self.scalar)
    def directions(self, i): return torch.nn.functional.one_hot(i, 12).float()
    def encode_image(self, images):
        i = torch.cdist(images.float().mean((2, 3)), self.colours).argmin(1)
        return self.geometry.exp_map0(3 * self.directions(i), self.curv)
    def encode_text(self, tokens): return self.geometry.exp_map0(tokens.float(), self.curv)


def words(texts):
    "The oracle's tokens are already tangent vectors: the mean of the names below, at the level's radius."
    out = torch.zeros(len(texts), 12)
    for row, t in zip(out, texts):
        kind, number = t.replace(',', '').split()[:2]
        width, radius = dict(group=(6, .1), subgroup=(3, .15), thing=(1, 2.5 if 'detail' in t else 2.))[kind]
        row[width * int(number):width * (int(number) + 1)] = radius / math.sqrt(width)
    return out


@pytest.mark.parametrize('name', geometries)
def test_an_oracle_passes(name, folder):
    model = Oracle(name)
    exam = read_exam(folder, 16)
    emb = embed(model, words, exam)
    res = model_metrics(model.geometry, exam, emb)
    for k in ('style_top1', 'style_subgroup', 'style_group', 'concept_top1', 'concept_all_top1', 'image_to_text_r1', 'text_to_image_r1'):
        assert res[k] == 1, k
    assert res['style_tree_error'] == 0 and res['style_images'] == 8 and res['concept_classes'] == 4 and res['style_classes'] == 12
    assert res['style_chance'] == pytest.approx(1/12) and res['concept_chance'] == pytest.approx(1/4)
    assert res['image_to_text_candidates'] == 8
    if model.geometry.has_radius: assert res['chain_tau'] == 1
    if model.geometry.has_cones: assert res['cone_own_name'] == 1 and res['cone_other_name'] == 0 and res['cone_auc'] > .9
    json.dumps(res, allow_nan=False)


def test_exam_by_hand(folder):
    exam = read_exam(folder, 16)
    assert torch.bincount(exam.levels).tolist() == [2, 4, 12, 12]
    for split, d in exam.drawings.items():
        assert d.damaged == 0 and d.images.shape[1:] == (3, 16, 16)
        for rows, chain, target in zip(exam.chains[split], d.chains, exam.targets(split)):
            assert tuple(exam.texts[i] for i in rows) == chain and exam.texts[exam.names[target]] == chain[2]
    above = exam.above[exam.texts.index('thing 7')]
    assert [exam.texts[i] for i in above[:3]] == ['group 1', 'subgroup 2', 'thing 7'] and above[3] == -1


def test_pixels_name_what_was_drawn_and_nothing_else(folder):
    res = pixel_metrics(read_exam(folder, 16))
    assert res['style_top1'] == 1 and res['concept_top1'] == res['concept_all_top1'] == 0
    assert res['concept_all_group'] > res['concept_all_group_chance'] - .25


@pytest.fixture(scope='module')
def tiny():
    cfg = ModelConfig(embed_dim=8, image_tower='conv', image_size=16, conv_width=8, image_width=32, image_depth=1, text_width=64, text_depth=1,
                      text_heads=1, context_length=16, vocab_size=600)
    return untrained(cfg, 7)


def test_whole_evaluation(folder, tiny):
    before = torch.random.get_rng_state()
    res, emb, exam = evaluate_emoji(tiny, Tokenizer(600, 16), folder, 16)
    assert torch.equal(before, torch.random.get_rng_state())
    assert res['damaged'] == 0 and res['pixel_style_top1'] == 1
    assert json.loads(json.dumps(res, allow_nan=False)) == res
    assert set(questions.values()) <= set(res) and {f'untrained_{k}' for k in questions.values()} <= set(res)
    again, *_ = evaluate_emoji(tiny, Tokenizer(600, 16), folder, 16)
    assert again == res
    other, *_ = evaluate_emoji(tiny, Tokenizer(600, 16), folder, 16, seed=1)
    changed = {k for k in res if other[k] != res[k]}
    assert changed and all(k.startswith('untrained_') for k in changed)
    assert set(emb.image_points) == {'test_style', 'test_concept'} and len(emb.text_points) == len(exam.texts) == 30
    assert len(unseen_style(exam, emb)[1]) == 2 + 4 + 8 + 8  # no text of an unseen concept


def test_summary_shows_dashes_for_what_is_not_there(folder, tiny):
    res, *_ = evaluate_emoji(tiny, Tokenizer(600, 16), folder, 16)
    rows = summary(res | dict(cone_auc=None)).splitlines()
    assert rows[0] == '|  | model | untrained | pixels | chance |' and len(rows) == len(questions) + 2
    auc = rows[-1].split(' | ')
    assert auc[1] == '–' and auc[3] == '–' and auc[4] == '0.500 |'
    assert chance_of('concept_top5', res) == 1 and chance_of('style_top5', res) == pytest.approx(5/12)
    assert chance_of('style_group', res) == pytest.approx(res['style_group_chance']) and chance_of('cone_own', res) is None


def test_damaged_drawings_are_counted(folder, tmp_path):
    bad = sample(0, 0)
    write_shards([sample(0, 0), sample(1, 0), bad._replace(meta={})], tmp_path/'part')
    d = read_split(tmp_path/'part', 16)
    assert d.damaged == 1 and len(d.keys) == len(d.images) == len(d.chains) == 2
    write_shards([bad._replace(meta={})], tmp_path/'none')
    with pytest.raises(ValueError, match='none of the 1 samples'): read_split(tmp_path/'none', 16)
    with pytest.raises(FileNotFoundError, match='test_style'): read_split(tmp_path/'test_style', 16)


def test_a_broken_model_is_named(folder, tiny):
    exam = read_exam(folder, 16)
    class Broken(Oracle):
        def encode_image(self, images): return super().encode_image(images).index_fill(0, torch.tensor([1]), math.nan)
    with pytest.raises(ValueError, match='image points must be finite, but 1 of 8 rows .*000000001'): embed(Broken('lorentz'), words, exam)
