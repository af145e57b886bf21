"""Benchmarks compare like with like, and what is committed keeps its promises."""

import io, json, time, zipfile
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
    mean = T._shards_of(photos, kind, 12, tmp_path / 's')
    assert len(Shards(tmp_path / 's')) == 12 and 1e3 < mean < 1e6
    seen = [list(f(tmp_path / 's', 32, 4)) for f in (T._our_batches, T._obvious_batches)]
    texts = [sorted(T.tokenizer.decode(t) for _, ids in side for t in ids) for side in seen]
    assert texts[0] == texts[1] and len(set(texts[0])) == 12
    ours, obvious = (torch.cat([images for images, _ in side]) for side in seen)
    assert (
        ours.shape == obvious.shape == (12, 3, 32, 32) and ours.dtype == torch.uint8 and obvious.dtype == torch.float32
    )
    assert abs(ours.float().mean() / 255 - obvious.mean()) < 0.02


def test_the_loader_suite_says_what_it_did(photos):
    if find_spec('webdataset') is None:
        pytest.skip("webdataset is missing: pip install 'meru[fetch]'")
    threads = torch.get_num_threads()
    found = T.loader_suite(str(photos), n=8, reps=2, size=32, batch=4)
    assert (
        {'our_batches', 'obvious_batches'} == set(found['tiled']['per_second']) == set(found['enlarged']['per_second'])
    )
    assert found['tiled']['ratio']['obvious_batches']['low'] > 0 and torch.get_num_threads() == threads
    json.dumps(found)


def test_the_first_round_is_not_counted_and_peers_take_turns():
    calls = []
    took = T.by_turns(
        dict(a=lambda: calls.append('a') or (len(calls) < 2 and sum(range(3_000_000))), b=lambda: calls.append('b')),
        reps=3,
    )
    assert ''.join(calls) == 'abababab' and all(len(v) == 3 for v in took.values()) and max(took['a']) < 0.02


def test_sleep_is_not_work():
    assert max(T.by_turns(dict(s=lambda: time.sleep(0.05)), 1)['s']) < 0.04


def test_rates_by_hand():
    found = T.rates(dict(ours=[1.0, 2.0, 4.0], theirs=[4.0, 4.0, 8.0]), 8)
    assert found['per_second']['ours'] == dict(median=4.0, low=2.0, high=8.0)
    assert found['ratio']['theirs'] == dict(median=2.0, low=2.0, high=4.0)


@pytest.mark.parametrize('back', [False, True])
def test_counted_and_listed_ranks_are_the_same_ranks(back):
    images, image_ids, texts, text_ids = T._captioned_points(200, 16)
    sides = (images, texts, image_ids, text_ids) if back else (texts, images, text_ids, image_ids)
    counted = retrieval_ranks(Lorentz(), *sides, torch.tensor(1.0))
    assert torch.equal(counted, T._listed_ranks(*sides)) and 1 < counted.float().mean() < 100


def test_memory_is_that_of_a_new_process():
    ballast = torch.ones(200_000_000)  # 800 MB that the other process must not have
    here = T.peak_memory()
    assert T.alone(T.peak_memory) < here - ballast.nbytes / 2


def test_committed_results_keep_the_promises():
    loader, ranks = (json.loads((ROOT / f'outputs/benchmarks/{k}.json').read_text()) for k in ('loader', 'ranks'))
    for kind in ('enlarged', 'tiled'):
        assert loader[kind]['ratio']['obvious_batches']['median'] >= 2.5
    assert loader['size'] == 224 and loader['pairs'] >= 512 and loader['reps'] >= 5
    assert (
        ranks['ratio']['median'] >= 5
        and ranks['counted_grown_bytes'] < 1e9
        and (ranks['images'], ranks['texts'], ranks['dim']) == (5000, 25000, 64)
    )


def test_processes_are_timed_by_turns(monkeypatch):
    "Two counts, two rounds: launched as asked, the start left out, ratios by round."
    asked, speed = [], {1: 100.0, 2: 50.0}

    def launch(run, n):
        asked.append((n, run.config.steps))
        for i in range(4):
            run.log(dict(step=i + 1, pairs_per_s=speed[n] + (i == 0) * 1e6))

    monkeypatch.setattr(T, 'launch', launch)
    found = T.processes_suite('smoke', steps=12, counts=(1, 2))
    assert asked == [(1, 12), (2, 12)] * 2
    assert [r['pairs_per_second']['median'] for r in found['rows']] == [100.0, 50.0] and found['rows'][1]['ratio'][
        '1 process'
    ]['median'] == 0.5
