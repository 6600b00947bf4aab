from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.base import Batch, RecData
from model.baselines.mgcn import MGCN, MGCNConfig
from model.sampling import TripletSampler

USERS, ITEMS = 30, 22


def build(data: RecData, size: int = 8, **settings: object) -> MGCN:
    model = MGCN(MGCNConfig(embedding_size=size, **settings), data, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(generator=model.generator)
    return model


def batch(data: RecData) -> Batch:
    return next(TripletSampler(data.train, 40).epoch(torch.Generator().manual_seed(0)))


def sigmoid(value: float) -> float:
    return 1 / (1 + float(np.exp(-value)))


def test_purifier_by_hand(checkerboard: RecData) -> None:
    text = np.zeros((ITEMS, 2), dtype=np.float32)
    text[:, 0], text[1] = 1, (0, 1)
    model = build(replace(checkerboard, text=text, visual=None), size=2)
    with torch.no_grad():
        model.embeddings[USERS] = torch.tensor([3.0, -2.0])
        model.embeddings[USERS + 1] = torch.tensor([1.0, 10.0])
        model.projections.weights["text"].copy_(torch.tensor([[1.0, 2.0], [-1.0, 0.5]]))
        model.purifiers["text"].weight.copy_(torch.tensor([[1.0, 0.0], [1.0, -1.0]]))  # out x in
        model.purifiers["text"].bias.copy_(torch.tensor([0.5, 0.0]))
    # Item 0 is projected to (1, 2), so its gates open at 1 + 0.5 and 1 - 2; item 1 to (-1, 0.5): -1 + 0.5, -1 - 0.5.
    expected = [[3 * sigmoid(1.5), -2 * sigmoid(-1)], [sigmoid(-0.5), 10 * sigmoid(-1.5)]]
    torch.testing.assert_close(model.purified()["text"][:2], torch.tensor(expected))


def test_fuser_by_hand(checkerboard: RecData) -> None:
    model = build(checkerboard, size=2)
    with torch.no_grad():
        model.query.weight.copy_(torch.eye(2))
        model.query.bias.zero_()
        model.attention.copy_(torch.tensor([[2.0], [0.0]]))
        for modality, bias in (("text", 0.0), ("visual", 1.0)):
            model.preferences[modality].weight.copy_(torch.eye(2))
            model.preferences[modality].bias.fill_(bias)
    text, visual, behaviour = (4.0, 0.0), (1.0, 6.0), (0.3, -0.7)
    views = {"text": torch.tensor([text]), "visual": torch.tensor([visual])}
    scores = 2 * np.tanh(4), 2 * np.tanh(1)  # attention reads the first number
    weight = sigmoid(scores[0] - scores[1])  # of text, among two
    expected = []
    for column in range(2):
        shared = weight * text[column] + (1 - weight) * visual[column]
        of_text = sigmoid(behaviour[column]) * (text[column] - shared)
        of_visual = sigmoid(behaviour[column] + 1) * (visual[column] - shared)
        expected.append((shared + of_text + of_visual) / 3)
    torch.testing.assert_close(model.fuse(torch.tensor([behaviour]), views), torch.tensor([expected]))


def test_one_modality_alone_is_what_is_shared(checkerboard: RecData) -> None:
    model = build(checkerboard, modalities=("visual",))
    features, behaviour = torch.randn(2, 5, 8, generator=model.generator)
    torch.testing.assert_close(model.fuse(behaviour, {"visual": features}), features / 2)
    assert all(torch.isfinite(part).all() for part in model.eval().embed())


def dense_views(model: MGCN, data: RecData, item_layers: int) -> tuple[torch.Tensor, torch.Tensor]:
    """User-item view and side information with dense matrices."""
    bought = torch.from_numpy(data.train.toarray())
    normalised = bought / torch.sqrt(bought.sum(1)[:, None] * bought.sum(0))
    whole = torch.zeros(USERS + ITEMS, USERS + ITEMS)
    whole[:USERS, USERS:], whole[USERS:, :USERS] = normalised, normalised.T
    own = model.embeddings
    behaviour = (own + whole @ own + whole @ whole @ own) / 3
    views = {}
    for modality, items in model.purified().items():
        units = torch.from_numpy(getattr(data, modality))
        cosines = units @ units.T
        kept = cosines.where(cosines >= cosines.sort(dim=1, descending=True).values[:, 4:5], 0).clamp(min=0)
        root = kept.sum(1).rsqrt()
        items = torch.linalg.matrix_power(root[:, None] * kept * root, item_layers) @ items
        views[modality] = torch.cat([normalised @ items, items])
    return behaviour, model.fuse(behaviour, views)


@pytest.mark.parametrize("item_layers", [1, 2])
def test_embeddings_and_loss_terms_equal_brute_force(item_layers: int, checkerboard: RecData) -> None:
    model = build(checkerboard, neighbours=5, item_layers=item_layers, contrast_weight=0.3, l2=0.5, temperature=0.4)
    behaviour, side = dense_views(model, checkerboard, item_layers)
    final = behaviour + side
    torch.testing.assert_close(torch.cat(model.embed()), final, rtol=1e-4, atol=1e-6)

    step = batch(checkerboard)
    terms = model.loss(step)
    users, positives, negatives = final[step.users], final[USERS + step.positives], final[USERS + step.negatives]
    ranking = -F.logsigmoid((users * (positives - negatives)).sum(1)).mean()
    torch.testing.assert_close(terms["bpr"], ranking, rtol=1e-5, atol=0)
    squares = sum(part.square().sum() for part in (users, positives, negatives))
    torch.testing.assert_close(terms["l2"], 0.5 * squares / (2 * len(users)), rtol=1e-5, atol=0)
    contrast = 0.0
    for kind in ({int(user) for user in step.users}, {USERS + int(item) for item in step.positives}):
        assert len(kind) < len(step.users)  # some are repeated, and count once
        for target in kind:
            cosines = {node: F.cosine_similarity(side[target], behaviour[node], dim=0) / 0.4 for node in kind}
            others = torch.stack(list(cosines.values()))
            contrast = contrast + (others.logsumexp(0) - cosines[target]) / len(kind)
    torch.testing.assert_close(terms["contrast"], 0.3 * contrast, rtol=1e-4, atol=0)
