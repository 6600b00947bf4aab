import math

import pytest
import torch
import torch.nn.functional as F

from model import kernels
from model.losses import BLOCK, bpr, embedding_l2, infonce, relation_contrast, unit_rows


def test_bpr_by_hand() -> None:
    loss = bpr(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0]))
    assert loss.item() == pytest.approx((math.log(1 + math.exp(-2)) + math.log(1 + math.e)) / 2)


def test_bpr_does_not_overflow() -> None:
    assert bpr(torch.tensor([-1000.0]), torch.tensor([1000.0])).item() == 2000


def test_infonce_by_hand() -> None:
    # Cosines: anchor 0 has 1 and 0, anchor 1 has 0 and 1; lengths do not count.
    rows = torch.tensor([[3.0, 0.0], [0.0, 0.1]])
    assert infonce(rows, rows, temperature=0.5).item() == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-5)


@pytest.mark.parametrize("count", [1, 5, BLOCK, 2 * BLOCK + 3])
@pytest.mark.parametrize("temperature", [0.6, 0.01])
def test_infonce_and_its_gradients_equal_cross_entropy(count: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(count)
    views = [torch.randn(count, 8, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2)]
    same = [view.detach().clone().requires_grad_() for view in views]
    loss = infonce(*views, temperature)
    logits = F.normalize(same[0], dim=1) @ F.normalize(same[1], dim=1).T / temperature
    expected = F.cross_entropy(logits, torch.arange(count))
    torch.testing.assert_close(loss, expected)
    (3 * loss).backward()
    (3 * expected).backward()
    for view, other in zip(views, same, strict=True):
        torch.testing.assert_close(view.grad, other.grad)


@pytest.mark.parametrize("temperature", [0.2, 0.01])
def test_infonce_takes_its_own_target_from_among_further_candidates(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    matches = torch.tensor([4, 0, 4, 8] * 100)  # two anchors of one target; candidates that belong to none
    rows = [torch.randn(count, 8, dtype=torch.float64, generator=generator).requires_grad_() for count in (400, 9)]
    same = [part.detach().clone().requires_grad_() for part in rows]
    loss = infonce(*rows, temperature, matches)
    cosines = F.normalize(same[0], dim=1) @ F.normalize(same[1], dim=1).T
    expected = -(cosines / temperature).log_softmax(1)[torch.arange(400), matches].mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for part, other in zip(rows, same, strict=True):
        torch.testing.assert_close(part.grad, other.grad)


def test_infonce_matches_rows_by_number_where_nothing_else_is_said() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randn(count, 8, dtype=torch.float64, generator=generator) for count in (5, 9)]
    found = []
    for matches in (None, torch.arange(5)):
        leaves = [part.clone().requires_grad_() for part in rows]
        loss = infonce(*leaves, 0.4, matches)
        loss.backward()
        found.append([loss, *(leaf.grad for leaf in leaves)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_zero_rows_have_cosine_zero_and_finite_gradients() -> None:
    anchors, views = torch.eye(3, requires_grad=True), torch.zeros(3, 3, requires_grad=True)
    loss = infonce(anchors, views, temperature=0.6)
    assert loss.item() == pytest.approx(math.log(3), rel=1e-5)
    loss.backward()
    assert views.grad.isfinite().all()
    assert views.grad.abs().max() < 10  # a length clamped at 1e-12 would make it 1e11
    assert not unit_rows(torch.zeros(2, 2)).any()
    short = torch.tensor([[3e-20, 4e-20]])
    assert torch.equal(unit_rows(short), short)  # 9e-40 is no normal float: its length would be a rounding error


def test_relation_contrast_by_hand() -> None:
    anchor, positive = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0]])  # cosine 1
    negatives = torch.tensor([[[0.0, 1.0], [-1.0, 0.0]]])  # cosines 0, -1
    expected = -math.log(math.exp(5) / (math.exp(5) + 1 + math.exp(-5)))
    assert relation_contrast(anchor, positive, negatives, temperature=0.2).item() == pytest.approx(expected, rel=1e-4)


def test_l2_is_half_the_squared_norm_per_triplet() -> None:
    assert embedding_l2(torch.tensor([[3.0], [1.0]]), torch.tensor([[0.0], [2.0]])).item() == (9 + 1 + 4) / 4


def test_infonce_among_more_candidates_equals_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(5)
    anchors, views = (torch.randn(count, 8, generator=generator) for count in (300, 700))
    matches = torch.randint(700, (300,), generator=generator)  # some anchors share a match
    gradients = []
    for form in ("fast", "reference"):
        leaves = [part.clone().requires_grad_() for part in (anchors, views)]
        with kernels.use(form):
            loss = infonce(*leaves, 0.3, matches)
        gradients.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    logits = F.cosine_similarity(anchors[:, None], views, dim=2) / 0.3
    torch.testing.assert_close(gradients[0][0], F.cross_entropy(logits, matches))
    for fast, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, reference, rtol=1e-4, atol=1e-8)
