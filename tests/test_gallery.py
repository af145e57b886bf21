"""The gallery in a real browser and under requests that mean no good."""

import socket
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
from dataclasses import replace

import pytest
import torch

from conftest import ROOT
from browser import open_browser
from meru import gallery, pictures
from meru.hub import Pretrained
from meru.image_index import SearchConfig, open_image_index
from meru.models.model import build_model
from meru.training.config import make_config

uvicorn = pytest.importorskip('uvicorn', reason="pip install 'meru[serve]'")
pytest.importorskip('starlette', reason="pip install 'meru[serve]'")
HURT = '<img src=x onerror=window.hurt=1>'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp('gallery')
    folder = home / 'drawings'
    folder.mkdir()
    with zipfile.ZipFile(ROOT / 'data/emoji/drawings.zip') as z:
        for i, name in enumerate([o for o in z.namelist() if o.startswith('emojione/')][:16]):
            (folder / f'{i:02d}.webp').write_bytes(z.read(name))
    (folder / '00.txt').write_text(f'{HURT}\na thing\n')
    (home / 'secret.webp').write_bytes((folder / '03.webp').read_bytes())
    (folder / 'link.webp').symlink_to(home / 'secret.webp')
    return folder


@pytest.fixture(scope='module')
def server(folder):
    "The address of a server in this process."
    torch.manual_seed(0)
    Pretrained(build_model(make_config('smoke')).eval()).save_pretrained(folder.parent / 'model')
    cfg = SearchConfig(str(folder), 'a', str(folder.parent / 'model'), str(folder.parent / 'kept'))
    made = gallery._Gallery(open_image_index(cfg))
    app = gallery._app(made, ['127.0.0.1', 'localhost'])
    listening = socket.create_server(('127.0.0.1', 0))
    running = uvicorn.Server(uvicorn.Config(app, log_level='error'))
    thread = threading.Thread(target=running.run, kwargs=dict(sockets=[listening]))
    thread.start()
    while not running.started:
        time.sleep(0.02)
    yield f'http://127.0.0.1:{listening.getsockname()[1]}'
    running.should_exit = True
    thread.join()


