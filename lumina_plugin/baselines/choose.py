"""Which baselines a command compares with: `clap=FOLDER,clews=FOLDER`; LPIPS and RPS are always among them."""

import logging
import typing as tp

from ..errors import LuminaError
from ..magnet import is_magnet
from ..validation.decoded import Decode, decoded
from ..validation.methods import Method
from ..validation.queries import Query
from .clap import HUB, load_clap
from .clews import load_clews
from .embedding import AudioEmbeddings
from .lpips import Lpips, codes_profiles
from .rps import TARGETS, Representers

logger = logging.getLogger(__name__)

LISTENING = ('clap', 'clews')  # weights of their own
INSIDE = ('lpips', 'rps')  # made of the generator


def parse(text: str) -> tp.Dict[str, str]:
    """Names and where their weights are, of `clap=FOLDER,clews=FOLDER,lpips,rps`.

    Raises:
        LuminaError: when there is no such baseline, one is named twice, or one lacks its folder.
    """
    found: tp.Dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(','))):
        name, _, source = part.partition('=')
        if name not in (*LISTENING, *INSIDE):
            raise LuminaError(f"There is no baseline '{name}'; --baselines takes {', '.join((*LISTENING, *INSIDE))}.")
        if name in found:
            raise LuminaError(f"--baselines names {name} twice; name it once.")
        if name in INSIDE and source:
            raise LuminaError(f"{name} has no weights of its own: say {name} without '={source}'.")
        if name == 'clews' and not source:
            raise LuminaError("CLEWS needs its network: say clews=FOLDER, which holds a TorchScript file and "
                              "clews.json.")
        found[name] = source
    return found


def listening(text: str, codec: tp.Any, songs: tp.Sequence[tp.Any], device: tp.Optional[str] = None,
              decode: Decode = decoded) -> tp.List[Method]:
    """Those baselines with weights of their own that are asked for.

    Args:
        text (str): As `parse` takes it. codec, songs, decode: As `AudioEmbeddings` takes them.
    Raises:
        LuminaError: when weights are missing or damaged.
    """
    wanted = parse(text)
    chosen: tp.List[Method] = []
    if 'clap' in wanted:
        chosen.append(AudioEmbeddings(load_clap(wanted['clap'] or HUB, device), songs, codec, decode))
    if 'clews' in wanted:
        chosen.append(AudioEmbeddings(load_clews(wanted['clews'], device), songs, codec, decode))
    return chosen


def baselines(text: str, lm: tp.Any, codec: tp.Any, songs: tp.Sequence[Query], device: tp.Optional[str] = None
              ) -> tp.List[Method]:
    """LPIPS and RPS of a language model, and those baselines that are asked for.

    Args:
        text (str): As `parse` takes it. lm, codec: Of a MusicGen. songs (sequence of Query): Of the family 'songs'.
    Raises:
        LuminaError: when weights are missing or damaged.
    """
    chosen = listening(text, codec, songs, device)
    if is_magnet(lm):
        logger.warning("LPIPS and RPS are left out: a MAGNeT does not predict music step by step.")
        return chosen
    points = [Representers(lm, songs, targets=targets) for targets in TARGETS]
    return [*chosen, Lpips(codes_profiles(lm), songs), *points]
