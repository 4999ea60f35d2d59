"""The options of a command that may let several processes train; they are torchrun's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from luthier.launch import Launch

OPTIONS: dict[str, tuple[Any, Any]] = {
    "nproc": (Annotated[int, typer.Option(help="Processes that train together, on each machine.", min=1)], 1),
    "nnodes": (Annotated[str, typer.Option(help="Machines that train together, or MIN:MAX.")], "1"),
    "rdzv_endpoint": (Annotated[str, typer.Option(help="HOST:PORT of the machine at which they meet.")], ""),
    "rdzv_id": (Annotated[str, typer.Option(help="The same for all that shall meet.")], "luthier"),
    "rdzv_backend": (Annotated[str, typer.Option(help="By what they meet.")], "c10d"),
    "rdzv_conf": (
        Annotated[list[str] | None, typer.Option(help="More of it: timeout=1800", metavar="KEY=VALUE")],
        None,
    ),
    "max_restarts": (Annotated[int, typer.Option(help="Begin again so often if a process is lost.", min=0)], 0),
    "wait_minutes": (Annotated[float, typer.Option(help="For a process that does not answer.", min=0)], 30.0),
}


def launched(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with these options, of which it is given a `launch`: None where one process trains."""
    hints = get_type_hints(verb, include_extras=True)
    own = {name: p.replace(annotation=hints[name]) for name, p in inspect.signature(verb).parameters.items()}
    del own["launch"]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in OPTIONS.items()
    ]

    @wraps(verb)
    def command(*args: Any, **given: Any) -> None:
        asked = {name: given.pop(name) for name in OPTIONS}
        if {name: default for name, (_, default) in OPTIONS.items()} == asked:
            verb(*args, **given, launch=None)
            return
        pairs = dict(pair.partition("=")[::2] for pair in asked.pop("rdzv_conf") or ())
        verb(*args, **given, launch=Launch(**asked, rdzv_conf=pairs))

    command.__signature__ = inspect.Signature([*own.values(), *added])  # type: ignore[attr-defined]
    command.__annotations__ = {name: p.annotation for name, p in command.__signature__.parameters.items()}  # type: ignore[attr-defined]
    return command
