"A pretended GPU: what an update would launch, copy, wait for and send there, from fake tensors."

import sys
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from meru.losses import triton_kernels as kernels
from meru.models.model import build_model
from meru.training import memory, trainer
from meru.training.optim import make_optimizer
from meru.training.step import to_device

PACKAGE = Path(kernels.__file__).parents[1]
aten = torch.ops.aten


def _where():
    "The innermost function of the package that is running."
    frame = sys._getframe(1)
    while frame:
        path = Path(frame.f_code.co_filename)
        if PACKAGE in path.parents and path.stem != 'memory':
            return f'{path.stem}.{frame.f_code.co_name}'
        frame = frame.f_back
    return 'torch'


class Watch(TorchDispatchMode):
    "Notes what reaches the device: launches by name, copies from and to it, and places where the host waits for it."

    def __init__(self):
        super().__init__()
        self.launches, self.copies, self.waits, self.exchanges = Counter(), Counter(), [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        on_gpu = [o for o in tree_leaves((args, kwargs)) if isinstance(o, FakeTensor) and o.device.type == 'cuda']
        if on_gpu and func is aten._local_scalar_dense.default:  # others that wait do not work on fake tensors
            self.waits.append(f'{func.__name__.split(".")[0].strip("_")} in {_where()}')
        out = memory._without_numbers(func, args)
        if func is aten._fused_adamw_.tensor_lr:  # has no form for fake tensors, and returns nothing
            self.launches[func.__name__] += 1
        elif out is None:
            out = func(*args, **kwargs)
        if func.namespace == 'c10d':
            self._exchanged(func, args)
            return out
        made = [o for o in tree_leaves(out) if isinstance(o, FakeTensor)]
        if made and func in (aten._to_copy.default, aten.copy_.default):
            self._copied(func, args, kwargs, made[0])
        elif any(o.device.type == 'cuda' for o in made) and not func.is_view:
            self.launches[func.__name__] += 1
        return out

    def _exchanged(self, func, args):
        sent = [o for o in tree_leaves(args) if isinstance(o, torch.Tensor)]
        sizes = ' '.join(f'{o.dtype}{list(o.shape)}'.removeprefix('torch.') for o in sent)
        self.exchanges.append(f'{func._opname.strip("_")} {sent[0].device.type} {sizes} in {_where()}')

    def _copied(self, func, args, kwargs, out):
        source = args[1] if func is aten.copy_.default else args[0]
        kinds = source.device.type, out.device.type
        if kinds == ('cuda', 'cuda'):
            self.launches[func.__name__] += 1
        elif 'cuda' in kinds:
            asynchronous = kwargs.get('non_blocking') or (len(args) > 2 and args[2])
            self.copies['{} to {}'.format(*kinds)] += 1
            if not asynchronous:
                self.waits.append(f'copy from {kinds[0]} to {kinds[1]} in {_where()}')


@torch.no_grad()
def backward(roots, grads=None):
    "Autograd's engine in Python: its own asks for a CUDA driver."
    roots = [roots] if isinstance(roots, torch.Tensor) else roots
    grads = [torch.ones_like(root) for root in roots] if grads is None else grads
    received = {}
    for root, grad in zip(roots, grads):
        edge = torch.autograd.graph.get_gradient_edge(root)
        received.setdefault(edge.node, {})[edge.output_nr] = grad
    needed, order, seen = Counter(), list(received), set(received)
    for node in order:
        for following, _ in node.next_functions:
            needed[following] += 1
            if following and following not in seen:
                seen.add(following)
                order.append(following)
    ready = [node for node in received if not needed[node]]
    while ready:
        node = ready.pop()
        given = received.pop(node, {})
        call = node.apply if isinstance(node, torch.autograd.function.BackwardCFunction) else node
        sent = call(*[given.get(i) for i in range(len(node._input_metadata))]) if given else ()
        sent = sent if isinstance(sent, tuple) else (sent,)
        for (following, place), grad in zip(node.next_functions, sent or (None,) * len(node.next_functions)):
            if following is None:
                continue
            at = received.setdefault(following, {})
            if grad is not None:
                meant = following._input_metadata[place]
                grad = grad.sum_to_size(meant.shape).to(meant.dtype)
                at[place] = at[place] + grad if place in at else grad
            needed[following] -= 1
            if not needed[following]:
                ready.append(following)


def grad(loss, leaves):
    "`torch.autograd.grad`, by that engine."
    before = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    backward(loss)
    found = [leaf.grad for leaf in leaves]
    for leaf, kept in zip(leaves, before):
        leaf.grad = kept
    return found


class Kernel:
    "Stands for a Triton kernel; notes its launches."

    def __init__(self, name, watch):
        self.name, self.watch = name, watch

    def __getitem__(self, grid):
        return lambda *args, **options: self.watch.launches.update([self.name])


def small(cfg):
    "The same update with towers of one block: no wait depends on how many there are."
    depths = {name: min(getattr(cfg, name), 1) for name in ('image_depth', 'text_depth')}
    return replace(cfg, **depths, compile='off', device='cpu')


@contextmanager
def pretended(watch, monkeypatch):
    "A GPU with fake numbers, on which a watch counts the kernels."
    monkeypatch.setattr('torch.cuda.amp.common.amp_definitely_not_available', lambda: False)
    monkeypatch.setattr('torch.cuda.is_bf16_supported', lambda *args: True)
    monkeypatch.setattr('torch.cuda.device_of', lambda x: nullcontext())
    monkeypatch.setattr(kernels, '_runs_on', lambda device: True)
    monkeypatch.setattr(kernels, '_best_block', lambda *args: kernels._Block(64, 64, 32))
    for name in ('_sums_kernel', '_shares_kernel'):
        monkeypatch.setattr(kernels, name, Kernel(name, watch))
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def begun(cfg):
    "A model and its optimiser on a GPU, and a batch on the way there."
    batch = memory._fake_batch(cfg, cfg.batch_size)
    with torch.device('cuda'), Watch():
        model = build_model(cfg)
    return model, make_optimizer(model, cfg.lr, cfg.weight_decay, cfg.betas, cfg.decay_all), batch


def step(cfg, monkeypatch):
    "One update of a config on a pretended GPU, as the training loop makes it; what it took."
    watch = Watch()
    with pretended(watch, monkeypatch):
        model, optimiser, batch = begun(cfg)
        with watch:
            moved = to_device(batch, replace(cfg, compile='off'), 'cuda')
            monkeypatch.setattr(torch.autograd, 'backward', backward)  # of all micro-batches but the last
            monkeypatch.setattr(torch.autograd, 'grad', grad)
            trainer.update(model, optimiser, moved, cfg, 0, backward)
    return watch


def repeated_step(cfg, monkeypatch):
    "What recording an update takes on a pretended GPU, and what repeating it takes besides."
    recorded, repeated = Watch(), Watch()
    stream = SimpleNamespace(wait_stream=lambda other: None)
    graph = SimpleNamespace(replay=lambda: repeated.launches.update(['replay']))
    cuda = dict(CUDAGraph=lambda: graph, graph=lambda graph: recorded, Stream=lambda: stream)
    cuda |= dict(current_stream=lambda: stream, stream=lambda stream: nullcontext())
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(trainer, '_move', partial(trainer._move, backward=backward))
    with pretended(recorded, monkeypatch):
        model, optimiser, batch = begun(cfg)
        moved, seen = to_device(batch, cfg, 'cuda'), trainer._Watch()
        run = trainer._recorded_update(model, optimiser, cfg, 'cuda')
        for i in range(5):
            repeated.launches.clear()
            with repeated if i == 4 else Watch():
                seen.see(run(moved, i)['bad'], i, read=False)
    return recorded, repeated


@contextmanager
def ranks(n):
    "This process as the first of n that hold equally many pairs and answer nothing."
    dist.init_process_group('fake', rank=0, world_size=n, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()
