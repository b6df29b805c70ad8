"""From a published weight diff to a tested, published 4-bit release.

The stages as functions, for notebooks and scripts (`help(camelpress.recover)` lists settings):

    from camelpress import publish, quantize, recover, validate

    recover("llama-7b", "tulu-7b-diff", out="tulu-7b")
    quantize("tulu-7b", out="tulu-7b-4bit", calibration=["dolly.jsonl"])
    report = validate("tulu-7b", "tulu-7b-4bit", text=["held-out.txt"])
    if report.verdict == "PASS":
        publish("tulu-7b-4bit", "validation", to="release", license="tulu")

`run("recipe.yaml")` does all of it from a recipe; `make_diff`, `store` and `export` do the work of
the commands of these names. Importing this package loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from camelpress.api import (
        export,
        make_diff,
        publish,
        quantize,
        recover,
        run,
        store,
        validate,
    )
    from camelpress.core.errors import Problem
    from camelpress.reporting.stage_report import Report
    from camelpress.reporting.verdict import Verdict

__all__ = [
    "Problem",
    "Report",
    "Verdict",
    "__version__",
    "export",
    "make_diff",
    "publish",
    "quantize",
    "recover",
    "run",
    "store",
    "validate",
]
__version__ = "0.1.0"

_HOMES = {  # of what is imported on first use
    "Problem": "camelpress.core.errors",
    "Report": "camelpress.reporting.stage_report",
    "Verdict": "camelpress.reporting.verdict",
    "export": "camelpress.api",
    "make_diff": "camelpress.api",
    "recover": "camelpress.api",
    "run": "camelpress.api",
    "store": "camelpress.api",
}


if not TYPE_CHECKING:  # a type checker would take any name for one of the package

    def __getattr__(name: str) -> Any:
        """Imports a public name on first use."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)


class _CallableStage(ModuleType):
    """Makes the package of a stage callable: `camelpress.quantize` is a function and a folder."""

    @property
    def _function(self) -> Any:
        return getattr(import_module("camelpress.api"), self.__name__.rpartition(".")[2])

    @property
    def __signature__(self) -> Any:
        from inspect import signature

        return signature(self._function)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._function(*arguments, **options)


for _name in ("publish", "quantize", "validate"):  # their __init__.py are empty
    import_module(f"camelpress.{_name}").__class__ = _CallableStage
