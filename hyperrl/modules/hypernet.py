"""Layers whose weights come from a hypernetwork, without ever building the weights.

A linear head generates ``W(e) = W_0 + sum_k e_k W_k`` from a condition ``e``. So ``W(e) x`` is one ordinary matrix
product over the expansion of ``x`` and ``e' = (1, e)``: expand the input (``e'_k x_i``) when the layer widens, contract
the output when it narrows (spec/models.md section 12.3). Forward and backward at XL size on a 2-core CPU, that
was the faster of the two in most of the shapes and precisions tried; for a few acting rows they are about equal.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional


class Condition:
    """The vector that generates the weights, and expansions of it that several layers share.

    Args:
        embedding: ``e [N, K]``.
        head_bias: whether the heads that generate weights have a bias.
        unbiased: where all generated biases are zero, ``[N, 1]``; none for nowhere.

    Attributes:
        coefficients: what the terms of a weight head are weighted with: ``e' = (1, e)``, or ``e`` without head bias.
    """

    def __init__(self, embedding: Tensor, head_bias: bool = True, unbiased: Tensor | None = None) -> None:
        self.embedding, self.head_bias, self.unbiased = embedding, head_bias, unbiased
        self.coefficients = torch.cat([torch.ones_like(embedding[:, :1]), embedding], 1) if head_bias else embedding

    def float(self) -> Condition:
        """The same condition in fp32."""
        if self.embedding.dtype == torch.float32:
            return self
        return Condition(self.embedding.float(), self.head_bias, self.unbiased)

    def bias(self, generated: Tensor) -> Tensor:
        """The biases in force ``[N, out]``, out of those that a head generates."""
        return generated if self.unbiased is None else generated.masked_fill(self.unbiased, 0.0)

    def expand(self, x: Tensor) -> Tensor:
        """Returns the outer products ``e'_k x_i`` of ``x [N, in]`` as ``[N, terms * in]``."""
        return (self.coefficients.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2)


class Input:
    """A layer input together with its expansion, computed at most once even if actor and critic both use it.

    Args:
        x: ``[N, in]``.
        condition: what generates the weights; none where nothing is generated.
        task_id: which network serves each sample ``[N]``; none where there is one for all tasks.
    """

    def __init__(self, x: Tensor, condition: Condition | None = None, task_id: Tensor | None = None) -> None:
        self.x = x
        self.condition = condition
        self.task_id = task_id
        self._expanded: Tensor | None = None

    def next(self, x: Tensor) -> Input:
        """The input of the next layer."""
        return Input(x, self.condition, self.task_id)

    def float(self) -> Input:
        """The same input in fp32."""
        return Input(self.x.float(), self.condition.float() if self.condition else None, self.task_id)

    @property
    def expanded(self) -> Tensor:
        """The expansion ``[N, terms * in]``."""
        if self._expanded is None:
            assert self.condition is not None
            self._expanded = self._expand(self.condition)
        return self._expanded

    def _expand(self, condition: Condition) -> Tensor:
        return condition.expand(self.x)

    def product(self, weight: Tensor) -> Tensor:
        """``W(e) x [N, out]`` of the stacked head ``weight [out, terms * in]``."""
        return functional.linear(self.expanded, weight)


class RepeatedInput(Input):
    """An input with few distinct rows, as from an environment with few states: the large product is one over these.

    A sample's row is a one-hot vector times the distinct rows, so ``W(e) x`` is what the head ``W_k x_u`` makes of a
    one-hot vector: ``U / in + U / N`` of the multiplications.

    Args:
        distinct: the distinct rows ``[U, in]``.
        row: which of them each sample has ``[N]``.
        condition: what generates the weights.
    """

    def __init__(self, distinct: Tensor, row: Tensor, condition: Condition) -> None:
        super().__init__(distinct[row], condition)
        self.distinct, self.row = distinct, row

    def _expand(self, condition: Condition) -> Tensor:
        """The expansion of the one-hot vectors ``[N, terms * U]``."""
        return condition.expand(functional.one_hot(self.row, len(self.distinct)).to(condition.coefficients.dtype))

    def product(self, weight: Tensor) -> Tensor:
        """As the base class, by the head ``[out, terms * U]``."""
        of_distinct = functional.linear(weight.view(-1, self.distinct.shape[1]), self.distinct)
        return functional.linear(self.expanded, of_distinct.view(len(weight), -1))


