"""Write docs/unlearning.md from what `lumina unlearn` measured: python benchmarks/unlearning_docs.py [RESULTS]."""

import re
import sys
from pathlib import Path

from lumina_plugin.atomic import write_atomic

HERE = Path(__file__).parent
PARTS = {'published': 'published/grid/grid.md', 'fisher': 'fisher/grid/grid.md',
         'steps': 'steps/grid/grid.md', 'self': 'self/self/self.md', 'self-default': 'self-default/self/self.md',
         'self-published': 'self-published/self/self.md',
         'draws': 'diffusion-draws/draws/draws.md', 'draws-among': 'diffusion-draws2/draws/draws.md',
         'diffusion': 'diffusion-self/self/self.md',
         'families-default': 'families-default/grid/grid.md', 'families-published': 'families-published/grid/grid.md',
         'compare': 'compare/compare.md', 'diffusion-compare': 'diffusion-compare/compare/compare.md',
         'diffusion-grid': 'diffusion-grid/grid/grid.md',
         'cost': 'cost.md'}


def main(results: Path) -> Path:
    """docs/unlearning.md, with 'not measured yet' where a result is missing."""
    text = (HERE / 'unlearning_head.md').read_text(encoding='utf-8')
    for name, file in PARTS.items():
        path = results / file
        found = path.read_text(encoding='utf-8').strip() if path.is_file() else '(not measured yet)'
        text = text.replace('{' + name + '}', re.sub(r'^#', '##', found, flags=re.M))
    return write_atomic(HERE.parent / 'docs' / 'unlearning.md', text)


if __name__ == '__main__':
    print(f"Written: {main(Path(sys.argv[1] if len(sys.argv) > 1 else 'outputs/unlearning'))}")
