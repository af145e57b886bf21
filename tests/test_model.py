"One model, four geometries: ranges, precision, saving."

import json
from dataclasses import FrozenInstanceError, replace
import pytest
import torch
from safetensors.torch import load_file, save_file
from meru.geometry import geometries
from meru.models.model import ModelConfig, build_model, _paper_sizes
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


@pytest.mark.parametrize('size, n', dict(vit_s=85_290_372, vit_b=149_619_972, vit_l=367_254_020).items())
def test_paper_sizes(size, n):
    with torch.device('meta'):
        model = build_model(ModelConfig(**_paper_sizes[size]))
    assert model.param_count + model.image_tower.pos_embed.numel() == n


def test_what_each_geometry_learns():
    learnt = {name: {n for n, p in small(name).named_parameters() if p.ndim == 0} for name in NAMES}
    alphas = {'log_image_alpha', 'log_text_alpha'}
    assert learnt == dict(
        lorentz={'log_curv', 'log_logit_scale'} | alphas,
        poincare={'log_curv', 'log_logit_scale'} | alphas,
        euclidean={'log_logit_scale'} | alphas,
        flat={'log_logit_scale'} | alphas,
        inner={'log_logit_scale'} | alphas,
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
        if geometries[name].has_length
        else model.encode_image(IMAGES).norm(dim=-1)
    )
    assert 0.3 < norms.min() and norms.max() < 1.6
    assert (
        abs(small(name, logit_scale_init=30.0).logit_scale - 30) < 1e-4
        and abs(model.logit_scale * 0.07 - 1) < 1e-5
        and abs(model.text_alpha - (512**-0.5 if geometries[name].has_length else 1)) < 1e-6
    )


@pytest.mark.parametrize('name', NAMES)
def test_forward_is_its_parts(name):
    model = small(name).eval()
    out = model(IMAGES, TOKENS, IDS)
    assert torch.equal(out['image_points'], model.encode_image(IMAGES)) and torch.equal(
        out['text_points'], model.lift_text(model.project_text(TOKENS))
    )
    assert torch.allclose(out['loss'], out['contrastive'] + model.cfg.entail_weight * out['entailment'])
    assert model(IMAGES, TOKENS)['contrastive'] > out['contrastive']  # without ids, the equal texts are negatives


@pytest.mark.parametrize('name', NAMES)
def test_float32_under_autocast(name):
    model = small(name).eval()
    exact = model(IMAGES, TOKENS, IDS)
    with torch.autocast('cpu', torch.bfloat16):
        low = model(IMAGES, TOKENS, IDS)
    assert {v.dtype for v in low.values()} == {torch.float32}
    assert abs(low['loss'] - exact['loss']) < 0.05 * exact['loss']
    v = torch.randn(5, 16).bfloat16()
    if geometries[name].has_length:
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
