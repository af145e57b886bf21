"""The site from the notebooks, without network: `.ci/docs.py [FOLDER]`, by default `_docs`. A dead link fails it.

Pages are copied as a reader wants them: without directives and hidden cells, formulas as MathML, links to files of
the project beside them. smalldocs then renders them, and makes the API pages from the package's docments.
"""

import json
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import yaml
from latex2mathml.converter import convert

ROOT = Path(__file__).resolve().parent.parent
GUIDE = {'README.md': 'index.md', 'INSTALL.md': 'install.md', 'CONTRIBUTING.md': 'contributing.md'}
GUIDE |= {'CHANGELOG.md': 'changelog.md', 'outputs/LOG.md': 'log.md'}
PACKAGES = ['meru']
BAR = dict(Chapters='00_geometry.ipynb', Reports='reports/index.md', API='api/geometry.qmd')
BAR |= dict(Explorer='files/outputs/reference/demo/explorer.html', Log='log.md')
EXPLORERS = dict(demo='The demo', tree='A tree of texts', taxonomy='A taxonomy')


# where things are in the site


def pages():
    "Notebooks, as paths from the project's root."
    found = sorted((ROOT / 'nbs').rglob('*.ipynb'))
    return [p.relative_to(ROOT).as_posix() for p in found if '.ipynb_checkpoints' not in p.parts]


def place(path):
    "Where a file of the project lies among the site's sources."
    if path in GUIDE:
        return GUIDE[path]
    if path.startswith('nbs/'):
        return path.removeprefix('nbs/')
    return 'files/' + re.sub(r'README\.md$', 'index.md', path)


def target(link, page):
    "The project's file that a link leads to, and what stands behind its #; None: it leads elsewhere, or nowhere."
    path, _, anchor = unquote(link).partition('#')
    if not path or re.match(r'[a-z]+:', path):
        return None
    found = Path(os.path.normpath(Path(page).parent / path))
    if (ROOT / found).is_dir():
        wing = found.parent == Path('nbs') and any((ROOT / found).glob('*.ipynb'))
        found = found / ('index.md' if wing else 'README.md')
        return (found.as_posix(), anchor) if wing or (ROOT / found).exists() else None
    return (found.as_posix(), anchor) if (ROOT / found).exists() else None


# what a page says


def slug(text):
    return re.sub(r'[^\w\s-]', '', text).strip().lower().replace(' ', '-')


CODE = re.compile(r'```.*?```|`[^`\n]+`', re.S)
LINK = re.compile(r'(!?\[[^\]]*\]\()([^)\s]+)(\))|((?:src|href)=")([^"]+)(")')


class Prose:
    "Markdown of one page as the site has it; `used` are the files that it shows or names."

    def __init__(self, page):
        self.page, self.used = page, set()

    def __call__(self, source):
        "Links lead to the site's files, formulas are MathML; code stays as it is."
        kept = []

        def keep(match):
            kept.append(match[0])
            return f'\0{len(kept) - 1}\0'

        text = LINK.sub(self.link, CODE.sub(keep, source))
        text = re.sub(r'\$\$(.+?)\$\$', lambda m: f'\n\n{formula(m[1], "block")}\n\n', text, flags=re.S)
        text = re.sub(r'(?<![\\\w$])\$([^$\n]+)\$(?!\w)', lambda m: formula(m[1], 'inline'), text)
        return re.sub('\0(\\d+)\0', lambda m: kept[int(m[1])], text)

    def link(self, match):
        before, link, after = match.groups()[:3] if match[2] else match.groups()[3:]
        if re.match(r'[a-z]+:|#', link):
            return match[0]
        found = target(link, self.page)
        if found is None:
            return re.sub(r'^!?\[(.*)\]\($', r'\1', before)  # a folder without a page: the words alone
        path, anchor = found
        self.used.add(path)
        here = Path(os.path.relpath(place(path), Path(place(self.page)).parent)).as_posix()
        return before + here + (f'#{slug(anchor.replace("-", " "))}' if anchor else '') + after


