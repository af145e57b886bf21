"Two protocols: what differs is counted by hand, and against scikit-learn where it is the oracle."

import json
import pytest
import torch
from PIL import Image
from scipy.stats import kendalltau
from meru.geometry import get_geometry
from meru.evaluation.datasets import _imagenet_ids, _noun_parents, _some_of_each, _zeroshot_sets
from meru.evaluation.datasets import Captions, Classification, Pictures, read_data
from meru.evaluation.hierarchy import _ancestor_overlap, _hyco_metrics, _path_lengths, _threshold_metrics
from meru.evaluation.emoji_suite import untrained
from meru.evaluation.protocol import _draw_parts, Protocol, _protocol_table, _read_prompts
from meru.evaluation.suites import EvalConfig, evaluate_folder, evaluate_with_control, photo_summary, save_measures
from meru.evaluation.zeroshot import _cost_logits, _macro_accuracy, _paper_probe, _search_cost
from meru.models.model import ModelConfig
from meru.data.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures('in_root')
PAPER = Protocol('paper')


@pytest.fixture(scope='module')
def tiny():
    conv = dict(image_tower='conv', image_size=16, conv_width=8, image_width=32, image_depth=1)
    text = dict(text_width=64, text_depth=1, text_heads=1, context_length=24, vocab_size=600)
    return untrained(ModelConfig(embed_dim=16, **conv, **text), seed=3)


