"""Datasets that lie elsewhere: a loopback web server that breaks off, an object store of this machine, a full disk."""

import io
import json
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from meru.data import remote
from meru.data.shards import Sample, Shards, data_path, write_shards
from meru.training.config import make_config
from meru.training.trainer import open_data

pytest.importorskip('aiohttp', reason="pip install 'meru[remote]'")


def noise(i):
    out = io.BytesIO()
    pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, 'PNG')
    return out.getvalue()


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    "Forty pairs in four shards."
    folder = tmp_path_factory.mktemp('source') / 'pairs'
    write_shards((Sample(f'{i}.png', noise(i), f'noise {i}', {}) for i in range(40)), folder, shard_size=10)
    return folder


@pytest.fixture(autouse=True)
def outputs(tmp_path, monkeypatch):
    "Copies of each test lie in its own folder."
    monkeypatch.setattr(remote, 'root', lambda: tmp_path)
    return tmp_path / 'outputs' / 'remote'


class Handler(BaseHTTPRequestHandler):
    "Files by range; `cut` breaks the connection after so many bytes of a shard, once."

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.server.folder / self.path.lstrip('/').partition('?')[0]
        self.server.asked[path.name] += 1
        if not path.is_file():
            return self.send_error(404)
        data = self.server.changed.get(path.name, path.read_bytes())
        asked = self.headers.get('Range', '') if self.server.ranges else ''
        first = int(asked.removeprefix('bytes=').split('-')[0]) if asked else 0
        self.server.begun.append((path.name, first))
        self.send_response(206 if asked else 200)
        self.send_header('Content-Length', str(len(data) - first))
        if asked:
            self.send_header('Content-Range', f'bytes {first}-{len(data) - 1}/{len(data)}')
        self.end_headers()
        if self.command == 'HEAD':
            return
        cut = self.server.cut.pop(path.name, None)
        self.wfile.write(data[first:] if cut is None else data[first : first + cut])
        if cut is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def server(source):
    made = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    made.folder, made.ranges, made.cut, made.changed, made.asked, made.begun = source, True, {}, {}, Counter(), []
    made.daemon_threads = True
    thread = threading.Thread(target=made.serve_forever, args=(0.05,))
    thread.start()
    made.url = f'http://127.0.0.1:{made.server_port}/'
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def names(folder):
    return sorted(o.name for o in folder.iterdir() if o.name != '.lock')


WHOLE = ['00000.tar', '00001.tar', '00002.tar', '00003.tar', 'manifest.json', 'remote.json']


@pytest.mark.parametrize('ranges', [True, False])
def test_a_broken_connection_goes_on_where_it_was(ranges, server, source):
    "The same dataset, sample for sample, and bytes that came are not asked for again."
    server.ranges, server.cut = ranges, {'00002.tar': 9_000}
    with pytest.raises(
        ConnectionError, match=r'http://127.0.0.1:\d+/ broke off at byte .* of .* of 00002.tar, run aga'
    ):
        data_path(server.url)
    (folder,) = (remote.root() / 'outputs/remote').iterdir()
    assert '00002.tar' not in names(folder) and '00002.tar.part' in names(folder)
    came = (folder / '00002.tar.part').stat().st_size
    server.begun.clear()
    assert data_path(server.url) == folder and names(folder) == WHOLE
    assert ('00002.tar', came if ranges else 0) in server.begun or ('00002.tar', 0) in server.begun
    if ranges and came:
        assert ('00002.tar', came) in server.begun
    there, here = Shards(source, verify='hashes'), Shards(folder, verify='hashes')
    assert there.id == here.id and [there[i] for i in range(40)] == [here[i] for i in range(40)]
    server.begun.clear()
    data_path(server.url)
    assert {name for name, _ in server.begun} == {'manifest.json'}


