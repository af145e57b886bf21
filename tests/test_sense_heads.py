"Drawings below WordNet, on the committed table of senses."

import torch
from meru.benchmarks import sense_heads
from meru.benchmarks.sense_heads import _drawn_nodes, _read_senses
from meru.benchmarks.taxonomy import _sense_taxonomy
from meru.benchmarks.tree_heads import _Drawn
from meru.evaluation.emoji_suite import _Drawings, _link_texts, splits


def test_drawings_hang_below_their_nouns_and_nouns_are_encoded_once(tmp_path, monkeypatch):
    names = [*list(_drawn_nodes())[:200], 'no noun']
    chains = [('things', 'some things', name, f'{name}, again') for name in names]
    test_set = _link_texts({split: _Drawings(None, [], chains, 0, '') for split in splits})
    found = _Drawn({split: torch.randn(201, 8) for split in splits}, torch.zeros(0), test_set, 'made up')

    def encode(texts, towers, device):
        generator = torch.Generator().manual_seed(0)
        return torch.randn(len(texts), 256, generator=generator).half()

    monkeypatch.setattr(sense_heads, 'load_towers', lambda name: None)
    monkeypatch.setattr(sense_heads, '_encode_texts', encode)
    data = _read_senses(found, tmp_path / 'senses.safetensors')
    train, tree = data.chained('train'), _sense_taxonomy()
    assert len(train.images) == 200 and data.texts.shape == (len(tree.texts), 192)
    assert [tree.texts[row] for row in train.chains[:, -1]] == names[:-1]
    tops = {tree.texts[row[row >= 0][0]] for row in train.chains}
    assert tops == {'entity'}
    monkeypatch.setattr(sense_heads, '_encode_texts', None)  # not asked again
    again = _read_senses(found, tmp_path / 'senses.safetensors')
    assert again.id == data.id and torch.equal(again.texts, data.texts)
