"""`prepare`: where the data is prepared; what comes out is the same everywhere."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from luthier.settings.section import Section


class Prepare(Section):
    engine: Literal["local", "ray"] = "local"
    """ray: blocks of the data are the tasks of a Ray cluster, whose nodes all see the files under the same paths
    ([more than one machine](data.md#more-than-one-machine))."""
    processes: Annotated[int, Field(ge=1)] | None = None
    """With `local`: how many at most; each takes half a GiB. None: one for each processor that this process may use."""
    address: str | None = None
    """Of the cluster: `auto` is the one that this machine belongs to, `ray://host:10001` one elsewhere. None: Ray is
    started on this machine alone."""

    @model_validator(mode="after")
    def _fits_the_engine(self) -> Prepare:
        if self.address is not None and self.engine == "local":
            raise ValueError("prepare.address is that of a cluster: with engine: ray")
        if self.processes is not None and self.engine == "ray":
            raise ValueError("prepare.processes are this machine's: with engine: local")
        return self
