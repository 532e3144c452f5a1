"""The base class of all sections."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from rayqd.extensions import IMPORT_PATH

# Beside the choices of a setting: `Literal["jsd", "k3"] | ImportPath`.
ImportPath = Annotated[str, Field(pattern=IMPORT_PATH)]


class Section(BaseModel):
    """Settings that cannot be changed, nor have a name that there is not; the text under a field is its help."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)
