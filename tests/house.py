"""The rules of the house as functions: each lists the places that break one. `python tests/house.py` prints them."""

import ast
import json
import re
import sys
from collections import Counter
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
WINGS = 'geometry plots parallel core losses data models training search evaluation explorer hub image_index'.split()
WINGS += 'own_head pictures automodel gallery benchmarks'.split()
HEAD = re.compile(r'^#\|\s*export', re.M)


# what is read


@cache
def pages():
    "Notebooks of nbs/ as paths, run notebooks included."
    found = (ROOT / 'nbs').rglob('*.ipynb')
    return sorted((p for p in found if '.ipynb_checkpoints' not in p.parts), key=lambda p: p.name)


@cache
def cells(page):
    "Pairs (cell, its source)."
    return [(c, ''.join(c['source'])) for c in json.loads(page.read_text(encoding='utf-8'))['cells']]


def code(page):
    return [source for cell, source in cells(page) if cell['cell_type'] == 'code']


def library():
    "Numbered pages: they export a module."
    return [p for p in pages() if p.name[0].isdigit()]


def runs():
    return [p for p in pages() if not p.name[0].isdigit() and 'reports' not in p.parts]


def module_of(page):
    "What the page exports, as in `losses.contrastive`; None for a report."
    found = re.search(r'^#\|\s*default_exp ([\w.]+)', '\n'.join(code(page)), re.M)
    return found and found[1]


@cache
def modules():
    return [p for p in sorted((ROOT / 'meru').rglob('*.py')) if p.name != '_modidx.py']


@cache
def tree(path):
    return ast.parse(path.read_text(encoding='utf-8'))


def where(path, node):
    return f'{path.relative_to(ROOT)}:{node.lineno} {getattr(node, "name", "")}'.strip()


def functions():
    "Every function of the package that is no Triton kernel: a kernel takes pointers and sizes, and is read otherwise."
    for path in modules():
        for f in ast.walk(tree(path)):
            if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)):
                if not any('jit' in ast.dump(d) for d in f.decorator_list):
                    yield path, f


def body(f):
    return f.body[1:] if ast.get_docstring(f) is not None else f.body


def height(f):
    "Lines of the body, without the docstring."
    return body(f)[-1].end_lineno - body(f)[0].lineno + 1 if body(f) else 0


def density(f):
    "Syntax nodes a line of the body."
    return sum(1 for o in body(f) for _ in ast.walk(o)) / max(height(f), 1)


def is_definition(o):
    return isinstance(o, (ast.FunctionDef, ast.ClassDef)) and not o.name.startswith('_')


# code


def wide_lines():
    "Lines of code over 120 columns, in pages and tests."
    texts = {p.relative_to(ROOT): p.read_text(encoding='utf-8') for p in (ROOT / 'tests').glob('*.py')}
    texts |= {p.relative_to(ROOT): '\n'.join(code(p)) for p in pages()}
    return [f'{p}:{i}' for p, text in texts.items() for i, line in enumerate(text.split('\n'), 1) if len(line) > 120]


def dense_functions():
    "Functions of five lines or more with more than 18 syntax nodes a line."
    crowded = [(density(f), where(p, f)) for p, f in functions() if height(f) >= 5 and density(f) > 18]
    return [f'{place} {d:.0f}' for d, place in sorted(crowded, reverse=True)]


def long_bodies():
    return [f'{where(p, f)} {height(f)}' for p, f in functions() if height(f) > 40]


def many_parameters():
    return [where(p, f) for p, f in functions() if len(f.args.args) + len(f.args.kwonlyargs) > 9]


def nested_comprehensions():
    kinds = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    outer = [(p, o) for p in modules() for o in ast.walk(tree(p)) if isinstance(o, kinds)]
    return [where(p, o) for p, o in outer if any(isinstance(i, kinds) for i in ast.walk(o) if i is not o)]


def unnamed_results():
    "Functions whose result is a tuple of more than three; a NamedTuple says what each part is."

    def size(f):
        made = f.returns.slice if isinstance(f.returns, ast.Subscript) else None
        named_tuple = made is not None and ast.unparse(f.returns.value) == 'tuple' and isinstance(made, ast.Tuple)
        return len(made.elts) if named_tuple else 0

    return [where(p, f) for p, f in functions() if size(f) > 3]


def public_names():
    return [(o.name, p) for p in modules() for o in tree(p).body if is_definition(o)]


def names_twice():
    count = Counter(name for name, _ in public_names())
    return [f'{name} in {p.relative_to(ROOT)}' for name, p in public_names() if count[name] > 1]


def names_asked():
    "Places outside geometry that ask for a geometry's name."
    lines = [(p, i, s) for p in modules() for i, s in enumerate(p.read_text(encoding='utf-8').splitlines(), 1)]
    asks = re.compile(r'geometry\.name|\bg\.name\b')
    return [f'{p.relative_to(ROOT)}:{i}' for p, i, s in lines if p.name != 'geometry.py' and asks.search(s)]


# pages


def long_cells():
    "Exported cells over 45 lines."
    exported = [(p, s) for p in pages() for s in code(p) if HEAD.search(s)]
    return [f'{p.name}: {s[:60]!r}' for p, s in exported if len([line for line in s.splitlines() if line.strip()]) > 45]


