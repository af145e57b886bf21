"""Training, embedding, fetching and searching, killed at any moment and started again: the bits are the same.

python tests/kills.py --kills 1000 --out outputs/reference/robustness/kills.json
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
SETTINGS = dict(steps=12, batch_size=16, image_width=64, text_width=32, embed_dim=16, image_depth=1)
SETTINGS |= dict(save_every=1, val_every=4, log_every=1, val_pairs=64, verify='sizes')  # of the training run


# ---------------------------------------------------------------- the jobs, each started anew by the same call
def train(folder: Path, pictures: Path):
    from meru.training.config import make_config
    from meru.training.run import Run
    from meru.training.trainer import fit

    fit(Run(folder, make_config('smoke', **SETTINGS)))


def _towers():
    "Averages of twelve by twelve fields, and a table of words with fixed numbers."
    import torch
    import torch.nn.functional as F
    from torch import nn
    from meru.data.tokenizer import Tokenizer
    from meru.models.pretrained import Towers

    class Thumbnail(nn.Module):
        def forward(self, x):
            return F.adaptive_avg_pool2d(x, 12).flatten(1)

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.EmbeddingBag(4096, 64, mode='sum', padding_idx=0)

        def forward(self, ids):
            return self.words(ids)

    torch.manual_seed(0)
    return Towers(Thumbnail(), Words(), Tokenizer(4096, 16), 24, (0.75,) * 3, (0.3,) * 3, 'thumbnails and words')


def embed(folder: Path, pictures: Path):
    from meru.models.embedding import EmbedConfig, embed

    embed(EmbedConfig(data=str(pictures), towers='thumbnails and words', out=str(folder), batch_size=4), _towers())


def fetch(folder: Path, pictures: Path):
    from meru.data.download import make_fetch_config
    from meru.data.fetch import fetch

    fetch(folder, make_fetch_config(pairs=str(pictures), processes=1, shard_size=10))


def search(folder: Path, pictures: Path):
    from meru.image_index import SearchConfig, open_image_index

    open_image_index(
        SearchConfig(
            images=str(pictures), query='a drawing', model=str(pictures.parent / 'model'), out=str(folder), batch_size=4
        )
    )


JOBS = dict(train=train, embed=embed, fetch=fetch, search=search)
TIMES = 'pairs_per_s seconds finished sessions sittings failures peak_memory'.split()  # what may differ


# ---------------------------------------------------------------- what must be the same
def _without_times(value):
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in TIMES}
    return [_without_times(o) for o in value] if isinstance(value, list) else value


def digest(folder: Path) -> dict[str, str]:
    "Every file that a job leaves: its hash, or, of a record with times in it, the rest."
    from meru.core import file_sha256

    found = {}
    for path in sorted(o for o in folder.rglob('*') if o.is_file() and 'lock' not in o.name):
        name = path.relative_to(folder).as_posix()
        if path.suffix in ('.json', '.jsonl'):
            lines = path.read_text(encoding='utf-8').splitlines() if path.suffix == '.jsonl' else [path.read_text()]
            found[name] = json.dumps([_without_times(json.loads(o)) for o in lines]).replace(str(folder), 'FOLDER')
        else:
            found[name] = file_sha256(path)
    return found


def make_pictures(folder: Path, count: int = 24) -> Path:
    "Drawings with captions, as a person keeps them."
    folder.mkdir(parents=True)
    with zipfile.ZipFile(ROOT / 'data/emoji/drawings.zip') as drawings:
        for i, name in enumerate(sorted(drawings.namelist())[::300][:count]):
            (folder / f'{i:02d}{Path(name).suffix}').write_bytes(drawings.read(name))
            (folder / f'{i:02d}.txt').write_text(f'drawing {i}')
    return folder


# ---------------------------------------------------------------- killing
class Launcher:
    "A process that has imported everything and forks a child for each job."

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, __file__, '--serve'],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | dict(OMP_NUM_THREADS='1'),
            preexec_fn=lambda: os.nice(5),  # who watches must not be slower than who writes
        )

    def start(self, job: str, folder: Path, pictures: Path) -> int:  # its process
        print(job, folder, pictures, sep='\t', file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def status(self) -> int:
        return int(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def serve():
    "Read jobs from standard input; print each child's number, then how it ended."
    import torch

    import meru.data.fetch
    import meru.image_index
    import meru.models.embedding
    import meru.training.trainer  # noqa: F401
    import torch._dynamo
    import torchvision  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        job, folder, pictures = line.rstrip('\n').split('\t')
        if pid := os.fork():
            print(pid, flush=True)
            print(os.waitpid(pid, 0)[1], flush=True)
            continue
        os.dup2(2, 1)
        try:
            JOBS[job](Path(folder), Path(pictures))
        except BaseException:
            os._exit(1)
        os._exit(0)


def alive(pid: int) -> bool:
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except (FileNotFoundError, ProcessLookupError):  # it ended before, or while its state was read
        return False


def saving(folder: Path, since: float) -> bool:
    "Is a file half written, by a process that began at `since`?"
    for place, _, names in os.walk(folder):
        for name in names:
            part = name.endswith(('.tmp', '.part')) or name.startswith('.tmp')  # the last are safetensors' own
            with suppress(FileNotFoundError):  # it was finished and renamed meanwhile
                if part and os.stat(os.path.join(place, name)).st_mtime >= since:
                    return True
    return False


class Killed(NamedTuple):
    "What came of the kills of one job."

    kills: int
    inside_a_save: int
    finished: int  # times that the job came to its end in spite of them
    different: list[str]  # files whose bits were not those of the run that nobody disturbed


def kill_job(launcher: Launcher, job: str, wanted: int, home: Path, pictures: Path, seed: int = 0) -> Killed:
    "Kill a job `wanted` times, half of them at random moments, half while a file is being written."
    whole, broken, rng = home / 'whole' / job, home / 'broken' / job, random.Random(seed)
    for folder in (home / 'warm' / job, whole):  # the first is slower than those that follow
        began = time.perf_counter()
        launcher.start(job, folder, pictures)
        if launcher.status():
            raise RuntimeError(f'{job} does not run, even undisturbed')
    seconds, truth = time.perf_counter() - began, digest(whole)
    kills, inside, finished, different = 0, 0, 0, []
    while True:
        since, wait_for_save = time.time(), 2 * inside <= kills
        pid = launcher.start(job, broken, pictures)
        moment = time.perf_counter() + rng.random() * seconds * (0.5 if wait_for_save else 1.0)
        while (
            kills < wanted
            and alive(pid)
            and (time.perf_counter() < moment or wait_for_save and not saving(broken, since))
        ):
            time.sleep(0.0002)
        if kills < wanted and alive(pid):
            os.kill(pid, signal.SIGKILL)
        status = launcher.status()
        if os.WIFSIGNALED(status):
            kills, inside = kills + 1, inside + saving(broken, since)
            if kills % 50 == 0:
                print(f'{job}: {kills} of {wanted} kills, {inside} inside a save', file=sys.stderr, flush=True)
            continue
        if status:
            raise RuntimeError(f'{job} does not go on after {kills} kills: see {broken}')
        finished, now = finished + 1, digest(broken)
        different += sorted(o for o in truth.keys() | now.keys() if truth.get(o) != now.get(o))
        if kills >= wanted:
            return Killed(kills, inside, finished, different)
        shutil.rmtree(broken)


def prepare(home: Path) -> Path:  # the pictures
    "Pictures for the jobs, and beside them a model to search with."
    from meru.training.config import make_config
    from meru.training.run import Run
    from meru.training.trainer import fit

    fit(Run(home / 'model', make_config('smoke', steps=2, save_every=2, val_every=2, log_every=1, warmup=1)))
    return make_pictures(home / 'pictures')


def killed_row(job: str, wanted: int, home: Path, pictures: Path) -> dict:
    "What came of the kills of one job, with a launcher of its own."
    launcher, began = Launcher(), time.time()
    killed = kill_job(launcher, job, wanted, home, pictures)
    launcher.close()
    row = dict(job=job, **killed._asdict(), took_s=round(time.time() - began))
    print(json.dumps(row), flush=True)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--out', type=Path)
    parser.add_argument('--serve', action='store_true', help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        return serve()
    from meru.core import machine, write_json

    home = Path(tempfile.mkdtemp())
    pictures, each = prepare(home), -(-given.kills // len(JOBS))
    jobs = [(job, each, home, pictures) for job in JOBS]
    with ProcessPoolExecutor(mp_context=get_context('spawn')) as pool:
        rows = list(pool.map(killed_row, *zip(*jobs)))
    shutil.rmtree(home)
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(given.out, dict(rows=rows, **machine()))
    sys.exit(any(o['different'] for o in rows))


if __name__ == '__main__':
    main()
