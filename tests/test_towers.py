"The towers: shapes, positions, where the text feature is read, the paper's sizes."

from functools import partial
from types import SimpleNamespace
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from meru.models import towers
from meru.models.towers import ConvMLP, TextTransformer, ViT, _build_image_tower, _build_text_tower
from meru.models.towers import _oriented_gradients, _sincos_positions
from conftest import ROOT


def vit():
    return ViT(image_size=24, patch_size=8, width=32, depth=2, heads=4)


def text():
    return TextTransformer(vocab_size=64, context_length=12, width=32, depth=2, heads=4)


def conv(orientations=0):
    tower = ConvMLP(image_size=24, conv_width=8, width=32, depth=2, orientations=orientations)
    for m in tower.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(m.weight)  # as if trained: blocks start switched off
    return tower


PICTURES = torch.rand(3, 3, 24, 24, generator=torch.Generator().manual_seed(0))
TOKENS = torch.tensor([[62, 5, 6, 63, 0, 0], [62, 63, 0, 0, 0, 0], [62, 9, 8, 7, 6, 63]])
TOWERS = [(vit, PICTURES), (conv, PICTURES), (partial(conv, 9), PICTURES), (text, TOKENS)]


def test_positions_are_the_released_ones():
    released = torch.load(ROOT / 'tests/parity/meru_tiny.pth', weights_only=True)['model']['visual.pos_embed']
    assert torch.allclose(ViT(32, 8, 48, 1, 4).pos_embed, released, atol=1e-6)


def test_rows_come_first():
    table = _sincos_positions(64, 5).view(5, 5, 2, 32)
    assert torch.equal(table[2, 1, 0], table[2, 4, 0]) and torch.equal(table[1, 2, 1], table[4, 2, 1])
    assert not torch.equal(table[2, 1, 0], table[1, 2, 0])


def test_positions_are_fixed_and_saved():
    tower = vit()
    assert 'pos_embed' not in dict(tower.named_parameters()) and 'pos_embed' in tower.state_dict()
    assert (tower.pos_embed[:, 0] == 0).all()


@pytest.mark.parametrize('make, x', TOWERS)
def test_one_feature_per_sample_and_every_weight_learns(make, x):
    torch.manual_seed(0)
    tower = make()
    features = tower(x)
    assert features.shape == (3, tower.width)
    features.square().sin().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in tower.parameters())


@pytest.mark.parametrize('make, x', TOWERS)
def test_a_sample_does_not_depend_on_its_batch(make, x):
    torch.manual_seed(0)
    tower = make().eval()
    assert torch.allclose(tower(x)[1], tower(x[1:2])[0], atol=1e-5)
    assert not torch.allclose(tower(x)[1], tower(x)[0], atol=1e-3)


@pytest.mark.parametrize('make, x', TOWERS)
def test_bfloat16_autocast_stays_near(make, x):
    torch.manual_seed(0)
    tower = make().eval()
    with torch.autocast('cpu', torch.bfloat16):
        low = tower(x)
    assert F.cosine_similarity(low.float(), tower(x)).min() > 0.99


@pytest.mark.parametrize('make, x', TOWERS[:2])
def test_double_precision_goes_through(make, x):
    assert make().double()(x.double()).dtype == torch.float64


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 61), min_size=0, max_size=8), st.integers(0, 2), st.integers(0, 61))
def test_padding_never_reaches_the_feature(words, pad, filler):
    torch.manual_seed(0)
    tower, ids = text(), torch.tensor([[62, *words, 63]])
    padded = F.pad(ids, (0, pad), value=filler)
    assert torch.allclose(tower(ids), tower(padded), atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(2, 12), min_size=1, max_size=5), st.integers(1, 17), st.integers(0, 60))
def test_cut_texts_loses_padding_alone(lengths, step, extra):
    ids = torch.zeros(len(lengths), max(lengths) + extra, dtype=torch.long)
    for row, n in zip(ids, lengths):
        row[:n] = torch.arange(1, n + 1)
    cut = towers.cut_texts(ids, step, most=40)
    assert max(lengths) <= cut.shape[1] < max(lengths) + step and (cut.shape[1] % step == 0 or cut.shape[1] == 40)
    n = min(cut.shape[1], ids.shape[1])
    assert torch.equal(cut[:, :n], ids[:, :n]) and not cut[:, n:].any() and not ids[:, n:].any()


def test_cut_texts_changes_no_feature_and_no_gradient():
    found = []
    for ids in (F.pad(TOKENS, (0, 6)), towers.cut_texts(F.pad(TOKENS, (0, 6)), step=4)):
        torch.manual_seed(0)
        tower = text().double()
        tower(ids).sin().sum().backward()
        found.append([ids.shape[1], tower(ids), *(p.grad for p in tower.parameters())])
    assert [o[0] for o in found] == [12, 8]
    for a, b in zip(found[0][1:], found[1][1:]):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize('make, x', [TOWERS[0], TOWERS[2]])
def test_recomputed_blocks_give_the_same_bits(make, x):
    "Patch dropout draws before the blocks, so that nothing random is computed twice."
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        tower = make()
        tower.recompute, tower.patch_dropout = recompute, 0.4
        tower(x).sin().sum().backward()
        found.append([p.grad for p in tower.parameters()])
    assert all(map(torch.equal, *found))


