"""What does attributing a generation cost, beside generating it? Prints a Markdown table.

    python benchmarks/attribution.py [RUN] [--seconds 30] [--rounds 5]

RUN is a run with a store (its folder or signature; the finished quickstart below outputs/ unless said). Each round
generates one clip from text and attributes its codes to every song of the store, at every checkpoint and in every
channel, under the store's own recipe. The store is open already, as in a service; opening it is the last column.
"""

import statistics
import time
import typing as tp

import torch
import typer

from lumina_plugin import compat

compat.install()

from lumina_plugin.conditions import attributes_for  # noqa: E402  (after the shims)
from lumina_plugin.workflows import Studio, quickstart_run  # noqa: E402

TEXT = 'a slow waltz for plucked strings with a warm pad'


def main(run: tp.Annotated[tp.Optional[str], typer.Argument()] = None, seconds: float = 30., rounds: int = 5) -> None:
    """Measure and print."""
    source = run or quickstart_run()
    begun = time.perf_counter()
    studio = Studio(source)
    opened = time.perf_counter() - begun
    generated, attributed = [], []
    attributes = attributes_for(studio.musicgen.lm, TEXT)
    studio.musicgen.set_generation_params(duration=seconds, top_k=min(250, studio.musicgen.lm.card))
    studio.attachment.enabled = False
    for index in range(rounds + 1):
        torch.manual_seed(index)
        begun = time.perf_counter()
        _, codes = studio.musicgen.generate([TEXT], return_tokens=True)
        made = time.perf_counter()
        studio.attributor.attribute_codes(codes[0], attributes)
        if index:  # the first round warms up
            generated.append(made - begun)
            attributed.append(time.perf_counter() - made)
    ratio = statistics.median(a / g for a, g in zip(attributed, generated, strict=True))
    print('| clip | songs × checkpoints | generate, s | attribute, s | attribute ÷ generate | open the store, s |')
    print('|---|---|---|---|---|---|')
    print(f'| {seconds:g} s | {len(studio.store.tracks)} × {len(studio.attributor.checkpoints)} | '
          f'{statistics.median(generated):.2f} | {statistics.median(attributed):.2f} | {ratio:.3f} | {opened:.2f} |')


if __name__ == '__main__':
    typer.run(main)
