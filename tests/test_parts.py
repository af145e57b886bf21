"Parts of pictures, from the shards to the evaluation, against definitions written out by hand."

import hashlib
import pytest
import torch
import torch.nn.functional as F
import zipfile
from collections import Counter
from itertools import islice
from meru.core import file_sha256, root
from meru.data.chains import _boxed_phrases
from meru.data.emoji import _emoji_splits, _scene_members, _scene_sample, emoji_rows
from meru.data.images import decode_image
from meru.data.loader import Loader, TextChains
from meru.data.shards import Shards, write_shards
from meru.data.tokenizer import Tokenizer
from meru.evaluation.comparison import CompareConfig, compare_runs
from meru.evaluation.datasets import read_data
from meru.evaluation.hierarchy import _part_values
from meru.geometry import get_geometry
from meru.losses.chains import _part_terms, Cones, edge_entailment, text_graph
from meru.models.model import build_model
from meru.training.config import make_config, presets
from meru.training.run import load_config, Run
from meru.training.trainer import fit

pytestmark = pytest.mark.usefixtures('in_root')
ONE = torch.tensor(1.0, dtype=torch.float64)


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    "A few hundred drawings in scenes: training, validation, and the unseen style."
    home, place = root() / 'data/emoji', tmp_path_factory.mktemp('scenes')
    splits = _emoji_splits(emoji_rows(home))
    with zipfile.ZipFile(home / 'drawings.zip') as z:
        for split, count in dict(train=100, val=12, test_style=24).items():
            members = islice(_scene_members(splits[split]), count)
            write_shards((_scene_sample(o, z.read) for o in members), place / split)
    return place


# --- the data


def test_a_scene_is_what_its_json_says(scenes):
    "Every phrase is a name, every box a drawing at half its size, and nothing lies outside of the boxes."
    home, shards = root() / 'data/emoji', Shards(scenes / 'train')
    names = {o['file']: o['name'] for o in emoji_rows(home)}
    with zipfile.ZipFile(home / 'drawings.zip') as z:
        for i in range(0, 100, 9):
            sample = shards[i]
            pixels, phrases = decode_image(sample.image), _boxed_phrases(sample.caption, sample.meta)
            assert phrases.left_out == 0 and 2 <= len(phrases.found) <= 4
            assert [o.text for o in phrases.found] == [names[file] for file in sample.meta['file']]
            rest = pixels.clone()
            for phrase, file in zip(phrases.found, sample.meta['file']):
                left, top, right, bottom = (round(80 * o) for o in phrase.box)
                cut = pixels[:, top:bottom, left:right]
                half = decode_image(z.read(file)).float().unfold(1, 2, 2).unfold(2, 2, 2).mean((3, 4))
                assert (cut - half).abs().max() <= 0.5
                rest[:, top:bottom, left:right] = 255
            assert rest.min() == 255
    used = Counter(file for i in range(100) for file in shards[i].meta['file'])
    assert max(used.values()) == 1


def test_scenes_are_the_same_everywhere(scenes):
    "The rule is in the text of hashes alone: captions, and the pixels of one scene."
    shards = Shards(scenes / 'test_style')
    texts = hashlib.sha256('\n'.join(shards[i].caption for i in range(24)).encode()).hexdigest()
    pixels = hashlib.sha256(decode_image(shards[0].image).numpy().tobytes()).hexdigest()
    assert (texts[:12], pixels[:12]) == ('8a898f454735', '9d7ba0a04e13')


def test_what_is_no_part_is_counted(scenes, tmp_path):
    shards = Shards(scenes / 'val')
    few = [shards[i] for i in range(6)]
    few[1] = few[1]._replace(meta={})
    few[2] = few[2]._replace(meta=dict(noun_chunks=[*few[2].meta['noun_chunks'], [0, 3], [0, 3, 0.5, 0, 0.5, 1, 1]]))
    few[3] = few[3]._replace(meta=dict(ref_exps='boxes'))
    write_shards(few, tmp_path / 'odd')
    loader = Loader(Shards(tmp_path / 'odd'), Tokenizer(4096, 32), 32, 6, parts=True)
    assert len(next(loader.batches()).images) == 12
    assert loader.failures == dict(no_parts=2, bad_box=2)
    again = Loader(Shards(tmp_path / 'odd'), Tokenizer(4096, 32), 32, 6, parts=True, workers=1, cache=False)
    next(again.batches())
    assert again.failures == loader.failures
    cfg = make_config('smoke_parts', data='data/nowhere')
    assert cfg.chains == 'parts' and cfg.level_probs == ()


