"Released checkpoints: parity with the authors' formulas, and files that are refused."

import json
import math
import pickle
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch.nn.utils.rnn import pad_sequence
from meru.data.tokenizer import Tokenizer
from meru.models.released import _Layout, load_released, _our_name, read_released
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


LAYOUTS = ['meru', 'clip', 'hycoclip', 'uncha', 'phyclip', 'hysac', 'hyper3']


def written(layout, folder, change=lambda tensors: None):
    "A checkpoint as its authors save it: names and shapes are theirs, the numbers are not."
    if layout == 'hysac':
        return write_hysac(folder / 'hysac.pth', clip_of_hugging_face(), change)
    if layout == 'hyper3':
        return write_hyper3(folder / 'hyper3.safetensors', clip_of_hugging_face()[1], change=change)[0]
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


def test_a_file_of_meru_and_one_of_hycoclip_cannot_be_told_apart(tmp_path, capsys):
    files = [written(layout, tmp_path) for layout in ('meru', 'hycoclip')]
    theirs = [{k: v.shape for k, v in read_released(path)['model'].items()} for path in files]
    assert theirs[0] == theirs[1] and len({_Layout.of(names) for names in theirs}) == 1
    for path in files:
        load_released(path, image_heads=4)
        assert f'{path.name} is MERU or HyCoCLIP: both save the same tensors' in capsys.readouterr().out
    load_released(written('clip', tmp_path), image_heads=4)
    assert not capsys.readouterr().out


def test_uncha_is_read_without_five_tensors(tmp_path, capsys):
    model = load_released(written('uncha', tmp_path), image_heads=4)
    said = capsys.readouterr().out
    assert 'uncha.pth is UNCHA' in said and 'over 77 tokens' in said
    assert all(name in said for name in ('global_local_logit_scale', 'local_logit_scale', 'min_radius_head.bias'))
    same = load_released(written('meru', tmp_path), image_heads=4)
    images = torch.load(PARITY / 'meru_inputs.pt', weights_only=True)['images']
    assert torch.equal(model.encode_image(images), same.encode_image(images))


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


# towers of others, under Hugging Face's names, computed here with nothing but torch


def clip_of_hugging_face():
    "Random weights of CLIP's two towers, 64 wide, under their names in version 4 of the library."
    rng = torch.Generator().manual_seed(5)
    layers = {f'encoder.layers.{i}.self_attn.{o}_proj': (64, 64) for i in (0, 1) for o in ('q', 'k', 'v', 'out')}
    layers |= {f'encoder.layers.{i}.mlp.fc{k}': (256, 64) if k == 1 else (64, 256) for i in (0, 1) for k in (1, 2)}
    norms = [f'encoder.layers.{i}.layer_norm{k}' for i in (0, 1) for k in (1, 2)]
    words = {'embeddings.token_embedding.weight': (600, 64), 'embeddings.position_embedding.weight': (24, 64)}
    views = {'embeddings.class_embedding': (64,), 'embeddings.patch_embedding.weight': (64, 3, 8, 8)}
    views |= {'embeddings.position_embedding.weight': (17, 64)}
    towers = []
    for own, ends in ((views, ['pre_layrnorm', 'post_layernorm']), (words, ['final_layer_norm'])):
        shapes = dict(own)
        for name, shape in layers.items():
            shapes |= {f'{name}.weight': shape, f'{name}.bias': shape[:1]}
        for name in norms + ends:
            shapes |= {f'{name}.weight': (64,), f'{name}.bias': (64,)}
        weights = {k: 0.1 * torch.randn(*v, generator=rng) for k, v in shapes.items()}
        towers.append({k: v + ('norm' in k and k.endswith('weight')) for k, v in weights.items()})
    return towers


def blocks(w, x, mask=0.0):
    "Pre-norm transformer with one head and CLIP's GELU."
    layer = lambda name, h: F.linear(h, w[f'{name}.weight'], w[f'{name}.bias'])
    for p in ('encoder.layers.0.', 'encoder.layers.1.'):
        h = norm(w, f'{p}layer_norm1', x)
        q, k, v = (layer(f'{p}self_attn.{o}_proj', h) for o in 'qkv')
        x = x + layer(f'{p}self_attn.out_proj', (q @ k.mT / 8 + mask).softmax(-1) @ v)
        h = layer(f'{p}mlp.fc1', norm(w, f'{p}layer_norm2', x))
        x = x + layer(f'{p}mlp.fc2', h * (1.702 * h).sigmoid())
    return x


def norm(w, name, x):
    return F.layer_norm(x, (64,), w[f'{name}.weight'], w[f'{name}.bias'])


def image_features(w, pixels):
    patches = F.conv2d(pixels, w['embeddings.patch_embedding.weight'], stride=8).flatten(2).mT
    first = w['embeddings.class_embedding'].expand(len(pixels), 1, 64)
    x = torch.cat([first, patches], 1) + w['embeddings.position_embedding.weight']
    return norm(w, 'post_layernorm', blocks(w, norm(w, 'pre_layrnorm', x))[:, 0])


