"""Adam by torch's own update, without `torch.optim`'s classes: the first of those imports torch's compiler, which takes
over a second in every process that trains and serves nothing here.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.optim.adam import adam

BETAS = 0.9, 0.999
EPSILON = 1e-8


class Adam:
    """Adam (Kingma & Ba 2015, Algorithm 1). A parameter takes part in the steps that give it a gradient.

    Parameters
    ----------
    fused
        Update all of a parameter in one pass; otherwise one operation of torch after the other. Both round differently.
    """

    def __init__(self, parameters: Iterable[Tensor], fused: bool) -> None:
        self._parameters = list(parameters)
        self._fused = fused or None  # None: whatever torch takes by default
        self._means = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._steps = [torch.zeros((), device=parameter.device if fused else "cpu") for parameter in self._parameters]

    def zero_grad(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        given = [place for place, parameter in enumerate(self._parameters) if parameter.grad is not None]
        parameters, means, squares, steps = (
            [values[place] for place in given] for values in (self._parameters, self._means, self._squares, self._steps)
        )
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        adam(
            parameters,
            gradients,
            means,
            squares,
            [],
            steps,
            fused=self._fused,
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=learning_rate,
            weight_decay=0.0,
            eps=EPSILON,
            maximize=False,
        )

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step reads beside parameters and gradients, by name."""
        state: dict[str, Tensor] = {}
        for place, (mean, square, step) in enumerate(zip(self._means, self._squares, self._steps, strict=True)):
            state |= {f"{place}.exp_avg": mean, f"{place}.exp_avg_sq": square, f"{place}.step": step}
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave, on whatever device."""
        for name, value in self.state().items():
            value.copy_(state[name])
