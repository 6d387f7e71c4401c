"""Everything that changes a score of unlearning, with its presets: hashed, and named in every result."""

import difflib
import hashlib
import json
import typing as tp

import pydantic

from ..errors import LuminaError

Mask = tp.Literal['none', 'both', 'mixed']
FisherKind = tp.Literal['diagonal', 'adam', 'kronecker', 'identity']
Objective = tp.Literal['cross_entropy', 'margin', 'v_objective']


class UnlearningRecipe(pydantic.BaseModel):
    """Keys of one unlearning (arXiv 2506.18312, section 3)."""
    model_config = pydantic.ConfigDict(extra='forbid', frozen=True, allow_inf_nan=False)

    name: str = pydantic.Field('custom', pattern=r'^\w[\w.-]*$', description="for tables and folders")
    layers: str = pydantic.Field(
        'all', description="weights that move: all, self_attention, cross_attention, cross_attention_key_value, P, M, "
                           "or a regular expression over parameter names")
    mask: Mask = pydantic.Field(
        'mixed', description="where padding and silence do not count. none: nowhere. both: in the query's loss (M_U) "
                             "and in the songs' (M_L). mixed: in the query's alone")
    objective: Objective = pydantic.Field('cross_entropy', description="loss of the query that is driven up")
    reading: Objective = pydantic.Field('cross_entropy', description="loss of the songs whose change is the score")
    fisher: FisherKind = pydantic.Field(
        'diagonal', description="information that keeps the other songs: diagonal, kronecker, adam (the optimizer's "
                                "second moment), identity (none: a plain gradient step)")
    power: float = pydantic.Field(1., ge=0., le=1., description="of the Fisher in a step: 1 as published, 0.5 as Adam")
    damping: float = pydantic.Field(0.1, gt=0., description="added to the Fisher, as a part of its mean")
    lr: tp.Optional[float] = pydantic.Field(None, gt=0., description="of the step; or say `relative`")
    relative: tp.Optional[float] = pydantic.Field(
        None, gt=0., description="length of the way, were it straight, as a part of the weights' length: it gives lr")
    steps: int = pydantic.Field(1, ge=1, le=1000)
    draws: int = pydantic.Field(64, ge=1, description="diffusion: fixed timesteps and noises of a loss; 2048 in print")
    fisher_draws: int = pydantic.Field(16, ge=1, description="diffusion: those of the Fisher information")
    silence_db: float = pydantic.Field(-60., le=0., description="level in dBFS under which a frame is silent")

    @pydantic.model_validator(mode='after')
    def _one_size(self) -> 'UnlearningRecipe':
        if (self.lr is None) == (self.relative is None):
            raise ValueError("lr and relative say the same thing: give one of them")
        return self

    @property
    def hash(self) -> str:
        """SHA-256 over every key but the name, and those of diffusions where it is of none."""
        unused = set() if self.objective == 'v_objective' else {'draws', 'fisher_draws'}
        keys = self.model_dump(mode='json', exclude={'name', *unused})
        return hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()


PRESETS: tp.Dict[str, tp.Dict[str, tp.Any]] = {
    # what the paper found best: one step of 1e-6. It damps by nothing that it names; a part of the mean so small that
    # it changes no weight that the songs use stands in for that.
    'published': dict(lr=1e-6, damping=1e-3),
    # what the suite's ground truth found best, at a third of the best length: that costs 0.013 of LDS, and generations
    # move little farther than other seeds put them (docs/unlearning.md)
    'default': dict(fisher='kronecker', relative=1e-2),
}


def unlearning_recipe(preset: str = 'default', /, **changes: tp.Any) -> UnlearningRecipe:
    """A preset with changes.

    Args:
        preset (str): One of `PRESETS`. changes: Keys of `UnlearningRecipe`; `lr` takes the place of `relative` and the
            other way round.
    Raises:
        LuminaError: for an unknown preset or key, or a value out of range.
    """
    if preset not in PRESETS:
        raise LuminaError(f"There is no unlearning recipe '{preset}'; use one of {', '.join(PRESETS)}.")
    keys = {'name': preset if not changes else f'{preset}-changed', **PRESETS[preset], **changes}
    for size, other in (('lr', 'relative'), ('relative', 'lr')):
        if changes.get(size) is not None and changes.get(other) is None:
            keys[other] = None
    try:
        return UnlearningRecipe(**keys)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = '.'.join(map(str, first['loc'])) or 'lr, relative'
        if first['type'] == 'extra_forbidden':
            near = difflib.get_close_matches(key, UnlearningRecipe.model_fields, 1)
            meant = f'did you mean {near[0]}?' if near else f"use one of {', '.join(UnlearningRecipe.model_fields)}."
            raise LuminaError(f"Unlearning has no key '{key}'; {meant}") from None
        what = first['msg'].removeprefix('Value error, ')
        raise LuminaError(f"Unlearning key '{key}': {what}; correct it.") from None
