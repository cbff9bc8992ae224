"""Golden vectors of decoders and of the loss on whole trajectories."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from encoder_cases import encoder_config, encoder_slots, make_encoder
from support import (
    FORMULA,
    GRADIENT,
    LOSS,
    UPDATE,
    Golden,
    Slots,
    affine_slots,
    assert_close,
    check_gradients,
    load_parameters,
)
from tensordict import TensorDict
from torch import Tensor, nn
from training_cases import batch_first

from hyperrl import keys
from hyperrl.env_info import EnvInfo
from hyperrl.modules.decoders import LatentDecoder, RewardDecoder, StateDecoder, StepDecoder, TaskDecoder
from hyperrl.modules.elbo import Elbo, ElboTerms, Indices, gaussian_error, kl_divergence
from hyperrl.modules.encoder import TrajectoryEncoder, Transition
from hyperrl.modules.encoder_config import EncoderConfig
from hyperrl.modules.inference_config import EncoderLoss, InferenceConfig

# The reference embeds the action even where its decoder is not given it; ours has no such layer.
UNUSED_ACTION = ("action_encoder.fc.weight", "action_encoder.fc.bias")


# Decoders


def decoder_slots(decoder: StepDecoder | LatentDecoder) -> Slots:
    """The reference's names of a decoder's parameters."""
    if isinstance(decoder, StepDecoder):
        slots = affine_slots("state_encoder.fc", decoder.state)
        if "action" in decoder.inputs:
            slots |= affine_slots("action_encoder.fc", decoder.action)
        modules = [decoder.first, *decoder.rest]
    else:
        slots, modules = {}, [*decoder.hidden, decoder.output]
    *layers, output = (module for module in modules if isinstance(module, nn.Linear))
    for index, layer in enumerate(layers):
        slots |= affine_slots(f"fc_layers.{index}", layer)
    return slots | affine_slots("fc_out", output)


def load_decoder(golden: Golden, prefix: str, decoder: StepDecoder | LatentDecoder) -> Slots:
    """Loads a recorded decoder; returns where its parameters are."""
    slots = decoder_slots(decoder)
    unused = isinstance(decoder, StepDecoder) and "action" not in decoder.inputs
    load_parameters(golden, prefix, slots, decoder, dropped=UNUSED_ACTION if unused else ())
    return slots


def _make_decoder(kind: str, kwargs: Mapping[str, Any]) -> StepDecoder | LatentDecoder:
    """A decoder of the recorded kind and sizes."""
    latent_dim, layers = kwargs["latent_dim"], kwargs["layers"]
    if kind == "task":
        return TaskDecoder(latent_dim, layers, kwargs["num_tasks" if kwargs["pred_type"] == "task_id" else "task_dim"])
    if kwargs.get("multi_head"):
        return LatentDecoder(latent_dim, layers, kwargs["num_states"])
    embedding = EncoderConfig(
        state_embedding_dim=kwargs["state_embed_dim"], action_embedding_dim=kwargs["action_embed_dim"]
    )
    sizes = latent_dim, kwargs["state_dim"], kwargs["action_dim"], embedding, layers
    gaussian = kwargs["pred_type"] == "gaussian"
    if kind == "state":
        return StateDecoder(*sizes, gaussian=gaussian)
    uses = {
        name: kwargs.get(f"input_{name.removeprefix('uses_')}", True) for name in ("uses_action", "uses_prev_state")
    }
    return RewardDecoder(*sizes, **uses, output_dim=2 if gaussian else 1)


def _one_by_one(decoder: StepDecoder | LatentDecoder, latent: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """Predictions `[..., P]` of pairs of one latent and one step, which is how the reference calls a decoder."""
    if isinstance(decoder, LatentDecoder):
        return decoder(latent)
    prev = inputs["prev_state"] if "prev_state" in inputs else inputs["state"]
    following = inputs.get("next_state", torch.zeros_like(prev))
    parts = prev, inputs["action"], torch.zeros_like(prev[..., :1]), following
    steps = Transition(*(part.reshape(-1, 1, part.shape[-1]) for part in parts))
    return decoder(latent.reshape(-1, 1, latent.shape[-1]), steps).reshape(*latent.shape[:-1], -1)


def run_decoder(golden: Golden) -> None:
    """Predictions and gradients of one decoder."""
    decoder = _make_decoder(golden.meta["cls"], golden.meta["kwargs"])
    slots = load_decoder(golden, "param/", decoder)
    inputs = {name: golden[f"in/{name}"].requires_grad_() for name in golden.meta["argument_order"]}
    prediction = _one_by_one(decoder, inputs["latent"], inputs)
    golden.check("out/prediction", prediction)
    (golden["in/cotangent"] * prediction).sum().backward()
    check_gradients(golden, "grad/param/", slots)
    for name, value in inputs.items():
        if f"grad/in/{name}" in golden:
            golden.check_gradient(f"grad/in/{name}", value)
        else:
            assert value.grad is None or not value.grad.any(), f"{name} has a gradient, in the reference it is unused"
    golden.check_all_read({f"param/{name}": "an embedding of what is not given" for name in UNUSED_ACTION})


def run_state_gaussian(golden: Golden) -> None:
    """Log-likelihoods of states, of pairs of one latent and one step."""
    args = golden.args
    embedding = EncoderConfig(
        state_embedding_dim=args["state_embedding_size"], action_embedding_dim=args["action_embedding_size"]
    )
    sizes = args["latent_dim"], args["state_dim"], args["action_dim"], embedding, args["state_decoder_layers"]
    decoder = StateDecoder(*sizes, gaussian=True)
    load_decoder(golden, "state_decoder/", decoder)
    inputs = {"prev_state": golden["prev_obs"], "action": golden["actions"]}
    prediction = _one_by_one(decoder, golden["latent"], inputs)
    golden.check("prediction", prediction)
    golden.check("loss", gaussian_error(prediction, golden["next_obs"]))
    golden.check_all_read({})


# The loss


def run_vae_kl(golden: Golden) -> None:
    """KL divergences and their gradients; drawn rows over all trajectories."""
    prior = "standard" if golden.meta["kl_to_gauss_prior"] else "previous"
    mean, logvar = (golden[f"latent_{name}"].requires_grad_() for name in ("mean", "logvar"))
    kl = batch_first(kl_divergence(batch_first(mean), batch_first(logvar), prior))
    golden.check("kl", kl)
    kl.sum().backward()
    golden.check("grad_mean_of_sum", mean.grad, GRADIENT)
    golden.check("grad_logvar_of_sum", logvar.grad, GRADIENT)
    if "elbo_indices" in golden:
        recorded = golden["kl_indexed_reference"]
        assert_close("kl_indexed_reference", kl[golden["elbo_indices"]], recorded, FORMULA)
        _check_drawn_rows(golden, prior, recorded)
    golden.check_all_read({})


def _check_drawn_rows(golden: Golden, prior: Any, recorded: Tensor) -> None:
    """Compares the sum over drawn rows with the loss, which never gathers them."""
    latents = torch.cat([batch_first(golden[f"latent_{name}"]) for name in ("mean", "logvar")], -1)
    batch, rows, width = latents.shape
    config = InferenceConfig(encoder_loss="rl_and_kl", kl_prior=prior)
    elbo = Elbo(EnvInfo(1, 1, None, rows - 1), EncoderConfig(latent_dim=width // 2), config)
    trajectories = trajectories_of(*(torch.zeros(batch, rows - 1, 1) for _ in range(4)))
    indices = Indices(golden["elbo_indices"].view(-1, batch).T)
    terms = elbo(latents, trajectories, noise=torch.zeros(batch, rows, width // 2), indices=indices)
    assert_close("sum of kl_indexed_reference", terms.kl, recorded.sum(), FORMULA)


def trajectories_of(prev_observation: Tensor, action: Tensor, reward: Tensor, observation: Tensor) -> TensorDict:
    """Trajectories `[n, T, ...]`, all of full length."""
    steps = {
        keys.PREV_OBSERVATION: prev_observation,
        keys.PREV_ACTION: action,
        keys.PREV_REWARD: reward,
        keys.OBSERVATION: observation,
    }
    batch, length = reward.shape[:2]
    return TensorDict({**steps, keys.LENGTH: torch.full((batch,), length)}, batch_size=[batch])


def inference_config(args: Mapping[str, Any], encoder_loss: EncoderLoss = "inference") -> InferenceConfig:
    """The configuration that the reference's arguments describe, for an encoder with this loss."""
    task = {"task_id": "id", "task_description": "description"}[args["task_pred_type"]]
    if args["ti_coeff"] is not None:
        task = "embedding"
    # The loop over latents averages over trajectories, and knows nothing else.
    loop = args["split_batches_by_elbo"] or args["decode_only_past"]
    return InferenceConfig(
        encoder_loss=encoder_loss,
        stochastic=not args["disable_stochasticity_in_latent"],
        kl_coeff=args["kl_weight"],
        kl_prior="standard" if args["kl_to_gauss_prior"] else "previous",
        reward=args["rew_pred_type"] if args["decode_reward"] else "none",
        reward_per_state=args["multihead_for_reward"],
        reward_uses_action=args["input_action"],
        reward_uses_prev_state=args["input_prev_state"],
        reward_layers=args["reward_decoder_layers"],
        reward_coeff=args["rew_loss_coeff"],
        state=args["state_pred_type"] if args["decode_state"] else "none",
        state_layers=args["state_decoder_layers"],
        state_coeff=args["state_loss_coeff"],
        task=task if args["decode_task"] else "none",
        task_layers=args["task_decoder_layers"],
        task_coeff=args["task_loss_coeff"] if args["ti_coeff"] is None else args["ti_coeff"],
        task_stop_gradient=args["ti_target_stop_grad"],
        subsample_elbos=None if loop else args["vae_subsample_elbos"],
        subsample_decodes=None if loop else args["vae_subsample_decodes"],
        resample_decodes=args["vae_resample_decodes"] and not loop,
        only_past=args["decode_only_past"],
        average_elbos=args["vae_avg_elbo_terms"] and not loop,
        average_decodes=args["vae_avg_reconstruction_terms"] and not loop,
        reduction="mean" if loop else "published",
        bptt_steps=args["tbptt_stepsize"],
    )


