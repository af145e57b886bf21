"""A web server with every bad habit that a list of three million addresses meets, and the list that leads to it."""

import gzip
import io
import socket
import struct
import threading
import time
import zipfile
import zlib
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import numpy as np
from PIL import Image


def encoded(im, kind, **kw):
    out = io.BytesIO()
    im.save(out, kind, **kw)
    return out.getvalue()


def bomb(side):
    "A PNG of a few bytes that claims side x side pixels."
    chunk = lambda k, d: struct.pack('>I', len(d)) + k + d + struct.pack('>I', zlib.crc32(k + d))
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0))
        + chunk(b'IDAT', zlib.compress(b'\0' * 9))
        + chunk(b'IEND', b'')
    )


class Trap:
    "A port of this machine, open on all its addresses, that counts who calls."

    def __init__(self):
        self.calls, self.sock = 0, socket.create_server(('0.0.0.0', 0))
        self.port = self.sock.getsockname()[1]
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        with suppress(OSError):
            while True:
                peer, _ = self.sock.accept()
                self.calls += 1
                peer.close()

    def close(self):
        self.sock.close()


def own_address():
    "An address of this machine that is not its loopback, if it has one."
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect(('203.0.113.1', 9))
        if not s.getsockname()[0].startswith(('127.', '0.')):
            return s.getsockname()[0]
    return '192.168.255.254'


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *a):
        pass

    def do_GET(self):
        path = self.path.partition('?')[0].strip('/').split('/')
        self.server.asked[self.path] += 1
        self.close_connection = True
        with suppress(OSError):
            getattr(self, f'do_{path[0]}', self.do_missing)(*path[1:])

    def say(self, body=b'', status=200, length=None, **headers):
        self.send_response(status)
        self.send_header('Content-Length', str(len(body) if length is None else length))
        for k, v in headers.items():
            self.send_header(k.replace('_', '-'), v)
        self.end_headers()
        self.wfile.write(body)

    def endless(self, block, pause):
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(block)
            time.sleep(pause)

    def do_picture(self, i):
        self.say(self.server.pictures[int(i)])

    def do_made(self, kind):
        self.say(self.server.made[kind])

    def do_missing(self, *a):
        self.say(b'gone', 404)

    def do_status(self, code):
        self.say(b'no', int(code))

    def do_html(self, *a):
        self.say(b'<html><body>sorry</body></html>', Content_Type='image/jpeg')

    def do_empty(self, *a):
        self.say()

    def do_cut(self, *a):
        self.say(self.server.pictures[0][:200], length=5000)

    def do_declared(self, *a):
        self.say(b'x', length=10**12)

    def do_flood(self, *a):
        self.endless(bytes(1 << 16), 0)

    def do_drip(self, *a):
        self.endless(b'.', 0.2)

    def do_silent(self, *a):
        time.sleep(60)

    def do_slowhead(self, *a):
        self.wfile.write(b'HTTP/1.1 200 OK\r\n')
        while True:
            self.wfile.write(b'X: 1\r\n')
            time.sleep(0.5)

    def do_noise(self, *a):
        self.wfile.write(b'\0\1\2 no http at all\r\n\r\n')

    def do_gzip(self, *a):
        self.say(gzip.compress(self.server.pictures[1]), Content_Encoding='gzip')

    def do_gzipbomb(self, *a):
        self.say(gzip.compress(bytes(50_000_000)), Content_Encoding='gzip')

    def do_brotli(self, *a):
        self.say(self.server.pictures[1], Content_Encoding='br')

    def do_to(self, where):
        self.say(status=302, Location=self.server.targets[where])

    def do_robots(self, words):
        self.say(self.server.pictures[2], X_Robots_Tag=words.replace('_', ' '))


class Hostile(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, root, n=200):
        super().__init__(('127.0.0.1', 0), Handler)
        self.home, self.asked, self.trap = f'http://127.0.0.1:{self.server_port}', Counter(), Trap()
        with zipfile.ZipFile(root / 'data/emoji/drawings.zip') as z:
            names = sorted(z.namelist())
            self.pictures = [z.read(names[i * 40]) for i in range(n)]
        self.made = make_pictures(self.pictures[0])
        self.targets = dict(
            picture='/picture/3',
            loop='/to/loop',
            file='file:///etc/passwd',
            data='data:image/png;base64,AAAA',
            ftp='ftp://127.0.0.1/x.jpg',
            private='http://10.255.255.1/x.jpg',
            metadata='http://169.254.169.254/latest/meta-data',
            mapped='http://[::ffff:192.168.0.1]/x.jpg',
            trap=f'http://{own_address()}:{self.trap.port}/x.jpg',
            nowhere='http://:80/',
        )
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *a):
        pass


