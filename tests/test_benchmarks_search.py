"The suite of searches in its short form; times mean nothing here, recalls do."

import pytest
import torch
import meru.benchmarks.search as R
from meru.benchmarks.suites import suites
from meru.geometry import get_geometry

pytest.importorskip('faiss', reason='pip install faiss-cpu')


def test_the_short_form_finds_what_it_should(monkeypatch):
    monkeypatch.setattr(R, '_in_new_process', lambda f, *args: f(*args))
    found = R._search_suite(**suites['search'].quick)
    assert [r['case'] for r in found['rows']] == ['3,000 wide', '3,000 narrow']
    for r in found['rows']:
        recall = r['recall_at_10']
        assert recall['inverted_lists'] > 0.95 and recall['exact'] == 1 and recall['lifted_graph'] > 0.9
        assert (
            set(r['ratio']) == {'exact', 'flat', 'product_graph', 'lifted_graph'}
            and r['one_by_one']['ratio']['exact']['median'] > 0
        )
    assert found['rows'][0]['recall_at_10']['product_graph'] < 0.6
    assert found['exact_memory']['peak_bytes'] > found['exact_memory']['gallery_bytes']


def test_a_query_without_order_gains_nothing_from_moving():
    "Levels at one radius: whatever the way, the level of the first text stays as it was."
    g, one = get_geometry('lorentz'), torch.tensor(1.0)
    way = torch.nn.functional.normalize(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    texts, level = g.exp_map0(way, one), torch.arange(40) % 4
    rows = R._generality_rows(g, R._LevelledTexts(texts, texts, torch.arange(40)[:, None], level, one))
    assert {round(o['level'], 6) for o in rows} == {1.5} and all(o['right'] == 1 for o in rows)


def test_a_run_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match='nowhere holds no run'):
        R._generality_suite(run='outputs/nowhere')


def test_texts_are_read_with_the_models_own_tokenizer(monkeypatch):
    "Of a run on pretrained towers, theirs."
    from types import SimpleNamespace
    from meru.models.model import tokenizer_of
    from meru.training.config import make_config

    theirs, seen = object(), []

    def embed(model, tokenizer, exam):
        seen.append(tokenizer)
        raise KeyboardInterrupt

    cfg = SimpleNamespace(image_size=32, text_tower='backbone', backbone='theirs', vocab_size=4096, context_length=16)
    monkeypatch.setattr('meru.models.model.load_towers', lambda name: SimpleNamespace(tokenizer=theirs))
    monkeypatch.setattr(R, 'load_run', lambda name: SimpleNamespace(cfg=cfg, eval=lambda: SimpleNamespace(cfg=cfg)))
    monkeypatch.setattr(R, 'encode_test_set', embed)
    monkeypatch.setattr(R, 'read_test_set', lambda *args: None)
    with pytest.raises(KeyboardInterrupt):
        R._generality_suite('a', 'b')
    assert seen == [theirs] and tokenizer_of(make_config('head_lorentz'))('as it is') == 'as it is'
