import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.base import Batch, RecData
from model.baselines.mentor import MENTOR, MENTORConfig, alignment
from model.sampling import TripletSampler

ALONE = {"alignment_weight": 0, "masking_weight": 0, "perturbation_weight": 0, "l2": 0}  # BPR and nothing else


def build(data: RecData, **settings: object) -> MENTOR:
    return MENTOR(MENTORConfig(embedding_size=8, **settings), data, torch.Generator().manual_seed(0))


def batch(data: RecData) -> Batch:
    return next(TripletSampler(data.train, 64).epoch(torch.Generator().manual_seed(0)))


def dense_graphs(data: RecData, neighbours: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised interaction graph, and mixture of the two graphs of nearest items, each built from all cosines."""
    users = data.user_count
    adjacency = torch.zeros(users + data.item_count, users + data.item_count)
    adjacency[:users, users:] = torch.from_numpy(data.train.toarray())
    adjacency[users:, :users] = adjacency[:users, users:].T
    scale = adjacency.sum(1).rsqrt()
    mixed = torch.zeros(data.item_count, data.item_count)
    for weight, features in ((0.9, data.text), (0.1, data.visual)):
        units = F.normalize(torch.from_numpy(features))
        nearest = (units @ units.T).argsort(dim=1, descending=True)[:, :neighbours]
        mixed.scatter_add_(1, nearest, torch.full(nearest.shape, weight / neighbours))
    return scale[:, None] * adjacency * scale, mixed


def test_embeddings_equal_dense_matrices(checkerboard: RecData) -> None:
    model = build(checkerboard, neighbours=4).eval()
    torch.nn.init.uniform_(model.user_weights, generator=torch.Generator().manual_seed(1))
    adjacency, nearest = dense_graphs(checkerboard, 4)
    users, parts = checkerboard.user_count, []
    for number, (modality, features) in enumerate((("text", checkerboard.text), ("visual", checkerboard.visual))):
        encoder = model.encoders[modality]
        hidden = torch.from_numpy(features) @ encoder[0].weight.T + encoder[0].bias
        items = torch.where(hidden > 0, hidden, 0.01 * hidden) @ encoder[2].weight.T + encoder[2].bias
        nodes = F.normalize(torch.cat([model.preferences[modality], items]))
        nodes = nodes + adjacency @ nodes + adjacency @ adjacency @ nodes
        of_items = nodes[users:] + nearest @ nodes[users:]
        parts.append(torch.cat([nodes[:users] * model.user_weights[:, number, None], of_items]))
    torch.testing.assert_close(torch.cat(model.embed()), torch.cat(parts, dim=1), rtol=1e-4, atol=1e-6)


def test_items_without_features_are_no_neighbours(checkerboard: RecData) -> None:
    text = checkerboard.text.copy()
    text[3] = 0
    # 15: so many that some cosines of an item are negative, and 0 is nearer.
    model = build(replace(checkerboard, text=text, visual=None), neighbours=15)
    nodes = model._modal()
    related = model._relate(nodes)
    assert torch.equal(related[30 + 3], nodes[30 + 3])
    moved = nodes.clone()
    moved[30 + 3] += 1
    assert torch.equal((model._relate(moved) != related).any(1).nonzero()[:, 0], torch.tensor([30 + 3]))
    assert not torch.equal(related, nodes)


def test_alignment_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    tables = [rng.normal(mean, spread, size) for mean, spread, size in
              ((0, 1, (50, 4)), (1, 2, (50, 8)), (-1, 0.5, (50, 4)))]  # fmt: skip
    expected = sum(
        abs(np.mean(tables[a]) - np.mean(tables[b])) + abs(np.var(tables[a]) - np.var(tables[b]))
        for a in range(3) for b in range(a)
    )  # fmt: skip
    assert alignment([torch.from_numpy(table) for table in tables]).item() == pytest.approx(expected)


def test_alignment_pairs_ids_modalities_and_their_fusion(checkerboard: RecData) -> None:
    model = build(checkerboard, **{**ALONE, "alignment_weight": 0.5})
    modal = model._relate(model._propagate(model._modal()))
    ids = model._relate(model._propagate(model._encode("id", model.item_ids)))
    tables = [model._fuse(modal), modal[:, :8], modal[:, 8:], ids]
    found = model.loss(batch(checkerboard))
    assert list(found) == ["bpr", "alignment"]
    assert found["alignment"].item() == pytest.approx(0.5 * alignment(tables).item(), rel=1e-5)


def test_only_alignment_trains_the_ids(checkerboard: RecData) -> None:
    model = build(checkerboard)
    terms = model.loss(batch(checkerboard))
    ids = [model.item_ids, model.preferences["id"], *model.encoders["id"].parameters()]
    others = torch.stack([term for name, term in terms.items() if name != "alignment"]).sum()
    assert torch.autograd.grad(others, ids, allow_unused=True, retain_graph=True) == (None,) * len(ids)
    assert all(gradient.any() for gradient in torch.autograd.grad(terms["alignment"], ids))


def test_masking_by_brute_force(checkerboard: RecData) -> None:
    model = build(checkerboard, **{**ALONE, "masking_weight": 2.0, "masking": 0.25})
    step = batch(checkerboard)
    found = model.loss(step)["masking"]
    draws = torch.Generator()
    draws.set_state(build(checkerboard, **{**ALONE, "masking_weight": 2.0}).generator.get_state())
    fused, expected = torch.cat(model.embed()), 0.0
    for nodes in (step.users.unique(), step.positives.unique() + checkerboard.user_count):
        rows = fused[nodes].detach()
        masked = rows * torch.empty(rows.shape).bernoulli_(0.75, generator=draws)
        expected += 2.0 * (1 - F.cosine_similarity(model.predictor(rows), masked).mean()).item()
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert all(gradient.any() for gradient in torch.autograd.grad(found, [model.predictor.weight, model.user_weights]))


def test_noise_has_its_length_and_no_entry_changes_sign(checkerboard: RecData) -> None:
    model = build(checkerboard, layers=1)
    nodes = model._modal()
    clean, noisy = model._propagate(nodes), model._propagate(nodes, 0.1)
    added = (noisy - clean).unflatten(1, (2, 8))  # node, modality, entry
    torch.testing.assert_close(added.norm(dim=2), torch.full((52, 2), 0.1), rtol=1e-4, atol=0)
    assert (added * (clean - nodes).unflatten(1, (2, 8)) >= -1e-9).all()
    assert not torch.equal(noisy, model._propagate(nodes, 0.1))


def test_perturbation_by_brute_force(checkerboard: RecData, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(checkerboard, **{**ALONE, "perturbation_weight": 0.3, "temperature": 0.4})
    step, propagate, kept = batch(checkerboard), model._propagate, []

    def recording(nodes: torch.Tensor, noise: float = 0.0) -> torch.Tensor:
        kept.append(propagate(nodes, noise))
        return kept[-1]

    monkeypatch.setattr(model, "_propagate", recording)
    found = model.loss(step)["perturbation"].item()
    first, second = (model._fuse(model._relate(nodes)).detach() for nodes in kept[1:])
    expected = 0.0
    for nodes in (step.users.unique(), step.positives.unique() + checkerboard.user_count):
        for node in nodes:
            similar = (F.cosine_similarity(first[node], second[nodes]) / 0.4).exp()
            own = math.exp(F.cosine_similarity(first[node], second[node], dim=0).item() / 0.4)
            expected -= 0.3 * math.log(own / similar.sum().item()) / len(nodes)
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("missing", ["text", "visual"])
def test_one_modality_is_enough(missing: str, checkerboard: RecData) -> None:
    model = build(replace(checkerboard, **{missing: None}))
    assert model.embed()[0].shape == (30, 8)
    assert torch.equal(model.user_weights, torch.ones(30, 1))
    assert set(model.loss(batch(checkerboard))) == {"bpr", "alignment", "masking", "perturbation", "l2"}
