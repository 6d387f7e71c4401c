"""Grids over our own solvers, e.g. `dora grid lumina.quickstart --dry_run --init`.

quickstart: seeds and a wider model; recipes: what each key of a recipe does; finetune, finetune_large: MusicGen small,
medium and large on a catalogue of one's own; unlearning: which step, Fisher information, layers and mask.
"""
