"Released checkpoints: parity with the authors' formulas, and files that are refused."

import json
import pickle
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from meru.models.released import load_released, _our_name, read_released
from conftest import ROOT

PARITY = ROOT / 'tests/parity'


@pytest.fixture(scope='module', params=['meru', 'clip'])
def reference(request):
    "A released-layout model after one backward pass, its outputs, and what is expected of them."
    name = request.param
    model = load_released(PARITY / f'{name}_tiny.pth', image_heads=4)
    inputs = torch.load(PARITY / f'{name}_inputs.pt', weights_only=True)
    images, tokens = inputs['images'], pad_sequence(inputs['tokens'], batch_first=True)
    out = model(images, tokens)
    out['loss'].backward()
    out |= dict(image_v=model.project_image(images), text_v=model.project_text(tokens))
    return model, out, json.loads((PARITY / f'{name}_expected.json').read_text())


def test_parity_of_features(reference):
    _, out, expected = reference
    for ours, theirs in dict(
        image_points='image_feats',
        text_points='text_feats',
        image_v='image_feats_unprojected',
        text_v='text_feats_unprojected',
    ).items():
        assert (out[ours] - torch.tensor(expected[theirs])).abs().max() < 1e-5, theirs


def test_parity_of_losses(reference):
    model, out, expected = reference
    parts = expected['logging']
    assert (
        abs(out['loss'].item() - expected['loss']) < 1e-5
        and abs(out['contrastive'].item() - parts['contrastive_loss']) < 1e-5
    )
    assert abs(out['entailment'].item() - parts.get('entailment_loss', 0.0)) < 1e-5
    assert (
        abs(model.logit_scale.item() - parts['logit_scale']) < 1e-5
        and abs(model.curv.item() - parts.get('curv', 1.0)) < 1e-6
    )


def test_parity_of_gradients(reference):
    model, _, expected = reference
    ours = {n: p.grad for n, p in model.named_parameters()}
    theirs = {_our_name(k): v for k, v in expected['grad_norms'].items()}
    assert ours.keys() == theirs.keys()
    assert max(abs(ours[k].norm().item() / v - 1) for k, v in theirs.items()) < 1e-4
    for k, v in expected['scalar_grads'].items():
        assert abs(ours[_our_name(k)].item() / v - 1) < 1e-4, k


def test_clip_root_is_read():
    assert abs(read_released(PARITY / 'clip_tiny.pth')['root'].norm() - 1) < 1e-5


class Trap:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), 'w')


@pytest.mark.parametrize('wrap', [lambda t: t, lambda t: dict(model=t), lambda t: dict(model=dict(weight=t))])
def test_a_trap_is_refused_and_never_sprung(wrap, tmp_path):
    marker, path = tmp_path / 'sprung', tmp_path / 'trap.pth'
    for write in (torch.save, lambda o, p: p.write_bytes(pickle.dumps(o, protocol=2))):
        write(wrap(Trap(marker)), path)
        with pytest.raises(ValueError, match='trap.pth was refused'):
            load_released(path)
        assert not marker.exists()


@pytest.mark.parametrize(
    'damage', [lambda b: b[: len(b) // 2], lambda b: b[:100], lambda b: b'', lambda b: b'\xff' * 500]
)
def test_a_damaged_file_is_refused(damage, tmp_path):
    (tmp_path / 'half.pth').write_bytes(damage((PARITY / 'meru_tiny.pth').read_bytes()))
    with pytest.raises(ValueError, match='half.pth was refused'):
        load_released(tmp_path / 'half.pth')


def changed(tmp_path, change):
    checkpoint = read_released(PARITY / 'meru_tiny.pth')
    change(checkpoint['model'])
    torch.save(checkpoint, tmp_path / 'odd.pth')
    return tmp_path / 'odd.pth'


@pytest.mark.parametrize(
    'change, says',
    [
        (lambda m: m.pop('visual.norm.bias'), r"missing \['image_tower.norm.bias'\]$"),
        (lambda m: m.update(extra=torch.ones(1)), r"unexpected \['extra'\]$"),
        (
            lambda m: m.update(textual_proj=m['visual_proj.weight'], **{'textual_proj.weight': torch.ones(3, 64)}),
            'misshapen',
        ),
        (lambda m: m.pop('visual.patch_embed.proj.weight'), "tensor 'image_tower.patch_embed.weight' is missing"),
        (lambda m: m.pop('visual_alpha'), r"missing \['log_image_alpha'\]$"),
        (lambda m: m.clear(), 'is missing'),
    ],
)
def test_another_layout_is_refused_by_name(change, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        load_released(changed(tmp_path, change), image_heads=4)


def test_heads_must_be_told():
    with pytest.raises(ValueError, match='48 wide is none of the paper.*pass its number of heads as image_heads'):
        load_released(PARITY / 'meru_tiny.pth')


@pytest.mark.parametrize('content', [torch.ones(2), dict(state={}), dict(model=[1])])
def test_something_else_is_refused(content, tmp_path):
    torch.save(content, tmp_path / 'x.pth')
    with pytest.raises(ValueError, match="x.pth is not in the released layout: it has no dictionary 'model'"):
        load_released(tmp_path / 'x.pth')
