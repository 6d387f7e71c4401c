"""What CI asks of the quickstart's folder: every product is there and whole, and a second call made none of them again.

    python .ci/check_quickstart.py outputs --record FILE      # after the first call
    python .ci/check_quickstart.py outputs --unchanged FILE   # after the second
"""

import argparse
import json
import re
import sys
import typing as tp
from pathlib import Path

import numpy as np
import soundfile

from lumina_plugin.report.schema import AttributionReport
from lumina_plugin.store import FingerprintStore

SONGS, WIDTH, CHECKPOINTS, CLIPS = 97, 512, 4, 4


def check(holds: bool, sentence: str) -> None:
    if not holds:
        sys.exit(f'quickstart: {sentence}')


def check_store(path: Path) -> None:
    store = FingerprintStore.open(path)
    check(not store.verify(), f'{path} is damaged: {store.verify()}')
    done = [checkpoint for checkpoint in store.checkpoints if checkpoint.complete]
    check(len(done) == CHECKPOINTS, f'{path} has {len(done)} complete checkpoints, not {CHECKPOINTS}')
    check(len(store.tracks) == SONGS, f'{path} has {len(store.tracks)} songs, not {SONGS}')
    check(set(store.channels) == {'P', 'M'}, f'{path} has channels {store.channels}')
    check(all(checkpoint.null is not None for checkpoint in done), f'{path} has a checkpoint without outside songs')
    check(store.identity.dim == WIDTH, f'{path} is {store.identity.dim} wide, not {WIDTH}')


def check_clip(folder: Path) -> None:
    samples, rate = soundfile.read(folder / 'audio.wav')
    check(len(samples) > rate and bool(np.abs(samples).max() > 1e-3), f'{folder}/audio.wav is short or silent')
    report = AttributionReport.load(folder / 'report.json')
    for name in ('P', 'M'):
        channel = report.channels[name]
        shares = sum(row.share for row in channel.rows) + channel.unattributed
        check(len(channel.rows) == SONGS and abs(shares - 1) < 1e-6, f'{folder}: channel {name} does not add up')
        check(bool(channel.segments), f'{folder}: channel {name} has no evidence by segment')
    page = (folder / 'report.html').read_text(encoding='utf-8')
    check('data:audio/' in page, f'{folder}/report.html has no audio to play')
    outside = re.findall(r'(?:src|href)\s*=\s*["\']?(?:https?:)?//[^"\'\s>]+', page)
    check(not outside, f'{folder}/report.html loads from outside: {outside}')


def products(out: Path) -> tp.Dict[str, int]:
    """Time of the last change of everything a second call must leave alone, in ns. (Not logs.)"""
    kinds = {'.wav', '.json', '.jsonl', '.html', '.safetensors', '.th'}
    files = (path for folder in ('embedded', 'xps', 'clips') for path in (out / folder).rglob('*'))
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in files if path.suffix in kinds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path)
    parser.add_argument('--record', type=Path)
    parser.add_argument('--unchanged', type=Path)
    args = parser.parse_args()
    runs = [folder.name for folder in (args.out / 'clips').iterdir()]  # other trainings may lie beside the quickstart's
    stores = sorted(path for run in runs for path in args.out.glob(f'xps/{run}/lumina/*/manifest.json'))
    check(bool(stores), f'no fingerprint store below {args.out}/xps')
    for manifest in stores:
        check_store(manifest.parent)
    clips = sorted(path.parent for path in args.out.glob('clips/*/*/report.json'))
    check(len(clips) == CLIPS, f'{len(clips)} clips with a report, not {CLIPS}')
    for clip in clips:
        check_clip(clip)
    state = products(args.out)
    if args.record:
        args.record.write_text(json.dumps(state))
    if args.unchanged:
        before = json.loads(args.unchanged.read_text())
        changed = sorted(name for name in before.keys() | state.keys() if before.get(name) != state.get(name))
        check(not changed, f'the second call made {len(changed)} files again, e.g. {changed[:3]}')
    print(f'quickstart: {len(stores)} store(s), {len(clips)} clips and {len(state)} files are as they should be')


if __name__ == '__main__':
    main()
