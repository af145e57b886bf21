"""The parts of a fetch: tables, addresses, answers, opt-outs, shards, the mirror, one's own pairs."""

import gzip
import hashlib
import http.client
import io
import json
import socket
import ssl
import subprocess
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
import meru.data.download as D
import meru.data.engine as engine

from meru.data.shards import Shards
from meru.data.fetch import _write_table, fetch, read_pairs
from meru.core import locked
from meru.data.engine import _Tally, _check_raw, _guarded_download, _guarded_resize, _seal_raw
from meru.data.text_files import LeftOut
from meru.data.engine import _within as within
from meru.data.images import ImageError, decode_image
from conftest import ROOT
from hostile import Hostile, encoded
from test_images import ODD, PHOTO

pytestmark = pytest.mark.filterwarnings('ignore::ResourceWarning', 'ignore::pytest.PytestUnraisableExceptionWarning')


@pytest.fixture(scope='module')
def server():
    s = Hostile(ROOT, 40)
    yield s
    s.shutdown()
    s.server_close()
    s.trap.close()


def config(**kw):
    return D.make_fetch_config(**dict(url_list='-', timeout=3.0, retries=0) | kw)


def fate(url, cfg):
    try:
        D._fetch_bytes(url, cfg)
        return 'success'
    except D.Refused as e:
        return e.reason


@pytest.mark.parametrize(
    'columns, header, text',
    [
        ('caption,url', False, 'a "b\t{u}1\nc" d\te\t{u}2\n'),
        ('url,caption', False, '{u}1\ta "b\n{u}2\tc" d\te\n'),
        ('caption,url', True, 'id\turl\tcaption\n1\t{u}1\ta "b\n2\t{u}2\tc" d\te\n'),
    ],
)
def test_tsv_keeps_quotes_and_tabs(columns, header, text, tmp_path):
    (tmp_path / 't.tsv').write_text('\ufeff' + text.format(u='http://x/').replace('\n', '\r\n'), newline='')
    rows = list(read_pairs(tmp_path / 't.tsv', 'url', 'caption', columns))
    assert rows == [('a "b', 'http://x/1'), ('c" d\te', 'http://x/2')]


def test_csv_and_parquet_with_other_names(tmp_path):
    (tmp_path / 't.csv').write_text('link,alt,n\nhttp://x/1,"two\nlines, ""q""",1\nhttp://x/2,,2\nhttp://x/3,c,3,4\n')
    assert list(read_pairs(tmp_path / 't.csv', 'link', 'alt', 'caption,url')) == [
        ('two\nlines, "q"', 'http://x/1'),
        None,
        None,
    ]
    pq.write_table(
        pa.table(dict(alt=['a\t"', None], other=[1, 2], link=['http://x/1', 'http://x/2'])), tmp_path / 't.parquet'
    )
    assert list(read_pairs(tmp_path / 't.parquet', 'link', 'alt', 'caption,url')) == [('a\t"', 'http://x/1'), None]
    with pytest.raises(ValueError, match="no column 'url'; it has alt, other, link"):
        list(read_pairs(tmp_path / 't.parquet', 'url', 'alt', 'caption,url'))
    with pytest.raises(ValueError, match='must end in .csv, .tsv, .jsonl, .json, .parquet'):
        list(read_pairs(tmp_path / 't.xls', 'url', 'alt', 'caption,url'))


def test_every_notation_of_a_forbidden_address_is_refused_untouched(server):
    port = server.trap.port
    before = server.trap.calls
    for host in (
        '127.0.0.1',
        'localhost',
        '2130706433',
        '0x7f.1',
        '017700000001',
        '127.1',
        '[::1]',
        '[::ffff:127.0.0.1]',
        '[::ffff:7f00:1]',
        '[64:ff9b::7f00:1]',
        '0.0.0.0',
        '0',
        '127.0.0.1.',
        'user:pw@127.0.0.1',
        '127.0.0.1%00.example',
    ):
        assert fate(f'http://{host}:{port}/x.jpg', config()) in ('forbidden_address', 'dns', 'bad_url'), host
    assert fate(f'https://127.0.0.1:{port}/', config()) == 'forbidden_address'
    assert server.trap.calls == before
    assert (
        fate(f'http://127.0.0.1:{port}/x.jpg', config(allow_loopback=True)) != 'forbidden_address'
        and server.trap.calls == before + 1
    )


