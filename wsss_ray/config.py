"""The typed, frozen settings every part of a recipe is made of, and the one error a user sees."""

from pydantic import BaseModel, ConfigDict


class UserError(Exception):
    """Bad input: one clear line that names the file or key and the fix; the CLI exits with code 2."""


class Config(BaseModel):
    """Base of all settings: unknown keys and wrong types are refused, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
