"""`prepare`: where the data is prepared; what comes out is the same everywhere."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from luthier.settings.section import Section


class Prepare(Section):
    engine: Literal["local", "ray"] = "local"
    """ray: blocks of the data are the tasks of a Ray cluster, whose nodes all see the files under the same paths
    ([more than one machine](data.md#more-than-one-machine))."""
    address: str | None = None
    """Of the cluster: `auto` is the one that this machine belongs to, `ray://host:10001` one elsewhere. None: Ray is
    started on this machine alone."""

    @model_validator(mode="after")
    def _address_is_of_a_cluster(self) -> Prepare:
        if self.address is not None and self.engine == "local":
            raise ValueError("prepare.address is that of a cluster: with engine: ray")
        return self
