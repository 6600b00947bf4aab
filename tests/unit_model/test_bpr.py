import pytest
import torch
import torch.nn.functional as F

from model.base import Batch, RecData
from model.baselines.bpr import BPR, BPRConfig

TRIPLETS = [(0, 2, 1), (5, 3, 8), (0, 2, 3), (9, 2, 1)]  # user, positive, negative; some of them repeat


def build(data: RecData, **settings: object) -> BPR:
    return BPR(BPRConfig(embedding_size=4, **settings), data, torch.Generator().manual_seed(0))


def test_scores_are_dot_products_of_the_embeddings_alone(checkerboard: RecData) -> None:
    model = build(checkerboard).eval()
    assert {name: tuple(table.shape) for name, table in model.named_parameters()} == {
        "user_embeddings": (30, 4),
        "item_embeddings": (22, 4),
    }
    scores = model.scores(torch.tensor([7, 0]))
    for row, user in enumerate((7, 0)):
        for item in range(22):
            expected = sum(a * b for a, b in zip(model.user_embeddings[user], model.item_embeddings[item], strict=True))
            assert scores[row, item].item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-7)


def test_loss_terms_equal_brute_force(checkerboard: RecData) -> None:
    model = build(checkerboard, l2=0.5)
    terms = model.loss(Batch(*torch.tensor(TRIPLETS).T))
    users, items = model.user_embeddings, model.item_embeddings
    ranking = [-F.logsigmoid(users[u] @ items[better] - users[u] @ items[worse]) for u, better, worse in TRIPLETS]
    squares = [part.square().sum() for u, i, j in TRIPLETS for part in (users[u], items[i], items[j])]
    assert terms.keys() == {"bpr", "l2"}
    torch.testing.assert_close(terms["bpr"], torch.stack(ranking).mean())
    torch.testing.assert_close(terms["l2"], 0.5 / 2 * torch.stack(squares).sum() / len(TRIPLETS))
    assert build(checkerboard, l2=0).loss(Batch(*torch.tensor(TRIPLETS).T)).keys() == {"bpr"}
