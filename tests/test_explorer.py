"""The explorer in a real browser: Chromium, driven through chromedriver by plain HTTP."""

import base64
import io
import json
from contextlib import contextmanager
from functools import partial
import numpy as np
import pytest
from browser import open_browser
import torch
from PIL import Image
from conftest import ROOT
import meru
from meru import explorer
from meru.explorer import _Items, _Space, _make_page, _opened
from meru.geometry import geometries, get_geometry, unit
from meru.evaluation.hierarchy import _cone_margins


def picture(i):
    out = io.BytesIO()
    Image.new('RGB', (64, 64), (40 * i % 256, 90, 200 - i)).save(out, 'webp')
    return out.getvalue()


def toy(n=40, name='word', pictures=True):
    "Two groups, six names, the rest drawings; the last is hostile."
    levels = torch.tensor(([0, 0] + [1] * 6 + [2] * n)[:n])
    parents = torch.tensor(([-1, -1] + [0, 1] * 3 + [2 + i % 6 for i in range(n)])[:n])
    texts = [f'{name} {i}' for i in range(n)]
    if n > 1:
        texts[-1] = '<img src=x onerror="window.hurt=1"></script><script>window.hurt=2</script>'
    return _Items(
        texts,
        levels,
        parents,
        [picture(i) if levels[i] == 2 and pictures else None for i in range(n)],
        ['group', 'name', 'drawing'],
    )


def spaces(n=40, d=24, kinds=('lorentz', 'euclidean', 'sphere', 'poincare')):
    "The same directions in every geometry, general things nearer the root."
    gen = torch.Generator().manual_seed(0)
    v = unit(0.2 * torch.randn(n, d, generator=gen) + 1) * torch.linspace(0.2, 1.6, n)[:, None]
    c = torch.tensor(0.7)
    return [_Space(k, geometries[k].exp_map0(v, c), c) for k in kinds]


@pytest.fixture(scope='module', autouse=True)
def few_steps():
    "Where angles are well fitted is tested elsewhere."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explorer, 'fit_angles', partial(explorer.fit_angles, steps=20))
        yield


@pytest.fixture(scope='module')
def chrome():
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope='module')
def page(chrome, tmp_path_factory):
    return chrome.open(
        tmp_path_factory.mktemp('page') / 'explorer.html', _make_page(toy(), spaces(), 'toy & <b>title</b>')
    )


def read_back(page):
    "Items and points of the page that the browser shows."
    return explorer._from_page(json.loads(page.js('return JSON.stringify(meru.data)')))


@pytest.fixture
def walked(page):
    "The page, nothing selected, in the first space."
    page.js("meru.enter(meru.data.spaces[0]); meru.select(-1); document.getElementById('search').value = ''")
    page.settle()
    yield page
    assert page.log() == []


def test_it_draws_without_a_word_on_the_console(walked):
    pixels = walked.screenshot()
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 200
    assert walked.js("return document.getElementById('title').textContent") == 'toy & <b>title</b>'


def test_captions_are_text(walked):
    walked.js('meru.select(39)')
    assert walked.js("return document.querySelector('#panel h2').textContent").startswith('<img src=x')
    assert (
        walked.js('return window.hurt') is None
        and walked.js("return document.querySelector('#panel img, #panel script')") is None
    )


@pytest.mark.parametrize('k', range(4))
def test_distances_and_cones_are_those_of_the_full_space(walked, k):
    space = spaces()[k]
    g, x, c = get_geometry(space.geometry), space.points, space.curv
    walked.js('meru.enter(meru.data.spaces[arguments[0]])', k)
    found = torch.tensor(
        walked.js('return [0, 5, 20].map(i => meru.data.items.text.map((_, j) => meru.distance(i, j)))')
    )
    torch.testing.assert_close(found, torch.stack([g.dist(x[i][None], x, c) for i in (0, 5, 20)]), rtol=2e-3, atol=2e-3)
    if not g.has_cones:
        return
    margins = _cone_margins(g, x[:8], x, c, space.min_radius)
    inside_of = walked.js('return [0, 1, 2, 3, 4, 5, 6, 7].map(i => meru.inside(i))')
    for i in range(8):
        inside = torch.zeros(40, dtype=bool)
        inside[inside_of[i]] = True
        clear = (margins[i].abs() > 2e-3) & (torch.arange(40) != i)
        assert ((margins[i] <= 0) == inside)[clear].all()
    assert 0 < sum(map(len, inside_of)) < 8 * 39


def python_walk(space, i, texts):
    "The traversal of MERU's paper, step by step with the library's geometry."
    g, x, c, met = get_geometry(space.geometry), space.points.double(), space.curv.double(), []
    v, zero = g.log_map0(x[i], c), torch.zeros_like(x[i])
    for k in range(1, 51):
        step = g.exp_map0(v * (1 - k / 50), c)
        best, least = None, float(g.dist(zero, step, c))
        for j in texts:
            inside = g.exterior_angle(x[j], step, c) <= g.half_aperture(x[j], c, space.min_radius)
            if j != i and inside and (d := float(g.dist(x[j], step, c))) < least:
                best, least = j, d
        if best is not None and best not in met:
            met.append(best)
    return met


