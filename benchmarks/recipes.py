"""What a recipe could be, tried out on the suite's ground truth: every alternative's LDS, without any projection.

    lumina validate ground-truth          # first, once
    python benchmarks/recipes.py [--out outputs/validation]

Whole gradients of every weight are kept as inner products between songs and queries, per weight, checkpoint and
objective; all alternatives are made of these in seconds. The queries with even numbers are those to choose on, the odd
ones those to report.
"""

import dataclasses
import typing as tp
from pathlib import Path

import numpy as np
import torch
import typer
from tqdm import tqdm

from lumina_plugin.models import load_musicgen, run_stores
from lumina_plugin.recipe import get_recipe
from lumina_plugin.store import FingerprintStore
from lumina_plugin.validation.judge import FAMILIES
from lumina_plugin.validation.lds import half_losses, lds
from lumina_plugin.validation.truth import FloatArray, GroundTruth

Products = tp.Dict[tp.Tuple[str, str], tp.Dict[str, FloatArray]]  # [N + Q, N + Q] by weight
OBJECTIVES = ('margin', 'cross_entropy')


def products(run: Path, truth: GroundTruth) -> Products:
    """Inner products of whole gradients of all songs and queries."""
    from lumina_plugin.capture import full_gradient
    from lumina_plugin.fingerprint import Fingerprinter
    musicgen = load_musicgen(run)
    store = FingerprintStore.open(run_stores(run)[0])
    songs = [truth.queries[column].example(musicgen.lm, False) for column in truth.columns('songs')]
    queries = [truth.queries[column].example(musicgen.lm, masked) for family, masked, _ in FAMILIES
               for column in truth.columns(family)]
    whole = [truth.queries[column] for column in truth.columns('continued')]
    queries += [dataclasses.replace(query.example(musicgen.lm, False), stop=query.prompt_frames) for query in whole]
    found: Products = {}
    pairs = [(checkpoint, objective) for checkpoint in store.checkpoints for objective in OBJECTIVES]
    for checkpoint, objective in tqdm(pairs, desc='gradients', unit='pass'):
        fingerprinter = Fingerprinter(musicgen.lm, get_recipe('default', objective=objective),
                                      store.load_weights(checkpoint))
        reducers = {name: full_gradient for name in fingerprinter.blocks}
        parts = [fingerprinter.song_gradients([[one] for one in group], reducers)[0]
                 for group in torch.tensor(range(len(songs) + len(queries))).split(32)
                 for group in [[(songs + queries)[index] for index in group]]]
        rows = {name: torch.cat([part[name].flatten(1) for part in parts]) for name in parts[0]}
        found[checkpoint.name, objective] = {name: (row @ row.T).double().numpy() for name, row in rows.items()}
    return found


class Alternatives:
    """Scores [Q, N] of all queries from the inner products."""

    def __init__(self, found: Products, songs: int):
        self.found, self.songs = found, songs
        self.checkpoints = list(dict.fromkeys(name for name, _ in found))

    def scores(self, objective: str, weights: tp.Callable[[str], bool],
               checkpoints: tp.Optional[tp.Sequence[str]] = None, ridge: tp.Optional[float] = None,
               center: bool = False, norm: bool = True) -> FloatArray:
        """Cosine, or kernel regression with a ridge, averaged over checkpoints; `norm`: weights of length 1 each."""
        total: tp.Any = 0.
        for checkpoint in checkpoints or self.checkpoints:
            gram: tp.Any = 0.
            for name, values in self.found[checkpoint, objective].items():
                if weights(name):
                    length = np.sqrt(np.diag(values)) if norm else np.ones(len(values))
                    gram = gram + values / length[:, None] / length
            n = self.songs
            if center:
                mean = gram[:n].mean(0)
                gram = gram - mean - mean[:, None] + gram[:n, :n].mean()
            length = np.sqrt(np.diag(gram))
            gram = gram / length[:, None] / length
            rows = gram[n:, :n]
            total = total + (rows if ridge is None else rows @ np.linalg.inv(gram[:n, :n] + ridge * np.eye(n)))
        return np.asarray(total)


    def apart(self, scores: FloatArray, prompt: float, rest: float) -> FloatArray:
        """Whole continuations as their prompts and what follows them, each scored by itself, with these weights."""
        each = len(scores) // (len(FAMILIES) + 1)  # as many queries in every family, and as many prompts at the end
        found = scores.copy()
        found[2 * each:3 * each] = rest * scores[each:2 * each] + prompt * scores[4 * each:]
        return found


