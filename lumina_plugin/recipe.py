"""A recipe: everything that changes a fingerprint or what is made of it, validated and hashed."""

import hashlib
import json
import typing as tp

import pydantic

from .errors import LuminaError

ObjectiveName = tp.Literal['cross_entropy', 'margin', 'v_objective']
ProjectionKind = tp.Literal['random', 'fitted', 'separated']
# mappings by channel, replaced as a whole
BY_CHANNEL = ('channels', 'objective', 'projection.kind', 'projection.block_width')
KEEPS: tp.Dict[str, str] = {'P': 'composition', 'M': 'production'}  # what a channel is to find

Width = tp.Annotated[int, pydantic.Field(ge=1)]


class _Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra='forbid', frozen=True)


class ProjectionConfig(_Section):
    """How a channel's gradient becomes a vector of `dim` numbers."""
    kind: tp.Union[ProjectionKind, tp.Dict[str, ProjectionKind]] = pydantic.Field(
        'fitted', description="random: seeded sparse signs. fitted: principal directions of the songs' own gradients, "
                              "and random ones for what they leave out. separated: directions in which songs differ, "
                              "those turned down in which a song moves that is changed in what P (production) or M "
                              "(composition) is not to hear. One for all channels, or one for each, as "
                              "{P: separated, M: fitted} (fitted for those not named).")
    dim: int = pydantic.Field(512, ge=8, description="Width D of a fingerprint, per channel.")
    seed: int = pydantic.Field(0, ge=0, description="Seed of everything random.")
    block_width: tp.Union[None, Width, tp.Dict[str, Width]] = pydantic.Field(
        None, description="Keep at most this many numbers on each side of a weight's gradient: one for all channels, "
                          "or one for each, as {P: 64, M: 256} (their least for those not named); null keeps all.")
    block_factors: tp.Optional[tp.Literal['random', 'fitted']] = pydantic.Field(
        None, description="What a side wider than block_width is multiplied with. random: seeded orthonormal columns, "
                          "no pass over the songs. fitted: leading directions of the second moments of the weight's "
                          "inputs and output gradients. null: random if kind is, else fitted.")
    fit_songs: int = pydantic.Field(2048, ge=2, description="At most so many songs are used for a fit.")
    center: bool = pydantic.Field(True, description="Subtract the songs' mean gradient before projecting (fitted).")
    residual_dim: tp.Optional[int] = pydantic.Field(
        64, ge=0, description="Of the D numbers, at least so many are random signs of what lies outside the fitted "
                              "directions, and vectors have length 1. 0: directions alone, and vectors as much shorter "
                              "as they miss, so that inner products are those of the whole gradients. null: signs "
                              "while the songs leave 64 numbers for them, else none (fitted).")

    @pydantic.field_validator('block_width', mode='before')
    @classmethod
    def _zero_keeps_all(cls, width: tp.Any) -> tp.Any:
        return None if width == 0 else width

    @pydantic.model_validator(mode='after')
    def _widths_fit(self) -> 'ProjectionConfig':
        if self.block_factors is not None and self.block_width is None:
            raise ValueError("block_factors needs a block_width")
        return self

    def width_of(self, channel: str) -> tp.Optional[int]:
        """`block_width` of one channel; the least of the others', where those are named but not this one."""
        widths = self.block_width
        return widths.get(channel, min(widths.values(), default=None)) if isinstance(widths, dict) else widths

    def kind_of(self, channel: str) -> ProjectionKind:
        """`kind` of one channel; fitted, where others are named but not this one."""
        return self.kind.get(channel, 'fitted') if isinstance(self.kind, dict) else self.kind

    def keeps_lengths(self, channel: str) -> bool:
        """Whether the length of a channel's fingerprints counts, as what a projection holds of a gradient; else it is
        always 1."""
        return self.kind_of(channel) == 'fitted' and not self.residual_dim

    @property
    def factor_kind(self) -> tp.Literal['random', 'fitted']:
        """Kind of the factors of a weight that is wider than `block_width`."""
        return self.block_factors or self._own_factors

    @property
    def _own_factors(self) -> tp.Literal['random', 'fitted']:
        """`factor_kind`, unless it is said."""
        return 'random' if self.kind == 'random' else 'fitted'

    @pydantic.model_serializer(mode='wrap')
    def _without_later_keys(self, dump: pydantic.SerializerFunctionWrapHandler) -> tp.Dict[str, tp.Any]:
        """Leave `block_factors` out where it changes nothing: recipes did not always have it, and those that do
        without it keep their hash."""
        keys = dump(self)
        if self.factor_kind == self._own_factors:
            del keys['block_factors']
        return keys