def test_bytes_that_are_not_the_manifests_are_not_kept(server, outputs):
    data = (server.folder / '00001.tar').read_bytes()
    server.changed['00001.tar'] = data[:2000] + b'x' + data[2001:]
    with pytest.raises(ValueError, match='00001.tar of http.* does not have the sha256 of its manifest: .*not kept'):
        data_path(server.url)
    server.changed['00001.tar'] = data + b'more'
    with pytest.raises(ValueError, match='00001.tar of .* has .* bytes, not'):
        data_path(server.url)
    (folder,) = outputs.iterdir()
    assert not [o for o in names(folder) if o.startswith('00001')]
    server.changed.clear()
    assert names(data_path(server.url)) == WHOLE


def test_a_dataset_that_has_changed_is_refused_and_an_old_copy_lasts(server, capsys):
    folder = data_path(server.url)
    manifest = json.loads((server.folder / 'manifest.json').read_text())
    manifest['shards'].pop()
    server.changed['manifest.json'] = json.dumps(manifest).encode()
    with pytest.raises(ValueError, match='has changed since it was copied, first in 00003.tar: remove .*pairs|remove'):
        data_path(server.url)
    url = server.url
    server.shutdown()
    server.server_close()
    assert data_path(url) == folder
    assert 'did not answer' in capsys.readouterr().out
    (folder / '00000.tar').unlink()
    with pytest.raises(ConnectionError, match='did not answer'):
        data_path(url)


def test_a_full_disk_is_named_and_nothing_half_counts(server, outputs):
    folder = remote._copy_place(server.url)
    folder.mkdir(parents=True)
    (folder / '00003.tar.part').symlink_to('/dev/full')
    with pytest.raises(OSError, match='00003.tar could not be written: .*No space left on device'):
        data_path(server.url)
    assert '00003.tar' not in names(folder)
    (folder / '00003.tar.part').unlink()
    assert names(data_path(server.url)) == WHOLE


@pytest.mark.parametrize('name', ['../x.tar', '/etc/x.tar', 'a\\b.tar', 'c:x.tar', ''])
def test_a_manifest_cannot_write_outside(name, server, outputs):
    lines = [dict(name=name, count=1, bytes=1, sha256='0' * 64)]
    server.changed['manifest.json'] = json.dumps(dict(name='n', id='i', shards=lines)).encode()
    with pytest.raises(ValueError, match='which is no plain file name: nothing of it was copied'):
        data_path(server.url)
    assert not outputs.exists()


def test_tars_without_a_manifest_by_braces(server, source):
    folder = data_path(f'{server.url}{{00000..00003}}.tar?token=secret')
    assert Shards(folder).id == Shards(source).id
    assert 'secret' not in (folder / 'remote.json').read_text()


def test_training_takes_an_address(server):
    train, val = open_data(make_config('smoke', data=server.url, val_pairs=4, batch_size=4))
    assert (len(train), len(val)) == (36, 4) and train[0].caption == 'noise 0'


# an object store


def started(*command):
    "A server of this machine and its port, when it answers."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    process = subprocess.Popen([sys.executable, '-m', *map(str, command), '--port', str(port)], **quiet)
    for _ in range(200):
        with socket.socket() as s:
            if not s.connect_ex(('127.0.0.1', port)):
                return process, port
        time.sleep(0.05)
    raise AssertionError(f'{command[0]} does not answer')


class Store(NamedTuple):
    "An object store with a bucket `pairs`."

    fs: object  # of pyarrow
    scheme: str
    query: str

    def url(self, path):
        return f'{self.scheme}pairs/{path}{self.query}'

    def put(self, file, path):
        with self.fs.open_output_stream(f'pairs/{path}') as out:
            out.write(Path(file).read_bytes())