def test_parts_do_not_move_the_pairs_and_do_not_depend_on_workers(scenes):
    how = dict(tokenizer=Tokenizer(4096, 32), image_size=24, batch_size=20, augment=presets['demo'], seed=3)
    shards = Shards(scenes / 'train')
    plain, batch = Loader(shards, **how).batch_at(7), Loader(shards, **how, parts=True).batch_at(7)
    assert all(torch.equal(a, b[:20]) for a, b in zip(plain[:3], batch[:3])) and len(batch.images) == 40
    with_workers = next(Loader(shards, **how, parts=True, workers=1).batches(7))
    assert torch.equal(batch.images, with_workers.images)
    assert all(torch.equal(a, b) for a, b in zip(batch.chains, with_workers.chains))
    drawn = {tuple(Loader(shards, **how, parts=True).batch_at(step).chains.text_ids.tolist()) for step in (2, 7, 12)}
    assert len(drawn) == 3  # another part in another epoch
    whole = Loader(shards, **how, parts=True, pre_resize=36).batch_at(7)
    assert whole.augment_params.shape == (40, 21) and whole.images.shape == (40, 3, 36, 36)


# --- the losses


def chain_rows(phrases, captions, drawn):
    "`TextChains` rows and owners: all phrases of each picture above its caption, then the drawn one of each part."
    rows = [(p, c, i) for i, (own, c) in enumerate(zip(phrases, captions)) for p in own]
    rows += [(0, p, len(captions) + i) for i, p in enumerate(drawn)]
    return torch.tensor([o[:2] for o in rows]), torch.tensor([o[2] for o in rows])


@pytest.mark.parametrize('name', ['lorentz', 'poincare', 'euclidean'])
def test_the_whole_loss_is_hycoclips_formula(name):
    "A quarter of four cross entropies, and 0.2 times half the sum of four mean entailment terms."
    cfg = make_config('smoke_parts', geometry=name, learn_curv=name != 'euclidean', embed_dim=8)
    torch.manual_seed(0)
    model = build_model(cfg).double().train()
    space, n = model.geometry, 5
    vectors = [0.7 * torch.randn(n, 8, dtype=torch.float64) for _ in range(4)]
    image, part, caption, phrase = leaves = [space.exp_map0(v, model.curv.detach()).requires_grad_() for v in vectors]
    rows, owners = chain_rows([[i] for i in range(11, 16)], range(1, 6), range(11, 16))
    chains = TextChains(None, torch.arange(11, 16), rows, owners)
    out = model.losses(torch.cat([image, part]), caption, torch.arange(1, 6), phrase, chains)

    def cross(queries, keys):
        return F.cross_entropy(model.logit_scale * space.scores(queries, keys, model.curv), torch.arange(n))

    def missed(general, special, widening):
        angle = space.exterior_angle(general, special, model.curv)
        return (angle - widening * space.half_aperture(general, model.curv)).clamp(min=0).mean()

    four = [cross(image, caption), cross(caption, image), cross(part, caption), cross(phrase, image)]
    edges = [
        missed(caption, image, 0.7),
        missed(phrase, part, 0.7),
        missed(phrase, caption, 1.2),
        missed(part, image, 1.2),
    ]
    expected = sum(four) / 4 + 0.2 * 0.5 * sum(edges)
    assert out['loss'].item() == pytest.approx(expected.item(), rel=1e-6)
    scalars = [p for p in model.parameters(recurse=False) if p.requires_grad]
    how = dict(allow_unused=True, materialize_grads=True, retain_graph=True)
    ours, theirs = (torch.autograd.grad(o, [*leaves, *scalars], **how) for o in (out['loss'], expected))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_a_caption_that_holds_the_phrase_is_no_negative():
    "By hand: positives of a part are all captions above which its phrase stands, and of a phrase all such pictures."
    space, rng = get_geometry('lorentz'), torch.Generator().manual_seed(1)
    x, t = (space.exp_map0(torch.randn(n, 4, generator=rng, dtype=torch.float64), ONE) for n in (6, 5))
    phrases, drawn = [[11, 12], [11], [12, 13]], [12, 11, 12]  # 13 is drawn by nobody, and not in the batch
    rows, owners = chain_rows(phrases, [1, 2, 3], drawn)
    ids = torch.tensor([1, 2, 3, 11, 12])
    graph = text_graph(ids, rows, owners)
    terms = _part_terms(space, x, t, graph, ONE, 2.0)
    logits = 2.0 * space.scores(x[3:], t[:3], ONE)
    own = [[0, 2], [0, 1], [0, 2]]

    def charged(row, positives):
        negatives = sum(row[j].exp() for j in range(3) if j not in positives)
        return sum((1 + negatives / row[j].exp()).log() for j in positives) / len(positives)

    assert terms.images.item() == pytest.approx(sum(charged(*o) for o in zip(logits, own)).item() / 3)
    back = 2.0 * space.scores(t[3:], x[:3], ONE)
    assert terms.texts.item() == pytest.approx(sum(charged(*o) for o in zip(back, [[0, 1], [0, 2]])).item() / 2)
    edges = [(x[i], t[i], 0.7) for i in range(3)] + [(x[3 + i], t[3 + (p == 12)], 0.7) for i, p in enumerate(drawn)]
    edges += [(t[0], t[3], 1.2), (t[0], t[4], 1.2), (t[1], t[3], 1.2), (t[2], t[4], 1.2)]
    edges += [(x[i], x[3 + i], 1.2) for i in range(3)]
    missed = [space.exterior_angle(g, s, ONE) - w * space.half_aperture(g, ONE) for s, g, w in edges]
    mean = torch.stack(missed).clamp(min=0).mean().item()
    assert edge_entailment(space, x, t, graph.reduced(), ONE, Cones(across=0.7, within=1.2)).item() == pytest.approx(
        mean
    )


