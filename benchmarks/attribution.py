"""What does attributing a generation cost, beside generating it? Prints a Markdown table.

    python benchmarks/attribution.py [RUN] [--seconds 30] [--rounds 5]

RUN is a run with a store (its folder or signature; the finished quickstart below outputs/ unless said). Each round
generates one clip from text and attributes its codes to every song of the store in every channel, under the store's own
recipe at every checkpoint, and at the last one alone. The store is open already, as in a service; opening it is the
last column.
"""

import statistics
import time
import typing as tp

import torch
import typer

from lumina_plugin import compat

compat.install()

from lumina_plugin.attribution import Attributor  # noqa: E402  (after the shims)
from lumina_plugin.conditions import attributes_for  # noqa: E402
from lumina_plugin.workflows import Studio, quickstart_run  # noqa: E402

TEXT = 'a slow waltz for plucked strings with a warm pad'


def main(run: tp.Annotated[tp.Optional[str], typer.Argument()] = None, seconds: float = 30., rounds: int = 5) -> None:
    """Measure and print."""
    begun = time.perf_counter()
    studio = Studio(run or quickstart_run())
    opened = time.perf_counter() - begun
    lm, codec, recipe = studio.musicgen.lm, studio.musicgen.compression_model, studio.attributor.recipe
    last = Attributor(lm, codec, studio.store, recipe=recipe.model_copy(update={'checkpoints': 'last'}))
    attributes = attributes_for(lm, TEXT)
    studio.musicgen.set_generation_params(duration=seconds, top_k=min(250, lm.card))
    studio.attachment.enabled = False
    generated: tp.List[float] = []
    attributed: tp.Dict[Attributor, tp.List[float]] = {studio.attributor: [], last: []}
    for index in range(rounds + 1):
        torch.manual_seed(index)
        begun = time.perf_counter()
        _, codes = studio.musicgen.generate([TEXT], return_tokens=True)
        generated += [time.perf_counter() - begun] if index else []  # the first round warms up
        for attributor, took in attributed.items():
            begun = time.perf_counter()
            attributor.attribute_codes(codes[0], attributes)
            took += [time.perf_counter() - begun] if index else []
    print('| clip | songs × checkpoints | generate, s | attribute, s | attribute ÷ generate | open the store, s |')
    print('|---|---|---|---|---|---|')
    for attributor, took in attributed.items():
        ratio = statistics.median(a / g for a, g in zip(took, generated, strict=True))
        print(f'| {seconds:g} s | {len(studio.store.tracks)} × {len(attributor.checkpoints)} | '
              f'{statistics.median(generated):.2f} | {statistics.median(took):.2f} | {ratio:.3f} | {opened:.2f} |')


if __name__ == '__main__':
    typer.run(main)
