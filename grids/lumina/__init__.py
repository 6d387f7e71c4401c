"""Grids over our own solvers, e.g. `dora grid lumina.quickstart --dry_run --init`."""