def paint(path, colour, size=(16, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new('RGB', size, colour)
    image.putpixel((0, 0), (255, 255, 255))
    image.save(path)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "A set with all three parts, one without, and captions of broad pictures."
    home = tmp_path_factory.mktemp('protocol')
    for part, n in dict(train=10, val=4, test=3).items():
        for k, animal in enumerate(('dog', 'tench')):
            for i in range(n):
                paint(home / 'animals' / part / animal / f'{i}.png', (120 * k + i, 10 * i, 200 - 100 * k))
    for k, name in enumerate(('AnnualCrop', 'River', 'Forest')):
        for i in range(10):
            paint(home / 'eurosat' / name / f'{i}.png', (80 * k + i, 3 * i, 40))
    for i in range(6):
        paint(home / 'pairs' / f'{i}.png', (30 * i, 90, 9), (32, 16))
    lines = [json.dumps(dict(file=f'{i}.png', captions=[f'shade {i}'])) for i in range(6)]
    (home / 'pairs' / 'captions.jsonl').write_text('\n'.join(lines))
    return home


# --- counting


def test_macro_accuracy_is_torchmetrics_definition():
    "Of the classes with a picture or a prediction, hits over pictures; by hand, and slowly."
    assert _macro_accuracy(torch.tensor([0, 2, 2]), torch.tensor([0, 0, 2])) == pytest.approx((1 / 2 + 1) / 2)
    assert _macro_accuracy(torch.tensor([5]), torch.tensor([0])) == 0
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        predicted, targets = torch.randint(7, (2, 12), generator=generator)
        each = []
        for k in range(7):
            pictures, hits = (targets == k).sum(), ((targets == k) & (predicted == k)).sum()
            if pictures or (predicted == k).any():
                each.append((hits / pictures).item() if pictures else 0.0)
        assert _macro_accuracy(predicted, targets) == pytest.approx(sum(each) / len(each), abs=1e-6)


def test_cost_search_takes_the_published_steps():
    tried = []

    def accuracy(cost):
        tried.append(cost)
        return 1.0 if cost == 100.0 else 0.0

    assert _search_cost(accuracy) == 100
    widths = [10, 10**0.5, 10**0.25, 10**0.125]
    wanted = [10.0**p for p in range(-6, 7, 2)] + [100 * w for v in widths for w in (1 / v, v)]
    assert tried == pytest.approx(wanted)  # nothing is fitted twice
    assert _search_cost(lambda cost: 1.0) == 1e-6


@pytest.mark.parametrize('classes', [2, 3])
def test_probe_is_that_of_scikit_learn(classes):
    linear_model = pytest.importorskip('sklearn.linear_model')
    generator = torch.Generator().manual_seed(classes)
    labels = torch.arange(90) % classes
    x = torch.randn(90, 4, generator=generator) + torch.eye(4)[labels]
    for cost in (0.01, 1.0):
        ours = _cost_logits((x[:60], labels[:60]), x[60:], classes, cost).softmax(1)
        oracle = linear_model.LogisticRegression(C=cost, max_iter=1000, tol=1e-10)
        theirs = oracle.fit(x[:60].double().numpy(), labels[:60].numpy()).predict_proba(x[60:].double().numpy())
        assert (ours - torch.as_tensor(theirs)).abs().max() < 1e-4


def test_probe_fits_again_on_both_parts():
    "A class that only the validation part shows can be named in the end."
    x = torch.eye(3).repeat_interleave(4, 0)
    y = torch.arange(3).repeat_interleave(4)
    logits, cost = _paper_probe((x[:8], y[:8]), (x, y), x, 3)
    assert logits.isfinite().all() and cost > 0
    assert _cost_logits((x[:8], y[:8]), x, 3, cost)[:, 2].isneginf().all()


# --- parts and prompts


def test_every_set_has_its_parts():
    sets = _zeroshot_sets()
    own = [i for i, e in sets.items() if e['paper'] == {}]
    assert own == ['aircraft', 'dtd', 'flowers102', 'country211', 'pcam', 'sst2']
    assert all('val' in sets[i]['torchvision'] for i in own)
    assert sets['eurosat']['paper'] == dict(train=5000, val=5000, test=5000)


def test_drawn_parts_are_disjoint_and_the_same_again():
    parts = _draw_parts(100, [0.1, 0.1, 0.8])
    assert [len(o) for o in parts] == [10, 10, 80] and torch.cat(parts).unique().numel() == 100
    assert all(torch.equal(a, b) for a, b in zip(parts, _draw_parts(100, [0.1, 0.1, 0.8])))
    assert [len(o) for o in _draw_parts(4, [5000, 5000])] == [2, 2]
    few, rest = _some_of_each(torch.tensor([0, 1, 0, 1, 0, 0]), 2)
    assert len(few) == 4 and sorted(torch.cat([few, rest]).tolist()) == list(range(6))


def test_parts_of_a_set_that_has_them_are_its_own(photos):
    task = read_data(photos / 'animals', 16)
    assert [len(o[1]) for o in (task.train, task.val)] == [20, 8] and len(task.targets) == 6
    assert task.by(PAPER).val is task.val and task.by(Protocol()) is task


def test_parts_that_are_drawn():
    pictures = Pictures(range(27_000), None, 4)
    whole = Classification('eurosat', pictures, torch.arange(27_000) % 10, list('abcdefghij'), [], ['{}'], None, '')
    task = whole.by(PAPER)
    assert [len(o) for o in (task.targets, task.train[1], task.val[1])] == [5000] * 3
    keys = [set(o.keys) for o in (task.pictures, task.train[0], task.val[0])]
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]
    assert task.targets.tolist() == [key % 10 for key in task.pictures.keys]
    scenes = whole._replace(name='clevr', train=(pictures, whole.targets)).by(PAPER)
    assert [len(o) for o in (scenes.train[1], scenes.val[1], scenes.targets)] == [4500, 500, 5000]


def test_sun397_by_its_published_partition(tmp_path):
    "torchvision has all pictures in one heap; the lists of the first partition say which are whose."
    home = tmp_path / 'sun397'
    for name in ('a/abbey', 'b/bar'):
        for i in range(6):
            paint(home / 'SUN397' / name / f'sun_{i}.jpg', (40 * i, 9, 80))
    (home / 'SUN397' / 'ClassName.txt').write_text('/a/abbey\n/b/bar\n')
    assert read_data(home, 16).train is None and len(read_data(home, 16).targets) == 12
    drawn = read_data(home, 16).by(PAPER)
    assert len(drawn.targets) + len(drawn.train[1]) + len(drawn.val[1]) <= 12
    (home / 'Training_01.txt').write_text('/a/abbey/sun_0.jpg\n/b/bar/sun_1.jpg\n/b/bar/sun_2.jpg\n')
    (home / 'Testing_01.txt').write_text('/b/bar/sun_5.jpg\n/a/abbey/sun_3.jpg\n')
    task = read_data(home, 16)
    assert task.targets.tolist() == [1, 0] and task.train[1].tolist() == [0, 1, 1]
    blue = lambda pictures: [round(o.float().mean((1, 2))[0].item() / 40) for o in pictures[:]]
    assert [abs(a - b) <= 1 for a, b in zip(blue(task.pictures), (5, 3))] == [True] * 2
    assert len(task.by(PAPER).targets) == 2
    (home / 'Testing_01.txt').write_text('/b/bar/sun_9.jpg\n')
    with pytest.raises(ValueError, match='list of the test part names /b/bar/sun_9.jpg'):
        read_data(home, 16)


def test_parts_with_as_many_of_each_class_to_test_on():
    pictures, targets = Pictures(range(480), None, 4), torch.arange(480) % 4
    task = Classification('sun397', pictures, targets, list('abcd'), [], ['{}'], None, '').by(PAPER)
    assert torch.bincount(task.targets).tolist() == [50] * 4
    assert len(task.train[1]) + len(task.val[1]) == 200 and len(task.val[1]) == 40


def test_caltech101_keeps_its_background(tmp_path):
    "Class folders as torchvision unpacks them; it would leave out the one that is no thing."
    for name in ('BACKGROUND_Google', 'Faces_easy', 'accordion'):
        for i in range(40):
            paint(tmp_path / 'caltech101/caltech101/101_ObjectCategories' / name / f'image_{i}.jpg', (6 * i, 9, 80))
    task = read_data(tmp_path / 'caltech101', 16)
    assert task.classes == ['background', 'face seen close', 'accordion'] and len(task.targets) == 120
    paper = task.by(PAPER)
    assert len(paper.train[1]) + len(paper.val[1]) == 90 and torch.bincount(paper.targets).tolist() == [10] * 3


def test_pictures_of_retrieval_are_squeezed():
    "A red left end that the central square has cut off."
    strip = torch.zeros(3, 4, 16, dtype=torch.uint8)
    strip[0, :, :4] = 255
    task = Captions('strips', Pictures([0], lambda key: strip, 4), ['red'], torch.tensor([0]))
    assert task.pictures[:].max() == 0 and task.by(Protocol()) is task
    squeezed = task.by(PAPER).pictures
    assert squeezed[:].shape == (1, 3, 4, 4) and squeezed[:][0, 0, :, 0].min() > 200
    assert squeezed.take([0]).squeezed


def paper_of(task):
    return PAPER.of('per_class', task.used)


def test_prompts_of_a_file(photos, tmp_path):
    (tmp_path / 'p.json').write_text(json.dumps(dict(eurosat=['{}, from above.'])))
    prompts = _read_prompts(tmp_path / 'p.json', _zeroshot_sets())
    rules = Protocol('paper', prompts, 'p.json')
    task = read_data(photos / 'eurosat', 16).by(rules)
    assert task.prompts == ['{}, from above.'] and task.used == 'prompts of p.json'
    assert read_data(photos / 'animals', 16).by(rules).prompts != task.prompts
    assert task.called == () and paper_of(task) == 'paper, our names'
    called = read_data(photos / 'eurosat', 16).by(rules._replace(classes=dict(eurosat=['a', 'b', 'c'])))
    assert called.called == ('a', 'b', 'c') and called.classes == task.classes and paper_of(called) == 'paper'
    with pytest.raises(ValueError, match='p.json names 1 classes of eurosat, which has 3'):
        read_data(photos / 'eurosat', 16).by(rules._replace(classes=dict(eurosat=['a'])))
    for bad, says in [({'eurosatt': ['{}']}, "'eurosatt'"), ({'dtd': ['x']}, "'x'"), ({'dtd': 'a {}'}, 'a list')]:
        (tmp_path / 'p.json').write_text(json.dumps(bad))
        with pytest.raises(ValueError, match=says):
            _read_prompts(tmp_path / 'p.json', _zeroshot_sets())


# --- the whole


def test_both_protocols(photos, tiny, tmp_path):
    tokenizer = Tokenizer(600, 24)
    named = dict(prompts=['{}, from above.'], classes=['fields', 'trees', 'water'])
    (tmp_path / 'p.json').write_text(json.dumps(dict(eurosat=named)))
    rules = EvalConfig(data=str(photos), protocol='paper', prompts=str(tmp_path / 'p.json')).rules
    ours = evaluate_folder(tiny, tokenizer, photos, 16)
    paper = evaluate_with_control(tiny, tokenizer, photos, 16, rules=rules)
    assert ours.rules.name == 'ours' and not {k for k in paper.skipped if k.startswith(('animals', 'pairs'))}
    value = lambda report, name, dataset='animals': report.measures.value(name, dataset)
    assert value(paper, 'probe_cost') > 0 and value(ours, 'probe_cost') is None
    assert value(paper, 'probe_images') == value(ours, 'probe_images') == 6
    assert value(paper, 'prompts', 'eurosat') == 'prompts of p.json, names of p.json'
    assert value(paper, 'images', 'eurosat') <= value(ours, 'images', 'eurosat') == 30
    lines = photo_summary(paper).splitlines()
    assert any('| animals | top-1 accuracy, mean of classes | paper, our prompts and names |' in o for o in lines)
    assert any('| eurosat | top-1 accuracy, mean of classes | paper |' in o for o in lines)
    assert any('| pairs | picture to caption, recall at 5 | paper |' in o for o in lines)
    assert any('| pairs | cone margin, AUC | ours |' in o for o in lines)
    assert '| paper |' not in photo_summary(ours)


def test_the_paper_fits_no_probe_on_imagenet(tiny, tmp_path):
    for synset, colour in dict(n01440764='red', n02084071='blue').items():
        for i in range(2):
            paint(tmp_path / 'imagenet' / synset / f'{i}.png', colour)
    report = evaluate_folder(tiny, Tokenizer(600, 24), tmp_path / 'imagenet', 16, rules=PAPER)
    assert report.skipped['imagenet: linear probe'] == 'the paper fits no probe on imagenet'


def test_which_protocol(tmp_path):
    released = EvalConfig(checkpoint='x/meru_vit_b.pth', data='data/local')
    assert released.rules.name == 'paper' and EvalConfig(data='data/local').rules.name == 'ours'
    assert EvalConfig(checkpoint='x/m.pth', data='data/local', protocol='ours').rules.name == 'ours'
    assert EvalConfig(checkpoint='x/m.pth').rules.name == 'ours'  # the drawings
    for bad, says in [(dict(protocol='theirs'), 'one of auto, paper, ours'), (dict(protocol='paper'), 'about photos')]:
        with pytest.raises(ValueError, match=says):
            EvalConfig(**bad)
    (tmp_path / 'last.safetensors').write_bytes(b'x')
    cfg = EvalConfig(run=str(tmp_path), data='data/local', protocol='paper')
    save_measures(cfg, [])
    assert json.loads(cfg.record.read_text())['protocol'] == 'paper'
    assert 'squeezed' in _protocol_table()


# --- HierarCaps


@pytest.mark.parametrize('name', ['lorentz', 'sphere', 'euclidean'])
def test_hierarcaps_is_its_own_loop(name):
    "Thresholds, nearest text, distinct texts: written out as a loop over pictures and radii."
    geometry, one = get_geometry(name), torch.tensor(1.3)
    rng = torch.Generator().manual_seed(4)
    points = geometry.exp_map0(torch.randn(60, 5, generator=rng), one)
    images, texts, root = points[:9], points[9:59], points[59]
    pictures = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 0])  # two of them have two references
    chains = torch.stack([torch.randperm(50, generator=rng)[:4] for _ in pictures])
    if name == 'sphere':
        radii = (texts - root).norm(dim=1)
    else:
        radii = geometry.dist(texts, root[None], one)
    scores = geometry.scores(images, texts, one)
    precisions, recalls = [], []
    for i in range(9):
        met = set()
        for k in range(50):
            limit = radii.min().double() + k / 49 * (radii.max().double() - radii.min().double())
            within = [t for t in range(50) if radii[t].double() <= limit or k == 49]
            met.add(max(within, key=lambda t: scores[i, t].item()))
        own = chains[pictures == i]
        precisions.append(len(met & set(own.flatten().tolist())) / len(met))
        recalls.append(sum(bool(met & set(level.tolist())) for level in own.T) / 4)
    got = _threshold_metrics(geometry, images, texts, root, chains, pictures, one)
    assert got.value('threshold_precision') == pytest.approx(sum(precisions) / 9, abs=1e-6)
    assert got.value('threshold_recall') == pytest.approx(sum(recalls) / 9, abs=1e-6)
    tau = [kendalltau(radii[own].argsort().tolist(), [1, 2, 3, 4]).statistic for own in chains]
    assert got.value('threshold_tau') == pytest.approx(sum(tau) / len(tau), abs=1e-6)


