import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array

from model.base import Batch, RecData
from model.baselines import diffmm
from model.baselines.diffmm import Denoiser, DiffMM, DiffMMConfig, Schedule, with_self_loops
from model.sampling import TripletSampler


def build(data: RecData, seed: int = 0, **settings: object) -> DiffMM:
    settings = {"embedding_size": 8, "hidden_size": 32, **settings}
    return DiffMM(DiffMMConfig(**settings), data, torch.Generator().manual_seed(seed))


def edges(model: DiffMM, modality: str) -> np.ndarray:
    """The users' part (M, N) of a generated graph, 0 or 1."""
    graph = model._generate(modality)
    values = csr_array((graph.values.numpy(), graph.indices.numpy(), graph.indptr.numpy()), shape=graph.shape)
    return values.toarray()[: model.user_count, model.user_count :] > 0


def planted() -> tuple[RecData, np.ndarray]:
    """Two groups of 40 users, each with its own half of 20 items, a third of which it has not come across yet."""
    rng = np.random.default_rng(0)
    own = (np.arange(80)[:, None] < 40) == (np.arange(20) < 10)
    train = csr_array((own & (rng.random(own.shape) > 1 / 3)).astype(np.float32))
    text = rng.standard_normal((20, 6)).astype(np.float32)
    return RecData("planted", train, train, train, text=text), own


def test_denoising_recovers_a_planted_matrix() -> None:
    data, own = planted()
    model = build(data, denoising_batch=16, denoising_rate=0.01, generated_items=8)
    assert edges(model, "text")[~own].sum() > 200  # of 640: nothing is known to begin with
    for epoch in range(1, 41):
        model.before_epoch(epoch)
    generated = edges(model, "text")
    assert (generated.sum(1) == 8).all()
    assert generated[own].sum() > 0.98 * generated.sum()
    new = own & (data.train.toarray() == 0)
    assert generated[new].sum() > 50  # not only what it was shown


def test_a_generated_graph_is_normalised_with_self_loops(checkerboard: RecData) -> None:
    model = build(checkerboard, generated_items=3)
    chosen = edges(model, "visual")
    assert chosen.shape == (30, 22)
    assert (chosen.sum(1) == 3).all()
    dense = np.zeros((52, 52))
    dense[:30, 30:] = chosen
    dense += dense.T + np.eye(52)
    scale = 1 / np.sqrt(dense.sum(1))
    graph = model._generate("visual")
    torch.testing.assert_close(graph(torch.eye(52)), torch.from_numpy(scale[:, None] * dense * scale).float())
    assert with_self_loops(csr_array(chosen.astype(np.float32))).nnz == 52 + 2 * 30 * 3


def test_more_items_than_there_are_is_all_of_them(checkerboard: RecData) -> None:
    assert edges(build(checkerboard, generated_items=100), "text").all()


def test_generating_equals_sampling_in_the_item_space() -> None:
    generator = torch.Generator().manual_seed(0)
    denoiser, schedule = Denoiser(15, 6, 4, generator), Schedule.of(4, 0.5, 1e-2, 0.9)
    denoiser.item_bias.normal_(generator=generator)
    start = torch.randint(2, (9, 15), generator=generator).float()
    rows = start
    for step in (3, 2, 1, 0):
        recovered = denoiser(rows, torch.full((9,), step))
        rows = schedule.prediction[step] * recovered + schedule.state[step] * rows
    torch.testing.assert_close(denoiser.generate(start @ denoiser.encode, schedule), rows, rtol=1e-4, atol=1e-6)


def test_denoiser_by_hand() -> None:
    denoiser = Denoiser(3, 2, 2, torch.Generator().manual_seed(0))
    row, told = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([10.0 ** (-4 * k / 5) for k in range(5)])
    time = torch.cat([told.cos(), told.sin()]) @ denoiser.time_weight + denoiser.time_bias
    hidden = (denoiser.encode[0] + denoiser.encode[2] + time @ denoiser.from_time + denoiser.hidden_bias).tanh()
    expected = denoiser.decode @ hidden + denoiser.item_bias
    torch.testing.assert_close(denoiser(row[None], torch.tensor([1]))[0], expected)