class ScoringConfig(_Section):
    """How a query's fingerprint is compared with the songs'."""
    method: tp.Literal['cosine', 'kernel', 'dot'] = pydantic.Field('cosine', description="Name of the score.")
    ridge: float = pydantic.Field(0.01, gt=0, description="λ of kernel regression on unit rows.")


class GateConfig(_Section):
    """Which songs cannot be told from chance."""
    kind: tp.Optional[tp.Literal['paper', 'calibrated']] = pydantic.Field(
        None, description="Who decides which songs are paid. paper: the printed confidence, by level, tail and "
                          "noise_floor. calibrated: p-values from songs outside of the catalogue. null: calibrated "
                          "where noise_floor is measured, as in recipes from before this key. Reports show both.")
    rate: float = pydantic.Field(
        0.05, gt=0, lt=1, description="Of the songs that the calibrated gate lets through, the share that may be there "
                                      "by chance (false discovery rate, per query and channel).")
    level: float = pydantic.Field(0.95, gt=0, lt=1, description="Confidence at which a song passes.")
    tail: tp.Literal['two_sided', 'one_sided'] = pydantic.Field(
        'two_sided', description="two_sided: the printed erf(z/√2), 95 % at z = 1.960. one_sided: the paper's ~1.65σ.")
    noise_floor: tp.Literal['theory', 'measured'] = pydantic.Field(
        'measured', description="theory: 1/√D about 0. measured: mean and spread of the cosines between the store's "
                                "own songs.")

    @property
    def decides(self) -> tp.Literal['paper', 'calibrated']:
        """The gate by which songs are paid."""
        return self.kind or ('calibrated' if self.noise_floor == 'measured' else 'paper')

    @pydantic.model_serializer(mode='wrap')
    def _without_later_keys(self, dump: pydantic.SerializerFunctionWrapHandler) -> tp.Dict[str, tp.Any]:
        """Leave `kind` and `rate` out where they change nothing for the printed gate: recipes that do without them
        keep their hash."""
        keys = dump(self)
        keys['kind'] = self.decides
        if self.decides == 'paper' and self.noise_floor == 'theory':
            del keys['kind']
            if self.rate == GateConfig.model_fields['rate'].default:
                del keys['rate']
        return keys


