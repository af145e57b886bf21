"A pretended GPU: what an update would launch, copy, wait for and send there, from fake tensors."

import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from meru.losses import triton_kernels as kernels
from meru.models.model import build_model
from meru.training import memory
from meru.training.optim import make_optimizer
from meru.training.step import to_device
from meru.training.trainer import update

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


def _half(x, masks):
    "Half of the rows, or of whatever a mask chooses from."
    halved = [size // (1 if i >= len(masks) or masks[i] is None else 2) for i, size in enumerate(x.shape)]
    return x.new_empty(halved)


class Watch(TorchDispatchMode):
    "Notes what reaches the device: launches by name, copies from and to it, and places where the host waits for it."

    def __init__(self):
        super().__init__()
        self.launches, self.copies, self.waits, self.exchanges = Counter(), Counter(), [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        on_gpu = [o for o in tree_leaves((args, kwargs)) if isinstance(o, FakeTensor) and o.device.type == 'cuda']
        waiting = (aten._local_scalar_dense.default, aten._unique2.default, aten.nonzero.default)
        masked = func is aten.index.Tensor and any(o is not None and o.dtype == torch.bool for o in args[1])
        if on_gpu and (func in waiting or masked):
            self.waits.append(f'{func.__name__.split(".")[0].strip("_")} in {_where()}')
        out = _half(*args) if masked and on_gpu else memory._without_numbers(func, args)
        out = func(*args, **kwargs) if out is None else out
        if func.namespace == 'c10d':
            self._exchanged(func, args)
            return out
        made = [o for o in tree_leaves(out) if isinstance(o, FakeTensor)]
        if func in (aten._to_copy.default, aten.copy_.default):
            self._copied(func, args, kwargs, made[0])
        elif any(o.device.type == 'cuda' for o in made) and not func.is_view:
            self.launches[func.__name__] += 1
        return out

    def _exchanged(self, func, args):
        sent = [o for o in tree_leaves(args) if isinstance(o, FakeTensor)]
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
def backward(loss):
    "Autograd's engine in Python: its own asks for a CUDA driver."
    needed, order, seen = Counter(), [loss.grad_fn], {loss.grad_fn}
    for node in order:
        for following, _ in node.next_functions:
            needed[following] += 1
            if following and following not in seen:
                seen.add(following)
                order.append(following)
    received, ready = {loss.grad_fn: {0: torch.ones_like(loss)}}, [loss.grad_fn]
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


def batch_of(cfg):
    "A batch of a config's shapes, with a part of each picture where it learns parts."
    batch = memory._fake_batch(cfg, cfg.batch_size)
    if cfg.chains != 'parts':
        return batch
    ids, chains = batch.text_ids, batch.chains
    both = torch.stack([ids + len(ids), ids], 1)
    owners = torch.cat([ids, ids, ids + len(ids)])
    chains = chains._replace(of_images=both.repeat(3, 1), owners=owners)
    return batch._replace(images=batch.images.repeat(2, 1, 1, 1), chains=chains)


def step(cfg, monkeypatch):
    "One update of a config on a pretended GPU, as the training loop makes it; what it took."
    watch = Watch()
    monkeypatch.setattr('torch.cuda.amp.common.amp_definitely_not_available', lambda: False)
    monkeypatch.setattr('torch.cuda.is_bf16_supported', lambda *args: True)
    monkeypatch.setattr(kernels, '_runs_on', lambda device: True)
    monkeypatch.setattr(kernels, '_best_block', lambda *args: kernels._Block(64, 64, 32))
    for name in ('_sums_kernel', '_shares_kernel'):
        monkeypatch.setattr(kernels, name, Kernel(name, watch))
    with FakeTensorMode(allow_non_fake_inputs=True):
        batch = batch_of(cfg)
        with torch.device('cuda'), Watch():
            model = build_model(cfg)
        optimiser = make_optimizer(model, cfg.lr, cfg.weight_decay, cfg.betas, cfg.decay_all)
        with watch:
            moved = to_device(batch, replace(cfg, compile='off'), 'cuda')
            update(model, optimiser, moved, cfg, 0, backward)
    return watch


@contextmanager
def ranks(n):
    "This process as the first of n that hold equally many pairs and answer nothing."
    dist.init_process_group('fake', rank=0, world_size=n, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()
