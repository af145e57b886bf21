"The peers of the step suite do the same work; its short form says what it did."

import json
from dataclasses import replace
import pytest
import torch
from meru.benchmarks import step as P
from meru.models.model import build_model
from meru.training.config import presets

TINY = replace(
    presets['pairs'],
    image_tower='vit',
    image_size=16,
    patch_size=4,
    image_width=16,
    image_depth=2,
    image_heads=2,
    dropout=0.0,
    text_width=16,
    text_depth=2,
    text_heads=2,
    embed_dim=8,
    batch_size=8,
)


@pytest.mark.parametrize(
    'changes',
    [
        {},
        dict(geometry='sphere', entail_weight=0.0),
        dict(micro_batch=4, recompute=True),
        dict(image_tower='conv', conv_width=4),
    ],
)
def test_ours_and_the_published_formulas_agree(changes):
    found = P._agreement(replace(TINY, **changes), 8)
    assert found['ours']['loss'] < 1e-5 and found['ours']['gradient'] < max(1e-5, 3 * found['plain']['gradient'])


def test_bfloat16_is_further_off_and_says_so():
    low, high = (P._agreement(replace(TINY, amp=a), 8)['ours']['gradient'] for a in ('bf16', 'off'))
    assert 1e-4 < low < 0.1 and high < 1e-5


def test_plain_towers_are_ours():
    torch.manual_seed(0)
    model, batch = build_model(TINY).double(), P._noise_batch(TINY, 4)
    images = batch.images.double() / 255
    assert torch.allclose(P._plain_image(model.image_tower, images), model.image_tower(images), atol=1e-12)
    assert torch.allclose(
        P._plain_text(model.text_tower, P._whole_texts(batch, TINY).tokens), model.text_tower(batch.tokens), atol=1e-12
    )


def test_counted_operations_by_hand():
    cfg = replace(TINY, image_depth=1, text_depth=1)
    more = P._flops_per_pair(replace(cfg, image_depth=2), 16) - P._flops_per_pair(cfg, 16)
    l, w = 17, 16  # tokens, width: 12 l w² for the layers, 2 l² w for attention; two operations a product, three passes
    assert more == 6 * (12 * l * w * w + 2 * l * l * w)


def test_short_form_of_the_suite(monkeypatch):
    monkeypatch.setitem(P.step_cases, 'tiny', TINY)
    threads = torch.get_num_threads()
    found = json.loads(json.dumps(P._step_suite('tiny', reps=1, batch=8)))
    row, augmenting = found['rows']
    assert found['pixels'] == 'synthetic' and torch.get_num_threads() == threads
    assert set(row['ratio']) == {'plain', 'our_clip', 'open_clip', 'parts', 'recomputed', 'half_patches'}
    assert (
        row['error']['ours']['gradient'] < 1e-5
        and row['memory']['parts'] < row['memory']['ours']
        and row['share_of_matrix_rate'] > 0
    )
    assert set(augmenting['ratio']) == {'cut_here', 'recoloured_here'}
    with pytest.raises(ValueError, match='known are: pairs, small'):
        P._step_suite('vit_h')
