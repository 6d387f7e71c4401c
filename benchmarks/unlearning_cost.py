"""What unlearning would cost at MusicGen's own sizes: for `unlearning.py`."""

import math
import statistics
import typing as tp
from pathlib import Path

import torch
from unlearning_timing import Facts, Watch, kept

from lumina_plugin.unlearning.attribute import SHORT
from lumina_plugin.unlearning.opened import open_subject
from lumina_plugin.unlearning.recipe import unlearning_recipe
from lumina_plugin.validation.results import table

# Sizes of MusicGen's published checkpoints; dense peaks of the makers' data sheets.
SIZES = {'small': (300e6, 24, 1024), 'medium': (1.5e9, 48, 1536), 'large': (3.3e9, 48, 2048)}  # parameters, layers, d
PEAKS = {'H200': (67e12, 495e12), 'A100': (19.5e12, 156e12)}  # FLOP/s in fp32, and in TF32
USED = 0.3  # of a peak: conservative for batches of ten-second chunks
TRACKS, SECONDS, CHUNK, RATE = 115_000, 120, 10, 50  # of the catalogue; codes a second
CHECKPOINTS = 4  # of a store, whose fingerprints make a shortlist
ROUNDS = 3


def forward_rate(run: Path) -> Facts:
    """Measured: seconds of a forward pass per chunk, and what FLOP/s that is."""
    torch.set_num_threads(1)
    subject, recipe = open_subject(run), unlearning_recipe('default')
    learner = subject.learner(recipe)
    chunks = [example for song in subject.songs_of(recipe) for example in song.examples
              if example.codes.shape[-1] == CHUNK * 25][:64]
    learner.values(chunks[:8])
    watches = []
    for _ in range(ROUNDS):
        with Watch() as watch:
            learner.values(chunks)
        watches.append(watch)
    lm: tp.Any = subject.module
    parameters = sum(p.numel() for p in lm.transformer.parameters()) + sum(p.numel() for p in lm.linears.parameters())
    return {'seconds': statistics.median(one.cpu for one in watches) / len(chunks), 'parameters': parameters,
            'layers': len(lm.transformer.layers), 'dim': lm.dim, 'positions': CHUNK * 25 + 4}


def forward_flops(parameters: float, layers: int, dim: int, positions: int) -> float:
    """Of a chunk: two per parameter and position, and attention's products of positions with positions."""
    return 2 * parameters * positions + 4 * layers * dim * positions ** 2


def cost(run: Path, out: Path) -> str:
    """The table of the real size, extrapolated."""
    found = kept(out, 'rate', [run.name, 1], lambda: forward_rate(run))
    flops = forward_flops(found['parameters'], found['layers'], found['dim'], found['positions'])
    positions, chunks = CHUNK * RATE + 4, math.ceil(SECONDS / CHUNK)
    rows = []
    for size, (parameters, layers, dim) in SIZES.items():
        track = chunks * forward_flops(parameters, layers, dim, positions)
        # forgetting: a gradient (three forward passes) and the query's loss twice; a shortlist: a gradient at each of a
        # store's checkpoints
        step, short = 5 * track, 3 * CHECKPOINTS * track
        ways = {'exact': TRACKS * track + step, 'fast': SHORT * TRACKS * track + step + short}
        for way, total in ways.items():
            rows.append([size, way, f'{total:.2e}', *(
                f'{total / (USED * peak):,.0f} s, {total / (USED * peak) / 3600:.2f} h'
                for name in PEAKS for peak in PEAKS[name])])
    head = ['MusicGen', 'query', 'FLOP', *(f'{name}, {kind}' for name in PEAKS for kind in ('fp32', 'TF32'))]
    peaks = ', '.join(f'{name}: {fp32 / 1e12:g} TFLOP/s in fp32, {tf32 / 1e12:g} in TF32'
                      for name, (fp32, tf32) in PEAKS.items())
    return ('# The real size\n\n'
            f"Measured: {1000 * found['seconds']:.1f} ms of one core for a chunk of {CHUNK} s through the "
            f"quickstart's model ({found['parameters'] / 1e6:.2f} M parameters in its layers, {found['positions']} "
            f"positions), which is {flops / found['seconds'] / 1e9:.0f} GFLOP/s. Extrapolated, with no GPU at hand: "
            f'one query against {TRACKS:,} tracks of {SECONDS} s in chunks of {CHUNK} s at {RATE} Hz, by FLOP (two per '
            "parameter and position, and attention's own; text conditions left out), on one GPU that reaches "
            f'{USED:.0%} of its dense peak ({peaks}). The code computes in fp32; TF32 is what torch makes of that '
            f'where it is allowed to. A shortlist is {SHORT:.0%} of the tracks; Fisher information, losses before and '
            'fingerprints are there already.\n\n' + table(head, rows)
            + '\nPublished for a private latent diffusion model (arXiv 2506.18312): 20 H100-minutes to unlearn one '
              'query and 40 GPU-hours for one pass of losses over its songs.\n')