def test_schedule_by_hand() -> None:
    schedule = Schedule.of(3, 0.1, 0.1, 0.5)  # variances 0.01, 0.03, 0.05
    kept = [1 - 1e-4]
    kept += [kept[0] * 0.97 / 0.99, kept[0] * 0.95 / 0.99]
    np.testing.assert_allclose(schedule.signal.square(), kept, rtol=1e-6)
    np.testing.assert_allclose(schedule.noise.square(), 1 - np.array(kept), rtol=1e-3)
    ratio = [value / (1 - value) for value in kept]
    np.testing.assert_allclose(schedule.weight, [1, ratio[0] - ratio[1], ratio[1] - ratio[2]], rtol=1e-4)
    # Bayes: two looks at the row one step before, through the step itself and from the clean row.
    step, before = 0.97 / 0.99, kept[0]
    precision = step / (1 - step) + 1 / (1 - before)
    assert schedule.state[1].item() == pytest.approx(math.sqrt(step) / (1 - step) / precision, rel=1e-4)
    assert schedule.prediction[1].item() == pytest.approx(math.sqrt(before) / (1 - before) / precision, rel=1e-4)
    assert (schedule.prediction[0].item(), schedule.state[0].item()) == (pytest.approx(1), 0)


def test_denoisers_take_steps_of_adam() -> None:
    denoiser = Denoiser(5, 3, 2, torch.Generator().manual_seed(0))
    other = {name: weight.detach().clone().requires_grad_() for name, weight in denoiser.leaves().items()}
    optimizer = torch.optim.Adam(other.values(), lr=0.02)

    def loss(weights: dict[str, torch.Tensor], number: int) -> torch.Tensor:
        return torch.stack([((weight - number) ** 3).mean() for weight in weights.values()]).sum()

    for number in range(4):
        weights = denoiser.leaves()
        loss(weights, number).backward()
        denoiser.descend(weights, 0.02)
        optimizer.zero_grad()
        loss(other, number).backward()
        optimizer.step()
    for name, expected in other.items():
        torch.testing.assert_close(denoiser.get_buffer(name), expected.detach())


