"""Mutated files through every reader: each ends in a right result or one named error.

python tests/fuzz.py --inputs 100000 --out outputs/reference/robustness/fuzz.json
python tests/fuzz.py --engine atheris --target pictures --inputs 20000    # guided by coverage; pip install atheris
"""

import argparse
import io
import json
import multiprocessing
import random
import resource
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import Callable, NamedTuple

ROOT = Path(__file__).parent.parent
LONGEST = 10.0  # seconds that one input may take
MEMORY = 2_000  # megabytes that a process may grow to

# ---------------------------------------------------------------- mutation
TOKENS = [
    *(b'"', b'""', b'\0', b'\n', b'\r', b'\t', b',', b';', b'|', b'{', b'[', b'}', b'null', b'NaN'),
    *(b'1e999', b'../', b'\\u'),
    *('\ufeff'.encode(), '\u2028'.encode(), b'\xff\xfe', b'\xed\xa0\xbd', b'\\ud83d', b'$$', b'\xff\xd8', b'\xff\xda'),
]  # fmt: skip


def _flip_bit(data: bytearray, rng: random.Random):
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set_byte(data: bytearray, rng: random.Random):
    data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _truncate(data: bytearray, rng: random.Random):
    del data[rng.randrange(len(data)) :]


def _delete_span(data: bytearray, rng: random.Random):
    first = rng.randrange(len(data))
    del data[first : first + rng.randrange(1, 600)]


def _repeat_span(data: bytearray, rng: random.Random):
    first = rng.randrange(len(data))
    data[first:first] = data[first : first + rng.randrange(1, 600)]


def _insert_token(data: bytearray, rng: random.Random):
    first = rng.randrange(len(data) + 1)
    data[first:first] = rng.choice(TOKENS)


MUTATIONS = (_flip_bit, _set_byte, _truncate, _delete_span, _repeat_span, _insert_token)


def mutate(seed: bytes, rng: random.Random) -> bytes:
    "One to four mutations, one after the other."
    data = bytearray(seed)
    for _ in range(rng.randrange(1, 5)):
        if data:
            rng.choice(MUTATIONS)(data, rng)
    return bytes(data)


# ---------------------------------------------------------------- targets
class Target(NamedTuple):
    "A reader: whole files to begin with, and what must hold of any other."

    seeds: list[bytes]
    check: Callable[[bytes, Path], str]  # the outcome: 'read', or 'refused'; anything else raises


def must(holds: bool, sentence: str):
    if not holds:
        raise AssertionError(sentence)


def _encoded(kind: str, **settings) -> bytes:
    from PIL import Image

    picture = Image.linear_gradient('L').resize((48, 32)).convert('RGB')
    stream = io.BytesIO()
    picture.save(stream, kind, **settings)
    return stream.getvalue()


def pictures() -> Target:
    import torch
    from meru.data.images import ImageError, decode_image

    with zipfile.ZipFile(ROOT / 'data/emoji/drawings.zip') as drawings:
        names = sorted(drawings.namelist())[::1500]
        seeds = [drawings.read(o) for o in names]
    seeds += [_encoded('JPEG'), _encoded('JPEG', progressive=True), _encoded('PNG'), _encoded('GIF'), _encoded('BMP')]

    def check(data: bytes, folder: Path) -> str:
        try:
            picture = decode_image(data)
        except ImageError as e:
            must(bool(str(e)), 'an error without a sentence')
            return 'refused'
        must(picture.dtype == torch.uint8 and picture.ndim == 3 and len(picture) == 3, 'no picture of three channels')
        return 'read'

    return Target(seeds, check)


def _tar(names: list[str], form: int) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode='w', format=form) as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name)
            archive.addfile(info, io.BytesIO(name.encode()))
    return stream.getvalue()


def _mend_checksums(data: bytes) -> bytes:
    "Give every header at a block's beginning the checksum it should have."
    blocks = bytearray(data)
    for first in range(0, len(blocks) - 511, 512):
        if blocks[first + 257 : first + 262] == b'ustar':
            total = sum(blocks[first : first + 512]) - sum(blocks[first + 148 : first + 156]) + 8 * 32
            blocks[first + 148 : first + 156] = b'%06o\0 ' % total
    return bytes(blocks)


def tars() -> Target:
    from meru.data.tar_samples import ShardError, _tar_members, tar_samples

    names = [
        f'{folder}{i:05d}.{suffix}'
        for folder in ('', 'a/', 'b' * 120 + '/')
        for i in range(2)
        for suffix in ('jpg', 'txt')
    ]
    seeds = [_tar(names, form) for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)]

    def check(data: bytes, folder: Path) -> str:
        data = _mend_checksums(data) if sum(data[:1024]) % 4 else data
        try:
            samples = tar_samples(io.BytesIO(data), 'some.tar')
        except ShardError as e:
            must('some.tar' in str(e), f'the error does not name the file: {e}')
            return 'refused'
        members = list(_tar_members(io.BytesIO(data), 'some.tar'))
        must(all(0 <= o.first and o.first + o.size <= len(data) for o in members), 'a member beyond the end')
        must(sum(len(o.members) for o in samples) <= len(members), 'more members than there are')
        return 'read'

    return Target(seeds, check)


