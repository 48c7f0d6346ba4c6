"""Trains the linear weights w of LPIPS on judgements of triplets, two-alternative forced choice (2AFC).

Let a be the normalised features of a reference, b the normalised features of one of two images, l a layer, c a channel
and p a pixel:

    D = sum_l mean_p sum_c w_lc m_lcp (a_lcp - b_lcp)^2       m: dropout, 0 or 2 with equal chance
    h = Dist2LogitLayer(D0, D1)                               the probability that people find image 1 nearer
    loss = -mean(judge log h + (1 - judge) log(1 - h))

Adam minimises the loss over w >= 0 and the weights of the small network. (Zhang et al., CVPR 2018, arXiv:1801.03924,
section 3, and the training script of its repository.) The trunk is frozen, so only the last sum of D has a graph. Its
gradient to w_lc is a mean of squared differences, with dropout or without.

The order of the triplets and the dropout depend only on the seed and the number of the step. So a run that goes on from
a checkpoint is the same as one that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lpips_fast.calibration.ranking import BCERankingLoss
from lpips_fast.functional import lpips_head
from lpips_fast.head.operators import Norm
from lpips_fast.head.reference import normalize_channels
from lpips_fast.lpips import LPIPS
from lpips_fast.weights.files import check_values, checked_state_dict, fingerprint
from lpips_fast.weights.published import linear_state_dict, linear_weights


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are the authors'.

    Attributes:
        batch_size: triplets in a step of all processes together.
        epochs: epochs at the full learning rate.
        decay_epochs: the epochs after these, over which the learning rate falls linearly; the first still has the full
            rate.
        learning_rate: the learning rate of Adam, whose betas are 0.5 and 0.999.
        dropout: whether half of the squared differences are dropped.
        seed: the seed of the order of the triplets and of the dropout.
    """

    batch_size: int = 50
    epochs: int = 5
    decay_epochs: int = 5
    learning_rate: float = 1e-4
    dropout: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("epochs", 0), ("decay_epochs", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, from 0."""
        late = max(0, epoch - self.epochs)
        return self.learning_rate * (1 - late / self.decay_epochs) if late else self.learning_rate


class Step(NamedTuple):
    """What a step of the training did."""

    number: int  # from 1
    rate: float
    loss: Tensor
    agreement: Tensor  # the 2AFC score of the batch, without ties


class Calibration:
    """The training of an LPIPS's weights, a step at a time.

    If torch.distributed is initialised, each process takes its share of every batch, and gradients are averaged
    (DistributedDataParallel).

    Args:
        fn: an LPIPS with eval_mode=False, and with pnet_tune=True to train the trunk, too.
        recipe: how to train.
        triplets: the number of triplets in an epoch.

    Raises:
        ValueError: fn has nothing to train, or its trunk is to be trained in float16; or there are fewer triplets in a
            step than processes.
    """

    def __init__(self, fn: LPIPS, recipe: Recipe, triplets: int) -> None:
        if fn.eval_mode or not fn.lpips:
            raise ValueError("fn has nothing to train: make it with eval_mode=False and lpips=True")
        if fn.pnet_tune and fn.net.precision == "float16":
            raise ValueError("the gradients of a trunk underflow in float16: tune it with precision 'bfloat16'")
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if min(triplets, recipe.batch_size) < self.world:
            raise ValueError(
                f"{self.world} processes need as many triplets a step: there are {triplets}, {recipe.batch_size} a step"
            )
        self.fn = fn
        self.recipe = recipe
        self.triplets = triplets
        self.done = 0
        device = fn.scaling_layer.shift.device
        self._model = _Ranker(fn, recipe.dropout).to(device)
        self._parallel: nn.Module = self._model
        if self.world > 1:
            self._parallel = DistributedDataParallel(self._model, broadcast_buffers=False)  # buffers are constants
        self._generator = torch.Generator(device)
        trained = [p for p in self._model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.Adam(trained, lr=recipe.learning_rate, betas=(0.5, 0.999))

    @property
    def steps_an_epoch(self) -> int:
        # The last batch is left out if it has fewer triplets than there are processes.
        whole, rest = divmod(self.triplets, self.recipe.batch_size)
        return whole + (rest >= self.world)

    @property
    def steps(self) -> int:
        """The number of steps of the whole training."""
        return self.steps_an_epoch * (self.recipe.epochs + self.recipe.decay_epochs)

    def batches(self) -> Iterator[list[int]]:
        """For each remaining step, the numbers of the triplets that this process takes."""
        current, first = divmod(self.done, self.steps_an_epoch)
        for epoch in range(current, self.recipe.epochs + self.recipe.decay_epochs):
            order = np.random.default_rng((self.recipe.seed, epoch)).permutation(self.triplets)
            for at in range(first, self.steps_an_epoch):
                yield order[self._range(at)][self.rank :: self.world].tolist()
            first = 0

    def _range(self, at: int) -> slice:
        """The part of an epoch's order that its step `at` takes."""
        start = at * self.recipe.batch_size
        return slice(start, min(start + self.recipe.batch_size, self.triplets))

    def step(self, inputs: Tensor | Sequence[Tensor], judge: Tensor) -> Step:
        """Takes one step.

        Args:
            inputs: the N references, the N images 0 and the N images 1 as one batch, [3N, 3, H, W] in [-1, 1]; or, with
                a frozen trunk, the taps of `LPIPS.features` for this batch.
            judge: the shares of people who found image 1 nearer, [N, 1, 1, 1], in [0, 1].
        """
        epoch, at = divmod(self.done, self.steps_an_epoch)
        rate = self.recipe.rate(epoch)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        seed = np.random.SeedSequence((self.recipe.seed, self.done, self.rank)).generate_state(1, np.uint64)
        self._generator.manual_seed(int(seed[0]))
        loss, agreement = self._parallel(inputs, judge, self._generator)
        if self.world > 1:  # gradients are averaged over processes, though their numbers of triplets may differ by one
            whole = self._range(at)
            loss, agreement = (x * (len(judge) * self.world / (whole.stop - whole.start)) for x in (loss, agreement))
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        with torch.no_grad():
            for weight in _linear_weights(self.fn):
                weight.clamp_(min=0)
        self.done += 1
        return Step(self.done, rate, self._mean(loss.detach()), self._mean(agreement))

    def _mean(self, value: Tensor) -> Tensor:
        """The mean over processes."""
        if self.world > 1:
            dist.all_reduce(value)
            value /= self.world
        return value

    def weights(self) -> dict[str, Tensor]:
        """The weights by the names of lpips: the linear weights; the whole model if its trunk is random or trained."""
        if self.fn.pnet_tune or self.fn.pnet_rand:
            return self.fn.state_dict()
        return linear_state_dict(_linear_weights(self.fn))

    def state_dict(self) -> dict[str, Any]:
        """The state that a run needs to go on, without the weights of a frozen trunk."""
        return {
            "about": self._about(),
            "done": self.done,
            "weights": self.weights(),
            "ranking": self._model.ranking.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was called.

        Raises:
            ValueError: the state is of a run with another net, other weights of the trunk or another recipe; or a part
                of it is missing or damaged.
        """
        own = self.state_dict()
        for key in own:
            kind = int if key == "done" else Mapping
            if not isinstance(state.get(key), kind):
                raise ValueError(f"a damaged run: {key!r} must be a {kind.__name__}, got {state.get(key)!r:.99}")
        about, before = own["about"], state["about"]
        differing = [key for key in about if isinstance(before.get(key), Tensor) or before.get(key) != about[key]]
        if differing:
            told = ", ".join(f"{key} was {before.get(key)!r:.99}, is {about[key]!r}" for key in differing)
            raise ValueError(f"a run with other settings: {told}")
        try:
            self._take(state)
        except Exception as error:  # the content of damaged parts raises nearly anything
            raise ValueError(f"a damaged run: {error}") from error

    def _take(self, state: Mapping[str, Any]) -> None:
        done, learnt = state["done"], _tensors("weights", state["weights"])
        if not 0 <= done <= self.steps:
            raise ValueError(f"'done' must be from 0 to {self.steps} steps, got {done}")
        if self.fn.pnet_tune or self.fn.pnet_rand:
            self.fn.load_state_dict(learnt)
        else:
            self.fn.set_linear_weights(linear_weights(learnt, self.fn.chns, "'weights'"))
        self._model.ranking.load_state_dict(_tensors("ranking", state["ranking"]))
        moments = state["optimizer"].get("state")
        trained = self._optimizer.param_groups[0]["params"] if done else []
        if not isinstance(moments, Mapping) or {*moments} != {*range(len(trained))}:
            raise ValueError(f"'optimizer' must have the state of {len(trained)} parameters")
        for i, parameter in enumerate(trained):
            shapes = {name: tensor.shape for name, tensor in _tensors("optimizer", moments[i]).items()}
            if shapes != {"step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}:
                raise ValueError(f"'optimizer' has what is not Adam's for parameter {i}: {shapes}")
        # Everything else in the optimizer's state follows from the recipe.
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": moments})
        self.done = done

    def _about(self) -> dict[str, Any]:
        """The settings that a checkpoint must share with the run that goes on from it."""
        fn = self.fn
        return {
            "net": fn.net.spec.model,
            "version": fn.version,
            "precision": fn.net.precision,
            "tune_trunk": fn.pnet_tune,
            "from_scratch": fn.pnet_rand,
            "trunk": None if fn.pnet_tune or fn.pnet_rand else fingerprint(fn.net.parameters()),
            "triplets": self.triplets,
            **asdict(self.recipe),
        }


class _Ranker(nn.Module):
    """The loss of a batch, and the share of people with whom its distances agree."""

    masks: Tensor

    def __init__(self, fn: LPIPS, dropout: bool) -> None:
        super().__init__()
        self.fn = fn
        self.ranking = BCERankingLoss()
        self.dropout = dropout
        # The bits of each byte as factors 0 and 2: a random byte gives eight values of dropout.
        bits = (torch.arange(256)[:, None] >> torch.arange(8)) & 1
        self.register_buffer("masks", 2.0 * bits, persistent=False)

    def forward(
        self, inputs: Tensor | Sequence[Tensor], judge: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        taps = self.fn.features(inputs).taps if isinstance(inputs, Tensor) else inputs
        d0, d1 = self._with_dropout(taps, generator) if self.dropout else self._without(taps)
        loss = self.ranking(d0.view(-1, 1, 1, 1), d1.view(-1, 1, 1, 1), 2 * judge - 1)
        with torch.no_grad():
            agreement = torch.where(d1 < d0, judge.flatten(), 1 - judge.flatten()).mean()
        return loss, agreement

    def _without(self, taps: Sequence[Tensor]) -> list[Tensor]:
        ref, *others = zip(*(tap.tensor_split(3) for tap in taps))
        weights = _linear_weights(self.fn)
        return [lpips_head(ref, other, weights, backend=self.fn.backend).sum(dim=1) for other in others]

    def _with_dropout(self, taps: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
        totals: list[Tensor | float] = [0.0, 0.0]
        for tap, weight in zip(taps, _linear_weights(self.fn), strict=True):
            pixels = normalize_channels(tap, Norm()).permute(0, 2, 3, 1).flatten(1, 2)
            ref, *others = pixels.tensor_split(3)
            for k, other in enumerate(others):
                squares = (ref - other).square()
                means = (squares * self._mask(squares, generator)).mean(dim=1)
                totals[k] = totals[k] + means @ weight.flatten()
        return cast("list[Tensor]", totals)

    def _mask(self, like: Tensor, generator: torch.Generator) -> Tensor:
        n = like.numel()
        numbers = torch.randint(256, (-(-n // 8),), dtype=torch.int32, device=like.device, generator=generator)
        return self.masks.index_select(0, numbers).flatten()[:n].view(like.shape)


def _tensors(name: str, content: object) -> dict[str, Tensor]:
    """A part of a state, checked to be dense, finite tensors by name."""
    state = checked_state_dict(content, repr(name))
    check_values(repr(name), state)
    return state


def _linear_weights(fn: LPIPS) -> list[Tensor]:
    weights = fn.linear_weights()
    assert weights is not None
    return weights