@pytest.mark.parametrize('k', [0, 1])
def test_the_walk_is_the_papers(walked, k):
    walked.js('meru.enter(meru.data.spaces[arguments[0]])', k)
    rows = [12, 25, 38]
    expected = [python_walk(spaces()[k], i, range(8)) for i in rows]
    assert walked.js('return arguments[0].map(i => meru.walk(i))', rows) == expected and any(expected)


@pytest.mark.parametrize('k', range(4))
def test_walks_by_readings_are_the_librarys(walked, k):
    items, all_spaces = read_back(walked)
    space, texts = all_spaces[k], items.text_rows
    seen = explorer._polar(space, items.texts)
    rows = [1, 5, 12, 25, 38]
    for name, values in explorer._values_of(space, seen, texts).items():
        met = explorer._met_by(values, seen.radii, texts, explorer._root_values.get(name, torch.inf))
        walked.js(
            """meru.enter(meru.data.spaces[arguments[0]]); meru.space.climbs = null
            meru.space.was = meru.space.walk.reading; meru.space.walk.reading = arguments[1]""",
            k,
            name,
        )
        climbs = walked.js('return arguments[0].map(i => meru.climb(i))', rows)
        assert [sorted(o) for o in climbs] == [met[i].nonzero().flatten().tolist() for i in rows], name
        under = sorted(walked.js('return meru.under(4)'))
        assert under == [i for i in range(8, 40) if met[i, 4]], name
        walked.js('meru.space.walk.reading = meru.space.was; meru.space.climbs = null')


@pytest.mark.parametrize('k', range(4))
def test_the_way_between_two_points_is_the_geodesic(walked, k):
    items, all_spaces = read_back(walked)
    space = all_spaces[k]
    walked.js('meru.enter(meru.data.spaces[arguments[0]])', k)
    g, x, c = get_geometry(space.geometry), space.points, space.curv
    share = torch.arange(1, 24).double()[:, None] / 24
    for i, j in ((9, 30), (14, 39), (2, 20)):
        distances = g.cdist(g.between(x[i], x[j], share, c), x[:8], c)
        distances[:, [o for o in (i, j) if o < 8]] = torch.inf
        assert walked.js('return meru.between(arguments[0], arguments[1])', i, j) == list(
            dict.fromkeys(distances.argmin(1).tolist())
        )


def test_a_way_is_chosen_by_keyboard_and_mouse(walked):
    walked.js("meru.select(9); document.getElementById('stage').focus()")
    walked.settle()
    walked.key('w')
    assert not walked.js("return document.getElementById('hint').hidden")
    walked.act(walked.at(3), dict(type='pointerDown', button=0), dict(type='pointerUp', button=0))
    walked.settle()
    assert walked.js('return [meru.selected, meru.end]') == [9, 3]
    assert 'The straight way to “word 3”' in walked.js("return document.getElementById('panel').textContent")
    walked.key('\ue00c')
    assert walked.js('return [meru.selected, meru.end]') == [-1, -1]


def test_hover_shows_text_and_radius(walked):
    walked.act(walked.at(3))
    tip = walked.js("const t = document.getElementById('tip'); return [t.hidden, t.textContent]")
    assert not tip[0] and 'word 3' in tip[1] and 'from the root' in tip[1]


def test_click_selects_and_enter_centres(walked):
    walked.act(walked.at(5), dict(type='pointerDown', button=0), dict(type='pointerUp', button=0))
    walked.settle()
    assert walked.js('return meru.selected') == 5
    walked.js("document.getElementById('stage').focus()")
    walked.key('\ue007')
    walked.settle()
    middle = walked.js("const s = document.getElementById('stage'); return [s.clientWidth/2, s.clientHeight/2]")
    assert np.allclose(walked.js('return meru.where(5)'), middle, atol=1)
    panel = walked.js("return document.getElementById('panel').textContent")
    assert 'Walk to the root' in panel and 'Nearest drawings' in panel and 'drawings below it' in panel
    assert 'word 5' in walked.js("return document.getElementById('live').textContent")


def test_cones_are_shown_where_walks_are_read_by_them(walked):
    walked.js("meru.space.was = meru.space.walk.reading; meru.space.walk.reading = 'path'; meru.select(2)")
    assert 'Its cone holds' in walked.js("return document.getElementById('panel').textContent")
    walked.act(walked.at(3))
    assert 'cone ±' in walked.js("return document.getElementById('tip').textContent")
    walked.js('meru.space.walk.reading = meru.space.was')


def test_dragging_is_rigid(walked):
    "Hyperbolic distances on the screen before and after are the same, and what was grabbed follows."

    def gaps():
        return np.array(
            walked.js("""const b = document.getElementById("stage").getBoundingClientRect(), S = meru.scale
            const place = ([x, y]) => [(x - b.width/2)/S, (b.height/2 - y)/S]
            const z = [2, 9, 17, 30].map(i => place(meru.where(i)))
            const room = p => 1 - p[0]**2 - p[1]**2
            const gap = (p, q) => Math.asinh(Math.hypot(p[0] - q[0], p[1] - q[1])/Math.sqrt(room(p)*room(q)))
            return z.flatMap(p => z.map(q => gap(p, q)))""")
        )

    before, start = gaps(), walked.at(0)
    detour, goal = (
        start | dict(x=start['x'] - 30, y=start['y'] - 60),
        start | dict(x=start['x'] + 70, y=start['y'] - 50, duration=50),
    )
    walked.act(start, dict(type='pointerDown', button=0), detour, goal, dict(type='pointerUp', button=0))
    walked.settle()
    now = walked.at(0)
    assert abs(now['x'] - goal['x']) <= 2 and abs(now['y'] - goal['y']) <= 2
    assert np.allclose(gaps(), before, atol=1e-6) and walked.js('return meru.selected') == -1


