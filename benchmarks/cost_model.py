"""What a model costs, without measuring: operations, bytes, sequential steps and memory of one rollout and its update.

Everything is counted for one *rollout*: T acting steps of B environments, one pass over it for the values, and E epochs
of M minibatches. What is counted on is read off the built model (`model_sizes.py`), so that it cannot drift from the
code; `tests/test_cost_model.py` holds the operations to torch's own counter, to the last product.

The floor is a roofline: in each phase what is slowest of arithmetic, memory traffic and launches, and the sum of all
phases, since none can begin before the one in front of it. docs/scaling.md explains it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from model_sizes import Kernels, Layer, Sizes

from hyperrl.modules.policy import MANY_ROWS
from hyperrl.modules.ppo import PPOConfig

FP32 = 4
GAE = PPOConfig().gamma * PPOConfig().gae_lambda
# Passes over all parameters in fp32 per optimiser step: the gradient is written; read for its norm; scaled (read,
# written); Adam reads parameter, gradient and both moments, and writes all but the gradient.
OPTIMISER_PASSES = 11
# Launches of cuDNN's GRU per step and direction: a product and a fused kernel. An assumption; own code is counted.
CUDNN_KERNELS = 2


@dataclass(frozen=True)
class Setting:
    """How a model is trained.

    Attributes:
        num_envs: environments B of one process.
        steps: steps T of a rollout.
        epochs: passes over a rollout.
        minibatches: minibatches per pass.
        low_bytes: bytes of a number in the policy's layers: 4, or 2 in bf16-mixed.
        resets: steps of a rollout before which all tasks begin anew.
        distinct: distinct observations of a minibatch, where the first layers share their products (see
            `hyperrl.modules.hypernet.RepeatedInput`); None where they do not.
        values_distinct: the same of a whole rollout.
        acting_distinct: the same of an acting step, on average.
        cut: states after truncated tasks, whose values are taken apart.
        own_gru: whether our own kernel runs the GRU, as on the CPU.
    """

    num_envs: int
    steps: int
    epochs: int = 2
    minibatches: int = 4
    low_bytes: int = 4
    resets: float = 1
    distinct: float | None = None
    values_distinct: float | None = None
    acting_distinct: float | None = None
    cut: int = 0
    own_gru: bool = True

    @property
    def frames(self) -> int:
        """Steps of all environments in a rollout."""
        return self.num_envs * self.steps

    @property
    def updates(self) -> int:
        """Optimiser steps per rollout."""
        return self.epochs * self.minibatches

    @property
    def rows(self) -> int:
        """Environments in a minibatch."""
        return self.num_envs // self.minibatches


class Work(NamedTuple):
    """Operations of products, 2 per multiplication: of encoder, heads and advantages, in fp32; of all other layers."""

    encoder: float
    heads: float
    policy: float

    @property
    def total(self) -> float:
        """All of them."""
        return sum(self)

    def plus(self, *others: Work) -> Work:
        """The sum."""
        return Work(*map(sum, zip(self, *others, strict=True)))

    def times(self, number: float) -> Work:
        """That often."""
        return Work(*(number * part for part in self))


# Operations


def acting_work(sizes: Sizes, setting: Setting) -> Work:
    """Of T steps of all environments."""
    each = _encoder_products(sizes) * setting.num_envs
    prior = setting.resets * (sizes.gru_input + sizes.recurrent + sizes.encoder_rest)
    distinct = setting.acting_distinct if _shares(setting, setting.num_envs) else None
    heads, policy, inputs = _policy_products(sizes, (sizes.actor,), setting.num_envs, distinct)
    steps = setting.steps
    return Work(2 * (steps * each + prior), 2 * steps * heads, 2 * steps * (policy + inputs))


def values_work(sizes: Sizes, setting: Setting) -> Work:
    """Of the values of a rollout."""
    rows = setting.num_envs * (setting.steps + 1)
    prior = sizes.gru_input + sizes.recurrent + sizes.encoder_rest
    distinct = setting.values_distinct if _shares(setting, setting.frames) else None
    heads, policy, inputs = _policy_products(sizes, (sizes.critic,), setting.frames, distinct)
    cut_heads, *cut = _policy_products(sizes, (sizes.critic,), setting.cut, None)
    # Advantages are a convolution over pieces of tasks, as long as its filter has entries above 1e-7.
    advantages = setting.frames * min(setting.steps / max(setting.resets, 1), int(math.log(1e-7) / math.log(GAE)))
    encoder = rows * _encoder_products(sizes) + prior
    return Work(2 * encoder, 2 * (heads + cut_heads + advantages), 2 * (policy + inputs + sum(cut)))


def minibatch_work(sizes: Sizes, setting: Setting) -> Work:
    """Of one minibatch, forward and backward: a product has two gradients, or one where its input needs none."""
    rows, steps = setting.rows, setting.rows * (setting.steps + 1)
    behind = steps * (sizes.gru_input + sizes.recurrent + sizes.encoder_rest)
    # Of the library's GRU, the states that every piece between two resets starts from need no gradient.
    first = 0 if setting.own_gru else rows * (1 + setting.resets) * sizes.recurrent
    prior = 2 * (sizes.gru_input + sizes.recurrent) + 3 * sizes.encoder_rest
    encoder = 2 * steps * sizes.features + 3 * behind - first + prior
    heads, policy, inputs = _policy_products(sizes, (sizes.actor, sizes.critic), rows * setting.steps, setting.distinct)
    return Work(2 * encoder, 2 * 3 * heads, 2 * (3 * policy + 2 * inputs))


def rollout_work(sizes: Sizes, setting: Setting) -> Work:
    """Of a rollout and all that is learnt from it."""
    updates = minibatch_work(sizes, setting).times(setting.updates)
    return acting_work(sizes, setting).plus(values_work(sizes, setting), updates)


def _shares(setting: Setting, rows: int) -> bool:
    """Whether rows without gradients share products, where distinct observations are few."""
    return setting.low_bytes == FP32 or rows >= MANY_ROWS


def _encoder_products(sizes: Sizes) -> int:
    """Multiplications per transition."""
    return sizes.features + sizes.gru_input + sizes.recurrent + sizes.encoder_rest


def _policy_products(
    sizes: Sizes, networks: Sequence[tuple[Layer, ...]], rows: int, distinct: float | None
) -> tuple[float, float, float]:
    """Multiplications of a forward pass: of the heads, of all else, and of what is next to the observations."""
    heads = rows * sum(network[-1].products for network in networks)
    policy: float = rows * sizes.latent
    for network in networks:
        for index, layer in enumerate(network[:-1]):
            if index == 0 and layer.expands and distinct is not None:
                policy += layer.terms * layer.outs * distinct * (layer.ins + rows) + rows * layer.condition * layer.outs
            else:
                policy += rows * layer.products
    return heads, policy, (rows if distinct is None else distinct) * sizes.state


# Memory


def kept_bytes(sizes: Sizes, setting: Setting) -> float:
    """What autograd keeps of a minibatch for its backward pass: activations, and what the policy's weights became."""
    policy, once = _kept_by_policy(sizes, setting)
    states = 6 if setting.own_gru else 8  # hidden states, gates and what else their derivatives need
    encoder = FP32 * (2 * sizes.feature_dim + states * sizes.hidden_dim + 2 * sizes.pooled)
    return setting.rows * (setting.steps * policy + (setting.steps + 1) * encoder) + once