def test_a_name_is_resolved_once_and_redirects_cannot_reach_inside(server, monkeypatch):
    "The name is public when it is checked, and would be private a moment later."
    resolved, visited = [], []

    def lookup(host, port, **kw):
        resolved.append(host)
        return [
            (
                socket.AF_INET,
                socket.SOCK_STREAM,
                6,
                '',
                ('93.184.216.34' if resolved.count(host) == 1 else '127.0.0.1', port),
            )
        ]

    class Sock(socket.socket):
        def connect(self, address):
            visited.append(address[0])
            super().connect(('127.0.0.1', server.server_port))

    monkeypatch.setattr(D.socket, 'getaddrinfo', lookup)
    monkeypatch.setattr(D.socket, 'socket', Sock)
    assert fate('http://pictures.example/picture/1', config()) == 'success'
    assert resolved == ['pictures.example'] and visited == ['93.184.216.34']
    assert (
        fate('http://second.example/to/picture', config()) == 'forbidden_address'
    )  # the second answer of the same name
    assert visited == ['93.184.216.34'] * 2


def test_one_private_address_among_public_ones_is_enough(monkeypatch):
    monkeypatch.setattr(
        D.socket, 'getaddrinfo', lambda *a, **k: [(2, 1, 6, '', (ip, 80)) for ip in ('93.184.216.34', '10.0.0.7')]
    )
    assert fate('http://mixed.example/', config()) == 'forbidden_address'


@pytest.mark.parametrize('path', ['drip', 'silent', 'slowhead'])
def test_slow_servers_are_cut_off_on_time(path, server):
    began = time.time()
    assert fate(f'{server.home}/{path}', config(allow_loopback=True, timeout=0.7)) == 'timeout'
    assert time.time() - began < 4


def test_a_name_server_that_does_not_answer_is_cut_off(monkeypatch):
    monkeypatch.setattr(D.socket, 'getaddrinfo', lambda *a, **k: time.sleep(3) or [])
    assert fate('http://slow.example/', config(timeout=0.3)) == 'timeout'


def test_retry_only_what_may_pass(server):
    tally = _Tally(ROOT / 'nowhere' / 'x')
    for path, times in (('status/503', 3), ('status/404', 1), ('cut', 3), ('robots/noai', 1)):
        url = f'{server.home}/{path}?retry'
        assert _guarded_download(('k', url), config(allow_loopback=True, retries=2), tally)[1] is None
        assert server.asked[f'/{path}?retry'] == times, path
    assert (tally.done, tally.good) == (4, 0)


PRIVATE = """127.0.0.1 10.1.2.3 100.100.100.200 168.63.129.16 169.254.169.254 169.254.170.2 192.0.0.192 192.88.99.1 ::1
    fe80::1 fd00:ec2::254 fec0::1 feff::1 3fff::1 3fff:fff:ffff::1 5f00::1 64:ff9b::a9fe:a9fe 64:ff9b:1::808:808
    ::8.8.8.8
    ::ffff:168.63.129.16 2002:a83f:8110::1 2001:db8::1 ff02::1""".split()


@pytest.mark.parametrize('address', PRIVATE)
def test_an_address_that_is_not_public_is_not_visited(address, monkeypatch):
    family = socket.AF_INET6 if ':' in address else socket.AF_INET
    monkeypatch.setattr(D.socket, 'getaddrinfo', lambda *a, **k: [(family, 1, 6, '', (address, 80))])
    monkeypatch.setattr(D.socket, 'socket', lambda *a: pytest.fail('it was visited'))
    assert fate('http://somewhere.example/', config()) == 'forbidden_address'


@pytest.mark.parametrize(
    'address', ['93.184.216.34', '168.63.129.15', '2606:2800:220:1::1', '4000::1', '64:ff9b::808:808']
)
def test_a_public_address_is_visited(address):
    assert D.may_visit(address) == (address != '4000::1')  # not handed out yet


