"""How the loss falls with parameters and tokens: L(N, D) = E + A / N^alpha + B / D^beta.

The form is approach 3 of Hoffmann et al. 2022. Compute is taken as C = 6 N D, as there.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Law:
    """A fitted law, in nats per token. E is what no model and no data get below."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta

    def optimum(self, compute: float) -> tuple[float, float]:
        """Parameters and tokens of the least loss for so many FLOPs (Hoffmann et al., eq. 4)."""
        both = self.alpha + self.beta
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / both)
        parameters = ratio * (compute / 6) ** (self.beta / both)
        return parameters, compute / 6 / parameters

    def least_compute(self, loss: float) -> float:
        """FLOPs of the cheapest run that reaches `loss`, which must be above E."""
        # Along the optima the part of the loss above E is a power of the compute.
        exponent = self.alpha * self.beta / (self.alpha + self.beta)
        above = self.loss(*self.optimum(6.0)) - self.E
        return 6.0 * (above / (loss - self.E)) ** (1 / exponent)


CHINCHILLA = Law(E=1.8172, A=482.01, alpha=0.3478, B=2085.43, beta=0.3658)
"""The law of Hoffmann et al. 2022 as fitted again to their data by Besiroglu et al. 2024
("Chinchilla Scaling: A replication attempt"), whose optima agree with 20 tokens a parameter as the
constants first published do not. Fitted on MassiveText with 32,000 tokens: on other text or with
another tokenizer only differences between its losses mean something."""
