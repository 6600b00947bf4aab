import pytest
import torch
import torch.nn.functional as F

from model.base import Batch, RecData
from model.baselines.vbpr import VBPR, VBPRConfig
from model.sampling import TripletSampler


def build(data: RecData, **settings: object) -> VBPR:
    return VBPR(VBPRConfig(embedding_size=4, **settings), data, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("modalities", [("text",), ("visual",), ("text", "visual")])
def test_scores_equal_the_predictor(modalities: tuple[str, ...], checkerboard: RecData) -> None:
    model = build(checkerboard, modalities=modalities).eval()
    parts = [torch.from_numpy(getattr(checkerboard, modality)) for modality in modalities]
    weights = [model.projections.weights[modality] for modality in modalities]
    features, projection = torch.cat(parts, dim=1), torch.cat(weights)  # side by side, as one
    for user in (0, 7):
        own, for_features = model.user_embeddings[user].split(4)
        expected = model.item_embeddings @ own + features @ projection @ for_features
        torch.testing.assert_close(model.scores(torch.tensor([user]))[0], expected, rtol=1e-5, atol=1e-6)


def test_loss_terms_equal_brute_force(checkerboard: RecData) -> None:
    model = build(checkerboard, l2=0.5)
    triplets = [(0, 2, 1), (5, 3, 8), (0, 2, 3), (9, 2, 1)]
    terms = model.loss(Batch(*torch.tensor(triplets).T))
    users, items = model.embed()
    differences = [users[u] @ (items[better] - items[worse]) for u, better, worse in triplets]
    torch.testing.assert_close(terms["bpr"], torch.stack([-F.logsigmoid(value) for value in differences]).mean())
    squares = [users[u].square().sum() + items[[i, j]].square().sum() for u, i, j in triplets]
    torch.testing.assert_close(terms["l2"], 0.5 * torch.stack(squares).mean() / 2)


def test_features_alone_tell_what_a_user_likes(checkerboard: RecData) -> None:
    model = build(checkerboard, l2=0)
    with torch.no_grad():
        model.item_embeddings.zero_()  # and they are not trained
    optimizer = torch.optim.Adam([model.user_embeddings, *model.projections.parameters()], lr=0.05)
    for _ in range(20):
        for batch in TripletSampler(checkerboard.train, 128).epoch(model.generator):
            optimizer.zero_grad()
            model.loss(batch)["bpr"].backward()
            optimizer.step()
    scores = model.eval().scores(torch.arange(30))
    assert (scores[::2, ::2].min(1).values > scores[::2, 1::2].max(1).values).all()
    assert (scores[1::2, 1::2].min(1).values > scores[1::2, ::2].max(1).values).all()
