"""Benchmarks compare like with like, and what is committed keeps its promises."""

import io
import json
import zipfile
from importlib.util import find_spec
import numpy as np
import pytest
import torch
from PIL import Image
from conftest import ROOT
from meru.benchmarks import loading as T
from meru.geometry import Lorentz
from meru.evaluation.retrieval import retrieval_ranks
from meru.data.shards import Shards

# webdataset leaves its files to the garbage collector
pytestmark = pytest.mark.filterwarnings('ignore::ResourceWarning', 'ignore::pytest.PytestUnraisableExceptionWarning')


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / 'photos.zip', 'w') as z:
        for i in range(20):
            out = io.BytesIO()
            Image.fromarray(rng.integers(0, 200, (6, 8 + i % 3, 3), dtype=np.uint8)).resize(
                (64, 48), Image.BICUBIC
            ).save(out, 'JPEG')
            z.writestr(f'images/{i:02d}.jpg', out.getvalue())
        z.writestr('rows.jsonl', '{}')
    return tmp_path / 'photos.zip'


@pytest.mark.parametrize('kind', ['enlarged', 'tiled'])
def test_both_loaders_see_every_pair_once(photos, kind, tmp_path):
    if find_spec('webdataset') is None:
        pytest.skip("webdataset is missing: pip install 'meru[fetch]'")
    mean = T._make_shards(T._photos(photos, kind, 12), tmp_path / 's')
    assert len(Shards(tmp_path / 's')) == 12 and 1e3 < mean < 1e6
    seen = [list(f(tmp_path / 's', 32, 4)()) for f in (T._our_epochs, T._baseline_epochs)]
    texts = [sorted(T._tokenizer.decode(t) for _, ids in side for t in ids) for side in seen]
    assert texts[0] == texts[1] and len(set(texts[0])) == 12
    ours, baseline = (torch.cat([images for images, _ in side]) for side in seen)
    assert (
        ours.shape == baseline.shape == (12, 3, 32, 32)
        and ours.dtype == torch.uint8
        and baseline.dtype == torch.float32
    )
    assert abs(ours.float().mean() / 255 - baseline.mean()) < 0.02


def test_the_loader_suite_says_what_it_did(photos):
    if find_spec('webdataset') is None:
        pytest.skip("webdataset is missing: pip install 'meru[fetch]'")
    threads = torch.get_num_threads()
    found = T._loader_suite(str(photos), n=8, reps=2, size=32, batch=4)
    assert {'ours', 'baseline'} == set(found['tiled']['per_second']) == set(found['enlarged']['per_second'])
    assert {'baseline', 'baseline_whole'} == set(found['tiled, fetched']['ratio'])
    assert set(found['tiled, left']['ratio']) == {'baseline'}
    assert found['tiled']['ratio']['baseline']['low'] > 0 and torch.get_num_threads() == threads
    json.dumps(found)


@pytest.mark.parametrize('back', [False, True])
def test_counted_and_listed_ranks_are_the_same_ranks(back):
    images, image_ids, texts, text_ids = T._captioned_points(200, 16)
    sides = (images, texts, image_ids, text_ids) if back else (texts, images, text_ids, image_ids)
    counted = retrieval_ranks(Lorentz(), *sides, torch.tensor(1.0))
    assert torch.equal(counted, T._listed_ranks(*sides)) and 1 < counted.float().mean() < 100


def test_committed_results_keep_the_promises():
    loader, ranks = (json.loads((ROOT / f'outputs/benchmarks/{k}.json').read_text()) for k in ('loader', 'ranks'))
    for kind in ('enlarged', 'tiled'):
        assert loader[kind]['ratio']['baseline']['median'] >= 3.5
        assert loader[f'{kind}, fetched']['ratio']['baseline_whole']['median'] >= 5
        assert loader[f'{kind}, left']['ratio']['baseline']['median'] >= 8
    assert loader['size'] == 224 and loader['pairs'] >= 512 and loader['reps'] >= 5
    assert (
        ranks['ratio']['median'] >= 5
        and ranks['counted_grown_bytes'] < 1e9
        and (ranks['images'], ranks['texts'], ranks['dim']) == (5000, 25000, 64)
    )


def test_processes_are_timed_by_turns(monkeypatch):
    "Two counts, two rounds: launched as asked, the start left out, ratios by round."
    launched, speed = [], {1: 100.0, 2: 50.0}

    def launch(run, n):
        launched.append((n, run.config.steps))
        for i in range(4):
            run.log(dict(step=i + 1, pairs_per_s=speed[n] + (i == 0) * 1e6))

    monkeypatch.setattr(T, 'launch', launch)
    found = T._processes_suite('smoke', steps=12, counts=(1, 2))
    assert launched == [(1, 12), (2, 12)] * 2
    assert [r['pairs_per_second']['median'] for r in found['rows']] == [100.0, 50.0] and found['rows'][1]['ratio'][
        '1 process'
    ]['median'] == 0.5
