import pytest
import torch
from torch import Tensor

from model.base import Batch, RecData
from model.baselines.kar import KAR, Experts, HybridExperts, KARConfig
from model.baselines.lightgcn import LightGCN, LightGCNConfig
from model.baselines.sgl import SGL, SGLConfig
from model.sampling import TripletSampler

USERS, ITEMS, WIDTH = 7, 5, 9
CONFIG = KARConfig(embedding_size=4, shared_experts=2, own_experts=3, hidden_size=6)


def adaptor() -> HybridExperts:
    return HybridExperts(CONFIG, WIDTH, torch.Generator().manual_seed(0))


def texts() -> tuple[Tensor, Tensor]:
    return torch.randn(USERS + ITEMS, WIDTH, generator=torch.Generator().manual_seed(1)).split([USERS, ITEMS])


def expert(experts: Experts, place: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Views of one expert's weights."""
    rows = slice(6 * place, 6 * place + 6)
    return (
        experts.inner.data[rows],
        experts.inner_bias.data[rows],
        experts.outer.data[rows],
        experts.outer_bias.data[place],
    )


def test_shapes_and_that_the_shares_sum_to_one() -> None:
    made = adaptor()
    assert made(*texts()).shape == (USERS + ITEMS, 4)
    for experts in (made.shared, made.users, made.items):
        for parameter in experts.parameters():
            parameter.data.zero_()
        experts.outer_bias.data[:] = torch.tensor([1.0, 2.0, -3.0, 0.5])  # what every expert now says of every text
    torch.testing.assert_close(made(*texts()), torch.tensor([1.0, 2.0, -3.0, 0.5]).expand(USERS + ITEMS, 4))


def test_output_is_the_mixture_of_the_experts_by_the_gate() -> None:
    made, generator = adaptor(), torch.Generator().manual_seed(2)
    for parameter in made.parameters():  # biases too
        parameter.data.normal_(generator=generator)
    rows = []
    for text, own, gate in zip(texts(), (made.users, made.items), (made.user_gate, made.item_gate), strict=True):
        shares = torch.exp(text @ gate.weight.T + gate.bias)
        shares = shares / shares.sum(1, keepdim=True)
        every = [expert(made.shared, place) for place in range(2)] + [expert(own, place) for place in range(3)]
        total = torch.zeros(len(text), 4)
        for share, (inner, inner_bias, outer, outer_bias) in zip(shares.T, every, strict=True):
            total += share[:, None] * ((text @ inner.T + inner_bias).clamp(min=0) @ outer + outer_bias)
        rows.append(total)
    torch.testing.assert_close(made(*texts()), torch.cat(rows))


@pytest.mark.parametrize(
    ("group", "place"), [("shared", 0), ("shared", 1), *((g, k) for g in ("users", "items") for k in range(3))]
)
def test_every_expert_counts_and_only_shared_ones_for_both_kinds(group: str, place: int) -> None:
    made = adaptor()
    before = made(*texts()).split([USERS, ITEMS])
    for weights in expert(getattr(made, group), place):
        weights.zero_()
    after = made(*texts()).split([USERS, ITEMS])
    changed = [not torch.equal(old, new) for old, new in zip(before, after, strict=True)]
    assert changed == {"shared": [True, True], "users": [True, False], "items": [False, True]}[group]


def test_experts_start_apart_and_within_xaviers_bound() -> None:
    experts = adaptor().users
    inner = experts.inner.unflatten(0, (3, 6))
    assert not torch.allclose(inner[0], inner[1])
    for weights, bound in ((experts.inner, (6 / (WIDTH + 6)) ** 0.5), (experts.outer, (6 / (6 + 4)) ** 0.5)):
        assert 0.9 * bound < weights.abs().max() <= bound  # of one expert, not of all of them side by side


@pytest.mark.parametrize(("kind", "plain"), [("lightgcn", (LightGCN, LightGCNConfig)), ("sgl", (SGL, SGLConfig))])
def test_model_is_its_backbone_on_the_sum(kind: str, plain: tuple[type, type], checkerboard: RecData) -> None:
    model = KAR(KARConfig(embedding_size=4, backbone=kind, l2=0), checkerboard, torch.Generator().manual_seed(0))
    backbone, config = plain
    same = backbone(config(embedding_size=4, layers=3, l2=0), checkerboard, torch.Generator().manual_seed(0))
    parts = model.text.split([checkerboard.user_count, checkerboard.item_count])
    added = model.adaptor(*parts).detach()
    assert added.abs().max() > 0.01
    same.embeddings.data = model.backbone.embeddings.data + added
    for made in (model, same):
        made.generator.manual_seed(2)
        made.before_epoch(1)
    step: Batch = next(TripletSampler(checkerboard.train, 16).epoch(torch.Generator().manual_seed(0)))
    terms, expected = model.loss(step), same.loss(step)
    assert terms.keys() == expected.keys()
    for name, term in expected.items():
        torch.testing.assert_close(terms[name], term)
    torch.testing.assert_close(model.eval().embed(), same.eval().embed())
