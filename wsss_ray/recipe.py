# SPDX-License-Identifier: Apache-2.0
"""A run, typed: which images, which method on which network, and every step after it.

A recipe is validated before Ray starts and saved with its run; running the saved file repeats it. ``override`` is what
``--set train.epochs=2`` does. A ``SettledRecipe`` is one whose splits the opened data has decided.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args

import yaml
from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from wsss_ray import storage
from wsss_ray.config import Changes, Config, UserError, check_name, list_keys, suggest
from wsss_ray.config import Scale as Scale
from wsss_ray.contracts import FusionRule
from wsss_ray.data.augment import NormalizeConfig
from wsss_ray.data.toy import ToyConfig
from wsss_ray.engine.localize import LocalizeConfig
from wsss_ray.engine.predict import PredictConfig
from wsss_ray.engine.train import TrainConfig
from wsss_ray.methods import METHODS
from wsss_ray.methods.base import MethodConfig
from wsss_ray.nets import SEGMENTERS
from wsss_ray.nets.deeplab import SegmenterConfig
from wsss_ray.nets.weight_registry import WEIGHTS
from wsss_ray.refine.base import RefinerConfig
from wsss_ray.refine.registry import REFINERS
from wsss_ray.registry import Registry
from wsss_ray.resources import Resources as Resources
from wsss_ray.score.config import ScoreConfig

SCALES: tuple[Scale, ...] = get_args(Scale)
PARTS: dict[str, Registry[Any]] = {"method": METHODS, "refine": REFINERS, "labels": REFINERS, "network": SEGMENTERS}
"""Keys whose ``name`` says which settings stand below them -> the settings by name."""
if TYPE_CHECKING:
    Method = MethodConfig
    Refiner = RefinerConfig
    Segmenter = SegmenterConfig
else:
    Method = Annotated[Union[tuple(METHODS.values())], Field(discriminator="name")]  # noqa: UP007
    Refiner = Annotated[Union[tuple(REFINERS.values())], Field(discriminator="name")]  # noqa: UP007
    Segmenter = Annotated[Union[tuple(SEGMENTERS.values())], Field(discriminator="name")]  # noqa: UP007


class DataConfig(Config):
    """Which images: shards made by ``wsss data prepare``, or the generated toy set."""

    uri: Annotated[str | None, Changes("nothing")] = None
    """Folder or URI of prepared shards; None generates ``toy``. Steps depend on the digests of its splits."""
    toy: ToyConfig = ToyConfig()
    train_split: Annotated[str | None, Changes("nothing")] = None
    """Images to train on and make pseudo masks of; None takes ``train_aug`` where the data has it, else ``train``."""
    val_split: Annotated[str, Changes("nothing")] = "val"
    score_split: Annotated[str | None, Changes("nothing")] = None
    """Part of the training images whose seeds and pseudo masks are scored; None takes ``train``."""


class SettledData(DataConfig):
    """The same with its splits decided."""

    train_split: Annotated[str, Changes("nothing")]
    score_split: Annotated[str, Changes("nothing")]


def _place_file(weights: str | None) -> str | None:
    """A file's path made absolute, since workers have another working folder; a name as it is."""
    if weights is None or weights in WEIGHTS or not Path(weights).expanduser().is_file():
        return weights
    return storage.make_absolute(weights)


class NetConfig(Config):
    """A backbone and what it starts from."""

    backbone: Annotated[str, Changes("weights")] = "toy"
    output_stride: Annotated[PositiveInt | None, Changes("weights")] = None
    weights: Annotated[str | None, Changes("nothing"), AfterValidator(_place_file)] = None
    """A name of ``wsss weights list`` or a file; None starts from random weights. Training depends on the file's
    digest, not on its name."""
    normalize: NormalizeConfig = NormalizeConfig()
    options: Annotated[dict[str, bool | int | float | str | tuple[int | float, ...]], Changes("weights")] = {}
    """Further arguments of the backbone (``wsss_ray.nets``), for example KTSE's ``dropout: [0.2, 0.2]``."""