def formula(tex, display):
    "MathML, which browsers draw without a program."
    return ' '.join(convert(tex.strip(), display=display).split())


def directives(source):
    "Names of a cell's nbdev directives, and the cell without them."
    lines = source.split('\n')
    names = [re.match(r'#\|\s*([\w-]+)', line) for line in lines]
    return {m[1] for m in names if m}, '\n'.join(line for line, m in zip(lines, names) if not m).strip('\n')


def only_imports(code):
    lines = [line for line in code.split('\n') if line.strip()]
    text = re.sub(r'\([^()]*\)', '', '\n'.join(lines))
    return bool(lines) and all(re.match(r'(import|from)\s|os\.environ', line) for line in text.split('\n'))


def folded(page, cell, code):
    "What a cell is called that a reader opens only if he wants to; None: it is shown."
    if only_imports(code):
        return 'imports'
    if 'parameters' in cell['metadata'].get('tags', []):
        return 'parameters'
    return 'code' if page.startswith('nbs/reports/') else None


def notebook(page, prose):
    "A notebook as a reader wants it: no directives, no hidden cells, imports folded."
    book = json.loads((ROOT / page).read_text(encoding='utf-8'))
    cells = []
    for cell in book['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] != 'code':
            cells.append(cell | dict(source=prose(source)))
            continue
        names, code = directives(source)
        if 'hide' in names or not code or ('export' in names and only_imports(code)):
            continue
        if word := folded(page, cell, code):
            code = f'#| code-fold: true\n#| code-summary: {word}\n{code}'
        cells.append(cell | dict(source=code))
    return book | dict(cells=cells)


def heading(page):
    "Title and first quoted line of a notebook."
    cells = json.loads((ROOT / page).read_text(encoding='utf-8'))['cells']
    first = ''.join(cells[0]['source'])
    title, quote = re.search(r'^# (.*)', first, re.M), re.search(r'^> (.*)', first, re.M)
    return title[1], quote[1] if quote else first.split('\n\n')[1].split('. ')[0] + '.'


def wing_page(wing):
    "The pages of a folder with what each is."
    lines = [f'# {wing.title()}', '']
    for page in pages():
        if Path(page).parent == Path('nbs') / wing:
            title, quote = heading(page)
            lines.append(f'- [{title}]({Path(page).name}): {quote}')
    return '\n'.join(lines) + '\n'


# the whole


def stage(folder):
    "Write the site's sources; the files that pages lead to come with them, and the files that those lead to."
    wings = sorted({Path(p).parent.relative_to('nbs').as_posix() for p in pages()} - {'.'})
    waiting, done = [*GUIDE, *pages(), *(f'nbs/{w}/index.md' for w in wings)], set()
    waiting += [f'outputs/reference/{o}/explorer.html' for o in EXPLORERS]
    while waiting:
        page = waiting.pop()
        if page in done:
            continue
        done.add(page)
        there, prose = folder / place(page), Prose(page)
        there.parent.mkdir(parents=True, exist_ok=True)
        if page.endswith('/index.md') and page.startswith('nbs/'):
            there.write_text(wing_page(Path(page).parent.name), encoding='utf-8')
        elif page.endswith('.ipynb'):
            there.write_text(json.dumps(notebook(page, prose)), encoding='utf-8')
        elif page.endswith('.md'):
            there.write_text(prose((ROOT / page).read_text(encoding='utf-8')), encoding='utf-8')
        else:
            shutil.copyfile(ROOT / page, there)
        waiting += prose.used
    for name in ('site.css', 'favicon.svg'):
        shutil.copyfile(ROOT / '.ci' / name, folder / name)


def api_pages():
    "The API's pages by wing. smalldocs calls them by the module's last name, or by the whole where two share it."
    found = sorted((ROOT / 'meru').rglob('[a-z]*.py'))
    modules = ['.'.join(('meru', *p.relative_to(ROOT / 'meru').with_suffix('').parts)) for p in found]
    last = Counter(m.rpartition('.')[2] for m in modules)
    wings = {}
    for module in modules:
        stem = module.rpartition('.')[2]
        entry = dict(text=module, href=f'api/{stem if last[stem] == 1 else module}.qmd')
        wings.setdefault(module.split('.')[1] if module.count('.') > 1 else 'meru', []).append(entry)
    return [
        dict(section=wing, contents=entries) for wing, entries in sorted(wings.items(), key=lambda o: o[0] != 'meru')
    ]


def settings(folder, out):
    "The project's `_quarto.yml`, with the guide before the chapters and the API behind them."
    book = yaml.safe_load((ROOT / 'nbs/_quarto.yml').read_text(encoding='utf-8'))
    book['project'] |= {'output-dir': str(out), 'resources': ['files/**']}
    site = book['website']
    site |= {'llms-txt': True, 'favicon': 'favicon.svg'}
    guide = [dict(text='MERU', href='index.md'), *(dict(href=o) for o in ('install.md', 'contributing.md'))]
    guide += [dict(href='changelog.md'), dict(href='log.md')]
    contents = site['sidebar']['contents']
    contents.insert(0, dict(section='Guide', contents=guide))
    explorers = [dict(text=v, href=f'files/outputs/reference/{k}/explorer.html') for k, v in EXPLORERS.items()]
    contents.insert(1, dict(section='Explorer', contents=explorers))
    site['navbar']['left'] = [dict(text=text, href=href) for text, href in BAR.items()]
    contents.append(dict(section='API', contents=api_pages()))
    book['smalldocs'] = dict(api=dict(packages=PACKAGES, out='api', root=str(ROOT)))
    (folder / '_quarto.yml').write_text(yaml.safe_dump(book, sort_keys=False), encoding='utf-8')


class Links(HTMLParser):
    "Ids of a page, and what it leads to."

    def __init__(self, path):
        super().__init__()
        self.ids, self.links = set(), []
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ('id', 'name') and value:
                self.ids.add(value)
            if name in ('href', 'src') and value and not re.match(r'[a-z]+:|//', value):
                self.links.append(value)


def broken_links(out):
    "Links of the built pages whose file or heading is not there, and pages that no link leads to."
    made = {p: Links(p) for p in out.rglob('*.html') if 'files' not in p.relative_to(out).parts or p.stem != 'explorer'}
    bad, reached = [], {out / 'index.html'}
    for page, found in made.items():
        for link in found.links:
            path, _, anchor = unquote(link).partition('#')
            there = Path(os.path.normpath(page.parent / path.partition('?')[0])) if path else page
            there = there / 'index.html' if there.is_dir() else there
            reached.add(there)
            if not there.exists() or (anchor and there in made and anchor not in made[there].ids):
                bad.append(f'{page.relative_to(out)}: {link}')
    return bad + [f'no link leads to {p.relative_to(out)}' for p in sorted(made.keys() - reached)]


def build(out):
    "Build the site; its broken links."
    from smalldocs import api as reference
    from smalldocs.site import build as render

    methods = reference.methods
    public = lambda cls, private=False: [o for o in methods(cls, private) if private or o.__name__[0] != '_']
    reference.methods = public  # `dist = _lorentz_dist` of a class is no method called so
    with tempfile.TemporaryDirectory() as folder:
        stage(Path(folder))
        settings(Path(folder), out)
        site = render(folder, quiet=True)
    for theme in out.rglob('*.css'):
        text = re.sub(r'@import url\([^)]*\);?', '', theme.read_text(encoding='utf-8'))  # fonts of another machine
        theme.write_text(text, encoding='utf-8')
    return [*site.warnings, *broken_links(out)]


if __name__ == '__main__':
    out = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / '_docs').resolve()
    faults = build(out)
    print(*faults, sep='\n')
    print(f'{len(list(out.rglob("*.html")))} pages: {out / "index.html"}')
    sys.exit(bool(faults))
