"""What must hold for a run to be private: a method is fit, and nothing leaks beside its mechanism.

Everything that would break an assumption of the guarantee is refused here, before anything starts,
with the way out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from types import FunctionType

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from core.config import PrivacyConfig, RunConfig
from core.errors import ConfigError, Problem
from core.parameters import trainable_names
from core.seeds import torch_generator
from core.workload import Workload
from distill.matching import MatchingConfig
from models.registry import refuse_batch_norm
from strategies.base import Strategy
from strategies.mosaic import MosaicConfig, image_workload
from strategies.scaffold import ScaffoldOptions

_FIT = {
    "dp-sgd": "methods whose clients do nothing but steps of gradient training",
    "gradient": "feddm",
    "feature": "feddm",
    "client": "methods whose server does nothing with clients' updates but add them up",
}
_FITS_HALF = {"dp-sgd": "gradient-steps", "gradient": "matching", "feature": "matching"}


def fits(kind: type[Strategy], mechanism: str) -> bool:
    """Whether what a method sends can be made private by `mechanism`."""
    client_half = _said(kind, "client_half", lambda name: name not in _SERVER_METHODS)
    if mechanism == "client":
        server_half = _said(kind, "server_half", lambda name: name in _FOLD)
        adds_updates = server_half == "sum" and client_half == "gradient-steps"
        return adds_updates and not kind.public_metrics
    return client_half == _FITS_HALF[mechanism]


_SERVER_METHODS = frozenset(
    {
        "problems",
        "check_model",
        "begin",
        "add",
        "finish",
        "initial_slots",
        "broadcast",
        "broadcast_spec",
        "check_reply",
    }
)
"""What a subclass may write anew without changing what its clients send."""

_FOLD = frozenset({"begin", "add", "finish", "weight_of"})
"""What the next state is made by."""


def _said(kind: type[Strategy], half: str, belongs: Callable[[str], bool]) -> str:
    """What a class says of one of its halves, if it says so of the code that it runs.

    A subclass that writes anew what belongs to the half, and does not say what that is made of now,
    is not believed what its base said.
    """
    order = kind.__mro__
    place = next(place for place, base in enumerate(order) if half in base.__dict__)
    sayer = order[place]
    for base in order[:place]:
        for name, value in base.__dict__.items():
            code = isinstance(value, FunctionType | classmethod | staticmethod | property)
            if code and belongs(name) and hasattr(sayer, name):
                return "own"
    return str(getattr(kind, half))


def noised_steps(config: RunConfig) -> int:
    """Noised sums that one client's data goes into in one round (T)."""
    mechanism = config.privacy.mechanism
    if mechanism == "client":
        return 1
    if mechanism == "gradient":
        return config.section(MatchingConfig).iterations
    return config.privacy.steps


def private_problems(kind: type[Strategy], config: RunConfig) -> Iterable[Problem]:
    """What keeps a private run from keeping its promise."""
    privacy = config.privacy
    if not privacy.is_private:
        return
    if not fits(kind, privacy.mechanism):
        others = [other for other in _FIT if fits(kind, other)]
        way_out = (
            f"set privacy.mechanism={' or '.join(others)}"
            if others
            else "no mechanism makes it private; take another strategy, or privacy.mechanism=none"
        )
        rule = f"is for {_FIT[privacy.mechanism]}, which {config.strategy} is not; {way_out}"
        if privacy.mechanism == "client" and kind.public_metrics:
            told = ", ".join(kind.public_metrics)
            rule = (
                f"noises updates and no metrics, and {config.strategy} needs {told} of each "
                "client, which in local epochs tells how much it holds; take strategy=fedavg, "
                f"or {way_out}"
            )
        yield Problem("privacy.mechanism", privacy.mechanism, rule)
        return
    if not privacy.epsilon and not privacy.noise_multiplier:
        rule = (
            "a private run needs a budget or its noise: set privacy.epsilon=4, or "
            "privacy.noise-multiplier=1, or both"
        )
        yield Problem("privacy.epsilon", "0", rule)
    if config.train.weighting == "examples":
        rule = (
            "weighting by examples tells how many a client holds; leave it out (auto weighs "
            "equally in private runs)"
        )
        yield Problem("train.weighting", "examples", rule)
    if privacy.mechanism == "client" and config.cohort.over_sampling:
        rule = (
            "lets a spare client in where another fails, so that one client changes what two "
            "send; leave it out: a round without one of its replies is noised alike"
        )
        yield Problem("cohort.over-sampling", f"{config.cohort.over_sampling:g}", rule)
    if privacy.mechanism == "client" and config.canaries.kind != "none":
        rule = (
            "a canary's transcript holds clients' updates before the server noises them, which "
            "nobody else may see; leave it out, or audit an example-level mechanism"
        )
        yield Problem("canaries.kind", config.canaries.kind, rule)
    if config.engine.precision == "bf16" and privacy.is_example_level:
        rule = (
            "clips and noise of single examples are checked in float32 alone; leave it out, or use "
            "tf32 on a GPU"
        )
        yield Problem("engine.precision", "bf16", rule)
    yield from _unread(config)
    if kind.client_half == "matching":
        yield from _of_matching(config)
    if any(isinstance(section, ScaffoldOptions) for section in config.options.values()):
        option = config.section(ScaffoldOptions).option
        if option == "I" and privacy.is_example_level:
            rule = (
                "sends the gradient of the client's images without noise; set scaffold.option=II, "
                "whose variates are made of the noised steps"
            )
            yield Problem("scaffold.option", option, rule)


