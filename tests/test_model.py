"One model, four geometries: parity with the reference, ranges, precision, saving, and hostile checkpoints."

import json, pickle
from dataclasses import FrozenInstanceError, replace
import pytest, torch
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence
from meru.geometry import geometries
from meru.models.model import Model, ModelConfig, build_model, paper_sizes
from meru.models.released import load_released, _our_name, read_released
from conftest import ROOT

PARITY, NAMES = ROOT / 'tests/parity', list(geometries)
SMALL = ModelConfig(
    embed_dim=16,
    image_tower='conv',
    image_size=16,
    conv_width=8,
    image_width=32,
    image_depth=1,
    text_width=32,
    text_depth=1,
    text_heads=2,
    context_length=8,
    vocab_size=64,
)
IMAGES = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.tensor([[62, 1, 63, 0], [62, 2, 3, 63], [62, 4, 63, 0], [62, 4, 63, 0]])
IDS = torch.tensor([0, 1, 2, 2])


def small(name='lorentz', **changes):
    torch.manual_seed(0)
    return build_model(
        replace(SMALL, geometry=name, entail_weight=0.2 if geometries[name].has_cones else 0.0, **changes)
    )


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


@pytest.mark.parametrize('size, n', dict(vit_s=85_290_372, vit_b=149_619_972, vit_l=367_254_020).items())
def test_paper_sizes(size, n):
    with torch.device('meta'):
        model = build_model(ModelConfig(**paper_sizes[size]))
    assert model.param_count + model.image_tower.pos_embed.numel() == n


def test_what_each_geometry_learns():
    learnt = {name: {n for n, p in small(name).named_parameters() if p.ndim == 0} for name in NAMES}
    alphas = {'log_image_alpha', 'log_text_alpha'}
    assert learnt == dict(
        lorentz={'log_curv', 'log_logit_scale'} | alphas,
        poincare={'log_curv', 'log_logit_scale'} | alphas,
        euclidean={'log_logit_scale'} | alphas,
        sphere={'log_logit_scale'},
    )
    assert (
        not small(learn_curv=False, curv_init=0.5).log_curv.requires_grad
        and abs(small(learn_curv=False, curv_init=0.5).curv - 0.5) < 1e-6
    )
    assert small('euclidean', curv_init=5.0).curv == 1 and small('sphere').image_alpha == 1


@pytest.mark.parametrize('name', NAMES)
def test_start(name):
    "Tangent vectors of about unit norm, and the paper's scalars."
    model = small(name, embed_dim=512)
    norms = (
        (model.image_alpha * model.project_image(IMAGES)).norm(dim=-1)
        if geometries[name].has_radius
        else model.encode_image(IMAGES).norm(dim=-1)
    )
    assert 0.3 < norms.min() and norms.max() < 1.6
    assert (
        abs(small(name, logit_scale_init=30.0).logit_scale - 30) < 1e-4
        and abs(model.logit_scale * 0.07 - 1) < 1e-5
        and abs(model.text_alpha - (512**-0.5 if geometries[name].has_radius else 1)) < 1e-6
    )


@pytest.mark.parametrize('name', NAMES)
def test_forward_is_its_parts(name):
    model = small(name).eval()
    out = model(IMAGES, TOKENS, IDS)
    assert torch.equal(out['image_points'], model.encode_image(IMAGES)) and torch.equal(
        out['text_points'], model.lift_text(model.project_text(TOKENS))
    )
    assert torch.allclose(out['loss'], out['contrastive'] + model.cfg.entail_weight * out['entailment'])
    assert model(IMAGES, TOKENS)['contrastive'] > out['contrastive']  # without ids, the equal texts are rivals


@pytest.mark.parametrize('name', NAMES)
def test_float32_under_autocast(name):
    model = small(name).eval()
    exact = model(IMAGES, TOKENS, IDS)
    with torch.autocast('cpu', torch.bfloat16):
        low = model(IMAGES, TOKENS, IDS)
    assert {v.dtype for v in low.values()} == {torch.float32}
    assert abs(low['loss'] - exact['loss']) < 0.05 * exact['loss']
    v = torch.randn(5, 16).bfloat16()
    if geometries[name].has_radius:
        model.log_image_alpha.data.fill_(-1.1)
        model.log_text_alpha.data.fill_(-1.1)
    for lift in (model.lift_image, model.lift_text):
        with torch.autocast('cpu', torch.bfloat16):
            assert torch.equal(lift(v), lift(v.float()))