def text_features(w, tokens):
    length = tokens.shape[1]
    x = w['embeddings.token_embedding.weight'][tokens] + w['embeddings.position_embedding.weight'][:length]
    later = torch.full((length, length), -torch.inf).triu(1)
    ends = torch.arange(len(tokens)), tokens.argmax(1)
    return norm(w, 'final_layer_norm', blocks(w, x, later))[ends]


SCALARS = dict(visual_alpha=-1.7, textual_alpha=-1.6, logit_scale=2.5)
PROJECTIONS = dict(visual=torch.eye(32, 64) + 0.1, textual=torch.eye(32, 64).roll(3, 1) - 0.1)


def write_hysac(path, towers, change=lambda tensors: None):
    "Low-rank adapters beside the weights that they adapt, as peft names them: W = base + BA / 16."
    tensors = {k: torch.tensor(v) for k, v in dict(curv=-0.2, **SCALARS).items()}
    tensors |= dict(pixel_mean=torch.full((3, 1, 1), 0.4), pixel_std=torch.full((3, 1, 1), 0.2))
    for kind, tower, prefix in zip(('visual', 'textual'), towers, ('vision_model.', 'text_model.')):
        projection = dict(visual='visual_projection', textual='text_projection')[kind]
        tensors[f'{kind}.base_model.model.{projection}.weight'] = PROJECTIONS[kind]
        for name, weight in tower.items():
            module, _, end = (prefix + name).rpartition('.')
            adapted = module.split('.')[-1] in 'k_proj v_proj out_proj fc1 fc2 patch_embedding'.split()
            module = f'{kind}.base_model.model.{module}'
            if adapted and end == 'weight':
                up, down = 0.1 * torch.randn(len(weight), 16), 0.1 * torch.randn(16, weight[0].numel())
                shape = (16, *weight.shape[1:])
                tensors[f'{module}.lora_A.default.weight'] = down.view(shape)
                tensors[f'{module}.lora_B.default.weight'] = up.view(len(up), 16, *[1] * (weight.ndim - 2))
                weight = weight - (up @ down / 16).view_as(weight)
            tensors[f'{module}.{"base_layer." if adapted else ""}{end}'] = weight
    change(tensors)
    torch.save(tensors, path)
    return path


def write_hyper3(path, text, pooling='avg', prefix='text_model.', change=lambda tensors: None):
    "As published, with average pooling and one temperature; or as its training saves, with three."
    timm = pytest.importorskip('timm')
    norm = {} if pooling == 'avg' else dict(norm_layer=torch.nn.LayerNorm)
    sizes = dict(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=1, num_classes=0)
    image = timm.create_model('vit_base_patch16_224', **sizes, global_pool=pooling, **norm).eval()
    tensors = {f'vision_encoder.backbone.{k}': v.detach().clone() for k, v in image.state_dict().items()}
    tensors |= {f'text_encoder.backbone.{prefix}{name}': weight for name, weight in text.items()}
    tensors |= {f'{o}_proj.{k}': torch.randn(*s) / 8 for o in ('image', 'text') for k, s in SHAPES.items()}
    tensors |= {k: torch.tensor(v) for k, v in dict(log_curv=0.4, **SCALARS).items()}
    if pooling == 'token':
        scale = tensors.pop('logit_scale')
        tensors |= {f'{o}logit_scale': scale for o in ('global_', 'local_', 'global_local_')}
        tensors['query_pooling.mlp_norm.weight'] = torch.ones(64)
    change(tensors)
    if path.suffix == '.safetensors':
        save_file(tensors, path)
    else:
        torch.save(dict(model=tensors, step=5), path)
    return path, image, tensors


SHAPES = dict(weight=(32, 64), bias=(32,))


def lifted(vectors, alpha, c):
    "alpha v, lifted by hand."
    w = math.exp(alpha) * vectors
    s = c**0.5 * w.norm(dim=1, keepdim=True)
    return w * s.sinh() / s