def _info(golden: Golden) -> EnvInfo:
    args, horizon = golden.args, golden.meta["trajectory_length_buffer"]
    states = args["num_states"] or 0
    # On the grid, a task is the cell of the goal, which has a number as a state has.
    return EnvInfo(args["state_dim"], args["action_dim"], None, horizon, args["task_dim"], states, states)


def cells(position: Tensor) -> Tensor:
    """Numbers of the cells of the 5x5 grid at positions `[..., 2]`, or at observations that begin with them."""
    return (5 * position[..., 0] + position[..., 1]).long()


def _recorded_trajectories(golden: Golden) -> TensorDict:
    """The recorded trajectories with ids, all as if as long as the longest.

    The reference accepts different lengths only where it draws, and then draws behind the end of shorter ones (quirk
    Q8); the draws are given, so nothing may be left out.
    """
    longest = int(golden["trajectory_lens"].max())
    steps = [batch_first(golden[name])[:, :longest] for name in ("prev_obs", "actions", "rewards", "next_obs")]
    trajectories = trajectories_of(*steps)
    trajectories[keys.TASK] = golden["tasks"]
    if golden.args["num_states"]:
        trajectories[keys.TASK_ID], trajectories[keys.STATE_ID] = cells(golden["tasks"]), cells(steps[-1])
    return trajectories