def _kept_by_policy(sizes: Sizes, setting: Setting) -> tuple[float, float]:
    """Bytes per step, and bytes per minibatch. Actor and critic share the expansion of their input."""
    first, distinct, low = sizes.actor[0], setting.distinct, setting.low_bytes
    expansion = first.terms * first.ins if first.expands else 0
    numbers: float = sizes.latent_dim + first.terms + sizes.state_dim - expansion
    heads = 0
    for network in (sizes.actor, sizes.critic):
        numbers += sum(layer.kept for layer in network[:-1])
        # The head leaves autocast: its input is copied, and with it what generates it.
        heads += network[-1].kept + (network[-1].ins + network[-1].terms if low < FP32 else 0)
    casts = float(sizes.policy_parameters) if low < FP32 else 0.0
    if expansion and distinct is not None:
        numbers += (first.terms + 1) * distinct - expansion  # instead of the expansion of the input itself
        casts += 2 * first.terms * first.outs * distinct
    return low * numbers + FP32 * heads, low * casts


def memory_bytes(sizes: Sizes, setting: Setting) -> float:
    """Peak memory besides what the process itself takes.

    Parameters are always there, the rest in turn: a rollout with the larger of update and pass for the values, or a
    checkpoint on its way to the disk. No products are shared, for in the first update they are not.
    """
    own = replace(setting, distinct=None)
    first, low = sizes.critic[0], setting.low_bytes
    widest = first.terms * (first.ins if first.expands else first.outs)
    # Gradients of the widest tensor come from actor and critic before they are added.
    update = kept_bytes(sizes, own) + 2 * low * widest * setting.rows * setting.steps
    inner = [0 if layer.expands else layer.terms * layer.outs for layer in sizes.critic[1:-1]]
    values = low * (widest + max(inner, default=0)) * setting.frames
    rollout = 2 * sizes.frame_bytes * setting.frames  # as steps, and stacked
    model, checkpoint = 4 * FP32 * sizes.parameters, 3 * FP32 * sizes.parameters  # without the gradients
    return model + max(rollout + max(update, values), checkpoint)


