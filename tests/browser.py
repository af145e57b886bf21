"Chromium, driven by as much of WebDriver as the tests need."

import base64
import io
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
import numpy as np
import pytest
from PIL import Image

CHROMES = ('chromium', 'chromium-browser', 'google-chrome')


class Browser:
    "As much of WebDriver as these tests need."

    def __init__(self, driver, chrome, port):
        self.base, self.process = (
            f'http://127.0.0.1:{port}',
            subprocess.Popen([driver, f'--port={port}'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL),
        )
        self.session = ''
        options = dict(
            binary=chrome,
            args=[
                '--headless=new',
                '--no-sandbox',
                '--disable-gpu',
                '--disable-dev-shm-usage',
                '--window-size=1300,900',
                '--force-prefers-reduced-motion',
            ],
        )
        wanted = {'goog:chromeOptions': options, 'goog:loggingPrefs': {'browser': 'ALL'}}
        for _ in range(100):
            try:
                made = self.call('POST', '/session', dict(capabilities=dict(alwaysMatch=wanted)))
            except urllib.error.URLError:
                time.sleep(0.1)
            else:
                break
        self.session = '/session/' + made['sessionId']

    def call(self, method, path, data=None):
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(
            self.base + self.session + path, body, {'Content-Type': 'application/json'}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)['value']
        except urllib.error.HTTPError as e:
            raise AssertionError(json.load(e)['value']['message']) from None

    def js(self, script, *args):
        return self.call('POST', '/execute/sync', dict(script=script, args=list(args)))

    def log(self):
        return [
            o['message']
            for o in self.call('POST', '/se/log', dict(type='browser'))
            if o['level'] in ('SEVERE', 'WARNING')
        ]

    def act(self, *steps, kind='pointer', **more):
        self.call('POST', '/actions', dict(actions=[dict(type=kind, id=kind, actions=list(steps), **more)]))

    def key(self, *keys):
        self.act(*[dict(type=t, value=k) for k in keys for t in ('keyDown', 'keyUp')], kind='key')

    def at(self, i):
        script = """const b = document.getElementById('stage').getBoundingClientRect(), w = meru.where(arguments[0])
            return [b.left + w[0], b.top + w[1]]"""
        for _ in range(50):
            x, y = self.js(script, i)
            if None not in (x, y):
                break
            time.sleep(0.1)  # the page has no size yet
        return dict(type='pointerMove', x=round(x), y=round(y), duration=0)

    def screenshot(self):
        return np.array(Image.open(io.BytesIO(base64.b64decode(self.call('GET', '/screenshot')))).convert('RGB'))

    def open(self, path, html):
        path.write_text(html, encoding='utf-8')
        self.call('POST', '/url', dict(url=path.as_uri()))
        self.settle()
        return self

    def settle(self):
        "Wait until nothing moves any more."
        before = -1
        for _ in range(200):
            now = self.js('return meru.frames')
            if now == before and now > 0:  # a busy machine draws its first frame late
                return
            before = now
            time.sleep(0.15)

    def close(self):
        try:
            self.call('DELETE', '')
        finally:
            self.process.terminate()
            self.process.wait()


@contextmanager
def open_browser():
    "A browser; where there is none the test is skipped, and says so."
    binary, driver = next(filter(None, map(shutil.which, CHROMES)), None), shutil.which('chromedriver')
    if not binary or not driver:
        pytest.skip('no Chromium with chromedriver here: apt-get install chromium chromium-driver')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    browser = Browser(driver, binary, port)
    try:
        yield browser
    finally:
        browser.close()
