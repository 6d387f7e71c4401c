"""How many songs a second, beside other libraries' projected gradients of the same blocks? Prints Markdown.

    pip install -e '.[peers]'
    python benchmarks/peers.py [--shape quickstart --shape small] [--rounds 5]

On the CPU, in one process and in turn, medians and ratios within a round, as in capture.py; every method with the batch
size and the options that a trial found fastest for it. What is compared:

- lumina_plugin: `Fingerprinter.fingerprints` under the recipe `default` with `objective: cross_entropy`, because that
  is what the others are given: the mean cross entropy over valid codes, one number per example.
- dattri's LoGra and FactGraSS: `cache` with `hessian='Identity'`, the pass that stores projected gradients.
- a TRAK: `torch.func.vmap` of `torch.func.grad`, then dattri's `random_project`. Without TRAK's Q, which would need one
  more forward pass, and without its kernel. Its second row keeps D entries of the gradient and nothing else (dattri's
  `random_mask`): a lower bound for any projection of gradients from vmap.

The blocks are those of P and M. The width is D = 512 a channel; LoGra and FactGraSS have squares per layer, so they get
the largest square of which the channel's layers together have at most 512. All weights but the blocks' are frozen for
everybody. dattri taps `nn.Linear` modules, and audiocraft's self attention multiplies with a bare parameter: the others
get a copy of the model in which a real `nn.Linear` holds that very parameter.

Before anything is timed, the other libraries' gradients without any projection must agree with ours.
"""

import contextlib
import copy
import functools
import importlib.util
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import typing as tp
import warnings

os.environ.setdefault('TQDM_DISABLE', '1')  # dattri's progress bars; read when tqdm is first imported

import torch  # noqa: E402
import typer  # noqa: E402
from capture import SHAPES, Pass, build, examples_of, fingerprint_pass, peak_above, timed  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from lumina_plugin.capture import full_gradient  # noqa: E402
from lumina_plugin.fingerprint import Fingerprinter  # noqa: E402
from lumina_plugin.gradients import Example  # noqa: E402
from lumina_plugin.objectives import cross_entropy  # noqa: E402
from lumina_plugin.recipe import get_recipe  # noqa: E402
from lumina_plugin.validation.plain_model import LinearAttention  # noqa: E402

D = 512
BATCHES = (1, 2, 4, 8)
SONGS = {'quickstart': 8}  # of 10 s; larger models get one, in one round
MEMORY = 8 * 2 ** 30  # what a method may need for its projection alone
OURS, FLOOR = 'lumina_plugin', 'forward and backward alone'
MISSING = "dattri is not installed, so there is nothing to compare with: pip install -e '.[peers]' brings it."
SHAPES['tiny'] = (64, 4, 2, 2, 64, 40, True)  # for the check of gradients

Choices = tp.Dict[str, tp.Callable[[], Pass]]  # by how it is done, e.g. 'batch 4, compiled'

# torch loops over the examples of a vmapped attention. Its other kernel does not, and is slower all the same.
warnings.filterwarnings('ignore', message='There is a performance drop because we have not yet implemented')