class Endless(io.RawIOBase):
    "A socket that gives `head`, then zeros."

    def __init__(self, head):
        self.head, self.given = head, 0

    def makefile(self, mode):
        return io.BufferedReader(self)

    def readable(self):
        return True

    def readinto(self, buffer):
        piece, self.head = self.head[: len(buffer)], self.head[len(buffer) :]
        piece = piece or bytes(len(buffer)) * (self.given < 10_000_000)
        buffer[: len(piece)] = piece
        self.given += len(piece)
        return len(piece)


@pytest.mark.parametrize('length', ['', 'Content-Length: 900000\r\n'])
def test_nothing_is_read_behind_a_packed_body(length):
    picture = encoded(Image.new('RGB', (24, 24), 'red'), 'PNG')
    sock = Endless(f'HTTP/1.1 200 OK\r\n{length}Content-Encoding: gzip\r\n\r\n'.encode() + gzip.compress(picture))
    answer = http.client.HTTPResponse(sock, method='GET')
    answer.begin()
    assert D.read_body(answer, 1_000_000) == picture and sock.given < 200_000


def test_a_row_that_outlasts_its_time_costs_that_row(monkeypatch, tmp_path):
    tally, cfg = _Tally(tmp_path / '0.txt'), config(timeout=0.1, retries=0)
    monkeypatch.setattr(engine, '_fetch_bytes', lambda *a: time.sleep(30))
    began = time.monotonic()
    assert _guarded_download((3, 'http://slow.example/'), cfg, tally) == (3, None, 'timeout')
    assert time.monotonic() - began < 5
    monkeypatch.setattr(engine, '_within', lambda seconds, *a: within(0.1, *a))
    monkeypatch.setattr(engine, 'clean_picture', lambda *a: time.sleep(30))
    stream = io.BytesIO(b'x')
    stream.key = 4
    assert _guarded_resize(stream, None, cfg, tally) == (None, None, None, None, None, 'timeout')
    assert (tally.done, tally.good) == (2, 0)


def test_a_row_that_kills_its_worker_twice_is_given_up(tmp_path):
    (tmp_path / 'progress').mkdir()
    for name, text in (('3.row', '17'), ('4.row', '')):
        (tmp_path / 'progress' / name).write_text(text)
    assert not engine._strike(tmp_path, 1) and not engine._given_up(tmp_path)
    assert engine._strike(tmp_path, 1) and engine._given_up(tmp_path) == {(3, 17)}
    tally = _Tally(tmp_path / '3.txt')
    assert _guarded_download((17, 'http://10.0.0.1/'), config(), tally, frozenset({17})) == (17, None, 'timeout')


