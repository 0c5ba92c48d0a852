"""The base of everything that is read from a file and validated."""

from pydantic import BaseModel, ConfigDict


class Document(BaseModel):
    """Unknown keys are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)
