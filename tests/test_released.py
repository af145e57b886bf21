"Released checkpoints: parity with the authors' formulas, and files that are refused."

import json
import math
import pickle
import pytest
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from meru.evaluation.suites import EvalConfig, evaluate_folder, load_evaluated, save_measures
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


# layouts of others, written here with random weights


LAYOUTS = ['meru', 'clip', 'hycoclip', 'uncha', 'phyclip']


def written(layout, folder, change=lambda tensors: None):
    "A checkpoint as its authors save it: names and shapes are theirs, the numbers are not."
    saved = read_released(PARITY / ('clip_tiny.pth' if layout == 'clip' else 'meru_tiny.pth'))
    tensors = saved['model']
    tensors['textual.token_embed.weight'] = tensors['textual.token_embed.weight'].repeat(2, 1)  # a tokenizer's ids
    if layout == 'uncha':
        tensors |= {f'{o}logit_scale': torch.tensor(2.0) for o in ('global_local_', 'global_', 'local_')}
        tensors |= {'min_radius_head.weight': torch.ones(1, 8), 'min_radius_head.bias': torch.ones(1)}
    if layout == 'phyclip':
        names = dict(curv='curvs', visual_alpha='visual_concept_alphas', textual_alpha='textual_concept_alphas')
        factors = len(tensors['visual_proj.weight']) // 8
        for name, stacked in names.items():
            value = tensors.pop(name)
            tensors |= {f'{stacked}.{k}': value - k / 10 for k in range(factors)}
    change(tensors)
    torch.save(dict(model=tensors, iteration=500_000), folder / f'{layout}.pth')
    return folder / f'{layout}.pth'


def test_uncha_is_read_without_five_tensors(tmp_path, capsys):
    model = load_released(written('uncha', tmp_path), image_heads=4)
    said = capsys.readouterr().out
    assert 'uncha.pth is UNCHA' in said and 'over 77 tokens' in said
    assert all(name in said for name in ('global_local_logit_scale', 'local_logit_scale', 'min_radius_head.bias'))
    same = load_released(written('meru', tmp_path), image_heads=4)
    images = torch.load(PARITY / 'meru_inputs.pt', weights_only=True)['images']
    assert torch.equal(model.encode_image(images), same.encode_image(images)) and not capsys.readouterr().out


