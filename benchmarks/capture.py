"""What does a fingerprint cost, beside a training step of the same data? Prints a Markdown table.

    python benchmarks/capture.py [--shape quickstart --shape small ...] [--device cuda] [--rounds 5]

Everything runs in one process, in turn (A B C A B C ...), and is given as medians and as ratios within a round, because
a machine's speed drifts. Peak memory is measured in processes of their own: how far a pass rises above the loaded
model. Weights are random: neither time nor memory depends on their values.
"""

import json
import statistics
import subprocess
import sys
import time
import typing as tp

import torch
import typer

from lumina_plugin import compat

compat.install()

from audiocraft.models.lm import LMModel  # noqa: E402  (after the shims)
from audiocraft.modules.codebooks_patterns import DelayedPatternProvider  # noqa: E402
from audiocraft.modules.conditioners import ConditionFuser, ConditioningProvider, LUTConditioner  # noqa: E402

from lumina_plugin.channels import Block  # noqa: E402
from lumina_plugin.conditions import attributes_for  # noqa: E402
from lumina_plugin.fingerprint import Example, Fingerprinter, Song  # noqa: E402
from lumina_plugin.projection import BlockReducers, ChannelProjection, FittedProjection  # noqa: E402
from lumina_plugin.recipe import Recipe, get_recipe  # noqa: E402

# d, heads, layers, hidden scale, codes of a codebook, frames of 10 s, cross attention; MusicGen's published sizes
SHAPES: tp.Dict[str, tp.Tuple[int, int, int, int, int, int, bool]] = {
    'quickstart': (128, 4, 4, 2, 256, 250, False),
    'small': (1024, 16, 24, 4, 2048, 500, True),
    'medium': (1536, 24, 48, 4, 2048, 500, True),
    'large': (2048, 32, 48, 4, 2048, 500, True),
}
TEXT = 'a slow waltz for plucked strings with a warm pad and brushed drums in a large room'
Pass = tp.Callable[[], tp.Any]


