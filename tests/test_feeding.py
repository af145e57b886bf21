"What a GPU's loader gives and what the GPU takes is said before a run."

import pytest
from meru.training import feeding
from meru.training.config import make_config
from meru.training.trainer import open_data

pytestmark = pytest.mark.usefixtures('in_root')


def test_a_gpu_says_what_it_takes_and_what_it_gets(monkeypatch, capsys):
    cfg = make_config('smoke', workers=3)
    pairs, _ = open_data(cfg)
    feeding._say_feeding(cfg, pairs)
    assert not capsys.readouterr().out  # nothing waits on a CPU
    monkeypatch.setattr(feeding, 'pick_device', lambda name: 'cuda')
    for card, says in (('NVIDIA H200', '; the GPUs take '), ('NVIDIA A10', 'with 3 workers for each process.\n')):
        monkeypatch.setattr('torch.cuda.get_device_name', lambda: card)
        feeding._say_feeding(cfg, pairs, processes=2)
        told = capsys.readouterr().out
        assert told.startswith('The loader gives about ') and says in told
