"The losses against brute force, in every geometry, at awkward points, and under autocast."

import math
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from meru.geometry import geometries, get_geometry
from meru.losses.contrastive import _hard_cross_entropy
from meru.losses.pairwise import contrastive_loss
from meru.losses.entailment import entailment_loss

NAMES, CONED = list(geometries), [n for n, g in geometries.items() if g.has_cones]
LORENTZ, ONE = get_geometry('lorentz'), torch.tensor(1.0)


def points(geometry, b, d, seed, curv, dtype=torch.float64, scale=0.7):
    g = torch.Generator().manual_seed(seed)
    return [geometry.exp_map0(scale * torch.randn(b, d, generator=g, dtype=dtype), curv) for _ in range(2)]


def brute_force(logits, ids):
    "Pair by pair: who is in the denominator is decided by hand."
    total = 0.0
    for l in (logits, logits.T):
        for i in range(len(l)):
            negatives = [j for j in range(len(l)) if j == i or ids[j] != ids[i]]
            total += F.cross_entropy(l[i, negatives], torch.tensor(negatives.index(i)))
    return total / (2 * len(logits))


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(NAMES),
    st.integers(1, 7),
    st.integers(1, 5),
    st.floats(0.1, 10),
    st.floats(0.1, 100),
    st.integers(0, 99),
    st.lists(st.integers(-2, 2), min_size=7, max_size=7),
)
def test_contrastive_is_the_mean_of_masked_cross_entropies(name, b, d, curv, scale, seed, ids):
    geometry, curv, scale = get_geometry(name), torch.tensor(curv).double(), torch.tensor(scale).double()
    x, t = points(geometry, b, d, seed, curv)
    expected = brute_force(scale * geometry.scores(x, t, curv), ids)
    assert torch.allclose(
        contrastive_loss(geometry, x, t, curv, scale, torch.tensor(ids[:b])), expected, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize('name', NAMES)
def test_without_ids_every_text_is_a_negative(name):
    geometry = get_geometry(name)
    x, t = points(geometry, 5, 3, 0, ONE)
    assert torch.allclose(contrastive_loss(geometry, x, t, ONE, ONE), brute_force(geometry.scores(x, t, ONE), range(5)))


@pytest.mark.parametrize('name', NAMES)
def test_a_batch_of_one_caption_teaches_nothing(name):
    geometry = get_geometry(name)
    x, t = (p.requires_grad_() for p in points(geometry, 4, 3, 0, ONE))
    loss = contrastive_loss(geometry, x, t, ONE, 10 * ONE, torch.zeros(4, dtype=torch.long))
    loss.backward()
    assert loss == 0 and not x.grad.any() and not t.grad.any()


@pytest.mark.parametrize('name', NAMES)
def test_images_and_texts_may_change_places(name):
    geometry, ids = get_geometry(name), torch.tensor([1, 2, 1, 3, 4])
    x, t = points(geometry, 5, 3, 0, ONE)
    assert torch.allclose(
        contrastive_loss(geometry, x, t, ONE, 5 * ONE, ids), contrastive_loss(geometry, t, x, ONE, 5 * ONE, ids)
    )


@pytest.mark.parametrize('name', NAMES)
def test_gradients_by_finite_differences(name):
    geometry, curv, scale = (
        get_geometry(name),
        torch.tensor(0.7).double().requires_grad_(),
        torch.tensor(3.0).double().requires_grad_(),
    )
    v, w = (
        torch.randn(4, 3, generator=torch.Generator().manual_seed(s), dtype=torch.float64).requires_grad_()
        for s in (0, 1)
    )

    def loss(v, w, curv, scale):
        x, t = geometry.exp_map0(v, curv), geometry.exp_map0(w, curv)
        total = contrastive_loss(geometry, x, t, curv, scale, torch.tensor([0, 1, 1, 2]))
        return total + entailment_loss(geometry, t, x, curv, 0.1) if geometry.has_cones else total

    assert torch.autograd.gradcheck(loss, (v, w, curv, scale), atol=1e-5)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('place', ['coincident', 'root', 'antipodal', 'collinear', 'far'])
def test_finite_at_awkward_points(name, place):
    geometry, v = get_geometry(name), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    w = dict(coincident=v, root=0 * v, antipodal=-v, collinear=2 * v, far=7 * v)[place]
    v, w, curv = (
        (v * (place != 'root')).requires_grad_(),
        w.clone().requires_grad_(),
        torch.tensor(1.0, requires_grad=True),
    )
    x, t = geometry.exp_map0(v, curv), geometry.exp_map0(w, curv)
    loss = contrastive_loss(geometry, x, t, curv, torch.tensor(100.0))
    if geometry.has_cones:
        loss = loss + entailment_loss(geometry, t, x, curv, 0.1)
    loss.backward()
    assert loss.isfinite() and v.grad.isfinite().all() and w.grad.isfinite().all()


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32])
def test_float32_under_autocast(name, dtype):
    geometry = get_geometry(name)
    x, t = (p.to(dtype) for p in points(geometry, 8, 4, 0, ONE))
    ids, scale = torch.arange(8), torch.tensor(14.0, dtype=dtype)
    exact = contrastive_loss(geometry, x.double(), t.double(), ONE.double(), scale.double(), ids)
    with torch.autocast('cpu', torch.bfloat16):
        loss = contrastive_loss(geometry, x, t, ONE, scale, ids)
        cones = entailment_loss(geometry, t, x, ONE, 0.1) if geometry.has_cones else loss
    assert loss.dtype == cones.dtype == torch.float32 and abs(loss / exact - 1) < 1e-5