def make_pictures(drawing):
    im = Image.open(io.BytesIO(drawing)).convert('RGB')
    exif = Image.Exif()
    exif[0x112] = 6
    photo = im.resize((640, 420), Image.Resampling.BICUBIC)
    return dict(
        photo=encoded(photo, 'JPEG'),
        turned=encoded(photo, 'JPEG', exif=exif),
        grey=encoded(im.convert('L'), 'JPEG'),
        cmyk=encoded(im.convert('CMYK'), 'JPEG'),
        deep=encoded(Image.fromarray(np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)), 'PNG'),
        glass=encoded(Image.new('RGBA', (64, 64), (0, 0, 0, 0)), 'PNG'),
        palette=encoded(im.convert('P'), 'GIF'),
        bmp=encoded(im, 'BMP'),
        truncated=encoded(photo, 'JPEG')[:9000],
        bomb=bomb(60_000),
        tiff=encoded(im, 'TIFF'),
        svg=b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    )


def rows_of(server):
    "Every row of the list: caption, url, and the fate it must have."
    h, good, rows = server.home, 'success', []
    add = lambda url, fate, n=1: rows.extend(
        (
            f'row {len(rows) + i}',
            f'{url}{"&" if "?" in url else "?"}n={len(rows) + i}' if url.startswith(h) else url,
            fate,
        )
        for i in range(n)
    )
    for i in range(len(server.pictures)):
        add(f'{h}/picture/{i}', good)
    for kind in 'photo turned grey cmyk deep glass palette bmp'.split():
        add(f'{h}/made/{kind}', good, 2)
    for path, fate, n in [
        ('missing', 'http_404', 8),
        ('status/403', 'http_403', 5),
        ('status/410', 'http_410', 2),
        ('status/500', 'http_500', 2),
        ('status/204', 'http_204', 1),
        ('html/a.jpg', 'not_an_image', 6),
        ('empty', 'not_an_image', 2),
        ('cut', 'cut_off', 3),
        ('made/truncated', 'truncated', 3),
        ('made/bomb', 'too_many_pixels', 2),
        ('made/tiff', 'format', 2),
        ('made/svg', 'format', 2),
        ('declared', 'too_large', 2),
        ('flood', 'too_large', 2),
        ('drip', 'timeout', 2),
        ('silent', 'timeout', 2),
        ('slowhead', 'timeout', 2),
        ('noise', 'bad_response', 2),
        ('gzip', good, 2),
        ('gzipbomb', 'too_large', 2),
        ('brotli', 'bad_response', 1),
        ('to/picture', good, 3),
        ('to/loop', 'redirects', 2),
        ('to/file', 'forbidden_scheme', 2),
        ('to/data', 'forbidden_scheme', 1),
        ('to/ftp', 'forbidden_scheme', 1),
        ('to/private', 'forbidden_address', 2),
        ('to/metadata', 'forbidden_address', 2),
        ('to/mapped', 'forbidden_address', 2),
        ('to/trap', 'forbidden_address', 4),
        ('to/nowhere', 'bad_url', 1),
        ('robots/noai', 'opt_out', 3),
        ('robots/meru:_noimageai', 'opt_out', 2),
        ('robots/other:_noai', good, 2),
    ]:
        add(f'{h}/{path}', fate, n)
    for url, fate in [
        ('file:///etc/passwd', 'forbidden_scheme'),
        ('data:image/gif;base64,R0lGODlhAQABAAAAACw=', 'forbidden_scheme'),
        ('ftp://a.example/x.jpg', 'forbidden_scheme'),
        ('javascript:alert(1)', 'forbidden_scheme'),
        ('no address at all', 'forbidden_scheme'),
        ('http://[::1', 'bad_url'),
        ('http://', 'bad_url'),
        ('http://host:port/x', 'bad_url'),
        ('http://10.0.0.1/x.jpg', 'forbidden_address'),
        (server.targets['trap'], 'forbidden_address'),
        ('http://169.254.169.254/', 'forbidden_address'),
        (f'http://0:{server.trap.port}/', 'forbidden_address'),
        ('http://nothing.invalid/x.jpg', 'dns'),
    ]:
        add(url, fate)
    odd = [
        '"quoted"',
        'one " quote',
        'tab\tin the middle',
        "it's; a, list",
        'naïve café 漢字 🤯',
        '\\n is no line end',
        "'",
        '"',
    ]
    return [(f'{c} {odd[i % len(odd)]}' if i < 80 else c, u, f) for i, (c, u, f) in enumerate(rows)]


def write_list(path, rows):
    "Google's layout, with malformed lines and repeated addresses among the rows; how many of each."
    bad = [
        b'no address here',
        b'\thttp://a.example/no-caption.jpg',
        b'a null \0 byte\thttp://a.example/1.jpg',
        b'\t',
        b'no url\t',
    ]
    blank = [b'']  # no row
    lines = [f'{c}\t{u}'.encode() for c, u, _ in rows]
    lines = lines[:50] + bad + blank + lines[50:] + [f'again {i}\t{rows[i][1]}'.encode() for i in range(7)]
    path.write_bytes(b'\n'.join(lines) + b'\n')
    return dict(rows=len(lines) - len(blank), malformed=len(bad), repeated=7)