def test_tls_needs_a_certificate_that_is_trusted(tmp_path, monkeypatch):
    pem = tmp_path / 'both.pem'
    try:
        subprocess.run(
            [
                'openssl',
                'req',
                '-x509',
                '-newkey',
                'rsa:2048',
                '-nodes',
                '-days',
                '1',
                '-subj',
                '/CN=localhost',
                '-addext',
                'subjectAltName=DNS:localhost',
                '-keyout',
                tmp_path / 'k.pem',
                '-out',
                tmp_path / 'c.pem',
            ],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip('openssl is not there to make a certificate')
    pem.write_bytes((tmp_path / 'k.pem').read_bytes() + (tmp_path / 'c.pem').read_bytes())
    from hostile import Handler

    web = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    web.asked, web.pictures, web.handle_error = __import__('collections').Counter(), [b'picture'], lambda *a: None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    web.socket = context.wrap_socket(web.socket, server_side=True)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    url, cfg = f'https://localhost:{web.server_port}/picture/0', config(allow_loopback=True)
    assert fate(url, cfg) == 'tls'
    trusting = ssl.create_default_context(cafile=tmp_path / 'c.pem')
    monkeypatch.setattr(D, '_tls', lambda: trusting)
    assert D._fetch_bytes(url, cfg) == b'picture'
    assert fate(url.replace('localhost', '127.0.0.1'), cfg) == 'tls'  # the name on the certificate is another
    web.shutdown()
    web.server_close()


@pytest.mark.parametrize(
    'given, says',
    [
        (dict(), 'exactly one of'),
        (dict(url_list='a', mirror='b'), 'exactly one of'),
        (dict(pairs='a', shard_size=1), 'shard_size = 1'),
        (dict(pairs='a', processes=0), 'processes'),
        (dict(pairs='a', distributor='ray'), "distributor = 'ray'"),
        (dict(pairs='a', agent='two words'), 'agent'),
        (dict(pairs='a', timeout='1'), 'timeout'),
        (dict(pair='a'), "unknown parameter 'pair'"),
    ],
)
def test_bad_settings_are_named(given, says):
    with pytest.raises(ValueError, match=says):
        D.make_fetch_config(**given)


def raw_shard(folder, n=4, failed=1):
    "What img2dataset leaves: tar, parquet, _stats.json."
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        dict(
            row=i,
            caption=f'c{i}',
            url=f'u{i}',
            key=f'0000000{i:02d}',
            status='success' if i < n else 'failed_to_download',
            error_message=None if i < n else 'dns',
            width=8,
            height=8,
            original_width=8,
            original_height=8,
            sha256='0',
        )
        for i in range(n + failed)
    ]
    with tarfile.open(folder / '00000.tar', 'w') as tar:
        for r in reversed(rows[:n]):
            for ext in ('txt', 'jpg', 'json'):
                info = tarfile.TarInfo(f'{r["key"]}.{ext}')
                info.size, info.mtime = 3, time.time()
                tar.addfile(info, io.BytesIO(b'abc'))
    pq.write_table(pa.Table.from_pylist(rows), folder / '00000.parquet')
    (folder / '00000_stats.json').write_text(
        json.dumps(dict(count=n + failed, successes=n, failed_to_download=failed, failed_to_resize=0))
    )
    return folder


def cut_tar(f):
    (f / '00000.tar').write_bytes((f / '00000.tar').read_bytes()[:4096])


def drop_row(f):
    pq.write_table(pq.read_table(f / '00000.parquet').slice(1), f / '00000.parquet')


def wrong_stats(f):
    (f / '00000_stats.json').write_text(
        (f / '00000_stats.json').read_text().replace('"successes": 4', '"successes": 5')
    )


@pytest.mark.parametrize('damage', [cut_tar, drop_row, wrong_stats])
def test_a_shard_that_img2dataset_left_incomplete_is_refused(damage, tmp_path):
    assert len(_check_raw(raw_shard(tmp_path), 0, 5)[0]) == 5
    damage(tmp_path)
    with pytest.raises((ValueError, tarfile.ReadError), match='incomplete|unexpected end|00000'):
        _check_raw(tmp_path, 0, 5)
    with pytest.raises((ValueError, tarfile.ReadError)):
        _check_raw(raw_shard(tmp_path), 0, 6)


def test_a_list_of_addresses_has_several_captions_a_row_and_says_what_it_left_out(tmp_path):
    rows = [
        dict(caption=['a', None, 'b'], url='u0'),
        dict(caption='c', url='u1'),
        dict(caption=None, url='u2'),
        dict(caption='d', url=7),
        dict(caption=['e', 'f'], url='u4'),
        dict(caption='half \ud800', url='u5'),
    ]
    table, left_out = tmp_path / 'list.jsonl', LeftOut()
    table.write_text('\n'.join(map(json.dumps, rows)) + '\n{')
    found = list(read_pairs(table, 'url', 'caption', 'caption,url', left_out))
    assert found == [('a', 'u0', ['a', 'b']), ('c', 'u1'), None, None, ('e', 'u4', ['e', 'f']), None, None]
    assert left_out.record() == dict(
        no_caption=dict(count=2, example='line 3 of list.jsonl'),
        no_url=dict(count=1, example='line 4 of list.jsonl'),
        bad_json=dict(count=1, example='line 7 of list.jsonl'),
    )
    counts = _write_table(found, tmp_path / 'table.parquet')
    raw = raw_shard(tmp_path / 'raw', 5, 0)
    _seal_raw(raw, tmp_path, 0, 5)
    with tarfile.open(tmp_path / '00000.tar') as tar:
        about = [json.load(tar.extractfile(o)) for o in tar if o.name.endswith('.json')]
    assert [o.get('captions') for o in about] == [['a', 'b'], None, None, None, ['e', 'f']]
    assert counts == dict(rows=7, malformed=4, repeated=0) and not list(raw.iterdir())