def _unread(config: RunConfig) -> Iterable[Problem]:
    """Keys that a private run does not read."""
    mechanism = config.privacy.mechanism
    if mechanism == "dp-sgd" and config.train.local_epochs != 1:
        rule = (
            "a private run takes Poisson samples and no epochs; set privacy.steps, and "
            "train.batch-size, the constant that each sum of gradients is divided by"
        )
        yield Problem("train.local-epochs", str(config.train.local_epochs), rule)
    if mechanism in ("gradient", "feature") and config.section(MatchingConfig).network_pool:
        draws = "privacy.steps" if mechanism == "feature" else "feddm.iterations"
        rule = f"mechanism {mechanism} draws {draws} networks and keeps no pool; leave it out"
        pool = config.section(MatchingConfig).network_pool
        yield Problem("feddm.network-pool", str(pool), rule)
    if mechanism == "feature":
        steps, iterations = config.privacy.steps, config.section(MatchingConfig).iterations
        if steps > iterations:
            rule = (
                f"embeddings are released at {steps} networks and matched in only {iterations} "
                "steps; lower it, or raise feddm.iterations"
            )
            yield Problem("privacy.steps", str(steps), rule)
        default = MatchingConfig().real_batch
        if (batch := config.section(MatchingConfig).real_batch) != default:
            rule = "mechanism feature samples by privacy.sampling-rate and reads none; leave it out"
            yield Problem("feddm.real-batch", str(batch), rule)


def _of_matching(config: RunConfig) -> Iterable[Problem]:
    """What in FedDM would tell real images, or counts."""
    matching, mosaic = config.section(MatchingConfig), config.section(MosaicConfig)
    if matching.initialisation == "real":
        rule = "starting from real images sends traces of them; set feddm.initialisation=noise"
        yield Problem("feddm.initialisation", "real", rule)
    if mosaic.weighting == "counts" and config.privacy.mechanism != "feature":
        rule = (
            "class counts are private and mechanism gradient noises none; set "
            "mosaic.weighting=uniform, or privacy.mechanism=feature, which tells noised ones"
        )
        yield Problem("mosaic.weighting", "counts", rule)
    if mosaic.min_examples != 1:
        rule = (
            "leaving out classes of which a client holds few tells which; a private run sends "
            "every class; leave it out"
        )
        yield Problem("mosaic.min-examples", str(mosaic.min_examples), rule)
    if matching.short_classes != "cap":
        rule = "a private run sends as many images of every class; leave it out"
        yield Problem("feddm.short-classes", matching.short_classes, rule)


