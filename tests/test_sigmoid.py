"The sigmoid loss of tiles against its definition: value and gradients, in every geometry, in one process and in two."

import os
import multiprocessing
import pytest
import torch
import torch.distributed as dist
from torch.nn.functional import logsigmoid
from meru.geometry import geometries, get_geometry
from meru.losses import pairwise
from meru.losses.sigmoid import sigmoid_loss
from meru.models.model import build_model, ModelConfig
from meru.parallel import gather_rows, total


def defined(geometry, x, y, curv, scale, bias, ids=None):
    "SigLIP, equation 1: −1/B Σ log σ(z l), z being 1 for pairs and −1 for others."
    logits = bias + scale * geometry.scores(x, y, curv)
    sign = 2 * torch.eye(len(x), dtype=logits.dtype) - 1
    same = torch.zeros(len(x), len(x), dtype=torch.bool) if ids is None else ids[:, None] == ids
    counted = ~same | torch.eye(len(x), dtype=torch.bool)
    return -(logsigmoid(sign * logits) * counted).sum() / len(x)


def leaves(name, b, bias=3.0, dtype=torch.float64, d=4):
    rng = torch.Generator().manual_seed(b)
    tangents = [0.7 * torch.randn(b, d, generator=rng, dtype=torch.float64) for _ in 'xy']
    points = [get_geometry(name).exp_map0(v, torch.tensor(1.3).double()) for v in tangents]
    scalars = [torch.tensor(o) for o in (1.3, 12.0, bias)]
    return [o.to(dtype).requires_grad_() for o in (*points, *scalars)]


def outcome(loss, name, b, ids=None, **how):
    given = leaves(name, b, **how)
    value = loss(get_geometry(name), *given, ids)
    return [value, *torch.autograd.grad(2 * value, given, allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize('name', geometries)
@pytest.mark.parametrize('bias', [-10.0, 0.0, 10.0])
def test_is_its_definition(name, bias, monkeypatch):
    monkeypatch.setattr(pairwise, '_spans', lambda n, side: [slice(i, min(i + 5, n)) for i in range(0, n, 5)])
    for b in (1, 4, 17):
        for ids in (None, torch.arange(b) // 3, torch.zeros(b, dtype=torch.long)):
            got, want = (outcome(f, name, b, ids, bias=bias) for f in (sigmoid_loss, defined))
            for g, w in zip(got, want):
                assert (g - w).abs().max() <= 1e-8 * (w.abs().max() + 1e-3)


@pytest.mark.parametrize('name', geometries)
def test_single_precision_and_far_logits(name):
    got, want = (outcome(f, name, 40, dtype=t) for f, t in ((sigmoid_loss, torch.float32), (defined, torch.float64)))
    assert all((g - w).abs().max() < 2e-4 * w.abs().max() + 1e-4 for g, w in zip(got, want))
    given = leaves(name, 12, bias=-1e4, dtype=torch.float32)
    assert all(g.isfinite().all() for g in torch.autograd.grad(sigmoid_loss(get_geometry(name), *given), given[:2]))


def test_beside_the_softmax_loss():
    "Both on the same tiles: the one leaves nothing behind that the other would use."
    from meru.losses.pairwise import contrastive_loss

    x, y, c, s, b = leaves('lorentz', 30)
    alone = torch.autograd.grad(contrastive_loss(get_geometry('lorentz'), x, y, c, s), [x, y])
    both = contrastive_loss(get_geometry('lorentz'), x, y, c, s) + sigmoid_loss(get_geometry('lorentz'), x, y, c, s, b)
    mixed = torch.autograd.grad(both, [x, y])
    own = torch.autograd.grad(sigmoid_loss(get_geometry('lorentz'), x, y, c, s, b), [x, y])
    assert all((m - a - o).abs().max() < 1e-12 for m, a, o in zip(mixed, alone, own))


def _member(r, place, pipe):
    torch.set_num_threads(1)
    os.environ.update(WORLD_SIZE='2', RANK=str(r))
    dist.init_process_group('gloo', f'file://{place}', rank=r, world_size=2)
    x, y, *scalars = leaves('lorentz', 9)
    mine = slice(6) if r == 0 else slice(6, 9)
    given = [o.detach().clone().requires_grad_() for o in (x[mine], y[mine], *scalars)]
    loss = sigmoid_loss(get_geometry('lorentz'), *given, (torch.arange(9) // 2)[mine], all_processes=True)
    dx, dy, *rest = torch.autograd.grad(loss, given)
    counts = [6, 3]
    pipe.send([o.numpy() for o in (loss.detach(), gather_rows(dx, counts), gather_rows(dy, counts), *map(total, rest))])
    pipe.close()
    dist.destroy_process_group()


def test_two_processes_are_one(tmp_path):
    context = multiprocessing.get_context('spawn')
    pipes = [context.Pipe(False) for _ in range(2)]
    team = [context.Process(target=_member, args=(r, tmp_path / 'meet', w)) for r, (_, w) in enumerate(pipes)]
    for member in team:
        member.start()
    got = [r.recv() for r, _ in pipes]
    for member in team:
        member.join()
    given = leaves('lorentz', 9)
    value = defined(get_geometry('lorentz'), *given, torch.arange(9) // 2)
    want = [value, *torch.autograd.grad(value, given)]
    for own in got:
        assert [(torch.as_tensor(g) - w).abs().max().item() for g, w in zip(own, want)] == pytest.approx(
            [0.0] * 6, abs=1e-8
        )


def test_a_model_learns_by_it():
    features = dict(image_tower='features', text_tower='features', image_width=12, text_width=12, embed_dim=8)
    cfg = ModelConfig(pair_loss='sigmoid', logit_bias_init=10.0, **features)
    torch.manual_seed(0)
    model, x = build_model(cfg), torch.randn(32, 12)
    assert model.logit_bias.item() == 10 and 'logit_bias' not in build_model(ModelConfig(**features)).state_dict()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    first = model(x, x)['contrastive'].item()
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(x, x)
        loss['loss'].backward()
        optimizer.step()
        model.clamp_()
    points = model.encode_image(x), model.encode_text(x)
    right = model.geometry.scores(*points, model.curv).argmax(1) == torch.arange(32)
    assert loss['contrastive'].item() < 0.3 * first and right.float().mean() > 0.8 and model.logit_bias.grad is not None
    for bad in (dict(margin=0.1), dict(hard_beta=0.5)):
        with pytest.raises(ValueError, match='no margin and no hard weights'):
            ModelConfig(pair_loss='sigmoid', **bad, **features)


@pytest.mark.parametrize('space', geometries.values(), ids=lambda o: o.name)
@pytest.mark.parametrize('text_ids', [None, torch.tensor([0, 1, 0, 2, 3])])
def test_transforms_of_torch_func_see_the_same_gradient(space, text_ids):
    g = torch.Generator().manual_seed(0)
    curv, scale, bias = (torch.tensor(o, dtype=torch.float64) for o in (0.7, 5.0, -3.0))
    x, y = (space.exp_map0(torch.randn(5, 4, generator=g, dtype=torch.float64), curv) for _ in range(2))
    loss = lambda rows: sigmoid_loss(space, rows, y, curv, scale, bias, text_ids)
    rows = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(rows), rows)
    torch.testing.assert_close(torch.func.grad(loss)(x), expected)
    torch.testing.assert_close(torch.func.jacrev(loss)(x), expected)