TABLE = [('a dog', '0.png'), ('a "quoted" cat, asleep', '1.png'), ('été ☀', '2.png'), ('x' * 300, 'b/3.png')]


def _csv(separator: str) -> bytes:
    quoted = ['"' + text.replace('"', '""') + '"' if separator == ',' else text for text, _ in TABLE]
    lines = [separator.join(('caption', 'file')), *(separator.join((q, f)) for q, (_, f) in zip(quoted, TABLE))]
    return '\n'.join(lines).encode()


def _jsonl() -> bytes:
    return '\n'.join(json.dumps(dict(caption=text, file=file)) for text, file in TABLE).encode()


def tables() -> Target:
    from meru.data.tables import _TableColumns, _table_rows

    columns = _TableColumns((('caption',), ('file',)))
    kinds = {'t.csv': _csv(','), 't.tsv': _csv('\t'), 't.jsonl': _jsonl()}
    kinds['t.json'] = json.dumps([dict(caption=text, file=file) for text, file in TABLE]).encode()
    seeds = [f'{name}\n'.encode() + data for name, data in kinds.items()]  # the first line says which table it is

    def check(data: bytes, folder: Path) -> str:
        name, _, content = data.partition(b'\n')
        table = name.decode('latin-1') if name.decode('latin-1') in kinds else 't.csv'
        try:
            rows = list(_table_rows(io.BytesIO(content), table, columns))
        except ValueError as e:
            must(table in str(e), f'the error does not name the file: {e}')
            return 'refused'
        numbers = [o.number for o in rows]
        must(numbers == sorted(set(numbers)), 'a row is there twice')
        must(all(bool(o.problem) != bool(o.values) or not o.values for o in rows), 'a row with values and a problem')
        if table == 't.jsonl' and content.isascii() and b'\r' not in content:
            must(len(rows) == sum(bool(o.strip()) for o in content.split(b'\n')), 'a line is neither read nor counted')
        return 'read'

    return Target(seeds, check)


def json_files() -> Target:
    from meru.data.text_files import LeftOut, caption_texts, json_lines

    odd = [None, 'red', ['a', None, 'b'], {'text': 'c'}, 1.5, [[['deep']]], 'half a pair \ud83d']
    seeds = [_jsonl(), '\n'.join(map(json.dumps, odd)).encode(), b'[' * 3000 + b']' * 3000 + b'\n"red"\n']

    def check(data: bytes, folder: Path) -> str:
        noted = LeftOut()
        try:
            lines = list(json_lines(io.BytesIO(data)))
        except ValueError:  # half a character of UTF-16 at the end; who opened the file names it
            return 'refused'
        for line in lines:
            value = line.value.get('caption') if isinstance(line.value, dict) else line.value
            texts = caption_texts(value, f'line {line.number}', noted)
            must(all(o.strip() and o.isprintable() or o.encode() for o in texts), 'a caption that cannot be written')
        return 'refused' if any(o.problem for o in lines) or len(noted) else 'read'

    return Target(seeds, check)


def checkpoints() -> Target:
    import torch
    from torch import nn
    from meru.training.run import load_checkpoint, save_checkpoint

    model = nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / 'last.safetensors', model, optimizer, step=7)
        seeds = [(Path(folder) / 'last.safetensors').read_bytes()]

    def check(data: bytes, folder: Path) -> str:
        path = folder / 'last.safetensors'
        path.write_bytes(data)
        try:
            load_checkpoint(path, model, optimizer)
        except (ValueError, OSError) as e:
            must('last.safetensors' in str(e), f'the error does not name the file: {e}')
            return 'refused'
        return 'read'

    return Target(seeds, check)


def released_files() -> Target:
    from meru.models.released import read_released

    seeds = [(ROOT / 'tests/parity/meru_tiny.pth').read_bytes()]

    def check(data: bytes, folder: Path) -> str:
        path = folder / 'meru.pth'
        path.write_bytes(data)
        try:
            read_released(path)
        except (ValueError, OSError) as e:
            must('meru.pth' in str(e), f'the error does not name the file: {e}')
            return 'refused'
        return 'read'

    return Target(seeds, check)


def model_folders() -> Target:
    import torch
    from meru import from_pretrained
    from meru.training.config import make_config
    from meru.training.run import Run
    from meru.training.trainer import fit

    with tempfile.TemporaryDirectory() as tmp:
        run = Path(tmp) / 'run'
        torch.set_num_threads(1)
        fit(Run(run, make_config('smoke', steps=2, save_every=2, val_every=2, log_every=1, warmup=1)))
        whole = {o: (run / o).read_bytes() for o in ('config.json', 'run.json', 'last.safetensors')}
    seeds = [b'config.json\n' + whole['config.json'], b'run.json\n' + whole['run.json']]

    def check(data: bytes, folder: Path) -> str:
        name, _, content = data.partition(b'\n')
        name = name.decode('latin-1') if name.decode('latin-1') in whole else 'config.json'
        place = folder / 'run'
        place.mkdir(exist_ok=True)
        for file, good in whole.items():
            (place / file).write_bytes(content if file == name else good)
        try:
            from_pretrained(str(place))
        except (ValueError, OSError) as e:
            must(len(str(e)) > 10, f'an error that says nothing: {e}')
            return 'refused'
        return 'read'

    return Target(seeds, check)