def test_a_far_selection_comes_near(walked):
    def far():
        place = walked.js("""const b = document.getElementById('stage').getBoundingClientRect(), w = meru.where(35)
            return [(w[0] - b.width/2)/meru.scale, (w[1] - b.height/2)/meru.scale]""")
        return np.hypot(*place)

    assert far() > 0.7
    walked.js('meru.select(35)')
    walked.settle()
    assert far() == pytest.approx(0.4, abs=1e-3)


def test_home_undoes_everything(walked):
    before = walked.js('return [0, 7, 22].map(i => meru.where(i))')
    walked.js('meru.select(33)')
    walked.settle()
    assert not np.allclose(walked.js('return [0, 7, 22].map(i => meru.where(i))'), before, atol=5)
    walked.js('meru.home()')
    walked.settle()
    assert np.allclose(walked.js('return [0, 7, 22].map(i => meru.where(i))'), before, atol=0.5)


def test_search_and_keyboard(walked):
    walked.js("document.getElementById('stage').focus()")
    walked.key('/')
    walked.key(*'WORD 12')
    assert walked.js("return document.querySelectorAll('#hits [role=option]').length") == 1
    walked.key('\ue007')
    assert walked.js('return meru.selected') == 12
    walked.key('u')
    assert walked.js('return meru.selected') in (*range(8), -1)
    walked.key('\ue014')
    assert walked.js('return meru.selected') >= 0
    walked.key('\ue00c')
    assert walked.js('return meru.selected') == -1


def test_filters_by_level_and_group(walked):
    chips, names = (
        "document.querySelectorAll('#levels input')",
        walked.js("return [...document.querySelectorAll('#levels label')].map(l => l.textContent)"),
    )
    assert names == ['groups', 'names', 'drawings']

    def drawn():
        return walked.js("return document.getElementById('stage').toDataURL()")

    everything = drawn()
    walked.js(f'{chips}[2].click()')
    walked.settle()
    assert drawn() != everything
    walked.js(f'{chips}[2].click()')
    walked.settle()
    assert drawn() == everything
    walked.js("const g = document.getElementById('group'); g.value = 1; g.dispatchEvent(new Event('change'))")
    walked.settle()
    assert drawn() != everything
    walked.js("const g = document.getElementById('group'); g.value = -1; g.dispatchEvent(new Event('change'))")


def test_controls_switch_and_keep_the_selection(walked):
    walked.js(
        "meru.select(9); [...document.querySelectorAll('#spaces button')].find(b => b.textContent === 'CLIP').click()"
    )
    walked.settle()
    assert walked.js('return [meru.selected, meru.space.kappa]') == [9, 1]
    walked.js('meru.select(2)')
    panel = walked.js("return document.getElementById('panel').textContent")
    assert 'read by ' in panel and 'cone' not in panel


def test_light_dark_and_narrow(walked):
    light = walked.screenshot().mean()
    walked.js("document.getElementById('theme').click()")
    walked.settle()
    assert walked.screenshot().mean() < light - 100
    walked.js("document.getElementById('theme').click()")
    walked.call('POST', '/window/rect', dict(width=500, height=800))
    walked.settle()
    assert walked.js('return document.documentElement.scrollWidth <= innerWidth')
    walked.call('POST', '/window/rect', dict(width=1300, height=900))
    walked.settle()


@contextmanager
def of_a_phone(browser):
    "A page at the size of a phone."
    size = dict(width=390, height=844, deviceScaleFactor=2, mobile=True)
    browser.call('POST', '/goog/cdp/execute', dict(cmd='Emulation.setDeviceMetricsOverride', params=size))
    browser.settle()
    yield browser
    browser.call('POST', '/goog/cdp/execute', dict(cmd='Emulation.clearDeviceMetricsOverride', params={}))
    browser.settle()


@pytest.fixture
def phone(walked):
    with of_a_phone(walked):
        yield walked


def beyond(phone):
    "What lies left or right of the screen."
    assert phone.js('return [document.documentElement, document.body].every(e => e.scrollWidth <= 390)')
    return phone.js("""const box = e => e.getBoundingClientRect()
        const wide = e => box(e).left < 0 || box(e).right > 390
        return [...document.querySelectorAll('button, select, input:not([type=checkbox]), .chip, #panel *')]
            .filter(e => !e.closest('[hidden], .hush, .skip') && e.offsetParent && wide(e))
            .map(e => e.outerHTML)""")


def test_a_phone_shows_everything_without_sideways_scrolling(phone):
    assert phone.js('return innerWidth') == 390
    for step in ('meru.select(-1)', 'meru.select(20)', 'meru.select(3)'):
        phone.js(step)
        assert beyond(phone) == []
    stage = phone.js("return document.getElementById('stage').getBoundingClientRect().toJSON()")
    assert stage['height'] > 250 and stage['width'] == 390


def test_a_tap_on_a_phone_selects(phone):
    tap = dict(type='pointerDown', button=0), dict(type='pointerUp', button=0)
    finger = dict(type='pointer', id='finger', parameters=dict(pointerType='touch'), actions=[phone.at(4), *tap])
    phone.call('POST', '/actions', dict(actions=[finger]))
    phone.settle()
    assert phone.js('return meru.selected') == 4

    def room():
        return phone.js("return document.getElementById('panel').clientHeight")

    before = room()
    phone.js("document.getElementById('grip').click()")
    assert room() > 1.3 * before
    phone.js("document.getElementById('grip').click()")


