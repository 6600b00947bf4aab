import pytest
import torch
from torch import Tensor, nn

from model.base import Batch, RecData
from model.baselines.kar import KAR, HybridExperts, KARConfig
from model.baselines.lightgcn import LightGCN, LightGCNConfig
from model.baselines.sgl import SGL, SGLConfig
from model.sampling import TripletSampler

USERS, ITEMS, WIDTH = 7, 5, 9
CONFIG = KARConfig(embedding_size=4, shared_experts=2, own_experts=3, hidden_size=6)


def adaptor() -> HybridExperts:
    return HybridExperts(CONFIG, WIDTH, torch.Generator().manual_seed(0))


def texts() -> tuple[Tensor, Tensor]:
    return torch.randn(USERS + ITEMS, WIDTH, generator=torch.Generator().manual_seed(1)).split([USERS, ITEMS])


def by_hand(expert: nn.Module, text: Tensor) -> Tensor:
    assert isinstance(expert, nn.Sequential)
    first, second = expert[0], expert[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    return (text @ first.weight.T + first.bias).clamp(min=0) @ second.weight.T + second.bias


def experts_of(made: HybridExperts, kind: int) -> list[nn.Module]:
    return [*made.shared, *(made.users, made.items)[kind]]


def test_gates_are_shares_that_differ_between_texts() -> None:
    shares = adaptor().weights(texts())
    assert [tuple(part.shape) for part in shares] == [(USERS, 5), (ITEMS, 5)]
    for part in shares:
        torch.testing.assert_close(part.sum(1), torch.ones(len(part)))
        assert (part > 0).all()
        assert not torch.allclose(part[0], part[1])


def test_output_is_the_mixture_of_the_experts() -> None:
    made = adaptor()
    rows = []
    for kind, (text, shares) in enumerate(zip(texts(), made.weights(texts()), strict=True)):
        outputs = [by_hand(expert, text) for expert in experts_of(made, kind)]
        rows.append(torch.stack([shares[:, [place]] * output for place, output in enumerate(outputs)]).sum(0))
    assert made(texts()).shape == (USERS + ITEMS, 4)
    torch.testing.assert_close(made(texts()), torch.cat(rows))


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("place", range(5))
def test_every_expert_counts_and_only_shared_ones_for_both_kinds(kind: int, place: int) -> None:
    made = adaptor()
    before = made(texts()).split([USERS, ITEMS])
    for parameter in experts_of(made, kind)[place].parameters():
        parameter.data.zero_()
    after = made(texts()).split([USERS, ITEMS])
    changed = [not torch.equal(old, new) for old, new in zip(before, after, strict=True)]
    assert changed == ([True, True] if place < 2 else [kind == 0, kind == 1])


@pytest.mark.parametrize(("kind", "plain"), [("lightgcn", (LightGCN, LightGCNConfig)), ("sgl", (SGL, SGLConfig))])
def test_model_is_its_backbone_on_the_sum(kind: str, plain: tuple[type, type], checkerboard: RecData) -> None:
    model = KAR(KARConfig(embedding_size=4, backbone=kind, l2=0), checkerboard, torch.Generator().manual_seed(0))
    backbone, config = plain
    same = backbone(config(embedding_size=4, layers=3, l2=0), checkerboard, torch.Generator().manual_seed(0))
    parts = model.text.split([checkerboard.user_count, checkerboard.item_count])
    added = model.adaptor(parts).detach()
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