class Recipe(_Section):
    """All keys of a fingerprint and of its statistics.

    `fingerprint_hash` covers the keys that change a stored vector: two stores with equal ones can be compared, and a
    store made with another is refused. `hash` covers everything and is printed in every report.
    """
    name: str = pydantic.Field('default', description="Printed in reports.")
    objective: tp.Union[ObjectiveName, tp.Dict[str, ObjectiveName]] = pydantic.Field(
        'margin', description="The scalar whose gradient is the fingerprint: one for all channels, or one for each, as "
                              "{P: margin, M: cross_entropy} (margin for those not named). v_objective: of a latent "
                              "diffusion model, which knows no other.")
    draws: int = pydantic.Field(
        32, ge=1, description="Noises and angles that a v_objective is averaged over, always the same ones.")
    chunk_seconds: float = pydantic.Field(10.0, gt=0, le=30, description="Songs and queries are cut into chunks.")
    silence_db: float = pydantic.Field(
        -60.0, le=0, description="A chunk that never rises above this level (dBFS) is recorded as silent.")
    channels: tp.Dict[str, tp.List[str]] = pydantic.Field(
        {'P': ['self_attention'], 'M': ['output_linears']}, description="Layer groups of each channel.")
    block_norm: bool = pydantic.Field(True, description="Scale each block's gradient to length 1 before joining them.")
    projection: ProjectionConfig = ProjectionConfig()
    checkpoints: tp.Literal['all', 'last'] = pydantic.Field(
        'all', description="Mean of the scores over all stored checkpoints, or the last one alone.")
    scoring: ScoringConfig = ScoringConfig()
    gate: GateConfig = GateConfig()
    song_phases: int = pydantic.Field(
        1, ge=1, le=16, description="A song is encoded from so many starts within one frame of the codec, and its "
                                    "fingerprint is that of all of them: so many times the work.")
    query_phases: int = pydantic.Field(
        1, ge=1, le=16, description="The same for a recording that is attributed.")
    mask_prompt: bool = pydantic.Field(True, description="Leave the frames of a prompt out of a continuation's query.")
    prompt_apart: bool = pydantic.Field(
        False, description="Where a prompt is counted: fingerprint it apart from what follows, so that each counts as "
                           "much as the other, however long it is.")

    @pydantic.model_validator(mode='after')
    def _channels_named(self) -> 'Recipe':
        if not self.channels or any(not groups for groups in self.channels.values()):
            raise ValueError("channels: name at least one channel and one layer group for each")
        return self

    @pydantic.model_validator(mode='after')
    def _kinds_fit(self) -> 'Recipe':
        projection, named = self.projection, self.projection.kind
        for channel in {**self.channels, **(named if isinstance(named, dict) else {})}:
            if projection.kind_of(channel) == 'separated' and channel not in KEEPS:
                raise ValueError(f"projection.kind: it is not known what channel {channel} is to find; separate "
                                 f"{' and '.join(KEEPS)} alone, as {{P: separated, {channel}: fitted}}")
        fitted = any(projection.kind_of(channel) == 'fitted' for channel in self.channels)
        if fitted and (projection.residual_dim or 0) >= projection.dim:
            raise ValueError(f"projection.residual_dim ({projection.residual_dim}) must be smaller than dim "
                             f"({projection.dim})")
        return self

    @pydantic.model_serializer(mode='wrap')
    def _without_later_keys(self, dump: pydantic.SerializerFunctionWrapHandler) -> tp.Dict[str, tp.Any]:
        """Leave `prompt_apart` out where it is off, and `draws` where nothing is drawn: recipes that do without them
        keep their hash."""
        keys = dump(self)
        if not self.prompt_apart:
            del keys['prompt_apart']
        if self.objective != 'v_objective':
            del keys['draws']
        return keys

    @pydantic.model_validator(mode='after')
    def _one_v_objective(self) -> 'Recipe':
        if isinstance(self.objective, dict) and 'v_objective' in self.objective.values():
            raise ValueError("objective: v_objective is for all channels, as the model that it asks knows no other")
        return self

    def objective_of(self, channel: str) -> ObjectiveName:
        """The objective of one channel; margin, where others are named but not this one."""
        return self.objective.get(channel, 'margin') if isinstance(self.objective, dict) else self.objective

    @property
    def fingerprint_keys(self) -> tp.Dict[str, tp.Any]:
        """The keys that change a stored vector."""
        keep = ('objective', 'chunk_seconds', 'silence_db', 'channels', 'block_norm', 'projection', 'song_phases')
        dumped = self.model_dump(mode='json')
        kept = {key: dumped[key] for key in (*keep, 'draws') if key in dumped}
        if any(self.projection.keeps_lengths(channel) for channel in self.channels):
            kept['lengths'] = 'kept'  # the same keys once meant vectors of length 1
        return kept

    @property
    def fingerprint_hash(self) -> str:
        return _hash(self.fingerprint_keys)

    @property
    def hash(self) -> str:
        return _hash(self.model_dump(mode='json'))

    def describe(self) -> tp.Dict[str, tp.Any]:
        """All keys, flat with dots, e.g. `{'projection.dim': 512, ...}`."""
        keys = self.model_dump(mode='json')
        keys['prompt_apart'] = self.prompt_apart
        keys['projection']['block_factors'] = self.projection.factor_kind  # also where it follows from `kind`
        keys['gate'].update(kind=self.gate.decides, rate=self.gate.rate)
        return dict(_flatten(keys))