def test_a_step_of_a_denoiser_is_the_same_in_parts(checkerboard: RecData, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for part in (3, 1000):
        monkeypatch.setattr(diffmm, "PART", part)
        model = build(checkerboard, denoising_batch=8)
        draw = model._corrupted

        def corrupted(users: torch.Tensor, draw: Any = draw) -> tuple[torch.Tensor, ...]:
            """The rows themselves, and steps that follow from the user."""
            return draw(users)[0], 0.9 * draw(users)[0], users % 5

        monkeypatch.setattr(model, "_corrupted", corrupted)
        monkeypatch.setattr(torch, "randperm", lambda count, **_: torch.arange(count))
        model.before_epoch(1)
        found.append([model._denoiser("text").get_buffer(name).clone() for name in model._denoiser("text").names])
    for one, whole in zip(*found, strict=True):
        torch.testing.assert_close(one, whole, rtol=1e-4, atol=1e-6)


def test_denoising_loss_by_brute_force(checkerboard: RecData) -> None:
    model = build(checkerboard, denoising_dropout=0, feature_weight=0.7)
    denoiser, schedule, users = model._denoiser("text"), model._schedule, torch.tensor([4, 1, 9])
    features, ids = (torch.randn(22, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    draws = torch.Generator()
    draws.set_state(model.generator.get_state())
    found = model._denoising_loss(denoiser, denoiser.leaves(), users, features, ids)
    steps, noise = torch.randint(5, (3,), generator=draws), torch.randn(3, 22, generator=draws)
    expected = 0.0
    for user, step, disturbance in zip(users, steps, noise, strict=True):
        clean = torch.from_numpy(checkerboard.train.toarray())[user]
        noisy = schedule.signal[step] * clean + schedule.noise[step] * disturbance
        recovered = denoiser(noisy[None], step[None])[0]
        expected += (schedule.weight[step] * ((clean - recovered) ** 2).mean()).item() / 3
        expected += 0.7 * (((recovered @ features) - (clean @ ids)) ** 2).mean().item() / 3
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_denoising_leaves_the_recommender_alone_and_the_steps_leave_the_denoisers(checkerboard: RecData) -> None:
    model = build(checkerboard)
    parameters = [parameter.detach().clone() for parameter in model.parameters()]
    before = {name: value.clone() for name, value in model.denoisers.state_dict().items()}
    model.before_epoch(1)
    after = {name: value.clone() for name, value in model.denoisers.state_dict().items()}
    assert all(torch.equal(*pair) for pair in zip(parameters, model.parameters(), strict=True))
    assert all(not torch.equal(before[name], after[name]) for name in before)
    step = next(TripletSampler(checkerboard.train, 64).epoch(torch.Generator().manual_seed(0)))
    torch.stack(list(model.loss(step).values())).sum().backward()
    assert all(torch.equal(after[name], value) for name, value in model.denoisers.state_dict().items())
    assert not {name for name, _ in model.named_parameters() if name.startswith("denoisers")}
    of_adam = {name.split(".")[-1] for name in model.state_dict().keys() - model.weights().keys()}
    names = model.denoisers["text"].names
    assert of_adam == {"updates", *(f"{name}_{kind}" for name in names for kind in ("moment", "square"))}


def test_generated_graphs_follow_the_weights(checkerboard: RecData) -> None:
    model, other = build(checkerboard), build(checkerboard, seed=1)
    assert (edges(model, "text") != edges(other, "text")).any()
    first = edges(other, "text")
    other.before_epoch(1)
    assert (edges(other, "text") != first).any()
    other.load_state_dict(model.state_dict())
    for modality in ("text", "visual"):
        np.testing.assert_array_equal(edges(other, modality), edges(model, modality))


def test_embeddings_and_contrast_equal_dense_matrices(checkerboard: RecData) -> None:
    model = build(checkerboard, layers=2, generated_items=2)
    model.modality_weights.data = torch.tensor([0.3, 1.2])
    graph = torch.from_numpy(with_self_loops(checkerboard.train).toarray())
    ids, total, views = model.embeddings.detach(), torch.zeros(52, 8), []
    weights = model.modality_weights.detach().exp()
    for weight, (modality, features) in zip(
        weights / weights.sum(), (("text", checkerboard.text), ("visual", checkerboard.visual)), strict=True
    ):
        projected = torch.from_numpy(features) @ model.projections[modality].detach()
        projected = F.normalize(torch.where(projected > 0, projected, 0.2 * projected))
        generated = torch.from_numpy(with_self_loops(csr_array(edges(model, modality).astype(np.float32))).toarray())
        by_features = graph @ torch.cat([ids[:30], projected])
        by_ids = graph @ torch.cat([by_features[:30], ids[30:]])
        total += weight * (by_features + by_ids + 0.2 * generated @ ids)
        view = generated @ torch.cat([ids[:30], projected])
        views.append(view + graph @ view + graph @ graph @ view)
    expected = total + graph @ total + graph @ graph @ total + 0.5 * F.normalize(total)
    torch.testing.assert_close(torch.cat(model.embed()), expected, rtol=1e-4, atol=1e-6)
    step, contrast = Batch(torch.tensor([3, 7, 3]), torch.tensor([0, 5, 9]), torch.tensor([1, 1, 1])), 0.0
    for kind, chosen in ((slice(30), step.users), (slice(30, None), step.positives)):
        for node in chosen.tolist():
            cosines = F.cosine_similarity(views[1][kind][node], views[0][kind]) / 0.5
            contrast += 0.1 * (cosines.logsumexp(0) - cosines[node]).item() / 3
    terms = model.loss(step)
    assert terms["contrast"].item() == pytest.approx(contrast, rel=1e-4)
    assert terms["l2"].item() == pytest.approx(1e-5 * ids.square().sum().item(), rel=1e-5)


@pytest.mark.parametrize("missing", ["text", "visual"])
def test_one_modality_has_no_contrast(missing: str, checkerboard: RecData) -> None:
    data = replace(checkerboard, **{missing: None})
    model = build(data)
    model.before_epoch(1)
    step = next(TripletSampler(data.train, 64).epoch(torch.Generator().manual_seed(0)))
    assert set(model.loss(step)) == {"bpr", "l2"}