@torch.no_grad()
def test_hysac_is_clip_with_its_adapters_merged(tmp_path, capsys):
    torch.manual_seed(0)
    image, text = clip_of_hugging_face()
    model = load_released(write_hysac(tmp_path / 'hysac.pth', (image, text)))
    assert 'hysac.pth is HySAC' in capsys.readouterr().out and model.cfg.image_size == 32
    pictures = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    tokens = Tokenizer(600, 24)(['a red dog', 'two', 'the sea at night'])
    mean, std = torch.tensor([[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]])
    pixels = (pictures / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    u, v = (
        image_features(image, pixels) @ PROJECTIONS['visual'].T,
        text_features(text, tokens) @ PROJECTIONS['textual'].T,
    )
    assert u.std(0).mean() > 0.1 and (model.project_image(pictures) - u).abs().max() < 1e-4
    for ours, theirs, name in ((model.encode_image(pictures), u, 'visual'), (model.encode_text(tokens), v, 'textual')):
        assert (ours - lifted(theirs, SCALARS[f'{name}_alpha'], math.exp(-0.2))).abs().max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize('pooling, prefix, end', [('avg', 'text_model.', 'safetensors'), ('token', '', 'pth')])
def test_hyper3_clip_is_timm_and_clip(pooling, prefix, end, tmp_path, capsys):
    _, text = clip_of_hugging_face()
    path, image, tensors = write_hyper3(tmp_path / f'model.{end}', text, pooling, prefix)
    model = load_released(path)
    said = 'average pooling' if pooling == 'avg' else 'class-token pooling'
    assert f'is Hyper3-CLIP: {said}' in capsys.readouterr().out
    pictures, tokens = torch.rand(3, 3, 32, 32), Tokenizer(600, 24)(['a red dog', 'two', 'the sea at night'])
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    features = image((pictures - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    u = F.linear(features, tensors['image_proj.weight'], tensors['image_proj.bias'])
    v = F.linear(text_features(text, tokens), tensors['text_proj.weight'], tensors['text_proj.bias'])
    for ours, theirs, name in ((model.encode_image(pictures), u, 'visual'), (model.encode_text(tokens), v, 'textual')):
        assert (ours - lifted(theirs, SCALARS[f'{name}_alpha'], math.exp(0.4))).abs().max() < 1e-4
    assert model.logit_scale.item() == pytest.approx(math.exp(2.5))


def test_towers_of_others_are_refused_by_name(tmp_path):
    towers = clip_of_hugging_face()
    gone = 'visual.base_model.model.vision_model.post_layernorm.bias'
    with pytest.raises(
        ValueError, match=r"h.pth is not in the released layout: missing \['image_tower.net.ln_post.bias"
    ):
        load_released(write_hysac(tmp_path / 'h.pth', towers, lambda m: m.pop(gone)))
    with pytest.raises(ValueError, match='h.pth: curv is 148.4'):
        load_released(write_hysac(tmp_path / 'h.pth', towers, lambda m: m.update(curv=torch.tensor(5.0))))
    with pytest.raises(ValueError, match=r"h.pth is not in the released layout: missing \['text_proj.weight'\]"):
        load_released(write_hyper3(tmp_path / 'h.pth', towers[1], change=lambda m: m.pop('text_proj.weight'))[0])
    (tmp_path / 'half.safetensors').write_bytes(b'{}')
    with pytest.raises(ValueError, match='half.safetensors was refused'):
        load_released(tmp_path / 'half.safetensors')


@pytest.fixture(scope='module')
def two_sets(tmp_path_factory):
    "Four classes of pictures with a training part, and four captioned ones."
    home = tmp_path_factory.mktemp('sets')
    for part, n in dict(train=5, test=2).items():
        for k, animal in enumerate(('dog', 'tench')):
            for i in range(n):
                path = home / 'animals' / part / animal / f'{i}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new('RGB', (40, 30), (100 * k + i, 9 * i, 80)).save(path)
    pairs = home / 'pairs'
    pairs.mkdir()
    for i in range(4):
        Image.new('RGB', (40, 20), (60 * i, 9, 80)).save(pairs / f'{i}.png')
    lines = [json.dumps(dict(file=f'{i}.png', captions=[f'shade {i}'])) for i in range(4)]
    (pairs / 'captions.jsonl').write_text('\n'.join(lines))
    return home


def test_every_layout_is_evaluated_by_both_protocols(tmp_path, two_sets, run_cells):
    "The cells of `evaluate -p checkpoint FILE`; the nouns of WordNet, which are others' matter, are left out."
    runs = []
    for layout in LAYOUTS:
        how = dict(checkpoint=written(layout, tmp_path), image_heads=4, data=two_sets)
        runs.append(how | dict(out=tmp_path / f'{layout}_paper'))  # of a released checkpoint, if nothing is said
        runs.append(how | dict(out=tmp_path / f'{layout}_ours', protocol='ours'))
    no_nouns = 'import meru.evaluation.suites as suites; suites._examine_nouns = lambda *_: []'
    for how, (error, printed) in zip(runs, run_cells.several('evaluate', runs, no_nouns), strict=True):
        protocol = how['out'].name.partition('_')[2]
        assert not error, (how['checkpoint'], error)
        numbers = json.loads((how['out'] / f'metrics_{two_sets.name}.json').read_text())
        recall = 'pairs_text_to_image_r5'
        assert numbers['protocol'] == numbers.get('protocols', {}).get(recall, 'ours') == protocol
        assert f'caption to picture, recall at 5 | {protocol} |' in printed
        assert {'animals_per_class', 'animals_probe_per_class', recall} <= numbers.keys()
        assert ('animals_probe_cost' in numbers) == (protocol == 'paper')