def refuse_unfit_model(config: RunConfig, model: nn.Module, workload: Workload) -> None:
    """Refuse a model that mixes examples, or has parts that are sent and not noised.

    Args:
        config: The run.
        model: Left as it was.
        workload: What is trained.

    Raises:
        ConfigError: Names the layer and the way out.
    """
    privacy = config.privacy
    if not privacy.is_private:
        return
    refuse_batch_norm(
        model,
        f"privacy.mechanism={privacy.mechanism} noises no running statistics, and needs every "
        "example to go through the model alone",
    )
    shared, trained = workload.groups(model).is_shared, set(trainable_names(model))
    kept = [name for name in model.state_dict() if name not in trained and shared(name)]
    unnoised = "which nothing would noise"
    if privacy.mechanism == "client":
        # All that is sent is noised as one vector, whatever moved it. A buffer's bounds would not
        # survive that, and what nobody moves would wander off with the noise.
        buffers = {name for name, _ in model.named_buffers()}
        kept = [name for name in kept if name in buffers or not workload.is_moved(name)]
        unnoised = "which noise would spoil"
    if kept and privacy.mechanism in ("dp-sgd", "client"):
        rule = (
            f"{type(model).__name__} has entries that are sent and not trained by gradients "
            f"({', '.join(kept[:3])}), {unnoised}; use layers without buffers, such as "
            "torch.nn.GroupNorm, and name parameters that are held fixed in groups.frozen"
        )
        raise ConfigError([Problem("model.name", "", rule)])
    if privacy.is_example_level:
        _refuse_coupling(model, workload, by_losses=privacy.mechanism == "dp-sgd")
    if privacy.mechanism == "dp-sgd":
        from privacy.dp_optimizer import unfit_layers  # imports Opacus

        if reasons := unfit_layers(model):
            rule = f"per-example gradients of {type(model).__name__} do not exist: {reasons[0]}"
            raise ConfigError([Problem("model.name", "", rule)])


@torch.no_grad()
def _refuse_coupling(model: nn.Module, workload: Workload, *, by_losses: bool) -> None:
    """Refuse a model in which what becomes of an example depends on the examples beside it.

    Tried on three; layers that draw, such as dropout, are set aside. With `by_losses` the losses of
    the workload's objective in training are looked at too, for they may compare examples where the
    model does not.
    """
    modes = {module: module.training for module in model.modules()}
    model.train(by_losses)
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.eval()
    on_images = hasattr(workload, "input_shape")
    runs = [_on_noise(model, workload)] if on_images else []
    if by_losses and workload.dataset.num_examples["train"] >= 3:
        runs.append(_on_own(model, workload))
    try:
        found = [(run(3), run(1)) for run in runs]
    finally:
        for module, mode in modes.items():
            module.training = mode
    if any(losses.ndim == 0 for pair in found for losses in pair):
        rule = (
            f"clips and noises what single examples do, and workload {workload.config.workload} "
            "makes one loss of a batch; give each example's, or set privacy.mechanism=client"
        )
        raise ConfigError([Problem("privacy.mechanism", "dp-sgd", rule)])
    if not all(torch.allclose(one[:1], alone, rtol=1e-3, atol=1e-4) for one, alone in found):
        rule = (
            f"{type(model).__name__} gives an example another result beside other examples, so "
            "that one example changes the part of others and no clip bounds what it does; use "
            "layers, and losses, that look at each example alone, such as torch.nn.GroupNorm"
        )
        raise ConfigError([Problem("model.name", "", rule)])


_Run = Callable[[int], torch.Tensor]
"""From a number of examples to what becomes of each."""


def _on_noise(model: nn.Module, workload: Workload) -> _Run:
    """Logits of images of noise."""
    device, shape = next(model.parameters()).device, image_workload(workload).input_shape
    images = torch.randn((3, *shape), generator=torch_generator(0)).to(device)
    return lambda count: model(images[:count])


def _on_own(model: nn.Module, workload: Workload) -> _Run:
    """Losses of the first training examples, each time with the same draws."""
    examples = workload.examples(torch.arange(3))

    def run(count: int) -> torch.Tensor:
        objective = workload.objective(model, examples, seed=0, partition_id=0)
        return objective.losses(torch.arange(count, device=objective.device))

    return run


def refuse_large_delta(privacy: PrivacyConfig, num_examples: Iterable[int]) -> None:
    """Refuse a delta with which a mechanism may give a whole record away.

    Args:
        privacy: Names delta.
        num_examples: Units that each ledger protects: examples of each client, or the clients.

    Raises:
        ConfigError: delta is not below one over the most of them.
    """
    most = max(num_examples, default=0)
    if most and privacy.delta >= 1 / most:
        tenth = 10.0 ** -math.ceil(math.log10(10 * most))
        rule = (
            f"must be below 1/{most}: with that probability one of {most} could be given away as "
            f"it is; {tenth:g} would do"
        )
        raise ConfigError([Problem("privacy.delta", f"{privacy.delta:g}", rule)])