def _recorded_indices(golden: Golden, batch: int, rows: int) -> Indices:
    """What the reference decoded of so many rows of latents; its slots run over trajectories fastest."""
    latents, steps = golden.find("elbo_indices"), golden.find("decode_indices")
    latents = None if latents is None else latents.view(-1, batch).T
    if steps is not None:
        steps = steps.view(rows if latents is None else latents.shape[1], -1, batch).permute(2, 0, 1)
    return Indices(latents, steps)


def decoders(elbo: Elbo) -> dict[str, StepDecoder | LatentDecoder]:
    """The decoders there are, by the reference's names."""
    found = {"reward": elbo.reward, "state": elbo.state, "task": elbo.task}
    return {f"{name}_decoder": decoder for name, decoder in found.items() if decoder is not None}


def _task_target(golden: Golden) -> Tensor | None:
    """The recorded embedding of the task, which is not ours to compute here."""
    weight, bias = golden.find("task_embedding_weight"), golden.find("task_embedding_bias")
    if weight is None or bias is None:
        return None
    golden.check("task_embedding", (golden["tasks"] @ weight + bias).tanh())
    return golden["task_embedding"]


def _check_terms(golden: Golden, terms: ElboTerms) -> None:
    names = {"total": "loss", "reward": "rew_loss", "state": "state_loss", "task": "task_loss", "kl": "kl_loss"}
    for ours, theirs in names.items():
        golden.check(theirs, getattr(terms, ours), LOSS)


def _encode(golden: Golden, encoder: TrajectoryEncoder, bptt_steps: int | None) -> Tensor:
    """Latents of the whole recorded buffer, its padding included."""
    buffer = (batch_first(golden[name]) for name in ("prev_obs", "actions", "rewards", "next_obs"))
    latents = encoder.encode_trajectories(trajectories_of(*buffer), bptt_steps)
    for name, part in zip(("mean", "logvar"), latents.chunk(2, -1), strict=True):
        golden.check(f"latent_{name}", batch_first(part), LOSS)
    return latents


def run_elbo(golden: Golden) -> None:
    """Latents, the loss and its parts, all gradients, and a step of Adam."""
    encoder, config = make_encoder(golden.args), inference_config(golden.args)
    target = _task_target(golden)
    elbo = Elbo(_info(golden), encoder_config(golden.args), config, 0 if target is None else target.shape[-1])
    slots = {"encoder": encoder_slots(encoder)}
    load_parameters(golden, "encoder/", slots["encoder"], encoder)
    for name, decoder in decoders(elbo).items():
        slots[name] = load_decoder(golden, f"{name}/", decoder)

    latents = _encode(golden, encoder, config.bptt_steps)
    trajectories = _recorded_trajectories(golden)
    latents = latents[:, : trajectories[keys.PREV_REWARD].shape[1] + 1]
    noise, indices = golden.find("eps"), _recorded_indices(golden, *latents.shape[:2])
    noise = None if noise is None else batch_first(noise)
    terms = elbo(latents, trajectories, noise=noise, indices=indices, target=target)
    _check_terms(golden, terms)

    adam = torch.optim.Adam([*encoder.parameters(), *elbo.parameters()], lr=golden.args["lr_vae"])
    terms.total.backward()
    for name, own in slots.items():
        check_gradients(golden, f"grad_{name}/", own)
    adam.step()
    golden.check("after_encoder_agg_encoder_weight_hh_l0", slots["encoder"]["agg.encoder.weight_hh_l0"].value, UPDATE)
    golden.check_all_read({f"*/{name}": "an embedding of what is not given" for name in UNUSED_ACTION})
