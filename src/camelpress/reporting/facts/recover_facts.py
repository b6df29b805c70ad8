"""Typed facts of the reports of recover, make-diff and export."""

from __future__ import annotations

from pydantic import Field

from camelpress.reporting.facts_model import FactsModel, Number


class ReportedTensor(FactsModel):
    """One tensor of a recovered model or of a diff."""

    name: str
    dtype: str = Field(description="dtype of the tensor in the tuned model")
    rule: str = Field(description="rule of the sum")
    extra_rows: str | None = Field(default=None, description="rule of the rows beyond the base")
    reason: str | None = Field(default=None, description="reason for the rule of the extra rows")
    sha256: str


class TokenizerFacts(FactsModel):
    """Tokenizer of a recovered model."""

    folder: str | None = Field(alias="from", description="folder of its files; null: no tokenizer")
    source: str | None = Field(default=None, description="base or diff")
    tokens: int | None = Field(default=None, description="number of ids")
    pad: str | None = Field(default=None, description="origin of the pad token")
    chat_template: str | None = None


class KnownCompletionFacts(FactsModel):
    """Scores of known completions under the recovered model."""

    completions: int
    tokens: int
    perplexity: Number
    greedy_agreement: Number = Field(description="share of tokens that greedy decoding gives")


class SourceFacts(FactsModel):
    """One input model."""

    origin: str = Field(description="folder, or hf:org/name@revision")
    files: dict[str, str] = Field(default={}, description="sha256 of each weight file")


class RecoverFacts(FactsModel):
    """Facts of a recovery."""

    dtype: str = Field(description="dtype of most tensors")
    dtypes: dict[str, str] = Field(default={}, description="dtypes of the other tensors")
    representable: dict[str, Number | None] = Field(
        description="share of sums that each 16-bit dtype holds exactly"
    )
    tokenizer: TokenizerFacts
    golden: KnownCompletionFacts | None = None
    sources: dict[str, SourceFacts]
    versions: dict[str, str]
    tensors: list[ReportedTensor]


class MakeDiffFacts(FactsModel):
    """Facts of a diff that make-diff wrote."""

    dtype: str
    inexact: int = Field(description="values that recover does not return exactly")
    zero_signs: int = Field(description="zeros whose sign is lost")
    largest_error: Number
    sources: dict[str, SourceFacts]
    tensors: list[ReportedTensor]


class ExportFacts(FactsModel):
    """Facts of an export."""

    layouts: list[str] = Field(alias="from", description="layouts of the packed layers")
    layers: int = Field(description="packed layers")
    inexact: int = Field(description="values that the output dtype rounds")
    largest_error: Number
    exported_from: list[str] | None = Field(
        default=None, description="digests of the weights of earlier layouts"
    )
