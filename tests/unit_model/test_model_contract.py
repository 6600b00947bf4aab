"""What every registered model has to do; a new model is held to it by its line in the registry."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from scipy.sparse import csr_array

from model.base import INPUTS, Batch, DataError, RecData, Recommender, SemanticGraphs
from model.config import TrainingConfig
from model.layers import SparseGraph
from model.registry import MODELS, load
from model.sampling import TripletSampler
from model.training import train

every_model = pytest.mark.parametrize("name", sorted(MODELS))


def build(name: str, data: RecData, seed: int = 0) -> Recommender:
    model_class = load(name)
    return model_class(model_class.Config(**MODELS[name].preset), data, torch.Generator().manual_seed(seed))


def batches(data: RecData, count: int) -> list[Batch]:
    sampler = TripletSampler(data.train, batch_size=64)
    return list(sampler.epoch(torch.Generator().manual_seed(1)))[:count]


class Trace:
    """Takes training steps one by one and keeps the losses."""

    def __init__(self, model: Recommender) -> None:
        self.model = model
        self.optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        self.losses: list[float] = []
        model.before_epoch(1)

    def step(self, batch: Batch) -> None:
        self.optimizer.zero_grad()
        loss = sum(self.model.loss(batch).values())
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())


def all_scores(model: Recommender) -> np.ndarray:
    model.eval()
    with torch.no_grad():
        return model.scores(torch.arange(model.user_count)).numpy()


@every_model
def test_registry_repeats_what_the_class_says(name: str) -> None:
    assert MODELS[name].needs == load(name).needs


@every_model
def test_config_round_trip_and_closed(name: str) -> None:
    config_class = load(name).Config
    config = config_class(embedding_size=16)
    assert config_class.model_validate_json(config.model_dump_json()) == config
    assert all(field.description for field in config_class.model_fields.values())
    with pytest.raises(ValidationError, match="embeding_size"):
        config_class(embeding_size=16)


@every_model
def test_missing_input_is_named(name: str, checkerboard: RecData) -> None:
    bare = replace(checkerboard, name="bare", text=None, user_text=None, visual=None, semantic=None)
    missing = sorted(load(name).needs - {"interactions"})
    if not missing:
        build(name, bare)
        return
    with pytest.raises(
        DataError, match=f"needs {' and '.join(INPUTS[need] for need in missing)}, which dataset bare lacks"
    ):
        build(name, bare)


@every_model
def test_same_seed_same_losses_beside_another_instance(name: str, checkerboard: RecData) -> None:
    alone, beside, other = (Trace(build(name, checkerboard, seed)) for seed in (0, 0, 5))
    steps = batches(checkerboard, 4)
    for batch in steps:
        alone.step(batch)
    for batch in steps:
        other.step(batch)
        beside.step(batch)
    assert alone.losses == beside.losses
    assert alone.losses != other.losses


@every_model
def test_every_parameter_gets_a_gradient(name: str, checkerboard: RecData) -> None:
    model = build(name, checkerboard)
    model.before_epoch(1)
    sum(model.loss(batches(checkerboard, 1)[0]).values()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("name", [name for name in sorted(MODELS) if "modalities" in MODELS[name].needs])
@pytest.mark.parametrize("missing", ["text", "visual"])
def test_one_modality_is_enough(name: str, missing: str, checkerboard: RecData) -> None:
    data = replace(checkerboard, **{missing: None})
    trace = Trace(build(name, data))
    for batch in batches(data, 3):
        trace.step(batch)
    assert np.isfinite(trace.losses).all()
    scores = all_scores(trace.model)
    assert np.isfinite(scores).all()
    assert not np.allclose(scores, all_scores(build(name, data)))  # training has changed them


@every_model
def test_withheld_items_come_first(name: str, checkerboard: RecData) -> None:
    config = TrainingConfig(
        epochs=40, batch_size=64, learning_rate=0.01, top_k=(2,), selection_metric="recall_at_2", device="cpu"
    )
    model = build(name, checkerboard)
    result = train(model, checkerboard, config)
    # Validation and test hold one item each, and both rank above every item of the other parity. Contrastive models,
    # which push alike nodes apart, may miss a few.
    assert result.validation["recall_at_2"] >= 0.9
    assert result.test.means["recall_at_2"] >= 0.9
    expected = result.user_embeddings @ result.item_embeddings.T
    np.testing.assert_allclose(all_scores(model), expected, rtol=1e-5, atol=1e-6)


@every_model
def test_scores_permute_when_ids_are_relabelled(name: str, checkerboard: RecData) -> None:
    rng = np.random.default_rng(3)
    users, items = rng.permutation(checkerboard.user_count), rng.permutation(checkerboard.item_count)
    model, relabelled = build(name, checkerboard), build(name, relabel(checkerboard, users, items))
    orders = {
        len(users): torch.from_numpy(users),
        len(items): torch.from_numpy(items),
        len(users) + len(items): torch.from_numpy(np.concatenate([users, len(users) + items])),
    }
    weights = {key: value[orders[len(value)]] if len(value) in orders else value for key, value in
               model.state_dict().items()}  # fmt: skip
    relabelled.load_state_dict(weights)
    np.testing.assert_allclose(all_scores(relabelled), all_scores(model)[users][:, items], rtol=1e-4, atol=1e-7)


@every_model
def test_scores_change_when_a_graph_is_emptied(name: str, checkerboard: RecData) -> None:
    graphs = [module for module in build(name, checkerboard).modules() if isinstance(module, SparseGraph)]
    if not graphs:
        pytest.skip(f"{name} has no graph")
    whole = all_scores(build(name, checkerboard))
    for index in range(len(graphs)):
        model = build(name, checkerboard)
        emptied = [module for module in model.modules() if isinstance(module, SparseGraph)][index]
        if emptied in [module.transposed for module in model.modules() if isinstance(module, SparseGraph)]:
            continue  # serves the backward pass alone
        emptied.values.zero_()
        assert not np.allclose(all_scores(model), whole)


@every_model
def test_save_and_load(name: str, checkerboard: RecData, tmp_path) -> None:
    model, other = build(name, checkerboard, seed=0), build(name, checkerboard, seed=1)
    save_file(model.weights(), tmp_path / "weights.safetensors")
    assert not np.allclose(all_scores(other), all_scores(model))
    other.load_state_dict({**other.state_dict(), **load_file(tmp_path / "weights.safetensors")})
    assert np.array_equal(all_scores(other), all_scores(model))  # cached scores do not outlive their weights


def relabel(data: RecData, users: np.ndarray, items: np.ndarray) -> RecData:
    """New user u is old user `users[u]`; likewise items."""
    nodes = np.concatenate([users, len(users) + items])

    def take(graph: csr_array, rows: np.ndarray, columns: np.ndarray) -> csr_array:
        taken = csr_array(graph[rows][:, columns])
        taken.sort_indices()
        return taken

    semantic = data.semantic
    assert semantic is not None
    assert data.text is not None
    assert data.user_text is not None
    assert data.visual is not None
    return replace(
        data,
        train=take(data.train, users, items),
        valid=take(data.valid, users, items),
        test=take(data.test, users, items),
        text=data.text[items],
        user_text=data.user_text[users],
        visual=data.visual[items],
        semantic=SemanticGraphs(
            take(semantic.fused, nodes, nodes),
            take(semantic.users, users, users),
            take(semantic.items, items, items),
            take(semantic.users_to_items, users, items),
        ),
    )
