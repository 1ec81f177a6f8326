"""The training loop: batches, the attack on the compact twin, the method's losses, and removal of dead channels."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from anp_vs.attacks.protocols import protocol_by_name
from anp_vs.data import Dataset, Split
from anp_vs.errors import InputError, RunError
from anp_vs.methods.awp import perturbed_objective
from anp_vs.methods.method import Objective
from anp_vs.networks.copying import copied
from anp_vs.networks.layers import scale_dropout, share_dropout
from anp_vs.pruning.gate import gates, last_to_go, sparsity_percent
from anp_vs.pruning.graph import example_for
from anp_vs.pruning.insertion import insert_gates
from anp_vs.pruning.opening import open_gates
from anp_vs.pruning.precision import Precision, lowered
from anp_vs.pruning.resizing import resize
from anp_vs.pruning.shrinking import shrink
from anp_vs.pruning.slicing import take
from anp_vs.pruning.twin import Twin
from anp_vs.recipes import Recipe
from anp_vs.training import schedule
from anp_vs.training.adversary import Adversary
from anp_vs.training.average import Average, averaged, shrunk
from anp_vs.training.batches import Batches
from anp_vs.training.network import fresh_network, set_prices
from anp_vs.training.optimisers import Optimisers
from anp_vs.training.parallel import Share
from anp_vs.training.seeding import derive
from anp_vs.training.teacher import Teacher
from anp_vs.training.validation import validate
from anp_vs.training.watch import Trouble


class Trainer:
    """One network in training, and everything needed to stop and go on, on a CPU bit for bit.

    Every random draw is a function of the seed and the step, so a state is: tensors, counters, and the step.

    Args:
        recipe: what to do.
        dataset: its data.
        fabric: device and processes.
        start: trained weights to begin with, names as in the plain network's `state_dict`; None starts afresh.
        teacher: a trained network that the recipe's `teacher_weight` mixes into the labels; None for none.
        generated: images that the recipe's `generated_share` of every batch is drawn from; None for none.

    Raises:
        InputError: the recipe asks for a teacher or generated images and none were given, or they do not fit.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        fabric: Fabric,
        start: dict[str, Tensor] | None = None,
        teacher: nn.Module | None = None,
        generated: Split | None = None,
    ) -> None:
        self.recipe, self.fabric, self.method = recipe, fabric, recipe.method
        # What is not chosen yet (`auto`) is the plain way on a CPU, see `anp_vs.training.tuning`.
        self.precision: Precision = "bfloat16" if recipe.precision == "bfloat16" else "float32"
        self.memory_format = torch.contiguous_format if recipe.layout == "contiguous" else torch.channels_last
        self.share = Share(fabric)
        self.share.check(recipe.batch_size)
        self.train, self.validation = dataset.train.to(fabric.device), dataset.validation.to(fabric.device)
        if len(self.train) < recipe.batch_size:
            raise RunError(
                f"The training set has {len(self.train)} images, fewer than one batch of {recipe.batch_size}; lower batch_size."
            )
        if recipe.generated is not None and generated is None:
            raise InputError(f"The recipe {recipe.name} asks for the images of {recipe.generated}; hand them over.")
        self.batches = Batches(recipe, self.train, generated)
        self.steps_per_epoch = len(self.train) // recipe.batch_size
        self.total_steps = recipe.epochs * self.steps_per_epoch
        torch.manual_seed(derive(recipe.seed, "initialise"))
        self.protocol = protocol_by_name(recipe.protocol)
        network = fresh_network(recipe, dataset)
        self.whole = sum(parameter.numel() for parameter in network.parameters())
        self.reinitialised = self.method.begin(network, start) if start is not None else []
        network = self.method.prepare(network)
        if self.method.gated:
            set_prices(insert_gates(network, residual=recipe.residual), recipe.cost_exponent)
        if not network.training:  # one that is in training mode may hold layers that are not, frozen normalisation say
            network.train()
        share_dropout(network)
        scale_dropout(network, recipe.dropout)
        self.network = network.to(fabric.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        self.decided = not self.method.gated
        self.prices = {name: gate.price for name, gate in gates(self.network).items()}
        self.first_level = (
            last_to_go(self.network, recipe.target_sparsity or 0.0) if recipe.beta_gain and self.prices else 0.0
        )
        self.dead_for = {name: torch.zeros(gate.units, dtype=torch.int64) for name, gate in gates(self.network).items()}
        self.average: Average | None = None
        self.step = 0
        self.seconds = 0.0
        self.eased = 1.0  # on the learning rates: halved whenever the run steps back from trouble
        self.means: dict[str, float] = {}
        self.counted = 0
        last = self.memory_format == torch.channels_last
        self.adversary = Adversary(recipe, self.share, self.precision, channels_last=last)
        self._rebuild()
        self.optimisers = Optimisers(recipe, self.network, self.share.average)
        self.companion = self.method.companion(self.network, self.total_steps)
        self.teacher: Teacher | None = None
        if recipe.teacher is not None and teacher is None:
            raise InputError(f"The recipe {recipe.name} asks for the teacher {recipe.teacher}; hand its network over.")
        if teacher is not None:
            self.teacher = Teacher(
                self.protocol.adapt(teacher.to(fabric.device)), recipe.teacher_weight, dataset.train.shape, dataset.classes,
                precision=self.precision, channels_last=last,
            )  # fmt: skip

    # -- state ----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs, as tensors and plain values."""
        return {
            "step": self.step,
            "generated": self.batches.generated_mark,
            "seconds": self.seconds,
            "eased": self.eased,
            "network": self.network.state_dict(),
            "average": self.average,
            **self.optimisers.state_dict(),
            "companion": self.companion.state_dict() if self.companion else None,
            "decided": self.decided,
            "dead_for": self.dead_for,
            "means": self.means,
            "counted": self.counted,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; the network takes its shape.

        Raises:
            RunError: the generated images are not those that training began with.
        """
        if state.get("generated") != self.batches.generated_mark:
            raise RunError(
                f"{self.recipe.generated} does not hold the generated images that this run began with. Put those back, or "
                f"train into another directory with --out."
            )
        resize(self.network, state["network"])
        self.network.load_state_dict(state["network"])
        self.network.to(memory_format=self.memory_format)
        self.step, self.seconds, self.eased = state["step"], state["seconds"], state["eased"]
        self.average, self.dead_for = state["average"], state["dead_for"]
        if self.average is not None:
            self.average = {name: value.to(self.fabric.device) for name, value in self.average.items()}
        self.means, self.counted = state["means"], state["counted"]
        self.optimisers.load_state_dict(self.network, state)
        self.decided = state["decided"]
        if self.decided:
            self._fix_gates()
        self.companion = self.method.companion(self.network, self.total_steps)
        if self.companion is not None:
            self.companion.load_state_dict(state["companion"])
        self._rebuild()

    def evaluation_network(self) -> nn.Module:
        """A copy to evaluate and save: averaged weights if the recipe averages, in evaluation mode."""
        network: nn.Module = copied(self.network)
        if self.average is not None:
            network.load_state_dict(self.average)
        return network.eval()

    def _rebuild(self) -> None:
        """Trace the network again after its shape changed."""
        self.share.prepare(self.network)
        self.adversary.trace(self.network)

    # -- one step -------------------------------------------------------------------------------------------

    @property
    def progress(self) -> float:
        """Share of training that is done."""
        return self.step / self.total_steps

    @property
    def epoch(self) -> int:
        """Number of the present epoch, from 0."""
        return self.step // self.steps_per_epoch

    def batch(self) -> tuple[Tensor, Tensor]:
        """Images (float, augmented, as shown to the network) and labels of the present step; of several processes, this one's share."""
        images, labels = self.batches.at(self.step, last=self.step + 1 == self.total_steps)
        return self.share.rows(self.protocol.prepare(images)), self.share.rows(labels)

    def close(self) -> None:
        """Let go of the batch to come; the trainer can go on all the same."""
        self.train.close()

    def attack(self, images: Tensor, labels: Tensor) -> Tensor:
        """Adversarial images of the present network in evaluation mode, made on its compact twin."""
        return self.adversary.attack(images, labels, self.eps(), self.step, settled=self.decided)

    def advance(self) -> str | None:
        """One step of training.

        Returns:
            What happened to the units, if something did.

        Raises:
            Trouble: the loss is not finite; no parameter has been changed by the step.
        """
        began, recipe = time.perf_counter(), self.recipe
        self.optimisers.set_rates(self.progress, self.eased)
        if recipe.beta_gain and not self.decided:
            self._steer()
        images, labels = self.batch()
        torch.manual_seed(derive(recipe.seed, "step", self.step))
        adversarial = self.attack(images, labels) if self.method.adversarial else images
        taught = self.teacher if self.decided or not recipe.fixes_gates else None
        targets = labels if taught is None else taught.targets(images, labels)
        with lowered(self.network, self.adversary.first, self.precision):
            objective = perturbed_objective(
                self.method, self.network, images, adversarial, targets, len(self.train),
                gamma=recipe.awp, average=self.share.average,
            )  # fmt: skip
        loss = objective.weights
        if self.companion is not None:
            loss = loss + self.companion.penalty()
        value = self.share.mean({"loss": float(loss.detach())})["loss"]
        if not math.isfinite(value):
            raise Trouble(
                f"The loss became {value} at step {self.step} of {self.total_steps} (epoch {self.epoch}). "
                f"Lower lr (now {recipe.lr}) or gate_lr, or lengthen eps_warmup."
            )
        self.optimisers.backward(self.network, loss, objective, gates_learn=not self.decided)
        if self.companion is not None:
            self.companion.before_step(self.step)
        self.optimisers.step(gates_learn=not self.decided)
        if self.companion is not None and self.companion.after_step(self.step):
            self.optimisers.renew(self.network)
            self.average = None
        self._count(objective, labels)
        self.step += 1
        message = self._prune() if self.method.gated else None
        if recipe.average:
            self.average = averaged(self.average, self.network, recipe.average, self.step)
        self.seconds += time.perf_counter() - began
        return message

    def _count(self, objective: Objective, labels: Tensor) -> None:
        values = {name: float(value.detach()) for name, value in objective.metrics.items()}
        key = "train_robust_accuracy" if self.method.adversarial else "train_accuracy"
        values[key] = 100 * float((objective.logits.argmax(1) == labels).float().mean())
        if self.method.adversarial and objective.clean_logits is not None:
            values["train_accuracy"] = 100 * float((objective.clean_logits.argmax(1) == labels).float().mean())
        for name, value in values.items():
            self.means[name] = self.means.get(name, 0.0) + value
        self.counted += 1

    def take_means(self) -> dict[str, float]:
        """Means of the metrics since the last call, with the present schedule and sparsity."""
        values = self.share.mean({name: value / max(self.counted, 1) for name, value in self.means.items()})
        self.means, self.counted = {}, 0
        values |= {"lr": self.optimisers.weights.param_groups[0]["lr"], "eps": self.eps()}
        if self.method.gated:
            values["sparsity"] = sparsity_percent(self.network)
        return values

    # -- schedules ------------------------------------------------------------------------------------------

    def eps(self) -> float:
        """The attack's radius at the present step."""
        return schedule.eps(self.recipe, self.progress)

    def _steer(self) -> None:
        """Let beta follow the target sparsity: a function of the present gates and step alone."""
        level = last_to_go(self.network, self.recipe.target_sparsity or 0.0)
        factor = schedule.beta_factor(self.recipe, self.progress, level, self.first_level)
        for name, gate in gates(self.network).items():
            gate.price = self.prices[name] * factor

    # -- pruning --------------------------------------------------------------------------------------------

    def _prune(self) -> str | None:
        """Count how long each unit has been pruned; fix the gates when it is time; remove what stays dead."""
        if self.decided:
            return None
        recipe = self.recipe
        found = gates(self.network)
        with torch.no_grad():
            alive = {name: gate.alive().cpu() for name, gate in found.items()}
        for name, units in alive.items():
            self.dead_for[name] = torch.where(units, 0, self.dead_for[name] + 1)
        target = recipe.target_sparsity
        reached = target is not None and sparsity_percent(self.network, alive) >= target
        if reached or (recipe.decide_at < 1 and self.progress >= recipe.decide_at):
            closed = [name for name, gate in found.items() if gate.collapsed()]
            removed = self.remove({name: ~units for name, units in alive.items()})
            open_gates(self.network)
            self.optimisers.renew(self.network)
            self.average = None
            self._fix_gates()
            said = f"gates fixed at {sparsity_percent(self.network):.1f} % sparsity; {removed} units left the network"
            if closed:
                said += f"; every unit of {', '.join(closed)} would be pruned, the strongest was kept"
            if target is not None and not reached:
                more = "decide_at" if recipe.beta_gain else "method.beta or decide_at, or set beta_gain"
                said += f"; the target of {target:g} % was not reached: raise {more}"
            return said
        if recipe.remove_after and self.step % max(1, recipe.remove_after // 4) == 0:
            dead = {name: count >= recipe.remove_after for name, count in self.dead_for.items()}
            if any(bool(d.any()) for d in dead.values()) and (removed := self.remove(dead)):
                return f"{removed} units left the network"
        return None

    def _fix_gates(self) -> None:
        """From now on gates multiply by E[pi], also in training, and no longer learn."""
        self.decided = True
        for gate in gates(self.network).values():
            gate.fixed = True
            gate.requires_grad_(False)

    def remove(self, dead: dict[str, Tensor]) -> int:
        """Take units out of the network in training, its optimisers' states, and its averaged weights.

        Args:
            dead: gate path -> bool (K,).

        Returns:
            How many units left.
        """
        before = dict(self.network.named_parameters())
        units = {name: gate.units for name, gate in gates(self.network).items()}
        kept = shrink(self.network, dead)
        self.network.to(memory_format=self.memory_format)
        self.optimisers.follow(before, dict(self.network.named_parameters()), kept)
        if self.average is not None:
            self.average = shrunk(self.average, self.network, kept)
        self.dead_for = {name: take(count, kept.get(f"{name}.a_uc", [])) for name, count in self.dead_for.items()}
        removed = sum(units[name] - gate.units for name, gate in gates(self.network).items())
        if removed:
            self._rebuild()
        return removed

    # -- validation -----------------------------------------------------------------------------------------

    def validate(self, stop: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
        """Clean and PGD accuracy in percent on the first images of the validation split; nothing where that is empty.

        Args:
            stop: asked before each batch; None is returned when it says so.
        """
        if not len(self.validation):
            return {}
        torch.manual_seed(derive(self.recipe.seed, "validate", self.step))  # for a network that draws its weights
        network = self.evaluation_network()
        if not self.method.random:
            network = Twin(network, example_for(network)).build()
        return validate(network, self.validation, self.recipe, stop)

    @torch.no_grad()
    def units_alive(self) -> dict[str, int]:
        """Units of each gate that are not pruned."""
        return {name: int(gate.alive().sum()) for name, gate in gates(self.network).items()}

    def layer_widths(self) -> dict[str, str]:
        """For each gate: units alive of the original units."""
        found = gates(self.network)
        return {name: f"{alive}/{found[name].original_units}" for name, alive in self.units_alive().items()}