class Localization(Config):
    """A localizer from weights to class maps, and the one it starts from."""

    method: Method
    net: NetConfig = NetConfig()
    train: TrainConfig = TrainConfig()
    localize: LocalizeConfig = LocalizeConfig()
    base: Annotated[Localization | None, Changes("nothing")] = None
    """The localizer trained before this one: methods that want one take it over whole (SMAF, ESOL's later phases), the
    backbone of any other starts from its backbone and not from ``net.weights``. Training depends on the digest of what
    it left behind."""

    @model_validator(mode="before")
    @classmethod
    def _take_the_rule_of_the_method(cls, data: Any) -> Any:
        """The fusion rule of the method's paper, where the recipe leaves it open."""
        if not isinstance(data, dict) or "method" not in data:
            return data
        localize = data.get("localize", LocalizeConfig())
        given = localize.get("fusion") if isinstance(localize, dict) else getattr(localize, "fusion", None)
        method = _read_method(data["method"])
        if given is not None or method is None:
            return data
        if isinstance(localize, LocalizeConfig):
            return {**data, "localize": localize.model_copy(update={"fusion": method.fusion()})}
        return {**data, "localize": {**localize, "fusion": method.fusion()}} if isinstance(localize, dict) else data

    @model_validator(mode="after")
    def _check_base(self) -> Localization:
        if self.method.wants_base and self.base is None:
            raise ValueError(
                f"method {self.method.name!r} starts from another localizer: give 'base' (its method, net and train)"
            )
        if "maps" in self.method.needs and self.base is None:
            raise ValueError(f"method {self.method.name!r} learns from another localizer's maps: give 'base'")
        return self

    @property
    def fusion(self) -> FusionRule:
        """How its maps of several scales and flips are fused."""
        return self.localize.fusion or self.method.fusion()

    @property
    def chain(self) -> tuple[Localization, ...]:
        """The localizer itself, the one it starts from, and so on."""
        return (self, *self.base.chain) if self.base is not None else (self,)


def _read_method(value: object) -> MethodConfig | None:
    """The method's settings; None where they are not valid, which validation itself will say."""
    if isinstance(value, MethodConfig):
        return value
    if not isinstance(value, dict) or value.get("name") not in METHODS:
        return None
    try:
        return METHODS[value["name"]].model_validate(value)
    except ValidationError:
        return None


def take_localizer(localization: Localization) -> Localization:
    """The localizer of a recipe alone, without the steps after it: what another method can start from."""
    return Localization.model_construct(**{name: getattr(localization, name) for name in Localization.model_fields})


class AffinityConfig(Config):
    """How a refiner that has a network (PSA, IRN) trains it."""

    net: NetConfig
    train: TrainConfig


class SegmentConfig(Config):
    """The segmentation network trained on the pseudo masks."""

    network: Segmenter
    net: NetConfig
    train: TrainConfig


class Recipe(Localization):
    """One run from images to scores."""

    version: Annotated[Literal[1], Changes("nothing")] = 1
    name: Annotated[str, AfterValidator(check_name), Changes("nothing")] = "run"
    scale: Annotated[Scale, Changes("nothing")] = "toy"
    seed: Annotated[NonNegativeInt, Changes("weights")] = 0
    data: DataConfig = DataConfig()
    refine: Annotated[Refiner | None, Changes("masks")]
    """Class maps to pseudo masks; None ends at the maps and their seeds (single-stage methods make neither)."""
    affinity: Annotated[AffinityConfig | None, Changes("masks")] = None
    """Network and training of a refiner that has them."""
    segment: Annotated[SegmentConfig | None, Changes("masks")] = None
    """None ends at the pseudo masks, or predicts with the localizer itself where that is a single-stage method."""
    predict: PredictConfig = PredictConfig()
    score: ScoreConfig = ScoreConfig()
    resources: Resources = Resources()
    tags: Annotated[dict[str, str], Changes("nothing")] = {}

    @model_validator(mode="after")
    def _check_steps(self) -> Recipe:
        if self.refine is not None and self.refine.trainable and self.affinity is None:
            raise ValueError(f"refiner {self.refine.name!r} trains a network: give 'affinity' (net and train)")
        if self.segment is not None and self.refine is None:
            raise ValueError("segment trains on pseudo masks: give 'refine', or set segment to null")
        return self

    def __repr__(self) -> str:
        parts = (self.method, self.refine, self.segment.network if self.segment is not None else None)
        steps = " -> ".join(str(part.name) for part in parts if part is not None)
        return f"Recipe {self.name}: {steps} ({self.scale}, seed {self.seed})"

    def _repr_html_(self) -> str:
        return f"<details><summary>{escape(repr(self))}</summary><pre>{escape(dump(self))}</pre></details>"

    @property
    def predicts(self) -> bool:
        """Whether some network of this recipe predicts masks."""
        return self.segment is not None or self.method.single_stage

    @property
    def background(self) -> float:
        """The fixed background threshold of its seeds: the one given, else that of the method's paper."""
        return self.method.background() if self.score.background is None else self.score.background

    @property
    def nets(self) -> tuple[NetConfig, ...]:
        """The settings of every network it trains."""
        further = tuple(part.net for part in (self.affinity, self.segment) if part is not None)
        return (*(part.net for part in self.chain), *further)