def ray(r, degrees):
    return LORENTZ.exp_map0(r * torch.tensor([[math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]]), ONE)


@pytest.mark.parametrize('radius, degrees, miss', [(3, 0, 0.0), (1.5, 0, 0.0), (0.5, 0, math.pi), (3, 180, math.pi)])
def test_entailment_on_the_axis(radius, degrees, miss):
    text = ray(1.0, 0)
    expected = max(0, miss - LORENTZ.half_aperture(text, ONE, 0.1).item())
    assert abs(entailment_loss(LORENTZ, text, ray(radius, degrees), ONE, 0.1).item() - expected) < 1e-5


@pytest.mark.parametrize('name', CONED)
def test_entailment_is_the_mean_miss_of_pairs_only(name):
    geometry = get_geometry(name)
    x, t = points(geometry, 6, 3, 1, ONE)
    x = torch.cat([x[:3], t[3:] * 1.2])  # three anywhere, three straight behind their texts
    miss = [
        max(0.0, (geometry.exterior_angle(t[i], x[i], ONE) - geometry.half_aperture(t[i], ONE, 0.3)).item())
        for i in range(6)
    ]
    assert min(miss[:3]) > 0 and miss[3:] == [0.0, 0.0, 0.0]
    assert abs(entailment_loss(geometry, t, x, ONE, 0.3).item() - sum(miss) / 6) < 1e-12


def test_descent_brings_the_image_into_the_cone():
    text, v = ray(1.0, 0), torch.tensor([[0.3, 1.0]], requires_grad=True)
    optimiser = torch.optim.SGD([v], lr=0.1)
    for _ in range(200):
        loss = entailment_loss(LORENTZ, text, LORENTZ.exp_map0(v, ONE), ONE, 0.1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss == 0


def test_no_cones_on_the_sphere():
    x, t = points(get_geometry('sphere'), 2, 3, 0, ONE)
    with pytest.raises(ValueError, match="'sphere' has no entailment cones: .*entail_weight=0"):
        entailment_loss(get_geometry('sphere'), t, x, ONE, 0.1)


@pytest.mark.parametrize(
    'x, t, ids, says',
    [
        ((3, 4), (2, 4), None, r'\(3, 4\) and text_points \(2, 4\)'),
        ((3, 4), (3, 5), None, 'same shape'),
        ((4,), (4,), None, r'\[pairs, dimensions\]'),
        ((3, 4), (3, 4), (2,), r'shape \(2,\), but there are 3 pairs'),
    ],
)
def test_what_is_no_batch_of_pairs_is_refused(x, t, ids, says):
    ids = None if ids is None else torch.zeros(ids)
    with pytest.raises(ValueError, match=says):
        contrastive_loss(LORENTZ, torch.ones(x), torch.ones(t), ONE, ONE, ids)
    if ids is None:
        with pytest.raises(ValueError, match=says):
            entailment_loss(LORENTZ, torch.ones(t), torch.ones(x), ONE, 0.1)


def weighted_brute_force(logits, ids, margin, beta):
    "Row by row with the weights of Robinson et al. 2021 written out."
    total = 0.0
    for l in (logits, logits.T):
        for i in range(len(l)):
            own, negatives = l[i, i] - margin, l[i, [j for j in range(len(l)) if ids[j] != ids[i]]]
            if not len(negatives):
                continue
            w = len(negatives) * (beta * negatives).exp() / (beta * negatives).exp().sum()
            total += torch.log(own.exp() + (w * negatives.exp()).sum()) - own
    return torch.as_tensor(total / (2 * len(logits)), dtype=torch.float64)


@settings(max_examples=40)
@given(
    st.sampled_from(NAMES),
    st.integers(1, 7),
    st.floats(0, 4),
    st.sampled_from((0.0, 0.3, 1.0, 2.0)),
    st.integers(0, 99),
    st.lists(st.integers(0, 9), min_size=7, max_size=7),
)
def test_margin_and_hard_negatives_are_the_written_out_sum(name, b, margin, beta, seed, ids):
    geometry = get_geometry(name)
    x, t = points(geometry, b, 3, seed, ONE)
    got = contrastive_loss(geometry, x, t, ONE.double(), 2 * ONE.double(), torch.tensor(ids[:b]), margin, beta)
    assert torch.allclose(
        got, weighted_brute_force(2 * geometry.scores(x, t, ONE), ids, margin, beta), rtol=1e-9, atol=1e-9
    )


def test_hard_negatives_pull_as_a_sharper_softmax():
    "The weights are constants to the gradient, so no negative is ever drawn nearer."
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    _hard_cross_entropy(logits, 1.5).backward()
    off = logits.detach().masked_fill(torch.eye(6).bool(), -torch.inf)
    share = logits.grad.masked_fill(torch.eye(6).bool(), 0.0)
    assert torch.allclose(share / share.sum(1, keepdim=True), (2.5 * off).softmax(1)) and (share >= 0).all()