def attention(name: str) -> bool:
    """Weights of channel P."""
    return 'self_attn' in name


def linears(name: str) -> bool:
    """Weights of channel M."""
    return name.startswith('linears')


def tried(make: Alternatives) -> tp.Iterator[tp.Tuple[str, FloatArray, FloatArray]]:
    """Each alternative: what it is, channel P's scores and channel M's."""
    both = (attention, linears)
    names = make.checkpoints
    some = {'all checkpoints': names, 'without the pretrained weights': names[1:], 'last alone': names[-1:],
            'pretrained weights alone': names[:1], 'pretrained and first': names[:2]}
    for objective in OBJECTIVES:
        for title, chosen in some.items():
            yield (f'{objective}, {title}', *(make.scores(objective, of, chosen) for of in both))
        yield (f'{objective}, centred', *(make.scores(objective, of, center=True) for of in both))
        yield (f'{objective}, weights not of length 1', *(make.scores(objective, of, norm=False) for of in both))
        for ridge in (.01, .1, .3, 1., 3.):
            yield (f'{objective}, kernel, ridge {ridge:g}', *(make.scores(objective, of, ridge=ridge) for of in both))
    for ridge in (None, .1, .3, 1.):
        way = 'cosine' if ridge is None else f'kernel, ridge {ridge:g}'
        yield (f'P margin, M cross_entropy, {way}', make.scores('margin', attention, ridge=ridge),
               make.scores('cross_entropy', linears, ridge=ridge))
    for prompt, rest in ((.25, .75), (.5, .5), (.75, .25)):
        yield (f'P margin, M cross_entropy, ridge 0.3; a prompt apart, with {prompt:g} of the weight',
               make.apart(make.scores('margin', attention, ridge=.3), prompt, rest),
               make.apart(make.scores('cross_entropy', linears, ridge=.3), prompt, rest))
    for part in ('in_proj', 'out_proj', *(f'layers.{layer}.' for layer in range(4))):
        codebook = part.split('.')[1] if part.startswith('layers') else None
        yield (f'P margin of {part} alone; M cross_entropy of '
               f'{"codebook " + codebook if codebook else "all codebooks"}, ridge 0.3',
               make.scores('margin', lambda name, part=part: attention(name) and part in name, ridge=.3),
               make.scores('cross_entropy', lambda name, book=codebook: linears(name) and f'.{book or ""}' in name,
                           ridge=.3))


def standardised(scores: FloatArray) -> FloatArray:
    """STS of each row."""
    return (scores - scores.mean(1, keepdims=True)) / scores.std(1, keepdims=True)


def main(out: Path = Path('outputs/validation')) -> None:
    """Print the table."""
    truth = GroundTruth.load(out / 'truth' / 'ground_truth.safetensors')
    run = out / 'xps' / truth.facts['run']
    halves = [half_losses(truth, truth.columns(family), masked) for family, masked, _ in FAMILIES]
    make = Alternatives(products(run, truth), len(truth.songs))
    print('LDS of P / M / both: the mean over even queries (to choose on); over odd ones (to report).\n')
    print('| alternative | ' + ' | '.join(title for _, _, title in FAMILIES) + ' |')
    print('|---|' + '---|' * len(FAMILIES))
    for title, p, m in tried(make):
        cells, first = [], 0
        for half in halves:
            last = first + half.losses.shape[1]
            found = [lds(scores[first:last], half) for scores in (p, m, standardised(p) + standardised(m))]
            cells.append('; '.join(' / '.join(f'{values[start::2].mean():.2f}' for values in found)
                                   for start in (0, 1)))
            first = last
        print(f"| {title} | {' | '.join(cells)} |", flush=True)


if __name__ == '__main__':
    typer.run(main)
