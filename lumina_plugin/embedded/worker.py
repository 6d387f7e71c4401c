"""A process that renders songs: `python -m lumina_plugin.embedded.worker`, its task as JSON on stdin."""
import json
import sys
from pathlib import Path

from ..errors import LuminaError
from .build import SPLITS, write_song
from .songs import songs_of


def main() -> int:
    task = json.load(sys.stdin)
    songs = {s.id: s for split in SPLITS for s in songs_of(split, task['seed'], task['extra'])}
    try:
        for name in task['ids']:
            write_song(Path(task['folder']), songs[name])
    except LuminaError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
