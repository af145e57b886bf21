"""Photograph an explorer for the README: a still, and the plane being re-centred by hand at a word that is named.

python tests/film.py outputs/reference/demo 'animals and nature'
python tests/film.py outputs/reference/tree
"""

import shutil
import sys
from pathlib import Path
from PIL import Image
from browser import CHROMES, Browser

folder, grabbed = Path(sys.argv[1]).resolve(), sys.argv[2:]
chrome = Browser(shutil.which('chromedriver'), next(filter(None, map(shutil.which, CHROMES))), 9517)


def photo():
    chrome.settle()
    left, top, width, height = chrome.js(
        "const b = document.getElementById('stage').getBoundingClientRect(); return [b.left, b.top, b.width, b.height]"
    )
    side = min(width, height)
    x, y = left + (width - side) / 2, top + (height - side) / 2
    return (
        Image.fromarray(chrome.screenshot())
        .crop([round(o) for o in (x, y, x + side, y + side)])
        .resize((600, 600), Image.LANCZOS)
    )


def film(word):
    "Drag `word` to the middle, and select it."
    chrome.js("for (const id of ['bar', 'key', 'note', 'tip']) document.getElementById(id).style.display = 'none'")
    frames, times = [photo()], [1400]
    item = chrome.js('return meru.data.items.text.lastIndexOf(arguments[0])', word)
    start, end = chrome.at(item), chrome.at(-1)
    chrome.act(start, dict(type='pointerDown', button=0))
    for k in range(1, 17):
        t = (k / 16) ** 2 * (3 - 2 * k / 16)
        chrome.act(
            {
                **start,
                'x': round(start['x'] + t * (end['x'] - start['x'])),
                'y': round(start['y'] + t * (end['y'] - start['y'])),
            }
        )
        frames.append(photo())
        times.append(90)
    chrome.act(dict(type='pointerUp', button=0))
    chrome.js('meru.select(arguments[0])', item)
    frames.append(photo())
    frames[0].save(
        folder / 'figures' / 'recentre.webp',
        save_all=True,
        append_images=frames[1:],
        duration=[*times[:-1], 1200, 1800],
        loop=0,
        quality=70,
        method=6,
    )


try:
    chrome.call('POST', '/url', dict(url=(folder / 'explorer.html').as_uri()))
    chrome.call('POST', '/window/rect', dict(width=1300, height=980))
    chrome.settle()
    (folder / 'figures').mkdir(exist_ok=True)
    Image.fromarray(chrome.screenshot()).save(folder / 'figures' / 'explorer.webp', quality=82, method=6)
    for word in grabbed:
        film(word)
finally:
    chrome.close()