def mean_cross_entropy(logits: torch.Tensor, codes: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`objectives.cross_entropy` in operations that `torch.func` can trace; [B]."""
    logits = torch.where(mask[..., None], logits, 0.)  # [B, K, T, card]
    nll = F.cross_entropy(logits.permute(0, 3, 1, 2), codes, reduction='none')  # [B, K, T]
    return ((nll * mask).sum(-1) / mask.sum(-1)).mean(-1)


class PeerModel(nn.Module):
    """A language model and its loss as the other libraries take them: a function of codes alone.

    Its parameters are those of `lm` itself, of which only the blocks' keep `requires_grad`.
    """

    def __init__(self, lm: nn.Module, attributes: tp.Any):
        super().__init__()
        self.lm = copy.deepcopy(lm, {id(parameter): parameter for parameter in lm.parameters()})
        provider = self.lm.condition_provider
        with torch.no_grad():
            self.conditions = provider(provider.tokenize([attributes]))
        for layer in self.lm.transformer.layers:
            layer.self_attn = LinearAttention(layer.self_attn)
        channels = Fingerprinter(lm, get_recipe('default')).channels
        self.layers = {channel: ['lm.' + block.name.replace('in_proj_weight', 'in_proj.weight').removesuffix('.weight')
                                 for block in blocks] for channel, blocks in channels.items()}
        blocks = {f'{name}.weight' for names in self.layers.values() for name in names}
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in blocks)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes [B, K, T] -> mean cross entropy of each example, [B]."""
        conditions = {key: (embedding.expand(len(codes), -1, -1), mask.expand(len(codes), -1))
                      for key, (embedding, mask) in self.conditions.items()}
        out = self.lm.compute_predictions(codes, [], conditions)
        return mean_cross_entropy(out.logits, codes, out.mask)

    @property
    def tapped(self) -> tp.Dict[str, torch.Tensor]:
        """The blocks' weights by name, channel after channel."""
        state = dict(self.named_parameters())
        return {f'{name}.weight': state[f'{name}.weight'].detach() for names in self.layers.values() for name in names}


# --- dattri's LoGra and FactGraSS -------------------------------------------------------------------------------------

def attributor(model: PeerModel, kind: str, names: tp.Sequence[str], **keys: tp.Any) -> tp.Any:
    """One of dattri's block-projected attributors on some layers of the model."""
    from dattri import algorithm
    from dattri.task import AttributionTask
    task = AttributionTask(lambda model, batch, _: model(**batch).mean(), model, [None],
                           checkpoints_load_func=lambda model, _: model)
    return getattr(algorithm, f'{kind}Attributor')(task, list(names), hessian='Identity', **keys)


def loader_of(codes: torch.Tensor, batch: int) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader([{'codes': one} for one in codes], batch_size=batch)


def width_per_layer(layers: int) -> int:
    """The largest square of which `layers` layers have at most D together."""
    return math.isqrt(D // layers) ** 2


def dattri_pass(model: PeerModel, kind: str, codes: torch.Tensor, batch: int, compiled: bool) -> Pass:
    """dattri's pass over the songs, each channel with a width of its own."""
    from dattri.algorithm.block_projected_if import setup_model_compressors
    folder = tempfile.TemporaryDirectory()  # dattri leaves a file with the batches' sizes there
    compressors = []
    for names in model.layers.values():
        one = attributor(model, kind, names, proj_dim=width_per_layer(len(names)), cache_dir=folder.name)
        compressors += setup_model_compressors(model, names, one.sparsifier_kwargs, one.projector_kwargs,
                                               {'codes': codes[:batch]}, 'cpu')
    names = [name for channel in model.layers.values() for name in channel]
    whole = attributor(model, kind, names, proj_dim=4, cache_dir=folder.name)  # 4: replaced by the widths above
    whole.compressors = compressors
    loader = loader_of(codes, batch)

    def step() -> None:
        with folder_kept, torch.compiler.set_stance('default' if compiled else 'force_eager'):
            whole.cache(loader)
    folder_kept = contextlib.nullcontext(folder)
    return step


def dattri_choices(model: PeerModel, kind: str, codes: torch.Tensor, batches: tp.Sequence[int]) -> Choices:
    """dattri compiles its projections with torch.compile, which does not always pay: both ways are tried."""
    can_compile = any(shutil.which(name) for name in ('g++', 'clang++'))
    return {f"batch {batch}, {'compiled' if compiled else 'not compiled'}":
            functools.partial(dattri_pass, model, kind, codes, batch, compiled)
            for compiled in ([False, True] if can_compile else [False]) for batch in batches}


# --- TRAK -------------------------------------------------------------------------------------------------------------

def vmapped_gradients(model: PeerModel) -> tp.Callable[[torch.Tensor], tp.Dict[str, torch.Tensor]]:
    """A function from codes [B, K, T] to the blocks' whole per-example gradients, each [B, o, i]."""
    def loss(weights: tp.Dict[str, torch.Tensor], codes: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, weights, (codes[None],))[0]
    weights = model.tapped
    return lambda codes: torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, codes)


def trak_pass(model: PeerModel, projection: str, codes: torch.Tensor, batch: int) -> Pass:
    from dattri.func.projection import random_project
    gradients = vmapped_gradients(model)
    projections = []  # per channel: the names of its weights, and a projection made once
    for names in model.layers.values():
        weights = {f'{name}.weight': model.tapped[f'{name}.weight'] for name in names}
        projections.append((weights, random_project(weights, 1, D, batch, proj_type=projection)))

    def step() -> tp.List[tp.List[torch.Tensor]]:
        out = []
        for part in codes.split(batch):
            found = gradients(part)
            out.append([project({name: found[name] for name in weights}) for weights, project in projections])
        return out
    return step


def trak_choices(model: PeerModel, kinds: tp.Sequence[str], codes: torch.Tensor, batches: tp.Sequence[int]) -> Choices:
    return {f'batch {batch}, {kind}': functools.partial(trak_pass, model, kind, codes, batch)
            for kind in kinds for batch in batches}


def trak_needs(model: PeerModel) -> int:
    """Bytes of the 100 columns of a dense projection that dattri holds at a time on a CPU."""
    state = model.tapped
    return max(4 * 100 * sum(state[f'{name}.weight'].numel() for name in names) for names in model.layers.values())


# --- the comparison ---------------------------------------------------------------------------------------------------

def floor_pass(lm: nn.Module, examples: tp.Sequence[Example], batch: int) -> Pass:
    """Our pass with nothing kept of any gradient: what no method that taps the first layer can be faster than."""
    fingerprinter = Fingerprinter(lm, get_recipe('default', objective='cross_entropy'))
    nothing = dict.fromkeys(fingerprinter.blocks, lambda *_: torch.zeros(1))
    return lambda: [fingerprinter.gradients(examples[first:first + batch], nothing)
                    for first in range(0, len(examples), batch)]


def methods(shape: str, songs: int) -> tp.Tuple[tp.Dict[str, Choices], tp.Dict[str, str]]:
    """Every method's choices, and why some have none."""
    lm = build(shape, 'cpu')
    examples = examples_of(lm, shape, songs)
    codes = torch.stack([example.codes for example in examples])
    model = PeerModel(lm, examples[0].attributes)
    with torch.no_grad():  # also: audiocraft remembers the indexes of a pattern, and cannot make them inside vmap
        theirs, conditions = model(codes), lm.condition_provider.tokenize([one.attributes for one in examples])
        out = lm.compute_predictions(codes, [], lm.condition_provider(conditions))
        torch.testing.assert_close(theirs, cross_entropy(out.logits, codes, out.mask))
    recipe = get_recipe('default', objective='cross_entropy', projection={'dim': D})
    batches = [batch for batch in BATCHES if batch <= songs]
    found: tp.Dict[str, Choices] = {
        OURS: {f'batch {batch}': functools.partial(fingerprint_pass, lm, examples, recipe, batch, 'cpu')
               for batch in batches},
        'LoGra': dattri_choices(model, 'LoGra', codes, batches),
        'FactGraSS': dattri_choices(model, 'FactGraSS', codes, batches),
        # dattri draws a dense projection anew for each batch: the largest is always the fastest, by far
        'TRAK': trak_choices(model, ('rademacher', 'normal'), codes, batches[-1:]),
        'TRAK, D entries': trak_choices(model, ('random_mask',), codes, batches),
        FLOOR: {f'batch {batch}': functools.partial(floor_pass, lm, examples, batch) for batch in batches},
    }
    why = {}
    if trak_needs(model) > MEMORY:
        del found['TRAK']
        why['TRAK'] = f"left out: 100 columns of dattri's dense projection need {trak_needs(model) / 2 ** 30:.0f} GiB"
    return found, why


def fastest(method: str, choices: Choices, trials: int) -> str:
    """The quickest choice, by the best of some trials after one that is not counted."""
    if len(choices) == 1:
        return next(iter(choices))
    took = {}
    for choice, make in choices.items():
        step = make()
        step()
        took[choice] = min(timed(step, 'cpu') for _ in range(trials))
        print(f'   {method}, {choice}: {took[choice]:.3f} s', file=sys.stderr, flush=True)
    return min(took, key=took.__getitem__)


def speed(found: tp.Mapping[str, Choices], chosen: tp.Mapping[str, str], rounds: int
          ) -> tp.Dict[str, tp.List[float]]:
    """Seconds of each method in each round, after one round that is not counted."""
    steps = {method: found[method][choice]() for method, choice in chosen.items()}
    seconds: tp.Dict[str, tp.List[float]] = {method: [] for method in steps}
    for index in range(rounds + 1):
        for method, step in steps.items():
            took = timed(step, 'cpu')
            if index:
                seconds[method].append(took)
    return seconds


def memory(shape: str, songs: int, chosen: tp.Mapping[str, str]) -> tp.Dict[str, int]:
    """Bytes above the loaded model, each method in a process of its own."""
    needed = {}
    for method, choice in chosen.items():
        argv = [sys.executable, __file__, '--shape', shape, '--songs', str(songs), '--peak', f'{method}|{choice}']
        needed[method] = json.loads(subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return needed


def table(shape: str, songs: int, rounds: int) -> tp.Tuple[tp.List[str], tp.Tuple[str, float, float]]:
    """Rows of one shape; the fastest of the others, our songs per second ÷ its, and the floor's ÷ its."""
    found, why = methods(shape, songs)
    chosen = {method: fastest(method, choices, min(rounds, 3)) for method, choices in found.items()}
    seconds = speed(found, chosen, rounds)
    found.clear()  # the model goes too, before processes of their own load it again
    peaks = memory(shape, songs, chosen)
    lines, ratios = [], {}
    for method, took in seconds.items():
        ratios[method] = statistics.median(its / ours for its, ours in zip(took, seconds[OURS], strict=True))
        cells = [shape, method, chosen[method], f'{songs / statistics.median(took):.3g}', f'{ratios[method]:.2f}',
                 f'{peaks[method] / 2 ** 20:,.0f}']
        lines.append('| ' + ' | '.join(cells) + ' |')
    lines += [f'| {shape} | {method} | {reason} | | | |' for method, reason in why.items()]
    print('\n'.join(lines), file=sys.stderr, flush=True)
    best = min((method for method in ratios if method not in (OURS, FLOOR)), key=ratios.__getitem__)
    return lines, (best, ratios[best], ratios[best] / ratios[FLOOR])


# --- the check of gradients -------------------------------------------------------------------------------------------

def differences(shape: str) -> tp.Dict[str, float]:
    """Largest relative difference of an example's gradient of one block from ours, nothing projected."""
    lm = build(shape, 'cpu')
    examples = examples_of(lm, shape, 2)
    codes = torch.stack([example.codes for example in examples])
    ours = Fingerprinter(lm, get_recipe('default', objective='cross_entropy'))
    expected = ours.gradients(examples, dict.fromkeys(ours.blocks, full_gradient))
    wanted = [expected[block.name].flatten(1) for blocks in ours.channels.values() for block in blocks]
    model = PeerModel(lm, examples[0].attributes)
    names = [name for channel in model.layers.values() for name in channel]
    identity = {'proj_type': 'identity', 'proj_dim': -1, 'proj_max_batch_size': 8}
    with tempfile.TemporaryDirectory() as folder, torch.compiler.set_stance('force_eager'):
        whole = attributor(model, 'BlockProjectedIF', names, cache_dir=folder, sparsifier_kwargs=identity,
                           projector_kwargs=identity)
        whole.cache(loader_of(codes, 2))
    vmapped = vmapped_gradients(model)(codes)
    found = {"LoGra's and FactGraSS's hooks": whole.offload_manager.retrieve_gradients(0),
             'vmap': [vmapped[f'{name}.weight'].flatten(1) for name in names]}
    return {method: max(((got - want).norm(dim=1) / want.norm(dim=1)).max().item()
                        for got, want in zip(gradients, wanted, strict=True)) for method, gradients in found.items()}


def checked() -> str:
    """One sentence on the agreement of gradients; stops where they disagree."""
    worst: tp.Dict[str, float] = {}
    for shape in ('tiny', 'quickstart'):  # text by cross attention, and as a prefix
        for method, difference in differences(shape).items():
            worst[method] = max(worst.get(method, 0.), difference)
    if max(worst.values()) > 1e-4:
        raise SystemExit(f'The methods do not compute the same gradients, so their speed says nothing: {worst}')
    told = ', '.join(f'{method} {difference:.1e}' for method, difference in worst.items())
    return f'Largest relative difference of any gradient of an example and block from ours, unprojected: {told}.'


HEAD = ['| shape | method | as | songs/s (median) | ours ÷ its | MiB above the model |', '|---|---|---|---|---|---|']


def main(shape: tp.Optional[tp.List[str]] = None, rounds: int = 0, songs: int = 0, peak: str = '') -> None:
    """Measure and print; 0 rounds: five of the quickstart's model, one of a larger."""
    if importlib.util.find_spec('dattri') is None:
        typer.echo(MISSING, err=True)
        raise typer.Exit(2)
    torch._dynamo.config.recompile_limit = 64  # one compiled form for each kind of layer and each method
    shapes = shape or ['quickstart', 'small']
    if peak:
        method, choice = peak.split('|')
        found, _ = methods(shapes[0], songs)
        print(json.dumps(sum(peak_above(found[method][choice], 'cpu'))))
        return
    check = checked()
    lines, best = list(HEAD), {}
    for one in shapes:
        rows, best[one] = table(one, songs or SONGS.get(one, 1), rounds or (5 if one in SONGS else 1))
        lines += rows
    told = '; '.join(f'{one} {ratio:.2f} ({method}; {FLOOR} {limit:.2f})'
                     for one, (method, ratio, limit) in best.items())
    verdict = 'met' if all(ratio >= 2 for _, ratio, _ in best.values()) else 'not met'
    print('\n'.join([*lines, '', check, '', f"Our songs/s ÷ the fastest other method's: {told}. Goal 2: {verdict}."]))


if __name__ == '__main__':
    typer.run(main)