# --- a run


@pytest.fixture(scope='module')
def runs(scenes, tmp_path_factory):
    home = tmp_path_factory.mktemp('runs')
    how = dict(data=str(scenes), steps=6, warmup=1, batch_size=16, save_every=3, val_every=6, log_every=1)
    for name in ('smoke_parts', 'smoke_parts_clip'):
        fit(Run(home / name, make_config(name, image_size=24, **how)), quiet=True)
    return home


def test_a_run_learns_parts_and_resumes_to_the_bit(runs, tmp_path):
    row = Run(runs / 'smoke_parts', (cfg := load_config(runs / 'smoke_parts'))).rows()[-1]
    terms = 0.5 * row['contrastive'] + 0.5 * row['part'] + 0.4 * row['entailment']
    assert row['loss'] == pytest.approx(terms, rel=1e-5) and 'chain' not in row
    assert row['part'] == pytest.approx((row['part_images'] + row['part_texts']) / 2, rel=1e-5)
    assert Run(runs / 'smoke_parts_clip', load_config(runs / 'smoke_parts_clip')).rows()[-1]['entailment'] == 0
    part = Run(tmp_path / 'again', cfg)

    class Stop(Exception):
        pass

    def log(row, write=part.log):
        write(row)
        if row['step'] == 4:
            raise Stop

    part.log = log
    with pytest.raises(Stop):
        fit(part, quiet=True)
    assert Run(tmp_path / 'again', cfg).step == 3
    fit(Run(tmp_path / 'again', cfg), quiet=True)
    assert file_sha256(Run(tmp_path / 'again', cfg).last) == file_sha256(runs / 'smoke_parts' / 'last.safetensors')


def test_the_vit_preset_learns_parts_that_the_device_augments(scenes, tmp_path):
    "Cut down in width and depth alone; pictures and parts are augmented a batch at a time."
    image = dict(image_size=32, image_width=48, image_depth=1, image_heads=3, recompute=True)
    text = dict(text_width=64, text_depth=1, text_heads=1, vocab_size=4096, context_length=32, embed_dim=16)
    how = dict(batch_size=16, steps=2, warmup=1, log_every=1, workers=0, augment_on='device')
    cfg = make_config('vit_b_parts', data=str(scenes), **image, **text, **how)
    fit(Run(tmp_path / 'vit', cfg), quiet=True)
    row = Run(tmp_path / 'vit', cfg).rows()[-1]
    assert row['part'] > 0 and row['entailment'] > 0 and cfg.amp == 'bf16' and cfg.entail_weight == 0.4


