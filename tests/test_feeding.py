"What a GPU's loader gives and what the GPU takes is said before a run."

import io
from dataclasses import replace
from unittest.mock import Mock
import pytest
import torch
from PIL import Image
from meru.benchmarks import gpu
from meru.data import loader as L
from meru.data.loader import Loader, _Parcel
from meru.data.shards import make_manifest, Sample, Shards, write_shards
from meru.training import feeding
from meru.training.config import make_config
from meru.training.step import to_device
from meru.training.trainer import _left_to_device, make_loader, open_data

pytestmark = pytest.mark.usefixtures('in_root')


def test_a_gpu_says_what_it_takes_and_what_it_gets(monkeypatch, capsys):
    cfg = make_config('smoke', workers=3)
    pairs, _ = open_data(cfg)
    feeding._say_feeding(cfg, pairs)
    assert not capsys.readouterr().out  # nothing waits on a CPU
    monkeypatch.setattr(feeding, 'pick_device', lambda name: 'cuda')
    for card, says in (('NVIDIA H200', '; the GPUs take '), ('NVIDIA T4', 'with 3 workers for each process.\n')):
        monkeypatch.setattr('torch.cuda.get_device_name', lambda: card)
        feeding._say_feeding(cfg, pairs, processes=2)
        told = capsys.readouterr().out
        assert told.startswith('The loader gives about ') and says in told


def _jpeg(i, mode='RGB', **how):
    "Every one another: a ramp turned by so many degrees."
    made = Image.linear_gradient('L').rotate(40 * i).resize((60, 40)).convert(mode)
    made.save(file := io.BytesIO(), how.pop('format', 'JPEG'), **how)
    return file.getvalue()


@pytest.fixture
def mixed(tmp_path):
    "Ten pictures: four are for a device, one of all is cut off."
    turned = Image.Exif()
    turned[0x0112] = 6
    files = [_jpeg(0), _jpeg(1, format='PNG'), _jpeg(2, subsampling=0), _jpeg(3, progressive=True)]
    files += [
        _jpeg(4, exif=turned),
        _jpeg(5, 'L'),
        _jpeg(6, 'CMYK'),
        _jpeg(7, restart_marker_blocks=2),
        _jpeg(8),
        _jpeg(9),
    ]
    samples = [Sample(str(i), data, f'number {i}', {}) for i, data in enumerate(files)]
    write_shards(samples, tmp_path / 'mixed')
    shards = Shards(tmp_path / 'mixed')
    first, size = shards.table[9, :2]
    with open(shards.paths[0], 'r+b') as file:
        file.seek(first + size // 2)
        file.write(b'\xff\xd9' + bytes(size - size // 2 - 2))
    make_manifest(tmp_path / 'mixed')
    return Shards(tmp_path / 'mixed')


ON_DEVICE = make_config('smoke', image_size=24, augment_on='device', decode_on='device')


def _loaders(shards, **how):
    "The loader of a config that leaves JPEGs to the device, and of one that does not."
    how = dict(batch_size=10, workers=0) | how
    return [make_loader(replace(ON_DEVICE, level_probs=()), shards, encoded=o, **how) for o in (True, False)]


@pytest.mark.parametrize('cache', [False, True])
def test_plain_jpegs_are_left_to_the_device_and_all_else_is_not(mixed, cache):
    left, here = (loader.batch_at(0) for loader in _loaders(mixed, cache=cache))
    plain = {'00000', '00002', '00007', '00008'}
    assert {left.keys[row][-1] for row in left.encoded.rows} == {key[-1] for key in plain}
    assert len(left.images) == 10 - len(left.encoded.rows) and here.encoded is None
    assert left.keys == here.keys and torch.equal(left.augment_params, here.augment_params)
    there, same = (to_device(batch, ON_DEVICE, 'cpu') for batch in (left, here))  # torchvision on the CPU stands in
    assert there.encoded is None and there.images.shape == same.images.shape == (10, 3, 24, 24)
    assert (there.images.float() - same.images.float()).abs().max() <= 2


def test_what_is_cut_off_is_replaced_though_nobody_here_decodes_it(mixed):
    left, here = _loaders(mixed, cache=False)
    assert left.batch_at(0).keys == here.batch_at(0).keys
    assert left.damaged == here.damaged == {9: 'truncated'} and left.source.whole == {0, 2, 7, 8}


def test_files_travel_through_workers_and_pipes(mixed):
    left, _ = _loaders(mixed, cache=False, batch_size=5)
    batch = left.batch_at(1)
    left.workers = 1
    batches = left.batches(1)
    through, piped = next(batches), _Parcel(batch).opened()
    batches.close()
    for other in (through, piped):
        assert torch.equal(other.encoded.files, batch.encoded.files) and other.encoded[1:] == batch.encoded[1:]


def test_a_device_that_cannot_is_told_once_and_the_cpu_decodes(mixed, monkeypatch):
    monkeypatch.setattr(L, '_said', set())
    with pytest.warns(UserWarning, match='cpu has no decoder of its own'):
        assert not _left_to_device(ON_DEVICE, 'cpu')
    assert not _left_to_device(ON_DEVICE, 'cpu') and not _left_to_device(make_config('smoke'), 'cuda')
    left, here = (loader.batch_at(0) for loader in _loaders(mixed))
    monkeypatch.setattr(L, '_said', set())
    monkeypatch.setattr('torchvision.io.decode_jpeg', Mock(side_effect=RuntimeError('compiled without nvJPEG')))
    with pytest.warns(UserWarning, match='the CPU decodes a batch .*compiled without nvJPEG'):
        there = to_device(left, ON_DEVICE, 'cpu').images
    assert (there.float() - to_device(here, ON_DEVICE, 'cpu').images.float()).abs().max() <= 2
    monkeypatch.setattr(L, '_said', set())
    with pytest.warns(UserWarning, match='the loader decodes all pictures: compiled without nvJPEG'):
        assert not _left_to_device(ON_DEVICE, 'cuda')


def test_a_decoder_waits_for_what_still_reads_its_memory(monkeypatch):
    "nvJPEG works on a stream of its own; torchvision lets ours wait for it, and not it for ours."
    notes = []
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    monkeypatch.setattr('torch.cuda.current_stream', lambda device: Mock(synchronize=lambda: notes.append('waits')))
    monkeypatch.setattr('torchvision.io.decode_jpeg', lambda *_: notes.append('decodes'))
    L._by_torchvision([], 'cuda')
    assert notes == ['waits', 'decodes']


def test_only_a_device_that_augments_can_decode(mixed):
    with pytest.raises(ValueError, match="augment_on 'loader' needs pixels"):
        make_config('smoke', decode_on='device')
    with pytest.raises(ValueError, match='encoded needs pre_resize'):
        Loader(mixed, None, 24, 5, encoded=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU, whose pixels it compares')
def test_a_gpus_pixels_are_the_cpus_to_two_levels():
    rows = []
    gpu._decode_part(gpu._Card('cuda', (), (), 0, 'smoke', 1, False), rows.append)
    assert all(row['mean_levels'] <= 2 for row in rows)
