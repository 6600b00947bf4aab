import pytest
import torch
import torch.nn.functional as F

from model.base import Batch, RecData
from model.baselines.lightgcn import LightGCN, LightGCNConfig

USERS, ITEMS = 30, 22
TRIPLETS = [(0, 2, 1), (5, 3, 8), (0, 2, 3), (9, 2, 1)]  # user, positive, negative; some of them repeat


def build(data: RecData, **settings: object) -> LightGCN:
    return LightGCN(LightGCNConfig(embedding_size=4, **settings), data, torch.Generator().manual_seed(0))


def brute_force(data: RecData, nodes: torch.Tensor, layers: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Users and items: the mean over layers 0..`layers` of dense D^-1/2 A D^-1/2 (eqs. 3, 4 of the paper)."""
    adjacency = torch.zeros(USERS + ITEMS, USERS + ITEMS)
    adjacency[:USERS, USERS:] = torch.from_numpy(data.train.toarray())
    adjacency = adjacency + adjacency.T
    root = adjacency.sum(1).rsqrt()
    adjacency = root[:, None] * adjacency * root
    found = [torch.linalg.matrix_power(adjacency, layer) @ nodes for layer in range(layers + 1)]
    users, items = (sum(found) / (layers + 1)).split([USERS, ITEMS])
    return users, items


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_scores_are_of_the_mean_over_layers(layers: int, checkerboard: RecData) -> None:
    model = build(checkerboard, layers=layers).eval()
    users, items = brute_force(checkerboard, model.embeddings.detach(), layers)
    torch.testing.assert_close(model.scores(torch.arange(USERS)), users @ items.T, rtol=1e-4, atol=1e-6)


def test_l2_falls_on_layer_0_and_the_ranking_on_the_mean(checkerboard: RecData) -> None:
    model = build(checkerboard, layers=2, l2=0.5)
    terms = model.loss(Batch(*torch.tensor(TRIPLETS).T))
    users, items = brute_force(checkerboard, model.embeddings, 2)
    ranking = [-F.logsigmoid(users[u] @ (items[better] - items[worse])) for u, better, worse in TRIPLETS]
    assert terms.keys() == {"bpr", "l2"}
    torch.testing.assert_close(terms["bpr"], torch.stack(ranking).mean())
    own_users, own_items = model.embeddings.split([USERS, ITEMS])
    squares = [part.square().sum() for u, i, j in TRIPLETS for part in (own_users[u], own_items[i], own_items[j])]
    torch.testing.assert_close(terms["l2"], 0.5 / 2 * torch.stack(squares).sum() / len(TRIPLETS))
    # So its gradient reaches the batch's own embeddings, and no neighbour's.
    (gradient,) = torch.autograd.grad(terms["l2"], model.embeddings)
    drawn = {node for u, i, j in TRIPLETS for node in (u, USERS + i, USERS + j)}
    assert set(gradient.any(1).nonzero()[:, 0].tolist()) == drawn
