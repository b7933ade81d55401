"""Operations on the rows of each slide of a batch, without a loop over slides on the device.

    slide_matmul    y_u = M_{slide(u)} x_u
    slide_outer     Y_s = Σ_{u ∈ s} a_u ⊗ x_u
    slide_softmax   p_u = softmax over the rows of u's slide (and further entries of the slide)
    slide_attention   the three together: a few queries of each slide read its rows

The first two are each other's gradients. The rows of a slide are contiguous, `sites.coords` says whose a row is and
`sites.offsets` where a slide begins. Operators `span_sparse::slide_*` on a GPU; on a CPU they loop over the slides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from span_sparse.nn.execution import current_execution
from span_sparse.sparse import SparseSites
from span_sparse.sparse.operators import has_kernels, operator


def _matmul_fake(rows: Tensor, matrices: Tensor, coords: Tensor, offsets: Tensor, wide: bool = False) -> Tensor:
    return rows.new_empty(rows.shape[0], matrices.shape[1], dtype=_result_dtype(rows, wide))


def _matmul_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])


def _matmul_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    rows, matrices, coords, offsets = ctx.saved_tensors
    grad = grad.to(rows.dtype)
    by_rows = _matmul(grad, matrices.mT, coords, offsets) if ctx.needs_input_grad[0] else None
    by_matrices = _outer(grad, rows, coords, offsets).to(matrices.dtype) if ctx.needs_input_grad[1] else None
    return by_rows, by_matrices, None, None, None


@operator(
    "slide_matmul",
    "(Tensor rows, Tensor matrices, Tensor coords, Tensor offsets, bool wide=False) -> Tensor",
    fake=_matmul_fake,
    launches=1,
    gradient=_matmul_gradient,
    context=_matmul_context,
)
def _matmul(rows: Tensor, matrices: Tensor, coords: Tensor, offsets: Tensor, wide: bool = False) -> Tensor:
    dtype = _result_dtype(rows, wide)
    if has_kernels(rows):
        from span_sparse.nn.slide_kernels import launch_matmul

        return launch_matmul(rows, matrices, coords[:, 0], dtype)
    parts = zip(rows.split(_counts(offsets)), matrices, strict=True)
    return torch.cat([slide.to(dtype) @ matrix.to(dtype).T for slide, matrix in parts])


def _outer_fake(weights: Tensor, rows: Tensor, coords: Tensor, offsets: Tensor) -> Tensor:
    dtype = _sum_dtype(weights, rows)
    return rows.new_empty(offsets.shape[0] - 1, weights.shape[1], rows.shape[1], dtype=dtype)


def _outer_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _outer_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    weights, rows, coords, offsets = ctx.saved_tensors
    by_weights = by_rows = None
    if ctx.needs_input_grad[0]:
        by_weights = _matmul(rows, grad.to(rows.dtype), coords, offsets, True).to(weights.dtype)
    if ctx.needs_input_grad[1]:
        by_rows = _matmul(weights.to(rows.dtype), grad.mT.to(rows.dtype), coords, offsets)
    return by_weights, by_rows, None, None


@operator(
    "slide_outer",
    "(Tensor weights, Tensor rows, Tensor coords, Tensor offsets) -> Tensor",
    fake=_outer_fake,
    launches=2,
    gradient=_outer_gradient,
    context=_outer_context,
)
def _outer(weights: Tensor, rows: Tensor, coords: Tensor, offsets: Tensor) -> Tensor:
    dtype = _sum_dtype(weights, rows)
    if has_kernels(rows):
        from span_sparse.nn.slide_kernels import launch_outer

        return launch_outer(weights, rows, coords[:, 0], offsets)
    counts = _counts(offsets)
    parts = zip(weights.to(dtype).split(counts), rows.to(dtype).split(counts), strict=True)
    with torch.autocast(rows.device.type, enabled=False):
        return torch.stack([factors.T @ slide for factors, slide in parts])


def _softmax_fake(scores: Tensor, others: Tensor, coords: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(scores), torch.empty_like(others)


def _softmax_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output, *inputs[2:])


def _softmax_gradient(ctx: Any, grad: Tensor, grad_others: Tensor) -> tuple[Tensor | None, ...]:
    weights, others, coords, offsets = ctx.saved_tensors
    ones = weights.new_ones(len(weights), 1)
    product, product_others = weights * grad, others * grad_others
    mean = _outer(product, ones, coords, offsets)[..., 0] + product_others.sum(dim=1)
    by_row = _matmul(ones, mean.unsqueeze(-1), coords, offsets)
    return product - weights * by_row, product_others - others * mean.unsqueeze(1), None, None


@operator(
    "slide_softmax",
    "(Tensor scores, Tensor others, Tensor coords, Tensor offsets) -> (Tensor, Tensor)",
    fake=_softmax_fake,
    launches=16,
    gradient=_softmax_gradient,
    context=_softmax_context,
)
def _softmax(scores: Tensor, others: Tensor, coords: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    if not has_kernels(scores):
        return _plain_softmax(scores, others, _counts(offsets))
    slide = coords[:, 0].long()
    start = scores.new_full((len(offsets) - 1, scores.shape[1]), -torch.inf)
    top = start.scatter_reduce(0, slide.unsqueeze(1).expand_as(scores), scores, "amax", include_self=False)
    top = torch.cat([top.unsqueeze(1), others], dim=1).amax(dim=1)
    weights, further = (scores - top[slide]).exp(), (others - top.unsqueeze(1)).exp()
    total = _outer(weights, weights.new_ones(len(weights), 1), coords, offsets)[..., 0] + further.sum(dim=1)
    return weights / total[slide], further / total.unsqueeze(1)


def _plain_softmax(scores: Tensor, others: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    ours, theirs = [], []
    for slide, further in zip(scores.split(list(counts)), others, strict=True):
        weights = torch.cat([slide, further]).softmax(dim=0)
        ours.append(weights[: len(slide)])
        theirs.append(weights[len(slide) :])
    return torch.cat(ours), torch.stack(theirs)


def _result_dtype(rows: Tensor, wide: bool) -> torch.dtype:
    return torch.promote_types(rows.dtype, torch.float32) if wide else rows.dtype


def _sum_dtype(weights: Tensor, rows: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(rows.dtype, weights.dtype), torch.float32)


def _counts(offsets: Int32[Tensor, " bounds"]) -> list[int]:
    return offsets.diff().tolist()


def _attention_fake(
    rows: Tensor, others: Tensor, queries: Tensor, coords: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    scores = rows.new_empty(rows.shape[0], queries.shape[1], dtype=torch.float32)
    return torch.empty_like(queries, dtype=torch.float32), scores, scores.new_empty(queries.shape[:2])


def _scores_of(others: Tensor, queries: Tensor) -> Tensor:
    """Scores of the further rows, `[slides, others, columns]`, in float32 whatever autocast says."""
    with torch.autocast(others.device.type, enabled=False):
        return torch.bmm(others.float(), queries.float().mT)


def _attention_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.set_materialize_grads(False)


def _attention_gradient(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 5
    return (*_attention_backward(grad.contiguous(), *ctx.saved_tensors), None, None)


def _attention_backward_fake(
    grad: Tensor, rows: Tensor, others: Tensor, queries: Tensor, *_: Any
) -> tuple[Tensor, ...]:
    return torch.empty_like(rows), torch.empty_like(others), torch.empty_like(queries)


@operator(
    "slide_attention_backward",
    "(Tensor grad, Tensor rows, Tensor others, Tensor queries, Tensor coords, Tensor offsets, Tensor read, "
    "Tensor scores, Tensor log_sums) -> (Tensor, Tensor, Tensor)",
    fake=_attention_backward_fake,
    launches=24,
)
def _attention_backward(
    grad: Tensor, rows: Tensor, others: Tensor, queries: Tensor, coords: Tensor, offsets: Tensor, read: Tensor,
    scores: Tensor, log_sums: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    means = (grad * read).sum(dim=2)  # Σ_u p_u dp_u over everything that is read
    if has_kernels(rows):
        from span_sparse.nn.slide_kernels import launch_score_gradient

        both = launch_score_gradient(rows, grad, scores, log_sums, means, coords[:, 0])
    else:
        slide = coords[:, 0].long()
        weights = (scores - log_sums[slide]).exp()
        dweights = _matmul(rows.float(), grad, coords, offsets)
        both = torch.cat([weights, weights * (dweights - means[slide])], dim=1).to(rows.dtype)
    grad = grad.to(rows.dtype)
    by_rows = _matmul(both, torch.cat([grad, queries], dim=1).mT, coords, offsets)
    other_scores = _scores_of(others, queries)
    other_weights = (other_scores - log_sums.unsqueeze(1)).exp()  # (slides, others, columns)
    dscores = other_weights * (_scores_of(others, grad) - means.unsqueeze(1))
    by_others = torch.bmm(torch.cat([other_weights, dscores], dim=2).to(rows.dtype), torch.cat([grad, queries], dim=1))
    columns = scores.shape[1]
    by_queries = _outer(both[:, columns:], rows, coords, offsets).to(queries.dtype)
    by_queries = torch.baddbmm(by_queries, dscores.to(rows.dtype).mT, others)
    return by_rows, by_others, by_queries


@operator(
    "slide_attention",
    "(Tensor rows, Tensor others, Tensor queries, Tensor coords, Tensor offsets) -> (Tensor, Tensor, Tensor)",
    fake=_attention_fake,
    launches=6,
    gradient=_attention_gradient,
    context=_attention_context,
)
def _attention(
    rows: Tensor, others: Tensor, queries: Tensor, coords: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    other_scores = _scores_of(others, queries)
    if has_kernels(rows):
        from span_sparse.nn.slide_kernels import launch_attention

        return launch_attention(rows, others, queries, other_scores, coords[:, 0], offsets)
    scores = _matmul(rows.float(), queries.float(), coords, offsets)
    weights, further = _plain_softmax(scores, other_scores, _counts(offsets))
    read = torch.baddbmm(_outer(weights, rows, coords, offsets), further.mT, others.float())
    parts = zip(scores.split(_counts(offsets)), other_scores, strict=True)
    log_sums = torch.stack([torch.cat([slide, more]).logsumexp(dim=0) for slide, more in parts])
    return read, scores, log_sums


def slide_attention(
    rows: Float[Tensor, "tokens width"],
    others: Float[Tensor, "slides others width"],
    queries: Float[Tensor, "slides columns width"],
    sites: SparseSites,
) -> tuple[Float[Tensor, "slides columns width"], Float[Tensor, "tokens columns"] | None]:
    """What a few queries of each slide read from its rows and from further rows of the slide, both keys and values.

    Returns:
        The weighted means, at least float32, and the weight of every row; on a GPU the weights carry no gradient, and
        are None unless the execution settings ask for them.
    """
    execution = current_execution(rows.device)
    if execution.operators and rows.dtype != torch.float64:
        others, queries = others.to(rows.dtype), queries.to(rows.dtype)
        read, scores, log_sums = _attention(rows, others, queries, sites.coords, sites.offsets)
        if not execution.keep_attention:
            return read, None
        with torch.no_grad():
            return read, (scores - to_rows(log_sums, sites)).exp()
    scores = slide_scores(rows, queries, sites)
    other_scores = torch.einsum("suc,smc->sum", others, queries).to(scores.dtype)
    weights, further = slide_softmax(scores, other_scores, sites)
    return slide_outer(weights, rows, sites) + torch.einsum("sum,suc->smc", further, others.to(further.dtype)), weights


def slide_matmul(
    rows: Float[Tensor, "tokens width"], matrices: Float[Tensor, "slides columns width"], sites: SparseSites
) -> Float[Tensor, "tokens columns"]:
    """Multiplies every row with the matrix of its slide; accumulates in float32, the result has the rows' dtype."""
    return _slide_matmul(rows, matrices, sites, wide=False)


