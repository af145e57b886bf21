"""The whole path, with the real img2dataset, against a server that does everything wrong: list, shards, training."""

import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
import psutil
import pyarrow.parquet as pq
import pytest
from collections import Counter
from meru.data.download import make_fetch_config
from meru.data.engine import _reason_in
from meru.data.fetch import fetch
from meru.data.packing import _done_shards
from meru.data.shards import Shards
from conftest import ROOT
from hostile import Hostile, rows_of, write_list

for module in ('img2dataset', 'webdataset'):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is missing: pip install 'meru[fetch]'", allow_module_level=True)
pytestmark = pytest.mark.filterwarnings('ignore::ResourceWarning', 'ignore::pytest.PytestUnraisableExceptionWarning')
SPARK = importlib.util.find_spec('pyspark') is not None and shutil.which('java') is not None
SETTINGS = dict(
    url_list='',
    name='hostile',
    allow_loopback=True,
    timeout=8.0,
    retries=0,
    max_bytes=2_000_000,
    shard_size=80,
    processes=2,
    threads=12,
)
SCRIPT = """
import json, sys
from meru.data.download import make_fetch_config
from meru.data.fetch import fetch
fetch(sys.argv[1], make_fetch_config(**json.loads(sys.argv[2])))
"""


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "The server, its list, and the status that each row must have."
    server, home = Hostile(ROOT), tmp_path_factory.mktemp('fetch')
    rows = rows_of(server)
    counts = write_list(home / 'list.tsv', rows)
    yield dict(
        server=server, home=home, rows=rows, counts=counts, settings=SETTINGS | dict(url_list=str(home / 'list.tsv'))
    )
    server.shutdown()
    server.server_close()
    server.trap.close()


def start(folder, settings, **kw):
    return subprocess.Popen(
        [sys.executable, '-c', SCRIPT, str(folder), json.dumps(settings)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **kw,
    )


def wait_for(condition, seconds=180):
    "Poll until the condition holds; its value."
    end = time.time() + seconds
    while not (value := condition()) and time.time() < end:
        time.sleep(0.02)
    return value


def workers(pid):
    "The pool's processes among the descendants of `pid`."
    try:
        family = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [p for p in family if 'spawn_main' in ' '.join(name_of(p))]


def name_of(p):
    try:
        return p.cmdline()
    except psutil.Error:
        return []


@pytest.fixture(scope='module')
def fetched(world, papermill):
    "`fetch.ipynb` from one command; one of its workers is killed on the way."
    folder, done = world['home'] / 'a', []
    given = [a for k, v in world['settings'].items() for a in ('-p', k, v)]
    run = threading.Thread(
        target=lambda: done.append(papermill('fetch', world['home'] / 'fetch.ipynb', '-p', 'out', folder, *given))
    )
    run.start()
    wait_for(lambda: not run.is_alive() or list((folder / '_work' / 'progress').glob('*.txt')))
    killed = workers(os.getpid())
    assert killed, done
    killed[0].kill()
    run.join()
    assert done[0].returncode == 0, done[0].stderr[-3000:]
    return folder


@pytest.fixture(scope='module')
def pieces(world, fetched):
    "The same list by another way: on a disk that is full, then killed, then finished by another distributor."
    folder, log, server = world['home'] / 'b', {}, world['server']
    full = start(
        folder,
        world['settings'] | dict(restarts=0),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000)),
    )
    log['full'], log['full_code'] = full.communicate()[0], full.returncode
    log['after_full'] = _done_shards(folder)
    killed = start(folder, world['settings'])
    wait_for(lambda: killed.poll() is not None or len(_done_shards(folder)) > len(log['after_full']))
    family = psutil.Process(killed.pid).children(recursive=True)
    killed.kill()
    killed.wait()
    log['orphans'] = wait_for(lambda: not [p for p in family if p.is_running() and p.status() != 'zombie'], 10)
    log['after_kill'], log['asked'] = _done_shards(folder), Counter(server.asked)
    last = start(folder, world['settings'] | dict(distributor='pyspark' if SPARK else 'multiprocessing'))
    log['last'], log['last_code'] = last.communicate()[0], last.returncode
    return folder, log


def test_every_row_has_the_status_it_must_have(world, fetched):
    table = [r for p in sorted(fetched.glob('*.parquet')) for r in pq.read_table(p).to_pylist()]
    want = {u.strip(): (c.strip(), f) for c, u, f in world['rows']}
    assert len(table) == len(want) == len(world['rows'])
    wrong = [
        (r['url'], r['reason'], want[r['url']])
        for r in table
        if (r['caption'], r['reason'] or r['status']) != want[r['url']]
    ]
    assert not wrong, wrong


def test_the_row_accounting_balances(world, fetched):
    manifest = json.loads((fetched / 'manifest.json').read_text())
    accounting, status = manifest['books'], Counter(f for _, _, f in world['rows'])
    assert {k: accounting[k] for k in world['counts']} == world['counts']
    assert accounting['stored'] == status.pop('success') and accounting['failed'] == dict(status)
    assert accounting['rows'] == accounting['malformed'] + accounting['repeated'] + accounting['stored'] + sum(
        accounting['failed'].values()
    )
    for s in manifest['shards']:
        assert s['rows'] == s['count'] + sum(s['failed'].values())
    assert (
        accounting['equal_images'] == 8 + 2 + 3 + 2
    )  # eight made twice; gzip, redirects and a foreign opt-out lead to pictures that were there


