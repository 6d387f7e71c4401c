"""The processes that share one piece of work, and what they tell each other."""

import contextlib
import logging
import os
import pickle
import typing as tp
from datetime import timedelta

import torch
from torch import distributed

from .errors import LuminaError

logger = logging.getLogger(__name__)

PATIENCE = timedelta(days=7)  # a pass over a large catalogue may keep one process busy while the others wait


class Workers:
    """One process on its own, or all processes of a `torch.distributed` job.

    Use as a context manager: what stops one process then stops all of them, with its reason, instead of leaving the
    others to wait. Every method must be called by all processes, in the same order.

    Args:
        rank (int): This process. count (int): How many there are.
        group: Their process group; a gloo one, since what is exchanged lies in the processor's memory.
    """

    def __init__(self, rank: int = 0, count: int = 1, group: tp.Any = None):
        self.rank, self.count, self._group = rank, count, group

    @classmethod
    @contextlib.contextmanager
    def here(cls) -> tp.Iterator['Workers']:
        """All processes of this job, with a group of their own while the block runs: NCCL's collectives give up after
        ten minutes. Where nobody has introduced them to each other yet, `torchrun`'s environment does."""
        begins = not distributed.is_initialized() and int(os.environ.get('WORLD_SIZE', '1')) > 1
        if begins:
            distributed.init_process_group('gloo', timeout=PATIENCE)
        if not distributed.is_initialized() or distributed.get_world_size() == 1:
            yield cls()
            return
        group = distributed.new_group(backend='gloo', timeout=PATIENCE)
        try:
            with cls(distributed.get_rank(), distributed.get_world_size(), group) as workers:
                yield workers
        finally:
            distributed.destroy_process_group(None if begins else group)

    def __enter__(self) -> 'Workers':
        return self

    def __exit__(self, kind: tp.Any, error: tp.Optional[BaseException], _: tp.Any) -> None:
        if self.count == 1 or isinstance(error, _Stopped):
            return
        if error is None:
            self._agree()
        elif isinstance(error, Exception):  # not where a signal may have come in the middle of an exchange
            reason = str(error) or type(error).__name__
            logger.error("Process %d of %d stops: %s", self.rank, self.count, reason)
            try:
                self._agree(reason)
            except RuntimeError as broken:  # the others are gone already: what matters is the error at hand
                logger.error("The other processes could not be told (%s).", broken)

    @property
    def first(self) -> bool:
        """Whether this process does what only one of them may do."""
        return self.rank == 0

    def share_of(self, items: tp.Sequence) -> tp.List:
        """The items that fall to this process when they are dealt out one by one."""
        return list(items[self.rank::self.count])

    def gather(self, value: tp.Any) -> tp.List[tp.Any]:
        """What every process gives, by rank, to all of them."""
        if self.count == 1:
            return [value]
        packed = pickle.dumps(value)  # before the others are told that all is well here
        self._agree()
        found: tp.List[tp.Any] = [None] * self.count
        distributed.all_gather_object(found, packed, group=self._group)
        return [pickle.loads(one) for one in found]

    def collect(self, value: tp.Any) -> tp.List[tp.Any]:
        """What every process gives, by rank, to process zero alone; the others get an empty list."""
        if self.count == 1:
            return [value]
        packed = pickle.dumps(value)
        self._agree()
        found: tp.Optional[tp.List[tp.Any]] = [None] * self.count if self.first else None
        distributed.gather_object(packed, found, dst=0, group=self._group)
        return [pickle.loads(one) for one in found or []]

    def broadcast(self, value: tp.Any = None) -> tp.Any:
        """What process zero gives."""
        if self.count == 1:
            return value
        self._agree()
        found = [value if self.first else None]
        distributed.broadcast_object_list(found, src=0, group=self._group)
        return found[0]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum of every process' tensor, of the same shape, in fp64 and in the order of ranks."""
        if self.count == 1:
            return tensor.double()
        self._agree()
        mine = tensor.double().cpu().contiguous()
        parts = [torch.empty_like(mine) for _ in range(self.count)]
        distributed.all_gather(parts, mine, group=self._group)
        return torch.stack(parts).sum(0)

    def barrier(self) -> None:
        """Wait for all others."""
        if self.count > 1:
            self._agree()

    def _agree(self, error: tp.Optional[str] = None) -> None:
        """Tell the others that this process is well, or what stopped it, and hear the same of them."""
        told: tp.List[tp.Optional[str]] = [None] * self.count
        try:
            distributed.all_gather_object(told, error, group=self._group)
        except RuntimeError as broken:
            if error is not None:
                raise
            raise _Stopped(f"Another of {self.count} processes has ended without a word ({broken}); see its own "
                           "messages, and start again.") from broken
        stopped = [(rank, text) for rank, text in enumerate(told) if text is not None and rank != self.rank]
        if stopped and error is None:
            rank, text = stopped[0]
            raise _Stopped(f"Process {rank} of {self.count} was stopped: {text}")


class _Stopped(LuminaError):
    """Raised where another process has failed."""