def slide_scores(
    rows: Float[Tensor, "tokens width"], matrices: Float[Tensor, "slides columns width"], sites: SparseSites
) -> Float[Tensor, "tokens columns"]:
    """`slide_matmul` with a result of at least float32, for a softmax."""
    return _slide_matmul(rows, matrices, sites, wide=True)


def _slide_matmul(rows: Tensor, matrices: Tensor, sites: SparseSites, *, wide: bool) -> Tensor:
    if current_execution(rows.device).operators:
        return _matmul(rows, matrices.to(rows.dtype), sites.coords, sites.offsets, wide)
    dtype = _result_dtype(rows, wide)
    parts = zip(rows.to(dtype).split(sites.counts), matrices.to(dtype), strict=True)
    return torch.cat([slide @ matrix.T for slide, matrix in parts])


def slide_outer(
    weights: Float[Tensor, "tokens columns"], rows: Float[Tensor, "tokens width"], sites: SparseSites
) -> Float[Tensor, "slides columns width"]:
    """Sums the products of weights and rows over every slide: `columns` weighted sums of its rows."""
    if current_execution(rows.device).operators:
        return _outer(weights, rows, sites.coords, sites.offsets)
    dtype = _sum_dtype(weights, rows)
    parts = zip(weights.to(dtype).split(sites.counts), rows.to(dtype).split(sites.counts), strict=True)
    return torch.stack([factors.T @ slide for factors, slide in parts])


