"""Adam's second moment out of a training checkpoint: information about weights that costs nothing."""

import pickle
import typing as tp
from pathlib import Path

import torch
from torch import nn

from ..errors import LuminaError


def second_moments(checkpoint: Path, model: nn.Module) -> tp.Dict[str, torch.Tensor]:
    """The running mean of squared batch gradients that Adam or AdamW kept of each parameter.

    Args:
        checkpoint (Path): Of a dora run: `checkpoint.th`. model (nn.Module): The model that it is of.
    Returns:
        dict: By parameter name.
    Raises:
        LuminaError: when there is no checkpoint, it holds no such moments, or it is of another model.
    """
    from audiocraft.solvers import builders
    if not checkpoint.is_file():
        raise LuminaError(f"There is no {checkpoint}: an exported model has no optimizer; use the diagonal Fisher.")
    try:
        optimizer = torch.load(checkpoint, map_location='cpu', weights_only=True)['optimizer']
    except (OSError, KeyError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise LuminaError(f"{checkpoint} holds no optimizer ({str(error).splitlines()[0]}); use the diagonal "
                          "Fisher.") from error
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = builders.get_optim_parameter_groups(model)
    found = {}
    sizes = [len(group['params']) for group in groups]
    if sizes != [len(saved['params']) for saved in optimizer['param_groups']]:
        raise LuminaError(f"The optimizer in {checkpoint} has other groups of weights than this model; use the "
                          "diagonal Fisher.")
    for group, saved in zip(groups, optimizer['param_groups'], strict=True):
        for parameter, index in zip(group['params'], saved['params'], strict=True):
            moment = optimizer['state'].get(index, {}).get('exp_avg_sq')
            if moment is not None:
                if moment.shape != parameter.shape:
                    raise LuminaError(f"{checkpoint} is of another model: {names[parameter]} is "
                                      f"{list(parameter.shape)} here and {list(moment.shape)} there.")
                found[names[parameter]] = moment
    if not found:
        raise LuminaError(f"The optimizer in {checkpoint} keeps no second moments (it is not Adam's kind); use the "
                          "diagonal Fisher.")
    return found