def test_everything_has_a_name(walked):
    "Buttons, fields and the picture can be told apart by a screen reader."
    walked.js('meru.select(20)')
    assert walked.js("return [...document.querySelectorAll('.tile')].every(t => t.getAttribute('aria-label'))")
    nameless = walked.js("""const label = e => e.closest('label') && e.closest('label').textContent.trim()
        const name = e => e.getAttribute('aria-label') || e.title || e.textContent.trim() || label(e)
        return [...document.querySelectorAll('button, input, select, canvas')].filter(e => !name(e)).length""")
    assert nameless == 0


@pytest.mark.parametrize(
    'items', [toy(1), toy(8, pictures=False), toy(40, pictures=False)], ids=['one point', 'words alone', 'no image']
)
def test_little_to_show(chrome, tmp_path, items):
    n = len(items.texts)
    chrome.open(tmp_path / 'few.html', _make_page(items, spaces(n), 'few'))
    for k in range(4):
        chrome.js('meru.enter(meru.data.spaces[arguments[0]]); meru.select(0); meru.home()', k)
        chrome.settle()
    assert chrome.log() == [] and 'word 0' in chrome.js("return document.querySelector('#panel h2').textContent")


def test_touch_taps_and_pinches(walked):
    walked.call(
        'POST',
        '/actions',
        dict(
            actions=[
                dict(
                    type='pointer',
                    id='finger',
                    parameters=dict(pointerType='touch'),
                    actions=[walked.at(4), dict(type='pointerDown', button=0), dict(type='pointerUp', button=0)],
                )
            ]
        ),
    )
    walked.settle()
    assert walked.js('return meru.selected') == 4

    def gap():
        return np.ptp(walked.js('return [meru.where(1)[0], meru.where(3)[0]]'))

    walked.js('meru.select(-1); meru.home()')
    walked.settle()
    before, middle = gap(), walked.at(-1)

    def finger(name, way):
        return dict(
            type='pointer',
            id=name,
            parameters=dict(pointerType='touch'),
            actions=[
                middle | dict(x=middle['x'] + 40 * way),
                dict(type='pointerDown', button=0),
                middle | dict(x=middle['x'] + 120 * way, duration=80),
                dict(type='pointerUp', button=0),
            ],
        )

    walked.call('POST', '/actions', dict(actions=[finger('one', 1), finger('two', -1)]))
    walked.settle()
    assert gap() > 1.5 * before and walked.js('return meru.selected') == -1
    walked.js('meru.home()')
    walked.settle()
    assert gap() == pytest.approx(before, abs=0.5)


@pytest.fixture(scope='module')
def smoke(tmp_path_factory):
    "A run of two steps, and its Euclidean control."
    from meru.training.config import make_config
    from meru.training.run import Run
    from meru.training.trainer import fit

    folder = tmp_path_factory.mktemp('runs')
    for name in ('smoke', 'smoke_euclid'):
        fit(Run(folder / name, make_config(name, steps=2, warmup=1)))
    return folder / 'smoke'


def test_it_opens_on_a_walk_through_its_own_chain(chrome, tmp_path):
    parents = torch.tensor([-1, -1, 0, 0, 1, 1, 2, 3, 4, 5])
    items = _Items(
        ['animals', 'plants', 'cats', 'dogs', 'trees', 'flowers', 'Tom', 'Rex', 'an oak', 'a rose'],
        torch.tensor([0, 0, 1, 1, 1, 1, 2, 2, 2, 2]),
        parents,
        [None] * 6 + [picture(i) for i in range(4)],
        ['group', 'name', 'drawing'],
    )
    angle = torch.tensor([0.0, 3.1, -0.5, 0.5, 2.6, 3.6, -0.6, 0.6, 2.5, 3.7])
    radius = torch.tensor([1.0, 1, 2, 2, 2, 2, 3, 3, 3, 3])
    v = torch.stack([radius * angle.cos(), radius * angle.sin(), torch.zeros(10)], 1)
    space = _Space('lorentz', geometries['lorentz'].exp_map0(v, torch.tensor(1.0)), torch.tensor(1.0))
    chrome.open(tmp_path / 'opens.html', _make_page(items, [space], 'opens'))
    selected, path, guided = chrome.js('return [meru.selected, meru.path, meru.guided]')
    assert items.texts[selected] in ('trees', 'flowers', 'cats', 'dogs') and guided
    assert path == [int(parents[selected])]
    panel = chrome.js("return document.getElementById('panel').textContent")
    assert f'from “{items.texts[selected]}”, to the root' in panel and '100 % of 4 words' in panel
    chrome.js('meru.select(6)')
    assert chrome.js('return meru.path') == [2, 0]
    chrome.js("document.getElementById('guide').click()")
    assert chrome.js('return [meru.selected, meru.guided]') == [selected, True] and chrome.log() == []