def words(source):
    "Words of a markdown cell; a formula counts as one."
    source = re.sub(r'\$\$.*?\$\$|\$[^$]*\$', ' x ', source, flags=re.S)
    return len(re.sub(r'[#>*|-]', ' ', re.sub(r'\]\([^)]*\)', ']', source)).split())


def long_prose():
    "Markdown cells over 60 words."
    prose = [(p, s) for p in pages() for c, s in cells(p) if c['cell_type'] == 'markdown']
    return [f'{p.name}: {words(s)} words: {s[:50]!r}' for p, s in prose if words(s) > 60]


def unshown(near=3):
    "Public definitions that no example names within the next `near` cells that are not exported."
    missing = []
    for page in pages():
        sources = code(page)
        for k, source in enumerate(sources):
            if not HEAD.search(source):
                continue
            after = ' '.join([s for s in sources[k + 1 : k + 8] if not HEAD.search(s)][:near])
            names = [o.name for o in ast.parse(source).body if is_definition(o)]
            missing += [f'{page.name}: {n}' for n in names if not re.search(rf'\b{n}\b', after)]
    return missing


def stored_widgets():
    "Pages that keep a widget, which shows an error without its kernel: `.ci/clean.py PAGE` leaves it out."
    return [p.name for p in pages() if 'jupyter.widget-view' in p.read_text(encoding='utf-8')]


def wing(module):
    return module.removeprefix('meru.').split('.')[0]


def upward_imports():
    "Imports of a higher number, or of a later wing, by a page."
    number = {module_of(p): i for i, p in enumerate(library()) if module_of(p)}
    bad = []
    for page in library():
        me = module_of(page)
        used = re.findall(r'^\s*(?:from|import)\s+meru\.([\w.]+)', '\n'.join(code(page)), re.M)
        for other in {o for o in used if o in number}:
            later = me and wing(me) in WINGS and WINGS.index(wing(other)) > WINGS.index(wing(me))
            if number[other] >= library().index(page) or later:
                bad.append(f'{page.name} imports {other}')
    return bad


def shared_numbers():
    count = Counter(p.name[:2] for p in library())
    return [p.name for p in library() if count[p.name[:2]] > 1]


# links and README


def links(text):
    "Targets of Markdown links and of HTML's src and href, without what lies on other machines."
    text = re.sub(r'```.*?```|`[^`\n]*`', ' ', text, flags=re.S)
    found = re.findall(r'\]\(([^)\s]+)[^)]*\)', text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    return [t for t in found if not re.match(r'[a-z]+:', t)]


def anchors(path):
    "What may stand behind a # for this file."
    if path.suffix == '.ipynb':
        heads = re.findall(r'^#+\s+(.*)', '\n'.join(s for c, s in cells(path) if c['cell_type'] == 'markdown'), re.M)
        return {h.strip().replace(' ', '-') for h in heads}
    heads = re.findall(r'^#+\s+(.*)', path.read_text(encoding='utf-8'), re.M)
    return {re.sub(r'[^\w\s-]', '', h).strip().lower().replace(' ', '-') for h in heads}


def dead_links():
    "Relative links of pages and Markdown files whose file or heading is not there."
    kept = [
        p
        for p in ROOT.rglob('*.md')
        if not {'.venv', '.git', 'local', '.pytest_cache', '_docs', 'build'} & set(p.relative_to(ROOT).parts)
    ]
    kept = [p for p in kept if 'outputs' not in p.parts or 'reference' in p.parts or p.parent.name == 'outputs']
    texts = {p: p.read_text(encoding='utf-8') for p in kept}
    texts |= {p: '\n\n'.join(s for c, s in cells(p) if c['cell_type'] == 'markdown') for p in pages()}
    dead = []
    for page, text in texts.items():
        for link in links(text):
            target, _, anchor = link.partition('#')
            path = (page.parent / target).resolve() if target else page
            known = path.exists() and (not anchor or path.suffix not in ('.md', '.ipynb') or anchor in anchors(path))
            if not known:
                dead.append(f'{page.relative_to(ROOT)}: {link}')
    return dead


def readme():
    "Lines, words, words of the longest paragraph, most numbers in one, words before the first Python."
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    prose = re.sub(r'^\|[^\n]*$', ' ', re.sub(r'```.*?```', ' ', text, flags=re.S), flags=re.M)
    paragraphs = [p for p in re.split(r'\n\s*\n', prose) if p.strip()]
    numbers = max(len(re.findall(r'\d[\d.,]*', p)) for p in paragraphs)
    longest = max(len(p.split()) for p in paragraphs)
    return [len(text.splitlines()), len(text.split()), longest, numbers, len(text.split('```python')[0].split())]


RULES = [
    wide_lines,
    dense_functions,
    long_bodies,
    many_parameters,
    nested_comprehensions,
    unnamed_results,
    names_twice,
    names_asked,
    long_cells,
    long_prose,
    upward_imports,
    shared_numbers,
    stored_widgets,
    dead_links,
]

if __name__ == '__main__':
    chosen = [r for r in [*RULES, unshown] if len(sys.argv) < 2 or r.__name__ in sys.argv[1:]]
    for rule in chosen:
        found = rule()
        print(f'{rule.__name__}: {len(found)}', *(found if len(sys.argv) > 1 else found[:8]), sep='\n  ')
    print(f'public names: {len(public_names())}; README lines, words, paragraph, numbers, before Python: {readme()}')
