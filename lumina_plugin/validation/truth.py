"""Ground truth by retraining: the losses of queries under models that were trained without some of the songs."""

import dataclasses
import json
import typing as tp
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch

from ..atomic import write_atomic
from ..errors import LuminaError
from .losses import mean_losses
from .plan import Retrained
from .queries import Query

FORMAT = 'lumina-ground-truth-1'
FloatArray = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """What retraining said, small enough to be kept beside the code.

    Args:
        songs (list of str): Ids of the N songs, in the catalogue's order.
        queries (list of Query): Q of them. models (list of Retrained): M of them.
        sums (torch.Tensor): Nats per model, query, part (prompt, the rest) and codebook, [M, Q, 2, K].
        counts (torch.Tensor): Codes in each, [Q, 2, K].
        facts (dict): Whence it came: hashes of the catalogue and of the attributed model, how generations were drawn.
    """
    songs: tp.List[str]
    queries: tp.List[Query]
    models: tp.List[Retrained]
    sums: torch.Tensor
    counts: torch.Tensor
    facts: tp.Dict[str, tp.Any] = dataclasses.field(default_factory=dict)

    def rows(self, kind: str) -> tp.List[int]:
        """Which models are of a kind ('half', 'whole', 'without')."""
        return [row for row, model in enumerate(self.models) if model.kind == kind]

    def columns(self, family: str) -> tp.List[int]:
        """Which queries are of a family."""
        return [column for column, query in enumerate(self.queries) if query.family == family]

    def losses(self, rows: tp.Sequence[int], columns: tp.Sequence[int], masked: bool = True) -> FloatArray:
        """Mean cross entropy in nats per code, [models, queries], with the prompts' frames left out or not."""
        sums = self.sums[list(rows)][:, list(columns)].double()
        return mean_losses(sums, self.counts[list(columns)].double(), masked).numpy()

    def members(self, rows: tp.Sequence[int]) -> FloatArray:
        """1 where a model was trained on a song, [models, N]."""
        place = {song: column for column, song in enumerate(self.songs)}
        found = np.zeros((len(rows), len(self.songs)))
        for row, index in enumerate(rows):
            found[row, [place[song] for song in self.models[index].songs]] = 1.
        return found

    def save(self, path: tp.Union[str, Path]) -> Path:
        """Write it as one safetensors file."""
        longest = max(query.codes.shape[-1] for query in self.queries)
        codes = torch.stack([torch.nn.functional.pad(query.codes, (0, longest - query.codes.shape[-1]), value=-1)
                             for query in self.queries]).to(torch.int16)
        queries = [{**{f.name: getattr(query, f.name) for f in dataclasses.fields(query) if f.name != 'codes'}}
                   for query in self.queries]
        models = [{'name': m.name, 'kind': m.kind, 'seed': m.seed, 'group': m.group} for m in self.models]
        members = torch.from_numpy(self.members(range(len(self.models)))).to(torch.uint8)
        header = {'format': FORMAT, 'songs': json.dumps(self.songs), 'queries': json.dumps(queries),
                  'models': json.dumps(models), 'facts': json.dumps(self.facts)}
        return write_atomic(path, safetensors.torch.save(
            {'codes': codes, 'sums': self.sums[:, self.counts > 0].float(),  # nothing of prompts where there are none
             'counts': self.counts.to(torch.int32), 'members': members}, header))

    @classmethod
    def load(cls, path: tp.Union[str, Path]) -> 'GroundTruth':
        """Read one.

        Raises:
            LuminaError: when it is missing or no ground truth.
        """
        try:
            with safetensors.safe_open(str(path), 'pt') as file:
                header = file.metadata() or {}
                if header.get('format') != FORMAT:
                    raise LuminaError(f"{path} is no ground truth of this version ({header.get('format')}); make one "
                                      "with `lumina validate ground-truth`.")
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, safetensors.SafetensorError) as error:
            raise LuminaError(f"{path} cannot be read as a ground truth ({str(error).splitlines()[0]}); make one with "
                              "`lumina validate ground-truth`.") from error
        songs = json.loads(header['songs'])
        codes = tensors['codes'].long()
        queries = [Query(codes=one[:, :int((one[0] >= 0).sum())], **facts)
                   for one, facts in zip(codes, json.loads(header['queries']), strict=True)]
        models = [Retrained(songs=tuple(song for song, inside in zip(songs, row, strict=True) if inside), **facts)
                  for row, facts in zip(tensors['members'].tolist(), json.loads(header['models']), strict=True)]
        sums, counts = tensors['sums'], tensors['counts']
        if sums.dim() == 2:
            kept, sums = sums, torch.zeros(len(models), *counts.shape)
            sums[:, counts > 0] = kept
        return cls(songs, queries, models, sums, counts, json.loads(header['facts']))
