import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array

from model.base import Batch, RecData
from model.baselines.lightgcn import LightGCN, LightGCNConfig
from model.baselines.sgl import SGL, SGLConfig
from model.layers import SparseGraph
from model.sampling import TripletSampler


def build(data: RecData, **settings: object) -> SGL:
    return SGL(SGLConfig(embedding_size=8, **settings), data, torch.Generator().manual_seed(0))


def batch(data: RecData, size: int = 16) -> Batch:
    return next(TripletSampler(data.train, size).epoch(torch.Generator().manual_seed(0)))


def dense(graph: SparseGraph) -> torch.Tensor:
    arrays = (graph.values.numpy(), graph.indices.numpy(), graph.indptr.numpy())
    return torch.from_numpy(csr_array(arrays, shape=graph.shape).toarray())


def test_views_differ_from_each_other_and_from_epoch_to_epoch(checkerboard: RecData) -> None:
    model = build(checkerboard, dropping=0.3)
    views = []
    for epoch in (1, 2):
        model.before_epoch(epoch)
        views += [dense(model.first_view), dense(model.second_view)]
    whole = dense(model.graph)
    kept = 2 * int(checkerboard.train.nnz * (1 - 0.3))  # both ways
    for view in views:
        assert np.count_nonzero(view) == kept
        assert not view[whole == 0].any()
        degree = (view > 0).sum(1)  # its own, not that of the whole graph
        expected = (view > 0) / (degree[:, None] * degree).clamp(min=1).sqrt()
        torch.testing.assert_close(view, expected)
    assert len({view.numpy().tobytes() for view in views}) == 4


def test_loss_equals_brute_force(checkerboard: RecData) -> None:
    model = build(checkerboard, layers=2, contrast_weight=0.5, contrast_temperature=0.3, l2=0)
    model.before_epoch(1)
    own, first_item = model.embeddings.detach(), checkerboard.user_count
    outputs = []
    for graph in (model.first_view, model.second_view):
        once = dense(graph) @ own
        outputs.append(F.normalize((own + once + dense(graph) @ once) / 3, dim=1))
    step = batch(checkerboard)
    kinds = [
        (step.users, range(first_item)),
        (step.positives + first_item, range(first_item, len(own))),
    ]
    expected = 0.0
    for nodes, candidates in kinds:
        losses = []
        for node in set(nodes.tolist()):
            weights = {other: float(torch.exp(outputs[0][node] @ outputs[1][other] / 0.3)) for other in candidates}
            losses.append(-np.log(weights[node] / sum(weights.values())))
        expected += np.mean(losses)
    np.testing.assert_allclose(model.loss(step)["contrast"].item(), 0.5 * expected, rtol=1e-5)


def test_scores_and_recommendation_loss_are_lightgcns(checkerboard: RecData) -> None:
    model = build(checkerboard)
    plain = LightGCN(LightGCNConfig(embedding_size=8, layers=3), checkerboard, torch.Generator().manual_seed(0))
    model.before_epoch(1)
    terms, expected = (made.loss(batch(checkerboard)) for made in (model, plain))
    assert terms.keys() - expected.keys() == {"contrast"}
    assert all(torch.equal(terms[name], expected[name]) for name in expected)
    assert torch.equal(model.eval().embed()[0], plain.eval().embed()[0])