class SettledRecipe(Recipe):
    """A recipe whose splits the opened data has decided."""

    data: SettledData


def cut_after(recipe: Recipe, step: str) -> Recipe:
    """The recipe without what comes behind its scored ``seeds`` or ``masks``; single-stage methods are one whole."""
    if recipe.method.single_stage or step == "segmentation":
        return recipe
    behind = ("segment",) if step == "masks" else ("refine", "affinity", "segment")
    return recipe.model_copy(update=dict.fromkeys(behind))


def dump(recipe: Recipe) -> str:
    """The recipe as YAML that ``load`` accepts, every value resolved."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load(where: str | Path) -> Recipe:
    """A recipe file at a path or URI; UserError names the file, the key and what is wrong with it."""
    try:
        value = yaml.safe_load(storage.read_bytes(str(where)).decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: cannot read the recipe ({error})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # nested without end, numbers and dates without sense
        raise UserError(f"{where}: not valid YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(value, dict):
        raise UserError(f"{where}: a recipe is a mapping of keys; 'wsss show cam' prints one")
    return validate(value, str(where))


def validate(value: dict[str, Any], where: str, known: Iterable[str] = ()) -> Recipe:
    """A checked recipe from plain values; ``where`` is named in the error, and for an unknown key the one of ``known``
    that was probably meant.
    """
    try:
        return Recipe.model_validate(value)
    except ValidationError as error:
        raise UserError(explain(error, where, known)) from None


def override(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """The recipe with ``key.path=value`` settings applied (values in YAML), checked as a whole.

    Setting ``method.profile`` or another key a default depends on re-derives only values that were not set, so
    profiles are chosen with ``--profile`` before overrides. Another ``refine.name``, ``method.name`` or
    ``segment.network.name`` starts from the defaults of that part. Raises UserError for an unknown key, naming it and
    those there are.
    """
    keys = {setting.partition("=")[0].strip() for setting in settings}
    value = _open_rules(recipe, recipe.model_dump(mode="json"), keys)
    assign_settings(value, settings, "train.epochs=2")
    return validate(value, "--set", list_keys(recipe))


def assign_settings(value: dict[str, Any], settings: Sequence[str], example: str) -> None:
    """Put ``key.path=value`` settings (values in YAML) into plain values; UserError for an unknown key."""
    found: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: write key=value, for example --set {example}")
        found[key.strip()] = read_typed(text)
    _assign_all(value, found, option="--set ")


def read_typed(text: str) -> Any:
    """A value as it was typed: YAML's lists, maps, quotes, null, true and false, numbers in their plain form, else the
    text itself, which a field of numbers still reads (``1e3``); nothing loses a character (``a #b``, ``2024_01``).
    """
    plain = text.strip()
    try:
        parsed = yaml.safe_load(plain)
    except (yaml.YAMLError, ValueError, RecursionError):
        return plain
    if parsed is None or plain[:1] in ("[", "{", "'", '"'):
        return parsed
    if isinstance(parsed, bool):
        return parsed if plain.lower() in ("true", "false") else plain
    return parsed if isinstance(parsed, (int, float)) and repr(parsed) == plain.removeprefix("+") else plain


def replace_settings(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with ``{"method.num_views": 4, "refine": PSA(), "segment": None}`` applied, checked as a whole.

    Values are plain or typed; the rule that fuses maps follows a changed method unless it was set apart from it.
    Raises UserError for an unknown key.
    """
    value = _open_rules(recipe, recipe.model_dump(mode="json"), set(changes))
    _assign_all(value, {key: _plain(new) for key, new in changes.items()}, option="")
    return validate(value, f"{recipe.name} with {', '.join(changes)}", list_keys(recipe))


def _plain(new: Any) -> Any:
    """A typed value as plain ones; a recipe as a base gives its localizer alone."""
    if isinstance(new, Recipe):
        return new.model_dump(mode="json", include=set(Localization.model_fields))
    return new.model_dump(mode="json") if isinstance(new, Config) else new


def _open_rules(part: Localization, value: dict[str, Any], changed: set[str], prefix: str = "") -> dict[str, Any]:
    """``value`` with fusion rules that are the method's own left open, so that they are derived again."""
    key = f"{prefix}localize.fusion"
    given = any(name == key or name.startswith(f"{key}.") for name in changed)
    if not given and part.localize.fusion == part.method.fusion():
        value["localize"]["fusion"] = None
    if part.base is not None:
        _open_rules(part.base, value["base"], changed, f"{prefix}base.")
    return value


def _assign_all(value: dict[str, Any], changes: Mapping[str, Any], option: str) -> None:
    """Whole parts first, then their names, then what stands below, in whichever order they were given.

    ``option``: what stands before a key in an error.
    """
    for key in sorted(changes, key=lambda key: (key.removesuffix(".name").count("."), key.endswith(".name"))):
        _assign(value, key, changes[key], option)


def _assign(value: dict[str, Any], key: str, new: Any, option: str) -> None:
    above: Any = value
    here: Any = value
    *parents, last = key.split(".")
    for depth, name in enumerate(parents):
        known = _complete(parents[depth - 1] if depth else "", here)
        if name not in known:
            wrong = ".".join(parents[: depth + 1])
            raise UserError(f"{option}{key}: no key {wrong!r}{_list_known(name, known)}")
        here[name] = {} if known[name] is None else known[name]
        above, here = here, here[name]
    if not isinstance(here, dict):
        raise UserError(f"{option}{key}: {'.'.join(parents)!r} has no keys below it")
    if last == "name" and parents and parents[-1] in PARTS and here.get("name") != new:
        # A key of another part can mean something else ('alpha' does): nothing is carried over but the profile.
        here = above[parents[-1]] = {name: kept for name, kept in here.items() if name == "profile"}
    here[last] = new


def _complete(kind: str, here: Any) -> dict[str, Any]:
    """``here`` and, for a part that was just named, the defaults of what it leaves out; empty for a single value."""
    if not isinstance(here, dict):
        return {}
    if kind not in PARTS or "name" not in here:
        return here
    chosen = {key: here[key] for key in ("name", "profile") if key in here}
    try:
        return {**PARTS[kind][str(here["name"])].model_validate(chosen).model_dump(mode="json"), **here}
    except ValidationError:  # said when the whole recipe is validated
        return here


def _list_known(name: str, known: Mapping[str, Any]) -> str:
    """What to give instead: the key that is most like it, or all there are."""
    return f"; {suggest(name, known) or 'known here: ' + ', '.join(sorted(known))}" if known else ""


def explain(error: ValidationError, where: str, known: Iterable[str] = ()) -> str:
    """The first problem of a validation as one line; an unknown key gets the one of ``known`` that was meant."""
    problems = error.errors(include_url=False)
    first = problems[0]
    names = {*METHODS, *REFINERS, *SEGMENTERS}
    key = ".".join(str(part) for part in first["loc"] if str(part) not in names) or "recipe"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown key; " + (suggest(key, known) or "'wsss show RECIPE' lists the known ones")
    elif first["type"] == "union_tag_invalid":
        message = f"unknown name {first['ctx']['tag']!r}; known: {first['ctx']['expected_tags']}"
    elif "input" in first and not isinstance(first["input"], (dict, list)):
        message += f" (got {first['input']!r})"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{where}: {key}: {message}{more}"