def test_a_run_becomes_a_page(smoke, in_root):
    from meru.training.run import Run
    from meru.training.config import make_config

    page = explorer.explore(smoke, n=200)
    html = page.path.read_text(encoding='utf-8')
    data = json.loads(explorer._data_of(html))
    assert page.path == smoke / 'explorer.html' and [s['name'] for s in data['spaces']] == ['MERU', 'Euclid']
    assert 100 < len(data['items']['text']) <= 200 and data['atlas'] and 'iframe' in page._repr_html_()
    alone = explorer.explore(Run(smoke, make_config('smoke', steps=2, warmup=1)), controls=[], n=200)
    assert alone.path.stat().st_size < len(html)


def photos(folder, n=9):
    "A folder of pictures with two captions each."
    folder.mkdir()
    for i in range(n):
        (folder / f'{i}.png').write_bytes(picture(i))
    lines = [
        json.dumps(dict(file=f'{i}.png', captions=[f'a <i>shade</i> number {i}', f'colour {i}'])) for i in range(n)
    ]
    (folder / 'captions.jsonl').write_text('\n'.join(lines))


def noise(i, size=(300, 200)):
    pixels = np.random.default_rng(i).integers(0, 255, (size[1] // 10, size[0] // 10, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size)


def test_any_points_with_captions_and_photos(chrome, tmp_path):
    noise(0).save(tmp_path / 'a.jpg')
    captions = [f'<b>thing</b> {i}' for i in range(6)]
    points = torch.randn(12, 16, generator=torch.Generator().manual_seed(0))
    points[6:] = 1.5 * points[:6]
    images = [
        tmp_path / 'a.jpg',
        str(tmp_path / 'a.jpg'),
        noise(1, (1600, 900)),
        np.array(noise(2)),
        b'torn',
        noise(4, (500, 1500)),
    ]
    made = meru.explore(tmp_path, points=points, labels=captions * 2, images=[None] * 6 + images)
    data, rows = page_of(made)
    assert made.path == tmp_path / 'explorer.html' and data['levels'] == ['caption', 'photo']
    assert rows['parent'] == [-1] * 6 + list(range(6)) and rows['tile'] == [-1] * 6 + [0, 1, 2, 3, -1, 4]
    assert '1 of the photos could not be read, such as <b>thing</b> 4' in str(made) and len(data['large']) == 5
    chrome.call('POST', '/url', dict(url=made.path.as_uri()))
    chrome.settle()
    chrome.js('meru.select(8)')
    size = chrome.js("""const image = document.querySelector('#panel img.photo')
        return image.decode().then(() => [image.naturalWidth, image.naturalHeight, image.alt])""")
    assert size == [384, 216, '<b>thing</b> 2'] and 2 in chrome.js('return meru.path')
    chrome.js('meru.select(2)')
    panel = chrome.js("return document.getElementById('panel').textContent")
    assert 'photos below it' in panel and 8 in chrome.js('return meru.under(2)') and chrome.log() == []
    with of_a_phone(chrome):
        for i in (8, 11):  # a wide photo and a tall one
            chrome.js('meru.select(arguments[0])', i)
            shown = chrome.js("""const image = document.querySelector('#panel img.photo')
                return image.decode().then(() => image.getBoundingClientRect().toJSON())""")
            assert shown['width'] > 100 and shown['left'] >= 0 and shown['right'] <= 390 and beyond(chrome) == []


def album(folder, count):
    "Photos that all lie on one shell, as those of a person's folder do, each beyond a caption."
    at = torch.randn(count, 16, generator=torch.Generator().manual_seed(0))
    points = torch.cat([0.5 * at, at]) / at.norm(dim=1).repeat(2)[:, None]
    labels = [f'caption {i}' for i in range(count)] * 2
    images = [None] * count + [noise(i, (60, 60)) for i in range(count)]
    points = geometries['lorentz'].exp_map0(1.3 * points, torch.tensor(1.0))
    return meru.explore(folder, points=points, labels=labels, images=images, model='lorentz')


DRAWN = 'return Object.fromEntries(meru.drawn)'


@pytest.mark.parametrize('count, desk, hand', [(60, 32, 28), (200, 26, 20)])
def test_a_persons_photos_are_large_enough_to_see(chrome, tmp_path, count, desk, hand):
    "CSS pixels; a photo in the middle or zoomed in is larger, up to a limit."
    chrome.call('POST', '/url', dict(url=album(tmp_path, count).path.as_uri()))
    chrome.settle()
    chrome.js('meru.select(-1)')
    chrome.settle()
    sizes = chrome.js(DRAWN)
    assert desk <= min(sizes.values()) and max(sizes.values()) < 60 and len(sizes) > min(40, count / 3)
    some = next(iter(sizes))
    chrome.js('meru.select(arguments[0])', int(some))
    chrome.settle()
    assert chrome.js(DRAWN)[some] > 1.1 * sizes[some]
    chrome.js("document.getElementById('stage').focus()")
    chrome.key('\ue007', *'+' * 3)  # Enter puts it into the middle
    chrome.settle()
    assert 60 < chrome.js(DRAWN)[some] <= 96
    chrome.key(*'+' * 12)
    chrome.settle()
    assert chrome.js(DRAWN)[some] == 96
    with of_a_phone(chrome):
        chrome.js('meru.select(-1); meru.home()')
        chrome.settle()
        assert hand <= min(chrome.js(DRAWN).values())


def test_on_ones_own_page_a_walk_goes_through_what_a_picture_stands_under(chrome, tmp_path):
    labels = ['pets', ('pets', 'cats'), ('pets', 'cats', 'Tom'), 'Rex']
    points = torch.tensor([[0.1, 0, 0], [0, 0.2, 0], [1.0, 0, 0], [0, 0, 1.0]])
    made = meru.explore(
        tmp_path, points=points, labels=labels, images=[None, None, noise(0), noise(1)], model='lorentz'
    )
    chrome.call('POST', '/url', dict(url=made.path.as_uri()))
    chrome.settle()
    walk = 'meru.select(meru.data.items.text.indexOf(arguments[0])); return meru.path.map(i => meru.data.items.text[i])'
    told = "return document.getElementById('about').textContent"
    assert chrome.js(walk, 'Tom') == ['cats', 'pets']
    assert 'What it stands under' in chrome.js(told) and 'nobody said so' not in chrome.js(told)
    chrome.js(walk, 'Rex')
    assert 'nobody said so' in chrome.js(told), 'what the model has learned, where nothing else is known'


def test_photos_overlap_and_the_one_on_top_is_chosen(chrome, tmp_path):
    chrome.call('POST', '/url', dict(url=album(tmp_path, 200).path.as_uri()))
    chrome.settle()
    chrome.js('meru.select(-1)')
    chrome.settle()
    drawn = np.array(chrome.js('return meru.drawn.map(([i, w]) => [i, w, ...meru.where(i)])'))  # the last lies on top
    left, top = chrome.js("const b = document.getElementById('stage').getBoundingClientRect(); return [b.left, b.top]")
    apart = np.abs(drawn[:, None, 2:] - drawn[None, :, 2:]).max(2) + 999 * np.eye(len(drawn))
    assert drawn[0, 1] * 0.4 < apart.min() < drawn[0, 1] * 0.8, 'they overlap, and something of each is to be seen'
    covers = lambda at: np.flatnonzero(np.abs(drawn[:, 2:] - at).max(1) < drawn[:, 1] / 2 - 1)
    for lower, upper in np.argwhere(apart < drawn[0, 1] * 0.8):
        at = np.round(0.6 * drawn[lower, 2:] + 0.4 * drawn[upper, 2:])  # nearer to the one below
        if lower < upper == covers(at).max():
            break
    step = dict(type='pointerMove', x=int(left + at[0]), y=int(top + at[1]), duration=0)
    chrome.act(
        step, dict(type='pointerDown', button=0), dict(type='pointerUp', button=0), parameters=dict(pointerType='mouse')
    )
    assert chrome.js('return [meru.selected, meru.drawn.at(-1)[0]]') == [drawn[upper, 0]] * 2


def test_a_models_points_keep_its_curvature(tmp_path):
    from types import SimpleNamespace

    cfg = SimpleNamespace(geometry='lorentz', min_radius=0.2)
    model = SimpleNamespace(cfg=cfg, curv=torch.tensor(0.5))
    x = geometries['lorentz'].exp_map0(torch.randn(5, 8), model.curv)
    data, _ = page_of(meru.explore(tmp_path, points=x, labels=list('abcde'), model=SimpleNamespace(model=model)))
    (space,) = data['spaces']
    assert (space['kappa'], space['curv'], space['min_radius']) == (-1, 0.5, 0.2)


def test_labels_may_be_paths(tmp_path):
    labels = ['pets', ('pets', 'cats'), ('pets', 'cats', 'Tom'), 'Rex']
    made = meru.explore(tmp_path, points=np.eye(4, 8), labels=labels, images=[None, None, noise(0), noise(1)])
    data, rows = page_of(made)
    assert rows['text'] == ['pets', 'cats', 'Tom', 'Rex'] and rows['parent'] == [-1, 0, 1, -1]
    assert data['levels'] == ['general text', 'caption', 'photo'] and rows['level'] == [0, 1, 2, 2]


def test_photos_fit_the_page_and_it_says_how():
    photos = [explorer._small(noise(i), 512, 92, 'jpeg') for i in range(60)]
    items = explorer._point_items([f'{i}' for i in range(60)], photos, 0, '')
    (space,) = spaces(60, kinds=('sphere',))
    for most, reduced in ((9_900_000, False), (300_000, True)):
        html = _make_page(items, [space], 'many', most)
        data = json.loads(explorer._data_of(html))
        assert len(html.encode()) <= most and ('Photos are kept at' in data['note']) == reduced


def test_what_does_not_fit_together_is_refused(tmp_path):
    with pytest.raises(ValueError, match='3 points, but 2 images: images holds None where a point is a text'):
        meru.explore(tmp_path, points=torch.eye(3), labels=['a', 'b', 'c'], images=[None, None])
    with pytest.raises(ValueError, match='nothing to explore: name a run, or give points'):
        meru.explore()
    with pytest.raises(ValueError, match='points must be finite'):
        meru.explore(tmp_path, points=torch.full((3, 4), torch.nan), labels=['a', 'b', 'c'])


def page_of(page):
    data = json.loads(page.path.read_text(encoding='utf-8').split('id="data">')[1].split('</script>')[0])
    return data, {k: data['items'][k] for k in ('text', 'level', 'parent', 'tile')}


def test_a_folder_of_photos_becomes_a_page(chrome, smoke, tmp_path, in_root):
    photos(tmp_path / 'album')
    made = explorer.explore(smoke, data=str(tmp_path / 'album'))
    data, rows = page_of(made)
    assert (
        made.path == smoke / 'explorer_album.html'
        and data['levels'] == ['caption', 'picture']
        and not data['tree']
        and not data['drawn']
    )
    assert rows['text'] == [f'a <i>shade</i> number {i}' for i in range(9)] * 2 and rows['level'] == [0] * 9 + [1] * 9
    assert (
        rows['parent'] == [-1] * 9 + list(range(9))
        and rows['tile'] == [-1] * 9 + list(range(9))
        and [s['name'] for s in data['spaces']] == ['MERU', 'Euclid']
    )
    assert '9 of the 9 pictures' in data['shown'] and '18 in all' in data['shown']
    chrome.call('POST', '/url', dict(url=made.path.as_uri()))
    chrome.settle()
    chrome.js('meru.select(12)')
    text = chrome.js("return document.getElementById('panel').textContent")
    assert (
        'Belongs to: a <i>shade</i> number 3' in text
        and 'Nearest captions' in text
        and 'drawing' not in text
        and chrome.log() == []
    )
    chrome.js('meru.select(-1)')
    assert chrome.js("return [document.getElementById('group').hidden, document.getElementById('key').hidden]") == [
        False,
        True,
    ]


def test_class_folders_and_few_points(smoke, tmp_path, in_root):
    for i in range(8):
        (tmp_path / 'zoo' / ('cat', 'dog')[i % 2]).mkdir(parents=True, exist_ok=True)
        (tmp_path / 'zoo' / ('cat', 'dog')[i % 2] / f'{i}.png').write_bytes(picture(i))
    data, rows = page_of(explorer.explore(smoke, controls=[], data=str(tmp_path / 'zoo'), n=6))
    assert (
        rows['text'] == ['cat', 'dog', 'cat', 'cat', 'dog']
        or rows['text'][:2] == ['cat', 'dog']
        and len(rows['text']) == 5
    )
    assert '3 of the 8 pictures' in data['shown']


def test_the_held_out_part_of_a_runs_own_shards(tmp_path, in_root):
    from meru.training.config import make_config
    from meru.training.run import Run
    from meru.data.shards import Sample, write_shards
    from meru.training.trainer import fit

    write_shards([Sample(f'{i}', picture(i), f'thing {i}', {}) for i in range(60)], tmp_path / 'own')
    run = Run(
        tmp_path / 'run',
        make_config('smoke', steps=2, warmup=1, batch_size=8, data=str(tmp_path / 'own'), level_probs=()),
    )
    fit(run)
    data, rows = page_of(explorer.explore(run))
    assert rows['text'] == [f'thing {i}' for i in range(54, 60)] * 2 and (tmp_path / 'run' / 'explorer.html').exists()


def test_a_head_on_features_shows_points(chrome, tmp_path, in_root):
    from meru.models.feature_cache import save_cache, _save_part
    from meru.training.config import make_config
    from meru.training.run import Run
    from meru.training.trainer import fit

    x, folder = torch.randn(60, 1, 8, generator=torch.Generator().manual_seed(0)).half(), tmp_path / 'cache'
    folder.mkdir()
    _save_part(
        folder / 'part.safetensors',
        dict(image=x, text=x.repeat_interleave(2, 0), text_image=torch.arange(60).repeat_interleave(2)),
        dict(
            keys=[f'{i}.jpg' for i in range(60)],
            splits=['train'] * 40 + ['dev'] * 10 + ['test'] * 10,
            captions=[f'caption {i}' for i in range(120)],
            damaged={},
        ),
    )
    save_cache(folder, [folder / 'part.safetensors'], dataset='made up', towers='none', augment={}, seed=0, views=1)
    run = Run(tmp_path / 'head', make_config('head_lorentz', steps=2, warmup=1, batch_size=8, data=str(folder)))
    fit(run)
    data, rows = page_of(explorer.explore(run))
    assert (
        not data['atlas']
        and 'no pictures' in data['shown']
        and rows['text'] == [f'caption {i}' for i in range(100, 120, 2)] * 2
    )
    chrome.call('POST', '/url', dict(url=(tmp_path / 'head' / 'explorer.html').as_uri()))
    chrome.settle()
    chrome.js('meru.select(15)')
    assert 'Nearest pictures' in chrome.js("return document.getElementById('panel').textContent") and chrome.log() == []


def test_several_datasets_are_refused_by_name(smoke, tmp_path, in_root):
    for name in ('a', 'b'):
        photos(tmp_path / name)
    with pytest.raises(ValueError, match='holds 2 datasets, and a page shows one: name it'):
        explorer.explore(smoke, data=str(tmp_path))
    with pytest.raises(FileNotFoundError, match='there is no .*nowhere'):
        explorer.explore(smoke, data=str(tmp_path / 'nowhere'))


def test_nothing_leaves_the_page():
    html = _make_page(toy(), spaces(), 'toy')
    assert "default-src 'none'" in html and 'http://' not in html and 'https://' not in html


@pytest.mark.parametrize('g', ['lorentz', 'poincare', 'euclidean', 'sphere'])
def test_nan_is_refused(g):
    (space,) = spaces(kinds=(g,))
    space.points[3, 2] = float('nan')
    with pytest.raises(ValueError, match='points must be finite, but 1 of 40 rows hold NaN or infinity: word 3'):
        _make_page(toy(), [space], 'nan')


def test_two_thousand_points_fit(in_root, monkeypatch):
    monkeypatch.setattr(explorer, '_walk_data', lambda *_: dict(reading='path', start=-1))  # takes long
    items, words, images = explorer._emoji_scene(explorer.read_test_set(explorer.embedded_data(), 16))
    n = len(items.texts)
    assert 1800 < n <= 2000 and len(words) + len(images) == n and items.texts[: len(words)] == words
    below = items.parents >= 0
    assert (items.levels[items.parents[below]] < items.levels[below]).all() and (items.levels[~below] == 0).all()
    assert len(_make_page(items, spaces(n, 128), 'all').encode()) < 10e6


@pytest.mark.parametrize(
    'run, named',
    [('demo', ['MERU', 'Flat', 'CLIP', 'Poincaré']), ('tree', ['MERU', 'CLIP'])],
)
def test_a_committed_page_is_in_todays_shell(chrome, run, named):
    "Renew it as `outputs/reference/README.md` says after a change of the assets; it opens by double-click, on a walk."
    committed = ROOT / f'outputs/reference/{run}/explorer.html'
    html = committed.read_text(encoding='utf-8')
    assert explorer._rewrap(html) == html and committed.stat().st_size < 10e6
    chrome.call('POST', '/url', dict(url=committed.as_uri()))
    chrome.settle()
    assert chrome.log() == []
    assert chrome.js('return [meru.data.items.text.length > 1800, meru.data.spaces.map(s => s.name)]') == [True, named]
    start, path = chrome.js('return [meru.selected, meru.path]')
    parents, chain = json.loads(explorer._data_of(html))['items']['parent'], []
    while parents[chain[-1] if chain else start] >= 0:
        chain.append(parents[chain[-1] if chain else start])
    assert chain and set(chain) <= set(path)


def test_thirty_frames_a_second(chrome, tmp_path):
    "Processor time of the page's thread for a frame of 2,000 points: other programs may be busy."

    def spent():
        return {
            m['name']: m['value']
            for m in chrome.call('POST', '/goog/cdp/execute', dict(cmd='Performance.getMetrics', params={}))['metrics']
        }['TaskDuration']

    chrome.open(tmp_path / 'many.html', _make_page(toy(2000), spaces(2000, 128, ('lorentz',)), 'many'))
    chrome.call('POST', '/goog/cdp/execute', dict(cmd='Performance.enable', params=dict(timeDomain='threadTicks')))
    before = spent()
    frames = chrome.js("""const stage = document.getElementById('stage'), b = stage.getBoundingClientRect()
        const start = meru.frames, x = b.left + b.width/2, y = b.top + b.height/2
        const mouse = {pointerId: 1, bubbles: true, pointerType: 'mouse', button: 0}
        const send = (kind, x, y) => stage.dispatchEvent(new PointerEvent(kind, {...mouse, clientX: x, clientY: y}))
        stage.setPointerCapture = () => {}
        return new Promise(done => {
            let k = 0
            const tick = () => {
                k++
                send('pointermove', x + 150*Math.sin(k/9), y + 150*(1 - Math.cos(k/9)))
                if (k < 40) return requestAnimationFrame(tick)
                send('pointerup', x, y)
                done(meru.frames - start)
            }
            send('pointerdown', x, y); requestAnimationFrame(tick) })""")
    assert frames >= 30 and (spent() - before) / frames < 1 / 30


def test_the_same_page_every_time():
    first, second = (_make_page(toy(), spaces(kinds=('lorentz', 'sphere')), 'toy') for _ in range(2))
    assert first == second


def test_a_placed_tree_is_its_picture(chrome, tmp_path):
    "Far out in the plane every digit counts: the page's distances and radii are those of the points."
    parents = torch.tensor([-1, -1] + [0, 1] * 3 + [2 + i % 6 for i in range(40)])
    texts, lorentz, c = [f'word {i}' for i in range(len(parents))], geometries['lorentz'], torch.tensor(1.0)
    turn = torch.arange(len(parents)).double() * 1e-4 + parents.clamp_min(0)
    radius = torch.tensor([3.0, 8, 14])[torch.tensor([0] * 2 + [1] * 6 + [2] * 40)].double()
    points = lorentz.exp_map0(torch.stack([radius * turn.cos(), radius * turn.sin()], 1), c)
    page = explorer.explore_tree(texts, parents, points, 'lorentz', ['group', 'subgroup', 'name'], tmp_path / 't.html')
    chrome.open(page.path, page.path.read_text(encoding='utf-8'))
    space = json.loads(chrome.js('return JSON.stringify(meru.data.spaces[0])'))
    vectors = np.frombuffer(base64.b64decode(space['vectors'])).reshape(-1, 2)
    drawn = np.frombuffer(base64.b64decode(space['places'][0]['at'])).reshape(-1, 2)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), radius, rtol=1e-9)
    np.testing.assert_allclose(2 * np.arctanh(np.linalg.norm(drawn, axis=1)), radius, rtol=1e-6)
    assert len(space['places']) == 1 and not space['cones']
    assert abs(chrome.js('return meru.distance(8, 14)') - float(lorentz.dist(points[8], points[14], c))) < 1e-6


def test_pictures_of_floats_are_pictures():
    "In [0, 1], as `model.embed_images` takes them."
    floats = torch.rand(3, 8, 8)
    as_bytes = (255 * floats).round().to(torch.uint8)
    in_rows = floats.permute(1, 2, 0).numpy()
    for given in (floats, in_rows):
        assert np.array_equal(_opened(given), _opened(as_bytes))
