"""DiffMM: for each modality a user-item graph that a diffusion model generates, and contrast between modalities.

Jiang et al., *DiffMM: Multi-Modal Diffusion Model for Recommendation*, ACM MM 2024. In every epoch, before the
recommender, a denoiser of each modality learns to recover users' rows of the interaction matrix from a few steps of
Gaussian noise, and to put the modality's features where the ID embeddings are. What it makes of a user's row, step by
step, names the user's items in that modality's generated graph (Section 2.2.3). It starts from the row itself: the
published settings add no noise before generating and none between the steps.

Equations: a noisy row 2, the schedule of noise 3, a step back 4 with its mean 10, whose factors 8 gives; a denoiser's
loss 24, of the recovered row (12 for the first step) and of its features (14); projected features 15; the contrast
between modalities 16 to 18; the modalities' views 20, their sum 21, the layers after it 22 and 23; the losses 25, 26.

What differs from the published code: no edges of a generated graph are dropped, as in the commands published for
Amazon data; features of both kinds are projected without a bias, as published for Baby; contrast is between two
modalities, as there, so one modality alone has none (another form of it, each modality against the whole, is left
out). Generating never leaves the hidden layer before the last step: a step back is linear in the noisy row but for
the denoiser, which reads that row through one linear layer, so what this layer sees is all that has to be known. The
published batch size is 1,024, for 50 epochs, of which the authors' code picks the best on the test split; here
validation picks it, as for every model, and batch size and epochs are those of the training.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from scipy.sparse import block_array, csr_array, eye_array
from torch import Tensor, nn
from torch.func import functional_call

from model.base import Batch, RecData, Recommender
from model.config import ModelConfig
from model.layers import Rows, SparseGraph, degree_normalised, dropout, embedding_table, take_rows, to_device
from model.losses import bpr, infonce, unit_rows
from model.modalities import MultimodalConfig, item_features

TIME_SIZE = 10  # numbers that tell the denoiser its step
BLOCK = 1024  # users for whom a graph is generated at a time
PART = 256  # users of a denoiser's batch whose loss is taken at a time: a dozen arrays have all items of each
SLOPE = 0.2  # of projected features below zero


class DiffMMConfig(MultimodalConfig):
    """Settings of DiffMM."""

    layers: int = Field(1, ge=0, description="Layers after the modalities have met; their sum counts, with layer 0.")
    generated_weight: float = Field(0.2, ge=0, description="Weight of a modality's generated graph (ris_adj_lambda).")
    residual_weight: float = Field(0.5, ge=0, description="Weight of the unit rows before those layers (ris_lambda).")
    contrast_weight: float = Field(0.1, ge=0, description="Weight of the contrast between modalities (ssl_reg).")
    temperature: float = Field(0.5, gt=0, description="tau of the contrast.")
    l2: float = Field(1e-5, ge=0, description="Weight of the squared norm of all ID embeddings.")
    generated_items: int = Field(1, ge=1, description="k: items of a user in a generated graph.")
    steps: int = Field(5, ge=1, description="T: steps of noise.")
    noise_scale: float = Field(0.1, gt=0, description="Factor on both of the following.")
    noise_min: float = Field(1e-4, gt=0, description="Variance of the noise after the first step.")
    noise_max: float = Field(0.02, gt=0, description="Variance of the noise after the last step.")
    hidden_size: int = Field(1000, ge=1, description="Width of a denoiser's hidden layer.")
    denoising_dropout: float = Field(0.5, ge=0, lt=1, description="Share of a noisy row that a denoiser does not see.")
    feature_weight: float = Field(0.01, ge=0, description="Weight of features against IDs in denoising (e_loss).")
    denoising_batch: int = Field(1024, ge=1, description="Users per step of a denoiser.")
    denoising_rate: float = Field(1e-3, gt=0, description="Step size of the denoisers' Adam.")


class DiffMM(Recommender):
    """H = sum over layers of what modalities make of IDs and features, together; score = dot product."""

    Config: ClassVar[type[ModelConfig]] = DiffMMConfig
    needs: ClassVar[frozenset[str]] = frozenset({"interactions", "modalities"})
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "layers": (1, 2),
        "contrast_weight": (1e-3, 1e-2, 1e-1),
        "feature_weight": (0.01, 0.1, 0.5),
        "generated_items": (1, 5),
    }
    config: DiffMMConfig

    def __init__(self, config: DiffMMConfig, data: RecData, generator: torch.Generator) -> None:
        super().__init__(config, data, generator)
        self._train = data.train
        self._schedule = Schedule.of(config.steps, config.noise_scale, config.noise_min, config.noise_max)
        self.graph = SparseGraph(with_self_loops(data.train), symmetric=True)
        self.interactions = SparseGraph(data.train)  # R
        self.embeddings = embedding_table((data.user_count, data.item_count), config.embedding_size, generator)
        self.projections, self.denoisers = nn.ParameterDict(), nn.ModuleDict()
        for modality, features in item_features(config, data).items():
            self.register_buffer(f"{modality}_features", features, persistent=False)
            self.projections[modality] = nn.Parameter(torch.empty(features.shape[1], config.embedding_size))
            nn.init.xavier_uniform_(self.projections[modality], generator=generator)
            self.denoisers[modality] = Denoiser(data.item_count, config.hidden_size, config.steps, generator)
        self.modality_weights = nn.Parameter(torch.full((len(self.projections),), 1 / len(self.projections)))
        # Graphs follow from the denoisers' weights; they are made when they are asked for and forgotten with those.
        self._generated: dict[str, SparseGraph] = {}
        self.register_load_state_dict_post_hook(lambda module, _: module._generated.clear())

    def before_epoch(self, epoch: int) -> None:
        """Train every denoiser on all users once."""
        ids = self.embeddings.detach()[self.user_count :]
        for modality in self.projections:
            denoiser, features = self._denoiser(modality), self._project(modality).detach()
            order = torch.randperm(self.user_count, generator=self.generator)
            for users in order.split(self.config.denoising_batch):
                weights = denoiser.leaves()
                for part in users.split(PART):
                    loss = self._denoising_loss(denoiser, weights, part, features, ids)
                    (loss * (len(part) / len(users))).backward()
                denoiser.descend(weights, self.config.denoising_rate)
        self._generated.clear()

    def weights(self) -> dict[str, Tensor]:
        of_adam = ("_moment", "_square", ".updates")  # of a denoiser's
        return {name: value for name, value in self.state_dict().items() if not name.endswith(of_adam)}

    def embed(self) -> tuple[Tensor, Tensor]:
        users, items = self._represent().split([self.user_count, self.item_count])
        return users, items

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        triplets = [batch.users, batch.positives + self.user_count, batch.negatives + self.user_count]
        rows = Rows.of(torch.cat(triplets), len(self.embeddings), self.device)
        users, positives, negatives = rows.take(self._represent(rows), *triplets)  # each (B, d)
        terms = {"bpr": bpr((users * positives).sum(1), (users * negatives).sum(1))}
        if self.config.contrast_weight and len(self.projections) > 1:
            terms["contrast"] = self.config.contrast_weight * self._contrast(batch)
        if self.config.l2:
            # Column by column first, so that no sum is split between threads.
            terms["l2"] = self.config.l2 * self.embeddings.square().sum(0).sum()
        return terms

    def _project(self, modality: str) -> Tensor:
        """Features of items in the space of the ID embeddings (N, d) (eq. 15)."""
        return F.leaky_relu(self.get_buffer(f"{modality}_features") @ self.projections[modality], SLOPE)

    def _represent(self, rows: Rows | None = None) -> Tensor:
        """Final embeddings (M + N, d), or rows of them (eqs. 20 to 23)."""
        users, items = self.embeddings.split([self.user_count, self.item_count])
        together = torch.zeros_like(self.embeddings)
        for modality, weight in zip(self.projections, self.modality_weights.softmax(0), strict=True):
            by_features = self.graph(torch.cat([users, unit_rows(self._project(modality))]))
            by_ids = self.graph(torch.cat([by_features[: self.user_count], items]))
            generated = self._generate(modality)(self.embeddings)
            views = by_features + by_ids + self.config.generated_weight * generated
            # One factor to a column, so that the sum in the weight's gradient is not split between threads.
            together = together + weight.expand(views.shape[1]) * views
        layers = self.graph.layer_mean(together, self.config.layers, rows) * (self.config.layers + 1)
        own = together if rows is None else rows.select(together)
        return layers + self.config.residual_weight * unit_rows(own)

    def _contrast(self, batch: Batch) -> Tensor:
        """A batch's users, and its positive items, in one modality's view against all of another's (eqs. 16 to 18)."""
        views = []
        for modality in self.projections:
            nodes = torch.cat([self.embeddings[: self.user_count], unit_rows(self._project(modality))])
            views.append(self.graph.layer_mean(self._generate(modality)(nodes), self.config.layers))
        total = self.embeddings.new_zeros(())
        for candidates, anchors in combinations(views, 2):  # visual anchors among text, where there are both
            chosen = take_rows(anchors, batch.users, batch.positives + self.user_count)  # (B, d) each
            kinds = candidates.split([self.user_count, self.item_count])
            for rows, kind, nodes in zip(chosen, kinds, (batch.users, batch.positives), strict=True):
                total = total + infonce(rows, kind, self.config.temperature, to_device(nodes, self.device))
        return total

    def _denoiser(self, modality: str) -> "Denoiser":
        denoiser = self.denoisers[modality]
        assert isinstance(denoiser, Denoiser)
        return denoiser

    def _denoising_loss(
        self, denoiser: "Denoiser", weights: dict[str, Tensor], users: Tensor, features: Tensor, ids: Tensor
    ) -> Tensor:
        """Error of the recovered rows of `users` (B,), and distance of their features from their IDs (eq. 24)."""
        clean, seen, steps = self._corrupted(users)
        weight = to_device(self._schedule.weight, self.device)[steps]
        recovered = functional_call(denoiser, weights, (seen, steps))
        error = (weight * (clean - recovered).square().mean(1)).mean()
        distance = (recovered @ features - clean @ ids).square().mean(1).mean()
        return error + self.config.feature_weight * distance

    def _corrupted(self, users: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of `users` (B, N), what a denoiser sees of them with noise (eq. 2), and the steps of noise (B,)."""
        schedule = self._schedule
        clean = torch.from_numpy(self._train[users.numpy()].toarray())
        steps = torch.randint(len(schedule.signal), (len(users),), generator=self.generator)
        noisy = torch.randn(clean.shape, generator=self.generator).mul_(schedule.noise[steps, None])
        noisy += schedule.signal[steps, None] * clean
        seen = dropout(noisy, self.config.denoising_dropout, self.generator)
        return to_device(clean, self.device), to_device(seen, self.device), to_device(steps, self.device)

    def _generate(self, modality: str) -> SparseGraph:
        """The graph of every user's best items by a modality's denoiser, as it stands."""
        if modality not in self._generated:
            denoiser = self._denoiser(modality)
            with torch.no_grad():
                seen = self.interactions(denoiser.encode).split(BLOCK)
                best = [denoiser.generate(part, self._schedule).topk(self._kept).indices for part in seen]
            items = torch.cat(best).sort(dim=1).values.cpu().numpy()  # (M, k)
            ends = np.arange(0, items.size + 1, self._kept)
            chosen = csr_array((np.ones(items.size, np.float32), items.reshape(-1), ends), shape=self._train.shape)
            self._generated[modality] = SparseGraph(with_self_loops(chosen), symmetric=True)
        return self._generated[modality].to(self.device)

    @property
    def _kept(self) -> int:
        return min(self.config.generated_items, self.item_count)


def with_self_loops(interactions: csr_array) -> csr_array:
    """Normalised user-item graph (M + N, M + N) in which every node is its own neighbour, too."""
    users, items = (eye_array(count, format="csr", dtype=np.float32) for count in interactions.shape)
    return degree_normalised(block_array([[users, interactions], [interactions.T, items]], format="csr"))


@dataclass(frozen=True)
class Schedule:
    """Noise by step, each (T,) and on the CPU.

    Parameters
    ----------
    signal, noise
        Factors on the clean row and on Gaussian noise in the noisy one.
    weight
        What a step gains in signal-to-noise ratio on the one after it: its weight in denoising; 1 for the first.
    prediction, state
        Factors on the denoiser's output and on the noisy row in the mean of the row one step before.
    """

    signal: Tensor
    noise: Tensor
    weight: Tensor
    prediction: Tensor
    state: Tensor

    @classmethod
    def of(cls, steps: int, scale: float, low: float, high: float) -> Self:
        """Variances that grow linearly from `scale * low` to `scale * high`; the first step's own one is 1e-4."""
        kept = 1 - scale * np.linspace(low, high, steps)
        added = np.append(1e-4, np.minimum(1 - kept[1:] / kept[:-1], 0.999))  # beta
        kept = np.cumprod(1 - added)
        before = np.append(1.0, kept[:-1])
        ratio = kept / (1 - kept)
        weight = np.append(1.0, ratio[:-1] - ratio[1:])
        prediction = added * np.sqrt(before) / (1 - kept)
        state = (1 - before) * np.sqrt(1 - added) / (1 - kept)
        columns = np.sqrt(kept), np.sqrt(1 - kept), weight, prediction, state
        return cls(*(torch.from_numpy(column.astype(np.float32)) for column in columns))


def _small_product(left: Tensor, right: Tensor) -> Tensor:
    """(n, k) by (k, m) for small n and k: BLAS rounds such products by the number of threads, this does not."""
    return (left[:, :, None] * right).sum(1)


class Denoiser(nn.Module):
    """Recovers rows of the interaction matrix through one hidden layer that is told the step.

    It trains itself, so its weights are no parameters of the model but buffers, as are both of Adam's moments of them
    and the number of steps taken: all of it is part of a checkpoint. Weights of items have a row per item.
    """

    encode: Tensor
    decode: Tensor
    item_bias: Tensor
    hidden_bias: Tensor
    from_time: Tensor
    time_weight: Tensor
    time_bias: Tensor
    updates: Tensor
    times: Tensor

    def __init__(self, items: int, hidden: int, steps: int, generator: torch.Generator) -> None:
        super().__init__()
        reading, writing, telling = (math.sqrt(2 / width) for width in (items + TIME_SIZE + hidden, items + hidden, 20))
        starts = {
            "encode": ((items, hidden), reading),
            "from_time": ((TIME_SIZE, hidden), reading),
            "hidden_bias": ((hidden,), 0.001),
            "decode": ((items, hidden), writing),
            "item_bias": ((items,), 0.001),
            "time_weight": ((TIME_SIZE, TIME_SIZE), telling),
            "time_bias": ((TIME_SIZE,), 0.001),
        }
        self.names = tuple(starts)
        for name, (shape, spread) in starts.items():
            self.register_buffer(name, torch.empty(shape).normal_(0, spread, generator=generator))
            self.register_buffer(f"{name}_moment", torch.zeros(shape))
            self.register_buffer(f"{name}_square", torch.zeros(shape))
        self.register_buffer("updates", torch.zeros(1, dtype=torch.int64))
        frequencies = torch.logspace(0, -4, TIME_SIZE // 2 + 1)[:-1]  # 1 to nearly 1/10,000
        angles = torch.arange(steps)[:, None] * frequencies
        self.register_buffer("times", torch.cat([angles.cos(), angles.sin()], dim=1), persistent=False)

    def forward(self, rows: Tensor, steps: Tensor) -> Tensor:
        """Clean rows (B, N) from noisy ones (B, N) and their steps (B,)."""
        return self.recover(rows @ self.encode, self.told().index_select(0, steps))

    def told(self) -> Tensor:
        """What the hidden layer hears of every step (T, h)."""
        return _small_product(_small_product(self.times, self.time_weight) + self.time_bias, self.from_time) + (
            self.hidden_bias
        )

    def recover(self, seen: Tensor, told: Tensor) -> Tensor:
        """Clean rows (B, N) from what the hidden layer sees of noisy ones (B, h)."""
        return torch.addmm(self.item_bias, (seen + told).tanh(), self.decode.T)

    def generate(self, seen: Tensor, schedule: Schedule) -> Tensor:
        """Rows (B, N) after all steps back, from what the hidden layer sees of rows to begin with (B, h)."""
        told, echo, shift = self.told(), self.decode.T @ self.encode, self.item_bias @ self.encode
        for step in reversed(range(1, len(told))):
            again = torch.addmm(shift, (seen + told[step]).tanh(), echo)  # what the layer sees of its own output
            seen = float(schedule.prediction[step]) * again + float(schedule.state[step]) * seen
        return self.recover(seen, told[0])  # the last step takes the output alone

    def leaves(self) -> dict[str, Tensor]:
        """The weights, to be differentiated."""
        return {name: self.get_buffer(name).detach().requires_grad_() for name in self.names}

    def descend(self, weights: dict[str, Tensor], rate: float) -> None:
        """One step of Adam (0.9, 0.999) from `leaves` that hold their gradients."""
        self.updates += 1
        taken = int(self.updates)
        for name, weight in weights.items():
            gradient = weight.grad
            assert gradient is not None
            moment = self.get_buffer(f"{name}_moment").lerp_(gradient, 0.1)
            square = self.get_buffer(f"{name}_square").mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            length = (square / (1 - 0.999**taken)).sqrt_().add_(1e-8)
            self.get_buffer(name).addcdiv_(moment, length, value=-rate / (1 - 0.9**taken))
