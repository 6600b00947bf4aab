import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from model.base import Batch, RecData
from model.baselines.slmrec import SLMRec, SLMRecConfig
from model.layers import Rows
from model.sampling import TripletSampler

PAIRS = [torch.tensor([3, 7, 3]), torch.tensor([30, 35, 51])]  # nodes of three interactions


def build(data: RecData, **settings: object) -> SLMRec:
    return SLMRec(SLMRecConfig(embedding_size=8, **settings), data, torch.Generator().manual_seed(0))


def batch(data: RecData, size: int = 64) -> Batch:
    return next(TripletSampler(data.train, size).epoch(torch.Generator().manual_seed(0)))


def adjacency(data: RecData) -> torch.Tensor:
    users = data.user_count
    dense = torch.zeros(users + data.item_count, users + data.item_count)
    dense[:users, users:] = torch.from_numpy(data.train.toarray())
    dense[users:, :users] = dense[:users, users:].T
    scale = dense.sum(1).rsqrt()
    return scale[:, None] * dense * scale


def propagated(model: SLMRec, data: RecData) -> list[torch.Tensor]:
    """Mean over layers of IDs, images and text, each for itself."""
    users, items = model.embeddings.detach().split([30, 22])
    inputs = [items]
    for modality, features in (("visual", data.visual), ("text", data.text)):
        layer = model.projections[modality]
        inputs.append((torch.from_numpy(features) @ layer.weight.T + layer.bias).detach())
    graph, outputs = adjacency(data), []
    for part in inputs:
        layers = [torch.cat([users, part])]
        for _ in range(3):
            layers.append(graph @ layers[-1])
        outputs.append(torch.stack(layers).mean(0))
    return outputs


def entropy(logits: torch.Tensor) -> float:
    """Mean of -log softmax on the diagonal, entry by entry."""
    total = 0.0
    for row in range(len(logits)):
        total -= math.log(math.exp(logits[row, row]) / sum(math.exp(value) for value in logits[row].tolist()))
    return total / len(logits)


def cosines(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return F.cosine_similarity(first[:, None], second, dim=2).detach()


def test_embeddings_equal_dense_matrices(checkerboard: RecData) -> None:
    model = build(checkerboard).eval()
    nodes = torch.cat(propagated(model, checkerboard), dim=1)
    users = nodes[:30] @ model.fuse_users.weight.T + model.fuse_users.bias
    items = nodes[30:] @ model.fuse_items.weight.T + model.fuse_items.bias
    torch.testing.assert_close(torch.cat(model.embed()), torch.cat([users, items]), rtol=1e-4, atol=1e-6)


def test_main_task_and_l2_by_brute_force(checkerboard: RecData) -> None:
    model, step = build(checkerboard, contrast_weight=0, l2=0.3), batch(checkerboard, 20)
    users, items = model.embed()
    terms = model.loss(step)
    assert list(terms) == ["infonce", "l2"]
    expected = entropy(cosines(users[step.users], items[step.positives]) / 0.2)
    assert terms["infonce"].item() == pytest.approx(expected, rel=1e-4)
    gradients = torch.autograd.grad(terms["l2"], list(model.parameters()))
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, 0.3 * parameter.detach())  # what weight decay adds


def test_fine_and_coarse_by_brute_force(checkerboard: RecData) -> None:
    model, step = build(checkerboard, contrast_weight=0.7, contrast_temperature=0.5), batch(checkerboard, 20)
    ids, visual, text = (part[30:][step.positives] for part in propagated(model, checkerboard))
    coarse = model.coarser[0](ids).detach()
    expected = entropy(coarse @ (visual @ model.finer[0].detach()).T / 0.5)
    coarse = model.coarser[1](coarse).detach()
    assert coarse.shape == (20, 4)
    expected += entropy(coarse @ (text @ model.finer[1].detach()).T / 0.5)
    assert model.loss(step)["contrast"].item() == pytest.approx(0.7 * expected, rel=1e-4)


def test_masking_leaves_out_another_kind_in_each_view(checkerboard: RecData) -> None:
    model = build(checkerboard, augmentation="FM")
    encoded, seen = model._encode(), set()
    for _ in range(30):
        views = model._augment(encoded)
        masked = []
        for view in views:
            assert torch.equal(view[:30], encoded[:30])
            kinds, whole = view[30:].unflatten(1, (3, 8)), encoded[30:].unflatten(1, (3, 8))
            gone = [kind for kind in range(3) if not kinds[:, kind].any()]
            assert len(gone) == 1
            assert all(torch.equal(kinds[:, kind], whole[:, kind]) for kind in range(3) if kind not in gone)
            masked += gone
        seen.add(tuple(masked))
    assert seen == {(a, b) for a in range(3) for b in range(3) if a != b}


def test_dropout_acts_after_every_layer(checkerboard: RecData) -> None:
    model = build(checkerboard, augmentation="FD", layers=2, dropping=0.4)
    nodes, graph = model._encode().detach(), adjacency(checkerboard)
    rows, draws = Rows.of(torch.cat(PAIRS), 52), torch.Generator()
    draws.set_state(model.generator.get_state())
    masks = [torch.empty(nodes.shape).bernoulli_(0.6, generator=draws) / 0.6 for _ in range(2)]
    first = graph @ nodes * masks[0]
    expected = (nodes + first + graph @ first * masks[1]) / 3
    users, items = model._view(nodes, rows, PAIRS)
    torch.testing.assert_close(users, model.fuse_users(expected[PAIRS[0]]), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(items, model.fuse_items(expected[PAIRS[1]]), rtol=1e-4, atol=1e-6)
    assert not torch.equal(users, model._view(nodes, rows, PAIRS)[0])


@pytest.mark.parametrize("augmentation", ["FD", "FM"])
def test_contrast_of_views_by_brute_force(augmentation: str, checkerboard: RecData) -> None:
    settings = {"augmentation": augmentation, "contrast_weight": 0.7, "contrast_temperature": 0.5}
    model, step = build(checkerboard, **settings), batch(checkerboard, 20)
    state = model.generator.get_state()
    found = model.loss(step)["contrast"].item()
    model.generator.set_state(state)
    pairs = [step.users, step.positives + 30]
    rows = Rows.of(torch.cat(pairs), 52)
    first, second = (model._view(nodes, rows, pairs) for nodes in model._augment(model._encode()))
    expected = sum(entropy(cosines(*views) / 0.5) for views in zip(first, second, strict=True))
    assert found == pytest.approx(0.7 * expected, rel=1e-4)
    assert not hasattr(model, "coarser")


@pytest.mark.parametrize("missing", ["text", "visual"])
@pytest.mark.parametrize("augmentation", ["FAC", "FD", "FM"])
def test_one_modality_is_enough(missing: str, augmentation: str, checkerboard: RecData) -> None:
    model = build(replace(checkerboard, **{missing: None}), augmentation=augmentation)
    terms = model.loss(batch(checkerboard))
    assert set(terms) == {"infonce", "contrast", "l2"}
    torch.stack(list(terms.values())).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