def test_phyclip_is_scored_by_the_sum_over_factors(tmp_path, capsys):
    "By hand: each eighth lifted with its own curvature and scale, and Lorentz products summed."
    model = load_released(written('phyclip', tmp_path), image_heads=4)
    assert 'PHyCLIP' in capsys.readouterr().out and model.geometry.name == 'product'
    inputs = torch.load(PARITY / 'meru_inputs.pt', weights_only=True)
    tokens = pad_sequence(inputs['tokens'], batch_first=True)
    with torch.no_grad():
        u, v = model.project_image(inputs['images']), model.project_text(tokens)
        scores, dist, wanted, lengths = 0, 0, 0, 0
        for k in range(u.shape[1] // 8):
            c, own = 0.7 * math.exp(-k / 10), slice(8 * k, 8 * k + 8)
            points = []
            for vectors, alpha in ((u, model.image_alpha[k]), (v, model.text_alpha[k])):
                w = alpha * vectors[:, own]
                s = c**0.5 * w.norm(dim=1, keepdim=True)
                points.append(w * s.sinh() / s)
            x, y = points
            inner = x @ y.T - (1 / c + x.square().sum(1)).sqrt()[:, None] * (1 / c + y.square().sum(1)).sqrt()
            wanted, lengths = wanted + inner, lengths + (-c * inner).acosh() / c**0.5 / (u.shape[1] // 8)
        x, y = model.lift_image(u), model.lift_text(v)
        scores, dist = (f(x, y, model.curv) for f in (model.geometry.scores, model.geometry.cdist))
    assert (scores - wanted).abs().max() < 1e-3 * wanted.abs().max() and (dist - lengths).abs().max() < 1e-3
    assert model.curv[0].item() == pytest.approx(0.7) and len(model.curv) == u.shape[1] // 8
    ranks = model.geometry.query_vectors(x, model.curv) @ model.geometry.gallery_vectors(y, model.curv).T
    assert torch.equal(ranks.argsort(1), scores.argsort(1))


@pytest.mark.parametrize(
    'layout, change, says',
    [
        ('meru', lambda m: m['visual.norm.bias'].fill_(math.nan), "tensor 'visual.norm.bias' holds NaN"),
        ('meru', lambda m: m.update(curv=torch.tensor(5.0)), 'curv is 148.4, but it lies between 0.1 and 10'),
        ('clip', lambda m: m.update(logit_scale=torch.tensor(14.0)), r'logit_scale is 1.203e\+06'),
        ('meru', lambda m: m.update(visual_alpha=torch.tensor(0.3)), 'visual_alpha is 1.35'),
        ('phyclip', lambda m: m.update({'curvs.3': torch.tensor(-9.0)}), r'curvs.3 is 0.0001234'),
        ('phyclip', lambda m: m.pop('curvs.3'), 'misshapen'),
        ('uncha', lambda m: m.update(extra=torch.ones(1)), r"unexpected \['extra'\]$"),
    ],
)
def test_spoilt_values_are_named(layout, change, says, tmp_path):
    with pytest.raises(ValueError, match=f'{layout}.pth.*{says}'):
        load_released(written(layout, tmp_path, change), image_heads=4)


def test_hysac_is_recognised_and_refused(tmp_path):
    torch.save({'visual.base_model.model.q_proj.lora_A.default.weight': torch.ones(2, 2)}, tmp_path / 'h.pth')
    with pytest.raises(ValueError, match='h.pth looks like HySAC'):
        load_released(tmp_path / 'h.pth')


@pytest.mark.parametrize('layout', LAYOUTS)
def test_every_layout_is_evaluated_by_both_protocols(layout, tmp_path, monkeypatch):
    monkeypatch.setattr('meru.evaluation.suites._examine_nouns', lambda model, tokenizer: [])
    for part, n in dict(train=5, test=2).items():
        for k, animal in enumerate(('dog', 'tench')):
            for i in range(n):
                path = tmp_path / 'sets' / 'animals' / part / animal / f'{i}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new('RGB', (40, 30), (100 * k + i, 9 * i, 80)).save(path)
    pairs = tmp_path / 'sets' / 'pairs'
    pairs.mkdir()
    for i in range(4):
        Image.new('RGB', (40, 20), (60 * i, 9, 80)).save(pairs / f'{i}.png')
    lines = [json.dumps(dict(file=f'{i}.png', captions=[f'shade {i}'])) for i in range(4)]
    (pairs / 'captions.jsonl').write_text('\n'.join(lines))
    how = dict(
        checkpoint=str(written(layout, tmp_path)), image_heads=4, data=str(pairs.parent), out=str(tmp_path / 'o')
    )
    found = {}
    for protocol in ('auto', 'ours'):
        cfg = EvalConfig(**how, protocol=protocol)
        model, tokenizer = load_evaluated(cfg)
        report = evaluate_folder(model, tokenizer, pairs.parent, model.resize, rules=cfg.rules)
        save_measures(cfg, report.measures)
        found[protocol] = json.loads(cfg.record.read_text())
        assert not [o for o in report.skipped if o.startswith(('animals', 'pairs'))]
    assert found['auto']['protocol'] == 'paper' and found['ours']['protocol'] == 'ours'
    for numbers in found.values():
        assert {'animals_per_class', 'animals_probe_per_class', 'pairs_text_to_image_r5'} <= numbers.keys()
    assert 'animals_probe_cost' in found['auto'] and 'animals_probe_cost' not in found['ours']
