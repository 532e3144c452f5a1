"""The base class of all sections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rayqd.extensions import IMPORT_PATH

# Beside the choices of a setting: `Literal["jsd", "k3"] | ImportPath`.
ImportPath = Annotated[str, Field(pattern=IMPORT_PATH)]

# A metric of a benchmark as lm-eval calls it: TASK, TASK/METRIC or TASK/METRIC,FILTER.
TASK_METRIC = r"^[A-Za-z0-9_.:-]+(/[A-Za-z0-9_.@-]+(,[A-Za-z0-9_.-]+)?)?$"
TaskMetric = Annotated[str, Field(pattern=TASK_METRIC)]


class Section(BaseModel):
    """Settings that cannot be changed, nor have a name that there is not; the text under a field is its help."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)

    if not TYPE_CHECKING:  # which then knows the fields as arguments

        def __init__(self, **fields: object) -> None:
            """Check `fields` as a file of settings is checked. Raises ConfigError in one line, as the command line."""
            if not fields:  # the defaults, as they stand in the classes
                super().__init__()
                return
            from rayqd.config.python import describe_invalid, prepare

            try:
                type(self).__pydantic_validator__.validate_python(
                    prepare(type(self), fields), strict=True, self_instance=self
                )
            except ValidationError as error:
                raise describe_invalid(type(self), fields, error) from None

        # Pydantic's own mark for an __init__ that does no more than validate: what stands inside a Config, or is read
        # from a file, is then validated as ever.
        __init__.__pydantic_base_init__ = True