@pytest.fixture(scope='module', params=['s3', 'gs'])
def store(request, source, tmp_path_factory):
    "Servers of S3 and of Google's store, with the shards in a bucket."
    from pyarrow.fs import GcsFileSystem, S3FileSystem

    home = tmp_path_factory.mktemp('store')
    if request.param == 's3':
        pytest.importorskip('localbucket', reason='pip install localbucket')
        (home / 'pairs').mkdir()
        process, port = started('localbucket', home)
        keys = dict(access_key='a', secret_key='b', region='us-east-1', scheme='http')
        fs = S3FileSystem(endpoint_override=f'127.0.0.1:{port}', **keys)
        made = Store(fs, 's3://', f'?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1')
    else:
        pytest.importorskip('gcp_storage_emulator', reason='pip install gcp-storage-emulator')
        arguments = ('start', '--in-memory', '--host', '127.0.0.1', '--default-bucket', 'pairs')
        process, port = started('gcp_storage_emulator', *arguments)
        fs = GcsFileSystem(anonymous=True, scheme='http', endpoint_override=f'127.0.0.1:{port}')
        made = Store(fs, 'gs://anonymous@', f'?endpoint_override=127.0.0.1:{port}&scheme=http')
    for file in source.iterdir():
        made.put(file, f'whole/{file.name}')
    with pytest.MonkeyPatch.context() as patch:
        for name, value in dict(AWS_ACCESS_KEY_ID='a', AWS_SECRET_ACCESS_KEY='b').items():
            patch.setenv(name, value)
        yield made
    process.kill()
    process.wait()


def test_an_object_store_by_manifest_and_by_list(store, source, outputs):
    whole = store.url('whole')
    folder = data_path(whole)
    assert names(folder) == WHOLE and Shards(folder, verify='hashes').id == Shards(source).id
    for number in (1, 2):
        store.put(source / f'0000{number}.tar', f'bare/a/0000{number}.tar')
    bare = data_path(store.url('bare'))
    assert [o.caption for o in Shards(bare / 'a')][:2] == ['noise 10', 'noise 11']
    store.put(source / '00000.tar', 'bare/a/00003.tar')
    with pytest.raises(ValueError, match='has changed since it was copied, first in a/00003.tar'):
        data_path(store.url('bare'))
    with pytest.raises(FileNotFoundError, match='pairs/nothing holds nothing that can be copied: name a folder'):
        data_path(store.url('nothing'))


def test_a_table_of_the_hub_with_its_pictures_inside(store, tmp_path, monkeypatch, capsys):
    "Parquet files in a store become splits of shards, once; `embed` and `train` read the same."
    import pyarrow as pa
    import pyarrow.parquet as pq
    from meru.data import shards
    from meru.models.embedding import EmbedConfig, open_rows

    monkeypatch.setattr(shards, 'root', lambda: tmp_path)
    rows = [dict(image=dict(bytes=noise(i), path=None), text=f'noise {i}', label=i) for i in range(30)]
    rows[3]['image']['bytes'], rows[5]['text'] = b'\x89PNG\r\n\x1a\n torn', ' '
    for name, some in {
        'train-00000-of-00002': rows[:10],
        'train-00001-of-00002': rows[10:20],
        'test': rows[20:],
    }.items():
        pq.write_table(pa.Table.from_pylist(some), tmp_path / f'{name}.parquet', row_group_size=4)
        store.put(tmp_path / f'{name}.parquet', f'hub/data/{name}.parquet')
    folder = data_path(store.url('hub'))
    assert (
        'train left out: 1 truncated (first: train-00000-of-00002.parquet, row 4), 1 no_caption'
        in capsys.readouterr().out
    )
    assert sorted(o.name for o in folder.iterdir() if o.is_dir()) == ['test', 'train']
    found = Shards(folder / 'train', verify='hashes')
    assert [o.caption for o in found] == [f'noise {i}' for i in range(20) if i not in (3, 5)]
    assert found[3].image == noise(4)
    before = (folder / 'train' / 'manifest.json').stat().st_mtime_ns
    opened = open_rows(EmbedConfig(data=store.url('hub'), out='x'))
    assert len(opened) == 28 and (folder / 'train' / 'manifest.json').stat().st_mtime_ns == before
    train, val = open_data(make_config('smoke', data=store.url('hub'), val_pairs=2, batch_size=4))
    assert (len(train), len(val)) == (17, 1)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'aiohttp', None)
    with pytest.raises(ImportError, match=r"http://127.0.0.1:1/x cannot be reached .*pip install 'meru\[remote\]'"):
        data_path('http://me:secret@127.0.0.1:1/x')