def distinct_rows(x: Tensor, at_most: int) -> tuple[Tensor, Tensor] | None:
    """The distinct rows ``[U, D]`` of ``x [N, D]`` and which of them each row is ``[N]``.

    Rows are told apart by a weighted sum, which is many times as fast as comparing their entries in order. Different
    rows with the same sum, as well as NaN, are noticed.

    Returns:
        Both; none if there are no rows, too many different ones, or some that the sum cannot tell apart.
    """
    weights = torch.arange(1, x.shape[1] + 1, dtype=torch.float64).sin()  # no integer combination of them vanishes
    values, row = torch.unique(x.double() @ weights, return_inverse=True)
    if not 0 < len(values) <= at_most:
        return None
    example = row.new_empty(len(values)).scatter_(0, row, torch.arange(len(row)))
    distinct = x[example]
    return (distinct, row) if torch.equal(distinct[row], x) else None


class PlainLinear(nn.Linear):
    """An ordinary affine layer behind the interface of the others."""

    def forward(self, inputs: Input) -> Tensor:  # type: ignore[override]
        """Returns ``[N, out]``."""
        return functional.linear(inputs.x, self.weight, self.bias)


class GeneratedLinear(nn.Module):
    """An affine layer ``W(e) x + b(e)`` whose weights a linear hypernetwork head generates.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        condition_dim: width ``K`` of the condition.
        head_bias: whether the heads have a bias: without one, all generated weights vanish with the condition.

    Attributes:
        weight: the stacked head ``W_0, W_1, ..., W_K`` as the one matrix that the product needs: ``[out, terms * in]``
            if the input is expanded (``in <= out``), else ``[terms * out, in]``; ``terms`` is ``K + 1``, or ``K``
            without head bias, where ``W_0`` is missing. Use :meth:`components` to look at it.
        bias_head: ``b(e)`` as an affine layer ``[out, K]``.
    """

    generates: ClassVar = ("weight", "bias")

    def __init__(self, in_features: int, out_features: int, condition_dim: int, head_bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features, self.head_bias = in_features, out_features, head_bias
        self.expands_input = in_features <= out_features
        self.terms = condition_dim + int(head_bias)
        shape = (
            (out_features, self.terms * in_features) if self.expands_input else (self.terms * out_features, in_features)
        )
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias_head = nn.Linear(condition_dim, out_features, bias=head_bias)

    def components(self) -> Tensor:
        """A view of the weight head as ``[terms, out, in]``: its bias, if it has one, then its columns."""
        if self.expands_input:
            return self.weight.unflatten(1, (self.terms, self.in_features)).transpose(0, 1)
        return self.weight.unflatten(0, (self.terms, self.out_features))

    def forward(self, inputs: Input) -> Tensor:
        """Returns ``[N, out]`` without building per-sample weights."""
        condition = inputs.condition
        assert condition is not None
        bias = condition.bias(self.bias_head(condition.embedding))
        if self.expands_input:
            return inputs.product(self.weight) + bias
        terms = functional.linear(inputs.x, self.weight).unflatten(-1, (self.terms, self.out_features))
        return torch.bmm(condition.coefficients.unsqueeze(1).to(terms.dtype), terms).squeeze(1) + bias

    def materialise(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """The generated weights ``[N, out, in]`` and biases ``[N, out]`` for ``embedding [N, K]``, for inspection."""
        coefficients = Condition(embedding, self.head_bias).coefficients
        return torch.einsum("nk,koi->noi", coefficients, self.components()), self.bias_head(embedding)