def test_no_forbidden_address_was_touched(world, fetched, pieces):
    assert world['server'].trap.calls == 0


def test_pictures_and_captions_are_right(world, fetched):
    import io
    import numpy as np
    from PIL import Image

    shards = Shards(fetched, 'hashes')
    by_url = {
        shards[i].meta['url'].removeprefix(world['server'].home).partition('?')[0]: shards[i]
        for i in range(len(shards))
    }
    open_ = lambda k: Image.open(io.BytesIO(by_url[f'/made/{k}'].image))
    assert open_('photo').size == (390, 256) and open_('turned').size == (256, 390) and not open_('turned').getexif()
    assert np.asarray(open_('glass')).min() > 250 and 110 < np.asarray(open_('deep')).mean() < 145
    assert {Image.open(io.BytesIO(s.image)).mode for s in by_url.values()} == {'RGB'}
    want = {u: c.strip() for c, u, f in world['rows'] if f == 'success'}
    assert {shards[i].meta['url']: shards[i].caption for i in range(len(shards))} == want


def test_a_killed_worker_was_told_and_survived(world, fetched):
    text = (world['home'] / 'fetch.ipynb').read_text()
    assert (
        'a worker ended with exit code -9' in text
        and 'row/s, ' in text
        and 'pairs stored of' in text
        and {'reasons.png', 'pairs.png', 'sizes.png'} == {p.name for p in (fetched / 'figures').iterdir()}
    )


def test_a_workers_end_is_found_among_what_others_say():
    "img2dataset's bar leaves its line open; a worker that lives on may trip over the closed pipe."
    script = """
import multiprocessing, os, threading, time
from meru.data.engine import _watch_family
worker = multiprocessing.get_context('spawn').Process(target=time.sleep, args=(60,))
worker.start()
threading.Thread(target=_watch_family, args=(os.getppid(),), daemon=True).start()
time.sleep(0.5)
print('0it [00:00, ?it/s]', end='', flush=True)
worker.kill()
time.sleep(60)
"""
    done = subprocess.run(
        [sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True, start_new_session=True, timeout=120
    )
    assert done.returncode == 3, done.stderr[-2000:]
    assert (
        _reason_in([*done.stdout.splitlines(), 'BrokenPipeError: [Errno 32] Broken pipe'])
        == ': a worker ended with exit code -9'
    )


def test_a_full_disk_is_loud_and_a_kill_leaves_no_process(pieces):
    _, log = pieces
    assert log['full_code'] != 0 and 'shards are incomplete' in log['full'] and 'File too large' in log['full'], log[
        'full'
    ][-2000:]
    assert log['orphans'], 'processes outlived the fetch'


def test_only_the_missing_work_was_done_again(world, fetched, pieces):
    folder, log = pieces
    assert log['last_code'] == 0, log['last'][-3000:]
    assert 0 < len(log['after_kill']) < len(_done_shards(folder))
    kept = [r['url'] for n in log['after_kill'] for r in pq.read_table(folder / f'{n:05d}.parquet').to_pylist()]
    own = [u.removeprefix(world['server'].home) for u in kept if u.startswith(world['server'].home) and '/to/' not in u]
    again = [u for u in own if world['server'].asked[u] > log['asked'][u]]
    assert own and not again, again


def test_both_ways_give_the_same_bytes(fetched, pieces):
    files = lambda f: {
        p.name: p.read_bytes()
        for p in f.iterdir()
        if p.suffix in ('.tar', '.parquet') or p.name.endswith(('_stats.json', 'manifest.json', 'source.json'))
    }
    a, b = files(fetched), files(pieces[0])
    assert a.keys() == b.keys() and not [k for k in a if a[k] != b[k]]


@pytest.mark.skipif(not SPARK, reason='pyspark or java is missing: the Spark distributor was not tried')
def test_spark_did_the_rest(pieces):
    assert pieces[1]['last_code'] == 0


def test_the_same_command_again_changes_nothing(world, fetched, capsys):
    state = lambda: (
        {p.name: p.stat().st_mtime_ns for p in fetched.iterdir() if p.name != '.lock'}
        | {'asked': world['server'].asked.total()}
    )
    before = state()
    fetch(fetched, make_fetch_config(**world['settings']))
    assert 'is complete: nothing was fetched' in capsys.readouterr().out and before == state()


def test_bad_parameters_end_the_run(run_cells, tmp_path):
    assert (
        "unknown parameter 'url_lst'" in run_cells('fetch', out=tmp_path / 'data', url_lst='x.tsv')[0]
        and not (tmp_path / 'data').exists()
    )


def test_train_runs_on_what_was_fetched(world, fetched, run_cells):
    if not (ROOT / 'nbs' / 'train.ipynb').exists():
        pytest.skip('nbs/train.ipynb is not there')
    run = world['home'] / 'run'
    error, _ = run_cells('train', preset='smoke', data=fetched, batch_size=16, out=run)
    assert not error, error
    assert Shards(fetched).id in json.dumps(json.loads((run / 'run.json').read_text())['dataset'])