# The floor


class Machine(NamedTuple):
    """What one process computes with; rates in operations and bytes per second.

    Attributes:
        name: what it is.
        fp32: rate of products in fp32.
        low: rate of products in the policy's precision.
        bandwidth: rate of memory.
        latency: seconds that an operation takes at least.
        cudnn: whether cuDNN runs the GRU.
        processes: how many of it train together.
        link: rate at which one of them sends gradients.
        host_steps: steps per second of physics on its host; None where environments run with the model.
    """

    name: str
    fp32: float
    low: float
    bandwidth: float
    latency: float
    cudnn: bool = False
    processes: int = 1
    link: float = math.inf
    host_steps: float | None = None


class Term(NamedTuple):
    """What a phase is bound by, and the seconds that this takes per rollout."""

    phase: str
    resource: str
    seconds: float


def floor(sizes: Sizes, kernels: Kernels, setting: Setting, machine: Machine) -> list[Term]:
    """The phases of a rollout and its update, each as long as what is slowest in it."""
    updates, size = setting.updates, setting.rows * setting.steps
    step = (CUDNN_KERNELS, 2 * CUDNN_KERNELS) if machine.cudnn else (kernels.values_step, kernels.minibatch_step)
    weights = _weight_bytes(sizes, setting)
    phases = {
        "acting": (
            acting_work(sizes, setting),
            setting.steps * weights + setting.frames * sizes.frame_bytes,
            setting.steps * kernels.acting,
        ),
        "values": (
            values_work(sizes, setting),
            weights + setting.frames * sizes.frame_bytes,
            kernels.values + (setting.steps + 1) * step[0],
        ),
        "update": (
            minibatch_work(sizes, setting).times(updates),
            # What is kept is written and read; weights are read both ways.
            updates * (2 * kept_bytes(sizes, setting) + 4 * weights + size * sizes.frame_bytes),
            updates * (kernels.minibatch + (setting.steps + 1) * step[1]),
        ),
        "optimiser": (Work(0, 0, 0), updates * OPTIMISER_PASSES * FP32 * sizes.parameters, updates),
    }
    return [_slowest(name, *costs, machine) for name, costs in phases.items()]


def _slowest(phase: str, work: Work, moved: float, launched: float, machine: Machine) -> Term:
    seconds = {
        "arithmetic": (work.encoder + work.heads) / machine.fp32 + work.policy / machine.low,
        "memory": moved / machine.bandwidth,
        "launches": launched * machine.latency,
    }
    resource = max(seconds, key=seconds.__getitem__)
    return Term(phase, resource, seconds[resource])


def _weight_bytes(sizes: Sizes, setting: Setting) -> float:
    """Bytes of the weights of encoder and actor: each is in one multiplication per sample."""
    heads, policy, inputs = _policy_products(sizes, (sizes.actor,), 1, None)
    return FP32 * (_encoder_products(sizes) + heads) + setting.low_bytes * (policy + inputs)


def frames_per_second(terms: Sequence[Term], setting: Setting, processes: int = 1) -> float:
    """Of all processes together."""
    return processes * setting.frames / sum(term.seconds for term in terms)


class Efficiency(NamedTuple):
    """Measured speed over the floor: where products are large, and where steps are many and small."""

    large: float = 1.0
    small: float = 1.0


def predict(sizes: Sizes, kernels: Kernels, setting: Setting, machine: Machine, efficiency: Efficiency) -> list[Term]:
    """What a machine would need: its floor at the efficiency of another one, physics of the host, sums of gradients."""
    terms = floor(sizes, kernels, setting, machine)
    shares = [efficiency.small if term.resource == "launches" else efficiency.large for term in terms]
    terms = [term._replace(seconds=term.seconds / share) for term, share in zip(terms, shares, strict=True)]
    if machine.host_steps is not None:
        terms.append(Term("environments", "physics", setting.frames / machine.host_steps))
    if machine.processes > 1:
        others = 2 * (machine.processes - 1) / machine.processes
        sent = FP32 * sizes.parameters * others / machine.link
        terms.append(Term("all-reduce", "link", setting.updates * (sent + machine.latency)))
    return terms


def binding(terms: Sequence[Term]) -> Term:
    """What takes longest."""
    return max(terms, key=lambda term: term.seconds)