def build(shape: str, device: str) -> LMModel:
    """MusicGen's language model of one of its sizes with random weights; words stand in for T5, four by four."""
    dim, heads, layers, scale, card, _, cross = SHAPES[shape]
    torch.manual_seed(0)
    provider = ConditioningProvider({'description': LUTConditioner(256, dim // 4, dim, tokenizer='noop')})
    fuse = 'cross' if cross else 'prepend'
    fuser = ConditionFuser({**{'sum': [], 'prepend': [], 'cross': [], 'input_interpolate': []}, fuse: ['description']})
    return LMModel(
        DelayedPatternProvider(4), provider, fuser, n_q=4, card=card, dim=dim, num_heads=heads, num_layers=layers,
        hidden_scale=scale, norm='layer_norm', norm_first=True, causal=True, activation='gelu', memory_efficient=True,
        custom=False, bias_proj=False, bias_ff=False, bias_attn=False, dropout=0., weight_init='gaussian',
        depthwise_init='current', zero_bias_init=True, cfg_dropout=0., cross_attention=cross).to(device).eval()


def examples_of(lm: LMModel, shape: str, batch: int) -> tp.List[Example]:
    frames = SHAPES[shape][5]
    codes = torch.randint(0, lm.card, (batch, 4, frames), generator=torch.Generator().manual_seed(0))
    return [Example(one, 0, frames, attributes_for(lm, TEXT)) for one in codes]


def autocast_of(device: str) -> tp.Optional[tp.Callable[[], tp.ContextManager]]:
    return (lambda: torch.autocast('cuda', torch.bfloat16)) if device == 'cuda' else None


def training_step(lm: LMModel, examples: tp.Sequence[Example], device: str, backward: bool = True) -> Pass:
    """Forward and backward pass of the training loss on a batch, gradients of all weights, no optimiser."""
    codes = torch.stack([example.codes for example in examples]).to(device)
    autocast = autocast_of(device)

    def step() -> None:
        with torch.set_grad_enabled(backward):
            with autocast() if autocast else torch.autocast('cpu', enabled=False):
                provider = lm.condition_provider
                conditions = provider(provider.tokenize([example.attributes for example in examples]))
                out = lm.compute_predictions(codes, [], conditions)
                loss = torch.stack([
                    torch.nn.functional.cross_entropy(out.logits[:, k][out.mask[:, k]], codes[:, k][out.mask[:, k]])
                    for k in range(4)]).mean()
            if backward:
                loss.backward()
        lm.zero_grad(set_to_none=True)
    return step


def factors(blocks: tp.Sequence[Block], width: tp.Optional[int], device: str) -> tp.Dict[str, torch.Tensor]:
    """Random two-sided factors of the shapes that `BlockReducers.fit` gives."""
    sides = [(f'{block.name}.{side}', size) for block in blocks
             for side, size in (('in', block.in_features), ('out', block.out_features))]
    return {name: torch.randn(size, width, device=device) / size ** 0.5
            for name, size in sides if width is not None and size > width}


def fingerprint_pass(lm: LMModel, examples: tp.Sequence[Example], recipe: Recipe, device: str,
                     batch_size: tp.Optional[int] = None) -> Pass:
    """Everything from codes to fingerprints, with projections as wide as those of a catalogue of thousands.

    Factors and principal directions have random entries: a fit would take minutes and end in the same shapes.
    """
    fingerprinter = Fingerprinter(lm, recipe, batch_size=batch_size or len(examples), autocast=autocast_of(device))
    songs = [Song(str(index), [example]) for index, example in enumerate(examples)]
    rank = recipe.projection.dim - recipe.projection.residual_dim
    projections = {}
    for channel, blocks in fingerprinter.channels.items():
        reducer = BlockReducers(blocks, factors(blocks, recipe.projection.block_width, device), recipe.block_norm)
        basis = torch.randn(reducer.dim, rank, device=device) / reducer.dim ** 0.5
        mean = torch.zeros(reducer.dim, device=device)
        projections[channel] = ChannelProjection(
            reducer, FittedProjection(mean, basis, recipe.projection.dim, recipe.projection.seed, rank))
    fingerprinter.projections = projections
    return lambda: list(fingerprinter.fingerprints(songs))


def passes(shape: str, batch: int, device: str) -> tp.Dict[str, tp.Callable[[], Pass]]:
    """What is compared, by name, each made when it is asked for."""
    lm = build(shape, device)
    examples = examples_of(lm, shape, batch)
    default = get_recipe('default')
    production = get_recipe('default', channels={'M': ['output_linears']})
    return {
        'forward + backward': lambda: training_step(lm, examples, device),
        'forward alone': lambda: training_step(lm, examples, device, backward=False),
        'fingerprint P + M': lambda: fingerprint_pass(lm, examples, default, device),
        'fingerprint M alone': lambda: fingerprint_pass(lm, examples, production, device),
    }


def timed(step: Pass, device: str) -> float:
    if device == 'cuda':
        torch.cuda.synchronize()
    begun = time.perf_counter()
    step()
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def speed(shape: str, batch: int, device: str, rounds: int) -> tp.Dict[str, tp.List[float]]:
    """Seconds of each pass in each round, after one round that is not counted."""
    steps = {name: make() for name, make in passes(shape, batch, device).items()}
    seconds: tp.Dict[str, tp.List[float]] = {name: [] for name in steps}
    for index in range(rounds + 1):
        for name, step in steps.items():
            took = timed(step, device)
            if index:
                seconds[name].append(took)
    return seconds


def _resident(field: str) -> int:
    with open('/proc/self/status') as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def peak_above(make: tp.Callable[[], Pass], device: str) -> int:
    """Bytes that a pass needs beyond what is loaded, its own preparation included; to be called in a fresh process."""
    if device == 'cuda':
        before = torch.cuda.memory_allocated()
        step = make()
        step()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    before = _resident('VmRSS')
    step = make()
    step()
    with open('/proc/self/clear_refs', 'w') as refs:
        refs.write('5')  # forget the highest mark so far
    step()
    return _resident('VmHWM') - before


def memory(shape: str, batch: int, device: str) -> tp.Dict[str, int]:
    found = {}
    for name in ('forward + backward', 'fingerprint P + M', 'fingerprint M alone'):
        argv = [sys.executable, __file__, '--peak', name, '--shape', shape, '--batch', str(batch), '--device', device]
        found[name] = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
    return found


def table(shape: str, batch: int, device: str, rounds: int) -> tp.List[str]:
    """Rows of one shape: seconds, ratio to a training step, tokens per second, memory and its ratio."""
    seconds, peaks = speed(shape, batch, device, rounds), memory(shape, batch, device)
    base, base_memory = seconds['forward + backward'], peaks['forward + backward']
    frames = SHAPES[shape][5]
    lines = []
    for name, took in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(took, base, strict=True))
        peak = peaks.get(name)
        cells = [shape, f'{batch} × 10 s', name, f'{statistics.median(took):.3f}', f'{ratio:.3f}',
                 f'{batch * 4 * frames / statistics.median(took):,.0f}',
                 f'{peak / 2 ** 20:,.0f}' if peak is not None else '', f'{peak / base_memory:.2f}' if peak else '']
        lines.append('| ' + ' | '.join(cells) + ' |')
        print(lines[-1], file=sys.stderr, flush=True)
    return lines


HEAD = ['| shape | batch | pass | seconds (median) | ÷ forward + backward | codes/s | MiB above the model | ÷ its |',
        '|---|---|---|---|---|---|---|---|']


def main(shape: tp.Optional[tp.List[str]] = None, batch: int = 0, device: str = 'cpu', rounds: int = 5,
         peak: str = '') -> None:
    """Measure and print."""
    shapes = shape or ['quickstart', 'small']
    batches = {'quickstart': 8, 'small': 2, 'medium': 8, 'large': 8} if device == 'cpu' else {}
    if peak:
        print(json.dumps(peak_above(passes(shapes[0], batch, device)[peak], device)))
        return
    lines = list(HEAD)
    for one in shapes:
        lines += table(one, batch or batches.get(one, 8), device, rounds)
    print('\n'.join(lines))


if __name__ == '__main__':
    typer.run(main)