def test_patch_dropout_shows_a_share_of_the_patches_in_training_alone():
    tower, seen = vit(), []
    tower.patch_dropout = 0.5
    tower.blocks[0].register_forward_hook(lambda block, args, out: seen.append(out.shape[1]))
    tower(PICTURES)
    tower.eval()(PICTURES)
    assert seen == [1 + 4, 1 + 9]  # 9 patches; 4 of them stay, and the class token
    rows = towers._some_tokens(torch.arange(9.0).expand(500, -1)[..., None], 0.5)[..., 0]
    assert all(len(set(o)) == 4 for o in rows.tolist()) and set(rows.flatten().tolist()) == set(range(9))
    assert abs(rows.mean() - 4) < 0.2 and towers._some_tokens(PICTURES.flatten(2), 0.999).shape[1] == 1


def test_word_order_matters():
    torch.manual_seed(0)
    a, b = text()(torch.tensor([[62, 5, 6, 63], [62, 6, 5, 63]]))
    assert (a - b).abs().max() > 1e-3


@pytest.mark.parametrize(
    'size, total, table',
    [
        ((384, 12, 12), 85_290_372, 75_648),
        ((768, 12, 12), 149_619_972, 151_296),
        ((1024, 24, 16), 367_254_020, 201_728),
    ],
)
def test_paper_sizes(size, total, table):
    with torch.device('meta'):
        image, words = ViT(224, 16, *size), TextTransformer()
    trained = sum(p.numel() for tower in (image, words) for p in tower.parameters())
    assert image.pos_embed.numel() == table and trained + table + 512 * (size[0] + 512) + 4 == total


def test_histograms_are_those_of_dalal_and_triggs():
    picture = PICTURES[:1] - 0.5
    grey = np.pad(picture.double().mean(1)[0].numpy(), 1, mode='edge')
    votes = np.zeros((6, 6, 9))
    for y, x in np.ndindex(24, 24):
        across, down = grey[y + 1, x + 2] - grey[y + 1, x], grey[y + 2, x + 1] - grey[y, x + 1]
        turn = np.degrees(np.arctan2(down, across)) % 180 / 20
        low = int(turn)
        for way, share in ((low, 1 - turn + low), (low + 1, turn - low)):  # nearest two bins, linearly
            votes[y // 4, x // 4, way % 9] += np.hypot(across, down) * share / 16
    energy = (votes**2).sum(2)
    for y, x in np.ndindex(6, 6):
        around = energy[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        votes[y, x] /= np.sqrt(around.mean() + 1e-3)
    found = _oriented_gradients(picture, 9)[0].permute(1, 2, 0)
    assert found.numpy() == pytest.approx(votes, abs=1e-4)
    even = _oriented_gradients(torch.full((1, 3, 24, 24), 0.7), 9)
    assert not even.any(), 'an even picture has no edges'


def test_conv_keeps_the_layout():
    "Cells beside each other: a change in one corner reaches that corner's cells alone."
    torch.manual_seed(0)
    stem, x = conv().eval().stem, torch.rand(1, 3, 24, 24)
    y = x.clone()
    y[..., -4:, -4:] = 0
    moved = (stem(x) - stem(y)).view(16, 6, 6).abs().sum(0)
    assert moved[5, 5] > 0 and (moved[:5] == 0).all() and (moved[:, :5] == 0).all()


def test_dropout_acts_in_training_alone():
    torch.manual_seed(0)
    tower, x = ConvMLP(24, 8, 32, 1, dropout=0.5), torch.rand(8, 3, 24, 24)
    assert not torch.equal(tower(x), tower(x))
    tower.eval()
    assert torch.equal(tower(x), tower(x))


def test_initial_deviations():
    torch.manual_seed(0)
    with torch.no_grad():
        words, image = TextTransformer(512, 16, 128, 4, 2), ViT(32, 8, 128, 2, 2)
        for weight, std in (
            (words.blocks[1].fc1.weight, 256**-0.5),
            (words.blocks[1].fc2.weight, 1024**-0.5),
            (words.token_embed.weight, 0.02),
            (words.blocks[0].attn.qkv.weight, 128**-0.5),
            (words.blocks[0].attn.proj.weight, 1024**-0.5),
            (image.blocks[0].fc1.weight, 0.02),
        ):
            assert abs(weight.std() / std - 1) < 0.05


def test_built_by_name():
    cfg = SimpleNamespace(
        image_tower='vit',
        image_size=32,
        patch_size=16,
        image_width=16,
        image_depth=1,
        image_heads=2,
        conv_width=4,
        orientations=9,
        dropout=0.0,
        patch_dropout=0.5,
        recompute=False,
        vocab_size=50,
        context_length=9,
        text_width=16,
        text_depth=1,
        text_heads=2,
    )
    assert (
        isinstance(_build_image_tower(cfg), ViT)
        and _build_image_tower(cfg).patch_dropout == 0.5
        and _build_text_tower(cfg).context_length == 9
    )
    cfg.image_tower = 'conv'
    assert isinstance(_build_image_tower(cfg), ConvMLP) and _build_image_tower(cfg).width == 16


@pytest.mark.parametrize(
    'make, says',
    [
        (lambda: ViT(30, 8), '30 is not a multiple of patch_size 8'),
        (lambda: ViT(32, 8, 30, 1, 3), 'width 30 is not a multiple of 4'),
        (lambda: ViT(32, 8, 32, 1, 5), 'width 32 cannot be split into 5 heads'),
        (lambda: vit()(torch.rand(1, 3, 32, 32)), 'built for 24 x 24'),
        (lambda: text()(torch.ones(1, 13, dtype=torch.long)), '13 tokens'),
        (lambda: ConvMLP(30), '30 is not a multiple of 4'),
        (lambda: conv()(torch.rand(1, 3, 32, 32)), 'built for 24 x 24'),
        (lambda: _build_image_tower(SimpleNamespace(image_tower='cnn')), "'cnn' is not one of vit, conv"),
    ],
)
def test_wrong_sizes_are_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()
