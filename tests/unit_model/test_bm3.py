from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from model.base import Batch, RecData
from model.baselines.bm3 import BM3, BM3Config
from model.sampling import TripletSampler

USERS, ITEMS = 30, 22


def build(data: RecData, **settings: object) -> BM3:
    model = BM3(BM3Config(embedding_size=8, **settings), data, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for bias in (model.predictor.bias, *model.projections.biases.values()):
            bias.normal_(0, 0.1, generator=model.generator)
    return model


def batch(data: RecData) -> Batch:
    return next(TripletSampler(data.train, 40).epoch(torch.Generator().manual_seed(0)))


def dense_representations(model: BM3, data: RecData, layers: int) -> tuple[torch.Tensor, torch.Tensor]:
    bought = torch.from_numpy(data.train.toarray())
    whole = torch.zeros(USERS + ITEMS, USERS + ITEMS)
    whole[:USERS, USERS:], whole[USERS:, :USERS] = bought, bought.T
    root = whole.sum(1).rsqrt()
    outputs = [model.embeddings]
    for _ in range(layers):
        outputs.append(root[:, None] * whole * root @ outputs[-1])
    users, items = torch.stack(outputs).mean(0).split([USERS, ITEMS])
    return users, items + model.embeddings[USERS:]


@pytest.mark.parametrize("modalities", [("text",), ("visual",), ("text", "visual")])
@pytest.mark.parametrize("layers", [1, 2])
def test_embeddings_and_loss_terms_equal_brute_force(
    modalities: tuple[str, ...], layers: int, checkerboard: RecData
) -> None:
    model = build(checkerboard, layers=layers, modalities=modalities, dropout=0, alignment_weight=0.7, l2=0.2)
    users, items = dense_representations(model, checkerboard, layers)
    weight, bias = model.predictor.weight, model.predictor.bias
    torch.testing.assert_close(model.embed(), (users @ weight.T + bias, items @ weight.T + bias), rtol=1e-4, atol=1e-6)

    step = batch(checkerboard)
    reconstruction, alignment = [], []
    for user, item in zip(step.users, step.positives, strict=True):
        predicted_user, predicted_item = weight @ users[user] + bias, weight @ items[item] + bias
        reconstruction.append(2 - cosine(predicted_user, items[item]) - cosine(predicted_item, users[user]))
        for modality in modalities:
            features = torch.from_numpy(getattr(checkerboard, modality))[item]
            projected = features @ model.projections.weights[modality] + model.projections.biases[modality]
            predicted = weight @ projected + bias
            alignment.append(2 - cosine(predicted, items[item]) - cosine(predicted, projected))
    expected = {
        "reconstruction": torch.stack(reconstruction).sum() / len(step.users),
        "alignment": 0.7 * torch.stack(alignment).sum() / len(step.users),
        "l2": 0.2 * (users.norm() + items.norm()) / ITEMS,
    }
    torch.testing.assert_close(model.loss(step), expected, rtol=1e-5, atol=0)


def cosine(online: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cosine_similarity(online, target.detach(), dim=0)


def test_gradients_pass_through_the_online_view_alone(checkerboard: RecData) -> None:
    model, dense = build(checkerboard, dropout=0, alignment_weight=0, l2=0), build(checkerboard)
    step = batch(checkerboard)
    model.loss(step)["reconstruction"].backward()
    users, items = dense_representations(dense, checkerboard, 1)
    user, item = users[step.users], items[step.positives]
    online_user, online_item = dense.predictor(user), dense.predictor(item)
    loss = 2 - F.cosine_similarity(online_user, item.detach()).mean()
    loss = loss - F.cosine_similarity(online_item, user.detach()).mean()
    loss.backward()
    torch.testing.assert_close(model.embeddings.grad, dense.embeddings.grad, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(model.predictor.weight.grad, dense.predictor.weight.grad, rtol=1e-4, atol=1e-7)


def test_negatives_change_nothing(checkerboard: RecData) -> None:
    step = batch(checkerboard)
    other = replace(step, negatives=(step.negatives + 1) % ITEMS)
    gradients = []
    for used in (step, other):
        model = build(checkerboard)
        sum(model.loss(used).values()).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for first, second in zip(*gradients, strict=True):
        assert torch.equal(first, second)


def test_dropout_perturbs_training_targets_alone(checkerboard: RecData) -> None:
    model, step = build(checkerboard, dropout=0.5), batch(checkerboard)
    first, second = model.loss(step), model.loss(step)
    assert first["reconstruction"] != second["reconstruction"]
    assert first["alignment"] != second["alignment"]
    assert torch.equal(first["l2"], second["l2"])
    before = model.generator.get_state()
    torch.testing.assert_close(model.eval().embed(), model.embed(), rtol=0, atol=0)
    assert torch.equal(model.generator.get_state(), before)  # nothing is drawn


def test_rows_of_a_target_are_dropped_in_part(checkerboard: RecData) -> None:
    model = build(checkerboard, dropout=0.3)
    rows = torch.ones(500, 8)
    target = model._target(rows)
    assert (target == 0).float().mean().item() == pytest.approx(0.3, abs=0.03)
    lengths = target.norm(dim=1)
    torch.testing.assert_close(lengths, (lengths > 0).float())