def test_hierarcaps_as_published(tmp_path, tiny):
    rows = ['7,"patch, red => red patch","http://host/val2014/COCO_val2014_000000000001.png"']
    rows += ['8,patch => a big red patch,http://host/val2014/COCO_val2014_000000000001.png']
    rows += ['9,patch => blue patch,http://host/val2014/COCO_val2014_000000000002.png']
    for number, colour in enumerate(('red', 'blue'), 1):
        paint(tmp_path / 'images' / f'COCO_val2014_00000000000{number}.png', colour)
    (tmp_path / 'hierarcaps_test.csv').write_text('\n'.join(['id,captions,image_url', *rows]))
    task = read_data(tmp_path, 16)
    chains = [[task.texts[i] for i in chain] for chain in task.chains]
    assert chains == [['patch, red', 'red patch'], ['patch', 'a big red patch'], ['patch', 'blue patch']]
    assert task.pictures.keys[0] == task.pictures.keys[1] != task.pictures.keys[2]
    report = evaluate_folder(tiny, Tokenizer(600, 24), tmp_path, 16)
    got = {m.name: m.value for m in report.measures if m.dataset == tmp_path.stem}
    assert 0 <= got['threshold_precision'] <= 1 and 0 <= got['path_precision'] <= 1
    assert not [o for o in report.skipped if o.startswith(tmp_path.stem) and 'hierarchy' not in o]
    (tmp_path / 'hierarcaps_test.csv').write_text('id,captions,image_url\n1,,http://host/x.png')
    with pytest.raises(ValueError, match='line 2 of hierarcaps_test.csv'):
        read_data(tmp_path, 16)


