"""The site of a small project: four pages, one module of the API. `make docs` checks the links of the whole."""

import fnmatch
import http.server
import importlib.util
import json
import re
import shutil
import threading
from contextlib import contextmanager
from functools import partial
import pytest
from browser import open_browser
from conftest import ROOT
from house import pages

PAGES = 'losses/11_entailment training/44_curves reports/97_tree 01_plots'.split()
SIDEBAR = """
project: {type: website}
website:
  title: MERU
  sidebar:
    style: floating
    contents:
      - section: Chapters
        contents: [01_plots.ipynb, losses/*.ipynb, training/*.ipynb, reports/*.ipynb]
  navbar: {search: true}
format: {html: {theme: {light: cosmo, dark: darkly}, toc: true, css: site.css}}
"""


def builder():
    pytest.importorskip('smalldocs', reason='pip install smalldocs')
    pytest.importorskip('latex2mathml', reason='pip install latex2mathml')
    spec = importlib.util.spec_from_file_location('docs', ROOT / '.ci' / 'docs.py')
    docs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(docs)
    return docs


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The built site; building found no fault."
    docs, home = builder(), tmp_path_factory.mktemp('docs')
    home = home / 'project'
    for page in PAGES:
        (home / 'nbs' / page).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / f'nbs/{page}.ipynb', home / f'nbs/{page}.ipynb')
    for name in docs.GUIDE:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        links = '[Losses](nbs/losses), [a folder](tests), [R](nbs/reports), [T](nbs/training)'
        (home / name).write_text(f'# {name}\n\n{links}, $x^2$, `contrastive $a$`\n')
    (home / 'outputs/LOG.md').write_text('# Log\n\n[a cone](../nbs/01_plots.ipynb#Cones)\n')
    for name in docs.EXPLORERS:
        there = home / f'outputs/reference/{name}/explorer.html'
        there.parent.mkdir(parents=True)
        there.write_text('<title>explorer</title>')
    shutil.copytree(ROOT / 'outputs/reference/tree/figures', home / 'outputs/reference/tree/figures')
    (home / 'meru/losses').mkdir(parents=True)
    shutil.copyfile(ROOT / 'meru/losses/entailment.py', home / 'meru/losses/entailment.py')
    shutil.copytree(ROOT / '.ci', home / '.ci')
    (home / 'nbs/_quarto.yml').write_text(SIDEBAR)
    docs.ROOT, docs.PACKAGES = home, ['meru.losses.entailment']
    docs.BAR = dict(Chapters='01_plots.ipynb', API='api/entailment.qmd')
    out = home / 'out'
    assert docs.build(out) == []
    return out


def text(path):
    return path.read_text(encoding='utf-8')


def test_every_page_is_there_and_links_are_whole(site):
    made = {p.relative_to(site).as_posix() for p in site.rglob('*.html')}
    assert {f'{p}.html' for p in PAGES} | {'index.html', 'losses/index.html', 'api/entailment.html'} <= made
    assert '[Entailment' in text(site / 'losses/index.llms.md') and '<a href="losses/' in text(site / 'index.html')
    assert '<a' not in re.search(r', (.{0,40}folder.{0,20}),', text(site / 'index.html'))[1]
    assert 'href="01_plots.html#cones"' in text(site / 'log.html')
    assert all(f'{p}.llms.md' in text(site / 'llms.txt') for p in PAGES)


def test_a_broken_link_is_found(site, tmp_path):
    docs = builder()
    (tmp_path / 'index.html').write_text('<a href="a.html#no">x</a><img src="gone.png">')
    for name in ('a', 'lonely'):
        (tmp_path / f'{name}.html').write_text('<p id="yes">')
    wrong = ['index.html: a.html#no', 'index.html: gone.png', 'no link leads to lonely.html']
    assert docs.broken_links(tmp_path) == wrong


def test_no_directive_and_no_hidden_cell_is_seen(site):
    for page in PAGES:
        html, copy = text(site / f'{page}.html'), text(site / f'{page}.llms.md')
        assert not re.search(r'#\|\s*(export|hide|default_exp|eval|slow)', html + copy), page
        hidden = [
            ''.join(c['source']).split('\n')[1]
            for c in json.loads((ROOT / f'nbs/{page}.ipynb').read_text())['cells']
            if ''.join(c['source']).startswith('#| hide')
        ]
        assert not [line for line in hidden if line in copy], page