TARGETS = dict(
    pictures=pictures,
    tars=tars,
    tables=tables,
    json_files=json_files,
    checkpoints=checkpoints,
    released_files=released_files,
    model_folders=model_folders,
)
SHARES = dict(
    pictures=40, tars=20, tables=20, json_files=12, checkpoints=5, released_files=2, model_folders=1
)  # percent


# ---------------------------------------------------------------- running
def one_input(target: Target, number: int, folder: Path) -> str:
    "The outcome of input `number`: every input is a pure function of its number."
    rng = random.Random(number)
    return target.check(mutate(rng.choice(target.seeds), rng), folder)


def _work(name: str, numbers: range, current, pipe):
    "A process of its own: what crashes or hangs takes only itself along."
    import torch

    torch.set_num_threads(1)
    target, counts, slowest = TARGETS[name](), Counter(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            began = time.perf_counter()
            current[0], current[1] = number, time.time()
            try:
                counts[one_input(target, number, Path(folder))] += 1
            except Exception as e:
                counts['fault'] += 1
                pipe.send(('fault', dict(input=number, error=f'{type(e).__name__}: {e}'[:300])))
            slowest = max(slowest, time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    pipe.send(('done', dict(counts=dict(counts), slowest_s=round(slowest, 3), peak_mb=peak)))


class Outcome(NamedTuple):
    "What came of one target."

    counts: Counter
    faults: list[dict]  # input, error
    slowest_s: float
    peak_mb: int


def run_target(name: str, inputs: int) -> Outcome:
    "All inputs of one target; a crash and a hang are faults, after which the next input follows."
    context, first, faults, counts, slowest, peak = multiprocessing.get_context('spawn'), 0, [], Counter(), 0.0, 0
    while first < inputs:
        current, (receive, send) = context.Array('d', [first, time.time() + 120]), context.Pipe(False)
        process = context.Process(target=_work, args=(name, range(first, inputs), current, send))
        process.start()
        send.close()
        finished, hung = None, False
        while process.is_alive() or receive.poll():
            if receive.poll(0.5):
                try:
                    kind, message = receive.recv()
                except EOFError:
                    break
                if kind == 'fault':
                    faults.append(message)
                else:
                    finished = message
            elif time.time() - current[1] > LONGEST:
                hung = True
                process.kill()
        process.join()
        if finished:
            counts.update(finished['counts'])
            slowest, peak = max(slowest, finished['slowest_s']), max(peak, finished['peak_mb'])
            break
        stopped = int(current[0])
        faults.append(dict(input=stopped, error='it hung' if hung else f'the process ended with {process.exitcode}'))
        counts['fault'] += 1
        counts['before a crash'] += stopped - first
        first = stopped + 1
    return Outcome(counts, faults, slowest, peak)


def guided(name: str, inputs: int, seed: int = 1):
    "The same check under atheris, guided by coverage; it ends the process."
    import atheris

    with atheris.instrument_imports(include=['meru']):
        target = TARGETS[name]()
    folder = Path(tempfile.mkdtemp())
    corpus = Path(tempfile.mkdtemp())
    for i, data in enumerate(target.seeds):
        (corpus / str(i)).write_bytes(data)
    atheris.Setup(
        [sys.argv[0], f'-runs={inputs}', f'-seed={seed}', str(corpus)], lambda data: target.check(data, folder) and None
    )
    atheris.Fuzz()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--inputs', type=int, default=100_000)
    parser.add_argument('--target', choices=TARGETS)
    parser.add_argument('--engine', choices=('random', 'atheris'), default='random')
    parser.add_argument('--out', type=Path)
    given = parser.parse_args()
    if given.engine == 'atheris':
        return guided(given.target or 'tars', given.inputs)
    from meru.core import machine, write_json

    rows = []
    for name in [given.target] if given.target else TARGETS:
        inputs = given.inputs if given.target else given.inputs * SHARES[name] // 100
        began = time.time()
        got = run_target(name, inputs)
        row = dict(target=name, inputs=inputs, outcomes=dict(got.counts), faults=got.faults)
        rows.append(row | dict(slowest_s=got.slowest_s, peak_mb=got.peak_mb, seconds=round(time.time() - began)))
        print(json.dumps(rows[-1] | dict(faults=got.faults[:5])), flush=True)
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(given.out, dict(rows=rows, longest_s=LONGEST, **machine()))
    sys.exit(any(o['faults'] or o['slowest_s'] > LONGEST or o['peak_mb'] > MEMORY for o in rows))


if __name__ == '__main__':
    main()