# --- trees

EDGES = [('thing', 'animal'), ('thing', 'plant'), ('animal', 'cat'), ('animal', 'dog'), ('plant', 'rose')]


def test_hycoclip_measures_by_hand():
    names = ['cat', 'dog', 'rose']
    one = lambda p, t: {
        m.name: m.value for m in _hyco_metrics(torch.tensor([p]), torch.tensor([t]), names, EDGES)
    }  # ancestors: {animal, thing}, {animal, thing}, {plant, thing}
    zero = dict(hyco_jaccard=1, hyco_precision=1, hyco_recall=1, hyco_lca=1)
    assert one(0, 0) == zero | dict(hyco_tie=0) and one(0, 1) == zero | dict(hyco_tie=2)
    assert one(0, 2) == dict(hyco_tie=4, hyco_lca=2, hyco_jaccard=1 / 3, hyco_precision=1 / 2, hyco_recall=1 / 2)


def test_tree_error_agrees_on_our_tree():
    "Paths that are searched for are as long as ours, which are counted, on all of ImageNet's classes."
    ids = _imagenet_ids()[::40]
    edges = [(up, noun) for noun, up in _noun_parents().items()]
    overlap = _ancestor_overlap(ids, _noun_parents())
    depth = overlap.diagonal()
    assert torch.equal(_path_lengths(ids, edges).long(), depth[:, None] + depth - 2 * overlap)


def test_a_graph_that_is_brought(photos, tiny, tmp_path):
    (tmp_path / 'isa.txt').write_text('n00001740 n02084071\nn00001740 n01440764\n')
    cfg = EvalConfig(data=str(photos), graph=str(tmp_path / 'isa.txt'))
    report = evaluate_folder(tiny, Tokenizer(600, 24), photos / 'animals', 16, rules=cfg.rules)
    ours = evaluate_folder(tiny, Tokenizer(600, 24), photos / 'animals', 16)
    wrong = 1 - report.measures.value('top1', 'animals')
    assert report.measures.value('hyco_tie', 'animals') == pytest.approx(2 * wrong)
    assert ours.measures.value('hyco_tie', 'animals') == ours.measures.value('tree_error', 'animals')
    assert ours.measures.value('hyco_lca', 'animals') >= 1
    assert any('| HyCoCLIP |' in o for o in photo_summary(report).splitlines())
    (tmp_path / 'isa.txt').write_text('n00001740 n02084071 n01440764\n')
    with pytest.raises(ValueError, match='line 1 of .*isa.txt is no edge'):
        cfg.rules