def _hash(keys: tp.Mapping[str, tp.Any]) -> str:
    return hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()


def _flatten(tree: tp.Mapping[str, tp.Any], prefix: str = '') -> tp.Iterator[tp.Tuple[str, tp.Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and prefix + key not in BY_CHANNEL:
            yield from _flatten(value, f'{prefix}{key}.')
        else:
            yield prefix + key, value


PRESETS: tp.Dict[str, tp.Dict[str, tp.Any]] = {
    # LUMINA v7 as printed: loss gradients of one checkpoint, a seeded random projection, kernel regression on unit
    # rows, the theoretical noise floor.
    'paper': dict(
        name='paper', objective='cross_entropy', block_norm=False, checkpoints='last', mask_prompt=False,
        projection=dict(kind='random', dim=512, center=False, residual_dim=0),
        scoring=dict(method='kernel', ridge=0.01), gate=dict(noise_floor='theory')),
    # What retraining and known causes show to be nearest to the truth (docs/validation.md): margin gradients, those of
    # each weight brought to length 1, all checkpoints, and kernel regression with a ridge that smooths, on a projection
    # fitted to the songs.
    'default': dict(
        name='default', objective='margin', block_norm=True, checkpoints='all',
        mask_prompt=True, prompt_apart=True, query_phases=4,
        projection=dict(kind='fitted', dim=512, block_width={'P': 64, 'M': 256}, center=False, residual_dim=None),
        scoring=dict(method='kernel', ridge=0.3), gate=dict(kind='calibrated', noise_floor='measured')),
    # Of a latent diffusion model (Stable Audio's classes): v-loss gradients of the self attention and of the output
    # projection, otherwise as `default`; the printed gate, on a measured noise floor.
    'dit': dict(
        name='dit', objective='v_objective', draws=32, block_norm=True, checkpoints='all',
        channels=dict(P=[r'transformer\.transformer_blocks\.\d+\.attn1\.to_(q|k|v|out\.0)\.weight'],
                      M=[r'transformer\.proj_out\.weight']),
        projection=dict(kind='fitted', dim=512, block_width={'P': 64, 'M': 256}, center=False, residual_dim=None),
        scoring=dict(method='kernel', ridge=0.3), gate=dict(kind='paper', noise_floor='measured')),
}


def get_recipe(name: str = 'default', **overrides: tp.Any) -> Recipe:
    """A preset with some keys replaced; nested keys are merged, e.g. `projection={'dim': 256}`.

    Raises:
        LuminaError: for an unknown preset, an unknown key or a value out of range.
    """
    if name not in PRESETS:
        raise LuminaError(f"There is no recipe '{name}'; use one of {', '.join(PRESETS)}.")
    return recipe_from_dict(_merge(PRESETS[name], overrides))


def recipe_from_dict(keys: tp.Mapping[str, tp.Any]) -> Recipe:
    """Validate a mapping as a recipe.

    Raises:
        LuminaError: naming the first bad key and what it takes.
    """
    try:
        return Recipe.model_validate(dict(keys))
    except pydantic.ValidationError as error:
        errors = error.errors()  # of a key that may be of several types there is one for each: the one farthest inside
        first = max((one for one in errors if one['loc'][:1] == errors[0]['loc'][:1]), key=lambda one: len(one['loc']))
        where = '.'.join(str(part) for part in first['loc'] if '[' not in str(part)) or 'recipe'  # no names of types
        raise LuminaError(f"Recipe key '{where}' is not usable: {first['msg']}; "
                          f"see config/solver/lumina/default.yaml for all keys.") from None


def _merge(base: tp.Mapping[str, tp.Any], over: tp.Mapping[str, tp.Any], prefix: str = '') -> tp.Dict[str, tp.Any]:
    merged = dict(base)
    for key, value in over.items():
        mappings = isinstance(value, tp.Mapping) and isinstance(merged.get(key), tp.Mapping)
        if mappings and prefix + key not in BY_CHANNEL:
            merged[key] = _merge(merged[key], value, f'{prefix}{key}.')
        else:
            merged[key] = value
    return merged