@pytest.mark.parametrize('name', NAMES)
def test_gradients_are_finite_and_reach_everything(name):
    model = small(name)
    model(IMAGES, TOKENS, IDS)['loss'].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_shared_projection_is_one_map_for_both():
    "Equal features of the two towers become equal points; unequal widths have no common map."
    model = small(image_tower='features', text_tower='features', image_width=24, text_width=24, shared_proj=True)
    x = torch.randn(3, 24)
    assert torch.equal(model.project_image(x), model.project_text(x)) and 'text_proj.weight' not in model.state_dict()
    apart = small(image_tower='features', text_tower='features', image_width=24, text_width=24)
    assert (
        not torch.allclose(apart.project_image(x), apart.project_text(x))
        and model.param_count == apart.param_count - 24 * model.cfg.embed_dim
    )
    with pytest.raises(ValueError, match='the towers are 24 and 16 wide'):
        small(image_tower='features', text_tower='features', image_width=24, text_width=16, shared_proj=True)


def test_lorentz_and_poincare_are_one_space():
    assert abs(small('lorentz')(IMAGES, TOKENS, IDS)['loss'] - small('poincare')(IMAGES, TOKENS, IDS)['loss']) < 1e-5


def test_bytes_and_fractions_are_the_same_picture():
    model = small(image_tower='vit', patch_size=8, image_heads=4).eval()
    assert torch.allclose(model.encode_image(IMAGES), model.encode_image(IMAGES.float() / 255), atol=1e-6)
    assert not torch.allclose(model.encode_image(IMAGES), model.encode_image(IMAGES.float()), atol=1e-2)


@pytest.mark.parametrize(
    'push, expected',
    [(9.0, (10.0, 1.0, 1.0, 100.0)), (-9.0, (0.1, 512**-0.5 / 8103.08, 512**-0.5 / 8103.08, 1 / 0.07 / 8103.08))],
)
def test_clamp(push, expected):
    model = small(embed_dim=512)
    with torch.no_grad():
        for p in (model.log_curv, model.log_image_alpha, model.log_text_alpha, model.log_logit_scale):
            p.add_(push)
    model.clamp_()
    assert torch.allclose(
        torch.stack([model.curv, model.image_alpha, model.text_alpha, model.logit_scale]),
        torch.tensor(expected),
        rtol=1e-3,
    )


@pytest.mark.parametrize('name', NAMES)
def test_weights_survive_safetensors(name, tmp_path):
    model, fresh = small(name), build_model(replace(small(name).cfg))
    model(IMAGES, TOKENS)  # moves the batch statistics
    save_file(model.state_dict(), tmp_path / 'w.safetensors')
    fresh.load_state_dict(load_file(tmp_path / 'w.safetensors'))
    assert torch.equal(fresh.eval()(IMAGES, TOKENS)['loss'], model.eval()(IMAGES, TOKENS)['loss'])


def test_channels_last_leaves_no_trace_in_the_weights(tmp_path):
    model = small()
    for _ in range(2):
        model(IMAGES, TOKENS)['loss'].backward()
        torch.optim.AdamW(model.parameters()).step()
    save_file(model.state_dict(), tmp_path / 'w.safetensors')
    assert all(p.is_contiguous() for p in model.parameters())


@pytest.mark.parametrize(
    'changes, says',
    [
        (dict(geometry='torus'), 'torus'),
        (dict(geometry='sphere'), "'sphere' has no entailment cones: set entail_weight=0, not 0.2"),
        (dict(image_tower='cnn'), "'cnn' is not one of vit, conv"),
        (dict(curv_init=0.0), 'curv_init = 0.0 is not at least 0.1, at most 10'),
        (dict(curv_init=11.0), 'curv_init = 11.0 is not'),
        (dict(logit_scale_init=0.0), 'logit_scale_init = 0.0 is not above 0'),
        (dict(logit_scale_init=101.0), 'at most 100'),
    ],
)
def test_config_refuses(changes, says):
    with pytest.raises(ValueError, match=says):
        ModelConfig(**changes)


def test_config_is_frozen_and_survives_json():
    with pytest.raises(FrozenInstanceError):
        SMALL.embed_dim = 3
    assert ModelConfig(**json.loads(json.dumps(vars(SMALL)))) == SMALL


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