def own_folder(folder, n=24):
    "A folder of pairs: n good ones, and one of each mistake."
    folder.mkdir()
    for i in range(n):
        (folder / f'{i:02d}.png').write_bytes(encoded(Image.new('RGB', (40 + i // 2, 40), (i // 2 * 9, 90, 40)), 'PNG'))
        (folder / f'{i:02d}.txt').write_text(f'caption {i}')
    (folder / 'mute.png').write_bytes(encoded(Image.new('RGB', (9, 9)), 'PNG'))
    (folder / 'lonely.txt').write_text('no picture')
    (folder / 'page.jpg').write_text('<html>')
    (folder / 'page.txt').write_text('a page')
    return folder


def test_own_folder_and_own_table_give_the_same_shards(tmp_path, capsys):
    own = own_folder(tmp_path / 'own')
    one = fetch(tmp_path / 'a', D.make_fetch_config(pairs='own', name='mine', shard_size=10, processes=1), tmp_path)
    assert one['books'] == dict(
        rows=27,
        malformed=0,
        repeated=0,
        stored=24,
        failed=dict(missing_file=1, no_caption=1, not_an_image=1),
        equal_images=12,
    )
    assert [s['rows'] for s in one['shards']] == [10, 10, 7] and one['id'] == Shards(tmp_path / 'a', 'hashes').id
    lines = ['path,caption'] + [f'{i:02d}.png,caption {i}' for i in range(24)] + ['page.jpg,a page']
    (own / 'list.csv').write_text('\n'.join(lines + ['23.png,again', 'gone.png,gone', 'a,comma,too many']) + '\n')
    two = fetch(
        tmp_path / 'b', D.make_fetch_config(pairs='own/list.csv', name='mine', shard_size=10, processes=1), tmp_path
    )
    assert two['books'] == dict(
        rows=27, malformed=1, repeated=0, stored=24, failed=dict(not_an_image=1, missing_file=1), equal_images=12
    )
    assert Shards(tmp_path / 'b')[23].meta['captions'] == ['caption 23', 'again']
    assert [s['sha256'] for s in two['shards']][:2] == [s['sha256'] for s in one['shards']][:2]
    assert 'nothing was fetched' not in capsys.readouterr().out
    fetch(tmp_path / 'a', D.make_fetch_config(pairs='own', name='mine', shard_size=10, processes=3), tmp_path)
    assert 'is complete: nothing was fetched' in capsys.readouterr().out


def test_a_changed_source_another_config_and_a_changed_shard_are_refused(tmp_path, monkeypatch):
    own_folder(tmp_path / 'own')
    cfg = D.make_fetch_config(pairs='own', shard_size=10, processes=1)
    monkeypatch.setattr('meru.data.fetch._write_manifest', lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fetch(tmp_path / 'a', cfg, tmp_path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match='quality .there 95, asked 90.'):
        fetch(tmp_path / 'a', D.make_fetch_config(pairs='own', shard_size=10, quality=90), tmp_path)
    tar = tmp_path / 'a' / '00001.tar'
    good = tar.read_bytes()
    tar.write_bytes(good[:700] + bytes([good[700] ^ 1]) + good[701:])
    with pytest.raises(ValueError, match='00001.tar has changed'):
        fetch(tmp_path / 'a', cfg, tmp_path)
    (tmp_path / 'a' / '00001_stats.json').unlink()
    (tmp_path / 'own' / 'new.png').write_bytes(b'')
    with pytest.raises(ValueError, match='own has changed since'):
        fetch(tmp_path / 'a', cfg, tmp_path)
    (tmp_path / 'own' / 'new.png').unlink()
    assert fetch(tmp_path / 'a', cfg, tmp_path)['books']['stored'] == 24 and tar.read_bytes() == good


def test_two_fetches_into_one_folder_are_refused(tmp_path):
    own_folder(tmp_path / 'own')
    (tmp_path / 'a').mkdir()
    cfg = D.make_fetch_config(pairs='own', processes=1)
    with locked(tmp_path / 'a'), pytest.raises(BlockingIOError, match='is in use by process'):
        fetch(tmp_path / 'a', cfg, tmp_path)


def test_nothing_usable_is_an_error(tmp_path):
    (tmp_path / 't.tsv').write_text('one column\nonly\n')
    with pytest.raises(ValueError, match='no usable row among 2'):
        fetch(tmp_path / 'a', D.make_fetch_config(url_list='t.tsv'), tmp_path)
    with pytest.raises(FileNotFoundError, match='nowhere.tsv'):
        fetch(tmp_path / 'b', D.make_fetch_config(url_list='nowhere.tsv'), tmp_path)


COMMIT = 'c0ffee' + '0' * 34


class Hub(BaseHTTPRequestHandler):
    "As much of the hub as a mirror needs; breaks off the first answer in the middle."

    protocol_version = 'HTTP/1.1'

    def log_message(self, *a):
        pass

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, body):
        self.server.log.append((self.command, self.path, self.headers.get('Range')))
        if self.path.startswith('/api/datasets/some/mirror'):
            files = [
                dict(
                    rfilename=n,
                    size=len(d),
                    blobId='1' * 40,
                    lfs=dict(sha256=hashlib.sha256(d).hexdigest(), size=len(d), pointerSize=130),
                )
                for n, d in self.server.files.items()
            ]
            return self.say(
                json.dumps(dict(id='some/mirror', sha=COMMIT, siblings=files)).encode(),
                body,
                **{'Content-Type': 'application/json'},
            )
        data = self.server.files[self.path.rpartition('/')[2]]
        first = int((self.headers.get('Range') or 'bytes=0-').split('=')[1].split('-')[0])
        head = {'ETag': f'"{hashlib.sha256(data).hexdigest()}"', 'X-Repo-Commit': COMMIT, 'Accept-Ranges': 'bytes'}
        if first:
            head['Content-Range'] = f'bytes {first}-{len(data) - 1}/{len(data)}'
        broken = body and not first and self.server.break_off
        self.say(self.server.spoil(data)[first:], body, 206 if first else 200, broken, **head)

    def say(self, data, body, status=200, broken=False, **head):
        self.send_response(status)
        for k, v in (head | {'Content-Length': len(data)}).items():
            self.send_header(k, str(v))
        self.end_headers()
        if body:
            self.wfile.write(data[: len(data) // 2] if broken else data)
        if broken:
            self.server.break_off = False
            self.close_connection = True


def foreign_tar(first, n=12):
    "A shard as the mirror has them, with members that have no business there."
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w') as tar:

        def add(name, data):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

        for i in range(first, first + n):
            add(f'{i:09d}.jpg', encoded(Image.new('RGB', (600, 300), (4 * i % 256, 80, 160)), 'JPEG'))
            add(f'{i:09d}.json', b'{}')
            add(f'{i:09d}.txt', f'caption {i}'.encode())
            add(f'{i:09d}.pyd', b'import os')
            add(f'../../{i:09d}.pth', b'evil')
        add(f'{first + n + 2:09d}.png', encoded(Image.effect_noise((400, 400), 90), 'PNG'))
        add(f'{first + n + 2:09d}.txt', b'more bytes than allowed')
        add(f'{first + n:09d}.jpg', b'<html>')
        add(f'{first + n:09d}.txt', b'not a picture')
        add(f'{first + n + 1:09d}.txt', b'no picture')
        link = tarfile.TarInfo('000000099.jpg')
        link.type, link.linkname = tarfile.SYMTYPE, '/etc/passwd'
        tar.addfile(link)
    return out.getvalue()


@pytest.fixture
def hub():
    s = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    s.log, s.break_off, s.spoil = [], True, lambda d: d
    s.files = {
        'x-train-0000.tar': foreign_tar(0),
        'x-train-0001.tar': foreign_tar(50),
        'x-validation-0000.tar': foreign_tar(90),
        'README.md': b'card',
    }
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield s
    s.shutdown()
    s.server_close()


def mirror(hub, **kw):
    return D.make_fetch_config(
        **dict(
            mirror='some/mirror',
            revision=COMMIT,
            pattern='x-train-*.tar',
            processes=1,
            max_bytes=100_000,
            endpoint=f'http://127.0.0.1:{hub.server_port}',
        )
        | kw
    )


def test_the_mirror_is_resumed_checked_and_made_ours(hub, tmp_path, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE', 4096)
    manifest = fetch(tmp_path / 'm', mirror(hub), tmp_path)
    assert manifest['books'] == dict(
        rows=56,
        malformed=0,
        repeated=0,
        stored=24,
        failed=dict(no_caption=24, too_large=2, not_an_image=2, missing_file=2, odd_members=2),
        equal_images=0,
    )
    assert any(r and not r.startswith('bytes=0-') for _, _, r in hub.log), 'the broken download was begun anew'
    assert all(COMMIT in p for _, p, _ in hub.log), 'something was asked of another revision'
    shards = Shards(tmp_path / 'm', 'hashes')
    assert [shards[i].caption for i in (0, 12)] == ['caption 0', 'caption 50']
    assert Image.open(io.BytesIO(shards[0].image)).size == (512, 256)
    names = [m.name for p in sorted((tmp_path / 'm').glob('*.tar')) for m in tarfile.open(p)]
    assert {n.partition('.')[2] for n in names} == {'jpg', 'json', 'txt'} and all('/' not in n for n in names)


def test_a_mirror_file_with_another_hash_is_refused_and_the_rest_is_kept(hub, tmp_path):
    hub.break_off, good = False, hub.files['x-train-0001.tar']
    hub.spoil = lambda d: d if d != good else d[:900] + bytes([d[900] ^ 1]) + d[901:]
    with pytest.raises(ValueError, match='x-train-0001.tar .* does not have the size and hash'):
        fetch(tmp_path / 'm', mirror(hub), tmp_path)
    hub.spoil = lambda d: d
    begun = len(hub.log)
    fetch(tmp_path / 'm', mirror(hub), tmp_path)
    assert not [p for _, p, _ in hub.log[begun:] if '0000.tar' in p], 'a finished shard was fetched again'
    assert fetch(tmp_path / 'n', mirror(hub), tmp_path)['id'] == Shards(tmp_path / 'm').id


def test_a_pattern_that_fits_nothing_is_named(hub, tmp_path):
    with pytest.raises(ValueError, match="no file 'y-.*it has README.md, x-train-0000.tar"):
        fetch(tmp_path / 'm', mirror(hub, pattern='y-*'), tmp_path)


@pytest.mark.parametrize('kind', ODD)
def test_what_is_stored_is_what_everything_else_decodes(kind):
    data, turn = ODD[kind]
    stored, pixels = D.clean_picture(data, 256, 95, 10**8), decode_image(data)
    width, height = stored.size
    assert (height, width) == pixels.shape[1:] and stored.original_size == stored.size
    assert (decode_image(stored.jpeg).float() - pixels.float()).abs().mean() < 4


def test_half_a_jpeg_with_an_end_marker_is_not_stored():
    data = encoded(PHOTO, 'JPEG')
    with pytest.raises(ImageError, match='cut off or damaged'):
        D.clean_picture(data[: len(data) // 2] + b'\xff\xd9', 256, 95, 10**8)


def test_large_photos_are_drafted_and_then_scaled_to_the_size_asked():
    data = encoded(PHOTO.resize((1600, 1200)), 'JPEG')
    stored = D.clean_picture(data, 256, 95, 10**8)
    assert stored.size == (341, 256) and stored.original_size == (1600, 1200)