def slide_softmax(
    scores: Float[Tensor, "tokens columns"], others: Float[Tensor, "slides others columns"], sites: SparseSites
) -> tuple[Float[Tensor, "tokens columns"], Float[Tensor, "slides others columns"]]:
    """Softmax of every column over the rows of a slide and its further entries together."""
    if current_execution(scores.device).operators:
        return _softmax(scores, others, sites.coords, sites.offsets)
    return _plain_softmax(scores, others, sites.counts)


def slide_mean(rows: Float[Tensor, "tokens width"], sites: SparseSites) -> Float[Tensor, "slides width"]:
    """The mean of the rows of every slide."""
    if not current_execution(rows.device).operators:
        return torch.stack([slide.mean(dim=0) for slide in rows.split(sites.counts)])
    total = slide_outer(rows.new_ones(len(rows), 1), rows, sites)[:, 0]
    return total / sites.offsets.diff().unsqueeze(1)


def slide_max(rows: Float[Tensor, "tokens width"], sites: SparseSites) -> Float[Tensor, "slides width"]:
    """The largest entry of every column of a slide's rows; where several are, the gradient goes to the first."""
    if not current_execution(rows.device).operators:
        return torch.stack([slide.max(dim=0).values for slide in rows.split(sites.counts)])
    if sites.num_slides == 1:
        return rows.max(dim=0, keepdim=True).values
    slide = sites.coords[:, :1].long().expand_as(rows)
    with torch.no_grad():
        start = rows.new_full((sites.num_slides, rows.shape[1]), -torch.inf)
        top = start.scatter_reduce(0, slide, rows, "amax", include_self=False)
        number = torch.arange(len(rows), device=rows.device).unsqueeze(1)
        candidates = torch.where(rows == top.gather(0, slide), number, len(rows) - 1)
        first = top.new_full(top.shape, len(rows) - 1, dtype=torch.long).scatter_reduce(0, slide, candidates, "amin")
    return rows.gather(0, first)


def to_rows(values: Float[Tensor, "slides width"], sites: SparseSites) -> Float[Tensor, "tokens width"]:
    """The values of its slide for every row."""
    if sites.num_slides == 1:
        return values.expand(len(sites), -1)
    return slide_matmul(values.new_ones(len(sites), 1), values.unsqueeze(-1), sites)