def ask(url, data=None, **headers):
    "Status and body."
    request = urllib.request.Request(url, data, {k.replace('_', '-'): v for k, v in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as e:
        return e.code, e.read()


@pytest.fixture(scope='module')
def chrome():
    with open_browser() as browser:
        yield browser


def wait(chrome, condition, *args):
    for _ in range(200):
        if chrome.js(f'return {condition}', *args):
            return
        time.sleep(0.05)
    raise AssertionError(condition)


def upload(chrome, path):
    (found,) = chrome.call('POST', '/element', dict(using='css selector', value='#file')).values()
    chrome.call('POST', f'/element/{found}/value', dict(text=str(path)))


def test_a_person_searches_in_chromium(server, folder, chrome):
    chrome.call('POST', '/url', dict(url=server))
    wait(chrome, "window.gallery && gallery.about && document.title === 'drawings'")
    assert len(chrome.js("return [...document.querySelectorAll('#hits img')]")) == 16, 'pictures before any question'
    answered = 'gallery.asked > 0 && gallery.answered === gallery.asked'
    first = "document.querySelector('#hits span').textContent"
    chrome.js("document.getElementById('text').value = 'a red thing'; document.querySelector('form button').click()")
    wait(chrome, answered)
    by_words = chrome.js("return [...document.querySelectorAll('#hits span')].map(o => o.textContent)")
    assert len(by_words) == 16 and 'link.webp' not in by_words
    assert 'The nearest 16 of 16 pictures' in chrome.js("return document.getElementById('note').textContent")
    chrome.js(
        """const s = document.getElementById('generality')
        s.value = 80
        s.dispatchEvent(new Event('input'))
        s.dispatchEvent(new Event('change'))"""
    )
    wait(chrome, answered)
    assert chrome.js("return document.getElementById('level').textContent") == '80 %'
    chrome.js(
        "const s = document.getElementById('generality'); s.value = 0; document.getElementById('text').value = ''"
    )
    upload(chrome, folder / '07.webp')
    wait(chrome, f"{answered} && {first} === '07.webp'")
    chrome.js("document.querySelector('#hits button').click()")
    wait(chrome, "document.querySelectorAll('#path li').length > 0")
    assert chrome.js("return document.querySelector('#path li:last-child').textContent").startswith('the root')
    chrome.js("document.getElementById('like').click()")
    wait(chrome, f"{answered} && gallery.row === 7 && {first} === '07.webp'")
    wait(chrome, '[...document.images].some(o => o.naturalWidth > 0)')
    phone = dict(width=390, height=844, deviceScaleFactor=1, mobile=True)
    chrome.call('POST', '/goog/cdp/execute', dict(cmd='Emulation.setDeviceMetricsOverride', params=phone))
    wait(chrome, 'innerWidth === 390 && document.documentElement.scrollWidth <= 390')
    assert chrome.js('return window.hurt') is None and chrome.log() == []


def test_no_request_leaves_the_folder(server, folder):
    secret = (folder / '03.webp').read_bytes()
    for path in (
        '/picture/16',
        '/picture/-1',
        '/picture/../../secret.webp',
        '/picture/%2e%2e%2fsecret.webp',
        '/link.webp',
        '/00.webp',
        '/gallery.js/../gallery.html',
        '/%00',
        '//etc/passwd',
        '/picture/3/..%5c..%5csecret.webp',
    ):
        status, body = ask(server + path)
        assert status in (400, 404, 405) and secret not in body, path
    status, body = ask(f'{server}/search?text={folder}/03.webp&k=1')
    assert status == 200 and b'"distance":0.0' not in body  # a text that is a path is a text
    assert ask(f'{server}/picture/3')[1] != secret  # not even a file of the folder is sent as it is


@pytest.mark.parametrize(
    'path, data, headers, status, says',
    [
        ('/search', None, {}, 400, 'ask with a text'),
        ('/search?text=a&generality=1', None, {}, 400, 'generality in -2 to 1'),
        ('/search?text=a&generality=inf', None, {}, 400, 'generality in -2 to 1'),
        ('/search?text=a&k=99999999999', None, {}, 400, 'k in 1 to 200'),
        ('/search?row=x', None, {}, 400, 'whole numbers'),
        ('/search', b'GIF89a', {}, 400, 'cut off or damaged'),
        ('/search', b'<svg onload=alert(1)>', {}, 400, 'not allowed'),
        ('/search', b'\0' * 20_000_001, {}, 400, 'more than 20 MB'),
        ('/search?text=a', None, dict(Host='evil.example'), 400, 'Invalid host'),
        ('/search?text=a', None, dict(Origin='http://evil.example'), 403, 'another site'),
    ],
    ids=range(10),
)
def test_what_means_no_good_is_one_sentence(path, data, headers, status, says, server):
    found, body = ask(server + path, data, **headers)
    assert found == status and says in body.decode() and len(body) < 300


def test_a_picture_without_words_stands_under_its_folders(server, folder, tmp_path):
    shelf = tmp_path / 'album' / 'things' / 'round things'
    shelf.mkdir(parents=True)
    for name in ('00.webp', '01.webp'):
        (shelf / name).write_bytes((folder / name).read_bytes())
    cfg = SearchConfig(str(tmp_path / 'album'), 'a', str(folder.parent / 'model'), str(tmp_path / 'kept'))
    met = [stop['text'] for stop in gallery._Gallery(open_image_index(cfg)).walk(0)]
    assert met[0] == 'round things' and met[-1] == '[root]' and set(met) <= {'round things', 'things', '[root]'}


def test_both_lie_between(server, folder):
    made = open_image_index(SearchConfig(str(folder), 'a', str(folder.parent / 'model'), str(folder.parent / 'kept')))
    asked = gallery._Gallery(made)
    picture = (folder / '05.webp').read_bytes()
    x, t, both = (
        asked.point(gallery._Asked(**o))
        for o in (dict(picture=picture), dict(text='a'), dict(picture=picture, text='a'))
    )
    near = [asked.space.dist(both, o, asked.curv).item() for o in (x, t)]
    assert near[0] == pytest.approx(near[1], rel=1e-3) and sum(near) == pytest.approx(
        asked.space.dist(x, t, asked.curv).item(), rel=1e-3
    )
    said = {stop['text'] for stop in asked.walk(0)}
    assert said <= {HURT, 'a thing', '[root]'} and '[root]' in said, 'what is said of a picture, not of another'
    bare = replace(
        made, texts=replace(made.texts, points=made.texts.points[:0], columns=dict(file=[], text=[]), checked=True)
    )
    dog = replace(
        made, texts=replace(made.texts, columns=made.texts.columns | dict(text=['a dog in the snow'] * len(made.texts)))
    )
    first, *nouns, end = [stop['text'] for stop in gallery._Gallery(dog).walk(0)]
    chains = [o for words in pictures._noun_chains(['a dog in the snow']) for o in words]
    assert first == 'a dog in the snow' and end == '[root]' and 'dog' in chains and set(nouns) <= set(chains)
    stops = gallery._Gallery(bare).walk(5)
    assert stops[0]['row'] == 5 and stops[-1]['text'] == '[root]'


def test_the_command_names_what_is_wrong(server, folder, capsys):
    assert gallery._main([str(folder / 'nowhere')]) == 1
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        kept = ['--model', str(folder.parent / 'model'), '--out', str(folder.parent / 'kept'), '--port', str(port)]
        assert gallery._main([str(folder), *kept]) == 1
    err = capsys.readouterr().err
    assert 'there is no folder' in err and f'port {port} of 127.0.0.1 cannot be had' in err


def test_meru_serve_hands_over(monkeypatch, tmp_path):
    import meru.__main__ as commands

    monkeypatch.chdir(tmp_path)
    (tmp_path / 'photos').mkdir()
    monkeypatch.setattr(commands, '_python', lambda *typed: typed)
    handed = '-m', 'meru.gallery', str(tmp_path / 'photos'), '--port', '1'
    assert commands._main(['serve', 'photos', '--port', '1']) == handed


def test_a_missing_package_is_named(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'uvicorn', None)
    assert gallery._main([str(folder)]) == 1
    assert "pip install 'meru[serve]'" in capsys.readouterr().err
