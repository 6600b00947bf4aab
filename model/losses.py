"""Losses as means over their targets, so that a weight does not depend on the batch size."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model import compiled, kernels

# Rows of the similarity matrix that are worked on at a time: 256 x 2048 floats stay in cache.
BLOCK = 256
# Cosines over a temperature below this could overflow exp, or vanish in it.
SHARP = 1 / 40
# Rows below this length count as zero.
SHORT = 1e-12


def bpr(positive_scores: Tensor, negative_scores: Tensor) -> Tensor:
    """Mean of -log sigmoid(positive - negative) over triplets (eq. 12), in its overflow-free softplus form."""
    return F.softplus(negative_scores - positive_scores).mean()


def unit_rows(rows: Tensor) -> Tensor:
    """Rows (..., d) divided by their length. A zero row stays zero, and its gradient finite.

    A row shorter than `SHORT` stays as it is: the square of what is in it may be too small for a float.
    """
    length = rows.norm(dim=-1, keepdim=True)
    return rows / torch.where(length > SHORT, length, 1.0)


def infonce(anchors: Tensor, views: Tensor, temperature: float, matches: Tensor | None = None) -> Tensor:
    """Cosine InfoNCE between two views of the same targets (eq. 8), a mean over targets.

    Parameters
    ----------
    anchors, views
        Shapes (n, d) and (m, d); every row of `views` is a candidate for every anchor. A zero row has cosine 0 with
        everything.
    temperature
        τ_s > 0.
    matches
        Shape (n,), int64: the row of `views` that is an anchor's own target; default: the row of the same number.
    """
    anchors, views = unit_rows(anchors), unit_rows(views)
    if kernels.are_fast():
        loss: Tensor = _InfoNCE.apply(anchors, views, temperature, matches)
        return loss
    if matches is None:
        matches = torch.arange(len(anchors), device=anchors.device)
    return F.cross_entropy(anchors @ views.T / temperature, matches)


def relation_contrast(anchors: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Cosine contrast of one related against |V| unrelated entities per target (eq. 10), a mean over targets.

    Parameters
    ----------
    anchors, positives
        Shape (n, d).
    negatives
        Shape (n, |V|, d).
    temperature
        τ_r > 0.
    """
    if kernels.are_fast() and kernels.are_compiled(anchors):
        loss: Tensor = _RelationContrast.apply(anchors, positives, negatives, temperature)
        return loss
    anchors = unit_rows(anchors)
    positive = (anchors * unit_rows(positives)).sum(1, keepdim=True)  # (n, 1)
    negative = (anchors[:, None] * unit_rows(negatives)).sum(2)  # (n, |V|)
    # -log(e^p / (e^p + sum e^v)) = log(1 + sum e^(v - p))
    difference = (negative - positive) / temperature
    return torch.logaddexp(torch.logsumexp(difference, dim=1), difference.new_zeros(())).mean()


def embedding_l2(*embeddings: Tensor) -> Tensor:
    """Half the squared norm of a triplet's embeddings, a mean over triplets; each argument has shape (B, d)."""
    # Row by row first: a sum of many numbers at once would be split between threads, and round by their number.
    norms = torch.stack([part.square().sum(1) for part in embeddings]).sum(0)  # (B,)
    return norms.sum() / (2 * len(norms))


class _InfoNCE(torch.autograd.Function):
    """InfoNCE on unit rows. The gradient is made in the forward pass, block by block, so that the (n, m)
    similarity matrix never leaves the cache: with P the row softmax and S the 0/1 matrix (n, m) of the matches,
    dA = (P - S) V / (n τ), dV = (P - S)^T A / (n τ).
    """

    @staticmethod
    def forward(context: Any, anchors: Tensor, views: Tensor, temperature: float, matches: Tensor | None) -> Tensor:
        count, width = anchors.shape
        total = anchors.new_zeros(())
        view_gradient = torch.zeros_like(views)
        if matches is None:
            anchor_gradient = -views[:count]
            view_gradient[:count] = -anchors
        else:
            anchor_gradient = -views.index_select(0, matches)
            view_gradient.index_add_(0, matches, anchors, alpha=-1)
        scaled = anchors / temperature
        logits, products = anchors.new_empty((BLOCK, len(views))), anchors.new_empty((BLOCK, width))
        for start in range(0, count, BLOCK):
            block = anchors[start : start + BLOCK]
            weights = torch.mm(scaled[start : start + BLOCK], views.T, out=logits[: len(block)])  # (b, m)
            if temperature < SHARP:  # taking the same from a row's logits leaves its loss as it is
                weights -= weights.amax(1, keepdim=True)
            if matches is None:
                own = weights.diagonal(start)[:, None].clone()  # (b, 1)
            else:
                own = weights.gather(1, matches[start : start + BLOCK, None])
            normaliser = _exponentiate(weights)
            total += (normaliser.log() - own).sum()
            product = torch.mm(weights, views, out=products[: len(block)])
            anchor_gradient[start : start + BLOCK] += product.div_(normaliser)
            view_gradient.addmm_(weights.T, block / normaliser)
        context.save_for_backward(anchor_gradient, view_gradient)
        context.scale = 1 / (count * temperature)
        return total / count

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        anchor_gradient, view_gradient = context.saved_tensors
        scale = gradients[0] * context.scale
        return anchor_gradient * scale, view_gradient * scale, None, None


def _exponentiate(logits: Tensor) -> Tensor:
    """Replace logits (b, n) by their exponentials; the sums (b, 1) of the rows."""
    if not kernels.are_compiled(logits):
        return logits.exp_().sum(1, keepdim=True)
    sums = logits.new_empty((len(logits), 1))
    compiled.exponentiate(logits.numpy(), sums[:, 0].numpy())
    return sums


class _RelationContrast(torch.autograd.Function):
    """The contrast with its gradients, which the forward pass makes."""

    @staticmethod
    def forward(context: Any, anchors: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
        rows = [part.detach().contiguous() for part in (anchors, positives, negatives)]
        gradients = [torch.empty_like(part) for part in rows]
        arrays = [part.numpy() for part in (*rows, *gradients)]
        loss = compiled.relation_contrast(*arrays[:3], temperature, *arrays[3:])
        context.save_for_backward(*gradients)
        return anchors.new_tensor(loss)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return *(part * gradients[0] for part in context.saved_tensors), None
