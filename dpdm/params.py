"""The types for a method's `Params`: strict models, and numbers with a range.

Imports pydantic only, so that a schema loads in milliseconds.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    """Base of all models of user input: unknown keys are errors, types are not converted, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Count = Annotated[int, Field(ge=1, le=2**31 - 1)]  # 1, 2, ...
Natural = Annotated[int, Field(ge=0)]  # 0, 1, 2, ...
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[Finite, Field(gt=0)]  # above 0
NotNegative = Annotated[Finite, Field(ge=0)]  # 0 or above
Fraction = Annotated[Finite, Field(ge=0, le=1)]  # from 0 to 1, both included
Share = Annotated[Finite, Field(gt=0, lt=1)]  # between 0 and 1, both excluded