def test_the_parameter_table_of_a_function(site):
    html = text(site / 'api/entailment.html')
    rows = re.findall(r'<tr>\s*(.*?)\s*</tr>', html[html.index('id="entailment_loss"') :], re.S)
    cells = [[re.sub(r'<[^>]+>', '', c).strip() for c in re.findall(r'<t[dh].*?</t[dh]>', row, re.S)] for row in rows]
    assert cells[0] == ['Parameter', 'Type', 'Default', 'Description']
    assert cells[1] == ['geometry', 'Geometry', 'required', 'gives the angles']
    assert cells[5][:3] == ['min_radius', 'float', '0.1'] and cells[5][3].startswith('K: cones are half-spaces')
    assert cells[7][0] == 'returns' and cells[7][3] == 'radians'


def test_nothing_is_asked_of_another_machine(site):
    "Formulas are MathML, fonts are the machine's."
    html = ''.join(map(text, site.rglob('*.html'))) + ''.join(map(text, site.rglob('*.css')))
    assert '<math' in html and 'contrastive $a$' in text(site / 'index.html')
    assert not re.findall(r'<(?:script|img|iframe)[^>]+src="https?:|<link[^>]+href="https?:|url\(["\']?https?:', html)


def test_it_reads_well_in_a_browser(site):
    "Search finds a heading; nothing is wider than a phone; dark and light; no error."
    quiet = type('Quiet', (http.server.SimpleHTTPRequestHandler,), dict(log_message=lambda *_: None))
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), partial(quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with open_browser() as browser:
            look(browser, f'http://127.0.0.1:{server.server_port}')
    finally:
        server.shutdown()
        server.server_close()


def look(browser, address):
    phone = dict(width=390, height=844, deviceScaleFactor=1, mobile=True)
    colours = []
    for scheme in ('light', 'dark'):
        media = dict(features=[dict(name='prefers-color-scheme', value=scheme)])
        for cmd, params in (('setDeviceMetricsOverride', phone), ('setEmulatedMedia', media)):
            browser.call('POST', '/goog/cdp/execute', dict(cmd=f'Emulation.{cmd}', params=params))
        browser.call('POST', '/url', dict(url=f'{address}/losses/11_entailment.html'))
        width, colour = browser.js(
            'return [document.documentElement.scrollWidth, getComputedStyle(document.body).backgroundColor]'
        )
        assert width == 390
        colours.append(sum(map(int, re.findall(r'\d+', colour)[:3])))
    assert colours[0] > 600 and colours[1] < 200
    hits = browser.js("""const input = document.querySelector('.smalldocs-search input')
        input.value = 'entailment_loss'
        input.dispatchEvent(new Event('focus'))
        return fetch('../search.json').then(() => new Promise(done => setTimeout(() => {
            input.dispatchEvent(new Event('input'))
            setTimeout(() => done([...document.querySelectorAll('.search-result')].map(o => o.href)), 500)
        }, 300)))""")
    assert f'{address}/api/entailment.html#entailment_loss' in hits and browser.log() == []


def test_the_chapters_list_every_page():
    "`nbs/_quarto.yml`, which Quarto reads as well."
    yaml = pytest.importorskip('yaml')
    book = yaml.safe_load(text(ROOT / 'nbs/_quarto.yml'))
    listed = [
        o
        for s in book['website']['sidebar']['contents']
        for o in ([s['contents']] if isinstance(s['contents'], str) else s['contents'])
    ]
    missing = []
    for page in pages():
        name = page.relative_to(ROOT / 'nbs').as_posix()
        fits = [o for o in listed if fnmatch.fnmatchcase(name, o) and o.count('/') == name.count('/')]
        if len(fits) != 1:
            missing.append(f'{name}: {fits}')
    assert not missing


def test_the_command(monkeypatch):
    from types import SimpleNamespace
    from meru import __main__ as commands

    asked = []

    @contextmanager
    def started(args, **how):
        asked.append(args)
        yield SimpleNamespace(wait=lambda: 4)

    monkeypatch.setattr(commands.subprocess, 'Popen', started)
    assert commands._main(['docs']) == 4 and asked[0][1:] == ['.ci/docs.py']
