"""Triton's kernels compiled for GPUs that are not here, and what they take. `python tests/kernels.py` writes
outputs/benchmarks/kernels.json, to whose numbers the tests hold them and from which their page estimates times."""

import json
import re
import subprocess
import tempfile
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from meru.losses import triton_kernels as kernels

JSON = Path(__file__).parent.parent / 'outputs/benchmarks/kernels.json'
TOOLS = Path(triton.__file__).parent / 'backends/nvidia/bin'
WIDTH = 520  # of a row: 512 dimensions and the columns beside them
# capability, precision, which block of the list, which kernel
CASES = [(90, p, i, k) for p, i in (('bf16', 0), ('bf16', 2), ('tf32x3', 0)) for k in ('sums', 'shares')]
CASES += [(90, 'bf16', 1, 'shares')]  # a tile whose sums do not fit the registers
CASES += [(80, 'tf32x3', 0, 'sums'), (89, 'bf16', 0, 'shares'), (100, 'bf16', 0, 'sums'), (100, 'tf32x3', 0, 'shares')]


def width_of(precision, block):
    "Columns of padded rows."
    width = WIDTH + 2 * kernels._TAIL * kernels._precisions[precision].half
    return -(-width // block.deep) * block.deep


def compiled(capability, precision, block, kind):
    "A kernel for the acosh of 16-byte aligned rows, as the loss launches it on a full batch."
    kernel, how = getattr(kernels, f'_{kind}_kernel'), kernels._precisions[precision]
    constants = dict(K=width_of(precision, block), LINK=1, BM=block.high, BN=block.wide, BK=block.deep)
    constants |= dict(DOT=how.dot, PARTS=max(1, how.parts), EVEN=True)
    types = dict.fromkeys('AB', '*bf16' if how.half else '*fp32') | dict.fromkeys(('IDA', 'IDB'), '*i32')
    types |= {name: 'constexpr' for name in constants} | dict(W='*bf16' if how.parts else '*fp32')
    signature = {o: types.get(o, '*fp32' if o.isupper() else 'i32') for o in kernel.arg_names}
    places = {(i,): o for i, o in enumerate(kernel.arg_names)}
    fixed = {i: constants[o] for i, o in places.items() if o in constants}
    aligned = {i: [['tt.divisibility', 16]] for i, o in places.items() if o not in constants}
    options = dict(num_warps=block.warps, num_stages=block.stages, enable_fp_fusion=True)
    return triton.compile(ASTSource(kernel, signature, fixed, aligned), GPUTarget('cuda', capability, 32), options)


def instructions(assembly):
    "Opcodes in order, and first and last of each loop with products, the outermost first."
    opcodes, labels, loops = [], {}, []
    for line in assembly.splitlines():
        if label := re.match(r'\s*(\.L_x_\d+):', line):
            labels[label[1]] = len(opcodes)
        elif found := re.match(r'\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+\s+)?([A-Z0-9_.]+)(.*)', line):
            opcodes.append(found[1])
            target = re.search(r'\.L_x_\d+', found[2])
            back = found[1].startswith('BRA') and target and target[0] in labels
            if back and not opcodes[-2].startswith('BRA'):  # a branch after another ends a wait that lies elsewhere
                loops.append((labels[target[0]], len(opcodes)))
    loops = [(a, b) for a, b in loops if any('MMA' in o for o in opcodes[a:b])]
    return opcodes, sorted(loops, key=lambda o: o[0] - o[1])


def counts(assembly, kind, steps):
    "What a thread executes for a tile, all steps of its products with it; and besides for each block of columns."
    opcodes, loops = instructions(assembly)
    spans = [opcodes, *(opcodes[a:b] for a, b in loops)]
    sums = kind == 'sums'  # its tiles lie in a loop over rows in one over columns
    tile, *step = spans[2 if sums else 0 :]  # one step of the products, where they are a loop
    assert len(step) < 2
    found = {}
    for name, count in (('instructions', len), ('special', lambda o: sum(op.startswith('MUFU') for op in o))):
        found[name] = count(tile) + sum(map(count, step)) * (steps - 1)
        found[f'column_{name}'] = count(spans[1]) - count(tile) if sums else 0
    return found


def taken(capability, precision, place, kind):
    "Registers and spilled bytes of a thread, and what it executes."
    block = kernels._blocks(capability, precision)[place]
    width = width_of(precision, block)
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(compiled(capability, precision, block, kind).asm['cubin'])
        file.flush()
        usage, assembly = (
            subprocess.run([TOOLS / tool, flag, file.name], capture_output=True, text=True, check=True).stdout
            for tool, flag in (('cuobjdump', '-res-usage'), ('nvdisasm', '-c'))
        )
    numbers = {
        name: int(re.search(rf'{key}:(\d+)', usage)[1]) for name, key in (('registers', 'REG'), ('spilled', 'STACK'))
    }
    case = dict(capability=capability, precision=precision, kernel=kind, block=list(block), width=width)
    return case | numbers | counts(assembly, kind, width // block.deep)


if __name__ == '__main__':
    rows = [taken(*case) for case in CASES]
    JSON.write_text(json.dumps(dict(what='a thread, one tile', triton=triton.__version__, rows=rows), indent=1) + '\n')
    print(*rows, sep='\n')
