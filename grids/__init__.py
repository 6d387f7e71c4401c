"""Grids of experiments for `dora grid <folder>.<module>`; installed as `lumina_plugin.grids`."""
