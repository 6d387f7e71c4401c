"""What does a fingerprint cost, beside a training step of the same data? Prints a Markdown table.

    python benchmarks/capture.py [--shape quickstart --shape small ...] [--device cuda] [--rounds 5]

Everything runs in one process, in turn (A B C A B C ...), and is given as medians and as ratios within a round, because
a machine's speed drifts. A round is several batches of songs, as a catalogue is. Peak memory is measured in processes
of their own: how far a pass rises above the loaded model. On a CPU the projections are pages of a file, as in a real
pass; they are given apart. Weights are random: neither time nor memory depends on their values.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import typing as tp
from pathlib import Path

import torch
import typer
from safetensors.torch import load_file, save_file

from lumina_plugin import compat

compat.install()

from audiocraft.models.lm import LMModel  # noqa: E402  (after the shims)
from audiocraft.modules.codebooks_patterns import DelayedPatternProvider  # noqa: E402
from audiocraft.modules.conditioners import ConditionFuser, ConditioningProvider, LUTConditioner  # noqa: E402

from lumina_plugin.channels import Block  # noqa: E402
from lumina_plugin.conditions import attributes_for  # noqa: E402
from lumina_plugin.fingerprint import Fingerprinter, Song  # noqa: E402
from lumina_plugin.gradients import Example  # noqa: E402
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


def examples_of(lm: LMModel, shape: str, count: int) -> tp.List[Example]:
    """So many chunks of random codes."""
    frames = SHAPES[shape][5]
    codes = torch.randint(0, lm.card, (count, 4, frames), generator=torch.Generator().manual_seed(0))
    return [Example(one, 0, frames, attributes_for(lm, TEXT)) for one in codes]


def autocast_of(device: str) -> tp.Optional[tp.Callable[[], tp.ContextManager]]:
    return (lambda: torch.autocast('cuda', torch.bfloat16)) if device == 'cuda' else None


def training_steps(lm: LMModel, examples: tp.Sequence[Example], batch: int, device: str, backward: bool = True
                   ) -> Pass:
    """Forward and backward passes of the training loss on all batches, gradients of all weights, no optimiser."""
    autocast = autocast_of(device)

    def step(some: tp.Sequence[Example]) -> None:
        codes = torch.stack([example.codes for example in some]).to(device)
        with torch.set_grad_enabled(backward):
            with autocast() if autocast else torch.autocast('cpu', enabled=False):
                provider = lm.condition_provider
                conditions = provider(provider.tokenize([example.attributes for example in some]))
                out = lm.compute_predictions(codes, [], conditions)
                loss = torch.stack([
                    torch.nn.functional.cross_entropy(out.logits[:, k][out.mask[:, k]], codes[:, k][out.mask[:, k]])
                    for k in range(4)]).mean()
            if backward:
                loss.backward()
        lm.zero_grad(set_to_none=True)
    return lambda: [step(examples[first:first + batch]) for first in range(0, len(examples), batch)]


def factors(blocks: tp.Sequence[Block], width: tp.Optional[int], device: str) -> tp.Dict[str, torch.Tensor]:
    """Random two-sided factors of the shapes that `BlockReducers.fit` gives."""
    sides = [(f'{block.name}.{side}', size) for block in blocks
             for side, size in (('in', block.in_features), ('out', block.out_features))]
    return {name: torch.randn(size, width, device=device) / size ** 0.5
            for name, size in sides if width is not None and size > width}


def fingerprint_pass(lm: LMModel, examples: tp.Sequence[Example], recipe: Recipe, batch: int, device: str) -> Pass:
    """Everything from codes to fingerprints, with projections as wide as those of a catalogue of thousands.

    Factors and principal directions have random entries: a fit would take minutes and end in the same shapes.
    """
    fingerprinter = Fingerprinter(lm, recipe, batch_size=batch, autocast=autocast_of(device))
    songs = [Song(str(index), [example]) for index, example in enumerate(examples)]
    fingerprinter.projections = {
        channel: mapped_projection(fingerprinter, channel, BlockReducers(
            blocks, factors(blocks, recipe.projection.width_of(channel), device), recipe.block_norm))
        for channel, blocks in fingerprinter.channels.items()}
    return lambda: list(fingerprinter.fingerprints(songs))


def mapped_projection(fingerprinter: Fingerprinter, channel: str, reducer: BlockReducers) -> ChannelProjection:
    """A channel's projection with random principal directions, written to a file and mapped as a store maps it."""
    config = fingerprinter.recipe.projection
    rank = config.dim - (config.residual_dim or 0)
    made = ChannelProjection(reducer, FittedProjection(
        torch.zeros(reducer.dim), torch.randn(reducer.dim, rank) / reducer.dim ** 0.5, config.dim, config.seed, rank,
        residual=bool(config.residual_dim)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'projection.safetensors'
        save_file({name: tensor.cpu().contiguous() for name, tensor in made.tensors().items()}, path)
        return ChannelProjection.load(fingerprinter.channels[channel], load_file(path), made.facts(),
                                      fingerprinter.recipe.block_norm, fingerprinter.device)


def passes(shape: str, batch: int, device: str, batches: int) -> tp.Dict[str, tp.Callable[[], Pass]]:
    """What is compared, by name, each made when it is asked for."""
    lm = build(shape, device)
    examples = examples_of(lm, shape, batch * batches)
    default = get_recipe('default')
    production = get_recipe('default', channels={'M': ['output_linears']})
    return {
        'forward + backward': lambda: training_steps(lm, examples, batch, device),
        'forward alone': lambda: training_steps(lm, examples, batch, device, backward=False),
        'fingerprint P + M': lambda: fingerprint_pass(lm, examples, default, batch, device),
        'fingerprint M alone': lambda: fingerprint_pass(lm, examples, production, batch, device),
    }


def timed(step: Pass, device: str) -> float:
    if device == 'cuda':
        torch.cuda.synchronize()
    begun = time.perf_counter()
    step()
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def speed(shape: str, batch: int, device: str, rounds: int, batches: int) -> tp.Dict[str, tp.List[float]]:
    """Seconds of each pass in each round, after one round that is not counted."""
    steps = {name: make() for name, make in passes(shape, batch, device, batches).items()}
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


def peak_above(make: tp.Callable[[], Pass], device: str) -> tp.Tuple[int, int]:
    """Bytes that a pass needs beyond what is loaded and, apart, bytes of files that it has mapped; its own preparation
    included; to be called in a fresh process."""
    if device == 'cuda':
        before = torch.cuda.memory_allocated()
        step = make()
        step()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before, 0
    before, files = _resident('RssAnon'), _resident('RssFile')
    step = make()
    step()
    mapped = _resident('RssFile')
    with open('/proc/self/clear_refs', 'w') as refs:
        refs.write('5')  # forget the highest mark so far
    step()
    return _resident('VmHWM') - mapped - before, mapped - files


def memory(shape: str, batch: int, device: str) -> tp.Dict[str, tp.Tuple[int, int]]:
    found = {}
    for name in ('forward + backward', 'fingerprint P + M', 'fingerprint M alone'):
        argv = [sys.executable, __file__, '--peak', name, '--shape', shape, '--batch', str(batch), '--device', device]
        # small allocations go back to the system when they are freed, so that the peak is what is needed at once
        ran = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True,
                             env={**os.environ, 'MALLOC_MMAP_THRESHOLD_': '131072'})
        found[name] = tuple(json.loads(ran.stdout))
    return found


def table(shape: str, batch: int, device: str, rounds: int) -> tp.List[str]:
    """Rows of one shape: seconds, ratio to a training step, tokens per second, memory and its ratio."""
    batches = 4 if shape == 'quickstart' else 1
    seconds, peaks = speed(shape, batch, device, rounds, batches), memory(shape, batch, device)
    base, base_memory = seconds['forward + backward'], peaks['forward + backward'][0]
    frames = SHAPES[shape][5]
    lines = []
    for name, took in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(took, base, strict=True))
        peak, mapped = peaks.get(name, (None, None))
        cells = [shape, f'{batches} × {batch} × 10 s', name, f'{statistics.median(took):.3f}', f'{ratio:.3f}',
                 f'{batches * batch * 4 * frames / statistics.median(took):,.0f}',
                 *(('', '', '') if peak is None or mapped is None else (
                     f'{peak / 2 ** 20:,.0f}', f'{peak / base_memory:.2f}', f'{mapped / 2 ** 20:,.0f}'))]
        lines.append('| ' + ' | '.join(cells) + ' |')
        print(lines[-1], file=sys.stderr, flush=True)
    return lines


HEAD = ['| shape | batches | pass | seconds (median) | ÷ forward + backward | codes/s | MiB above the model | ÷ its | '
        'mapped, MiB |', '|---|---|---|---|---|---|---|---|---|']


def main(shape: tp.Optional[tp.List[str]] = None, batch: int = 0, device: str = 'cpu', rounds: int = 5,
         peak: str = '') -> None:
    """Measure and print."""
    shapes = shape or ['quickstart', 'small']
    batches = {'small': 1} if device == 'cpu' else {}
    if peak:
        print(json.dumps(peak_above(passes(shapes[0], batch, device, batches=2)[peak], device)))
        return
    lines = list(HEAD)
    for one in shapes:
        lines += table(one, batch or batches.get(one, 8), device, rounds)
    print('\n'.join(lines))


if __name__ == '__main__':
    typer.run(main)