@pytest.mark.parametrize(
    'given, message',
    [
        (dict(chains='off', cone_within=1.0), "set chains='parts'"),
        (dict(level_probs=(0.5, 0.5)), 'level_probs=()'),
        (dict(micro_batch=16), 'set micro_batch=0'),
    ],
)
def test_what_cannot_be_is_refused(given, message):
    with pytest.raises(ValueError, match=message.replace('(', r'\(').replace(')', r'\)')):
        make_config('smoke_parts', **given)


def test_data_without_boxes_say_so(tmp_path, scenes):
    shards = Shards(scenes / 'val')
    write_shards([shards[i]._replace(meta={}) for i in range(12)], tmp_path / 'plain')
    cfg = make_config('smoke_parts', data=str(tmp_path / 'plain'), batch_size=2, val_pairs=1)
    with pytest.raises(ValueError, match="No sample of .*no_parts': 11"):
        fit(Run(tmp_path / 'run', cfg), quiet=True)


# --- the evaluation


def test_part_measures_by_hand():
    space, rng = get_geometry('lorentz'), torch.Generator().manual_seed(2)
    wholes, parts = (space.exp_map0(torch.randn(n, 3, generator=rng, dtype=torch.float64), ONE) for n in (4, 9))
    own = torch.zeros(4, 9, dtype=torch.bool)
    for i, js in enumerate([[0, 1], [2, 3, 4], [5, 6], [7, 8]]):
        own[i, js] = True
    got = _part_values(space, wholes, parts, own, ONE, 0.1)
    for i in range(4):
        margins = [(space.half_aperture(p, ONE) - space.exterior_angle(p, wholes[i], ONE)).item() for p in parts]
        nearness = [space.scores(wholes[i : i + 1], p[None], ONE).item() for p in parts]
        mine = own[i].nonzero().flatten().tolist()
        for name, scores in dict(ap=nearness, cone_ap=margins).items():
            order = sorted(range(9), key=lambda j: -scores[j])
            places = sorted(order.index(j) + 1 for j in mine)
            assert got[name][i].item() == pytest.approx(sum((k + 1) / p for k, p in enumerate(places)) / len(places))
        assert got['in_cone'][i].item() == pytest.approx(sum(margins[j] > 0 for j in mine) / len(mine))
        others = [j for j in range(9) if j not in mine]
        assert got['other_in_cone'][i].item() == pytest.approx(sum(margins[j] > 0 for j in others) / len(others))


def test_runs_are_paired_picture_by_picture(runs, scenes, tmp_path, monkeypatch):
    "Captions and parts of one set, the control beside, and a difference that is tested over pictures."
    monkeypatch.setattr('meru.evaluation.suites._examine_nouns', lambda model, tokenizer: [])
    task = read_data(scenes / 'test_style', 24)
    assert len(task.parts.owner) == sum(len(Shards(scenes / 'test_style')[i].meta['file']) for i in range(24))
    data = str(scenes / 'test_style')
    found = compare_runs(
        CompareConfig(runs=f'{runs}/smoke_parts {runs}/smoke_parts_clip', data=data, out=str(tmp_path))
    )
    lines = {(o.question.name): o for o in found.table}
    assert lines['phrase_ap'].differences['smoke_parts_clip'].over == 'photos'
    assert set(lines['part_cone_ap'].means) == {'smoke_parts'}  # the sphere has no cones
    chance, fresh = (found.controls[o].value('phrase_ap', 'test_style') for o in ('chance', 'untrained'))
    assert 0 < chance < 0.2 and 0 < fresh < 0.6
    values = found.runs[0].values['test_style', 'phrase_ap']
    assert len(values) == 24 and values.mean().item() == pytest.approx(lines['phrase_ap'].means['smoke_parts'].mean)
    assert 0 <= found.runs[0].measures.value('part_outward', 'test_style') <= 1
