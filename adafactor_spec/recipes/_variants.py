"""Settings that people use: an original with arguments of its own, each with the file that they stand in."""

from collections.abc import Mapping, Sequence
from typing import Any

from .._recipe import Recipe
from ..errors import check_flag, check_step
from ..schedules import (
    ScalarOrSchedule,
    cosine_decay,
    inverse_sqrt,
    linear_cooldown,
    linear_warmup,
    product,
    zero_based,
)
from ._arguments import CLIMBS, check_lr, check_range, of_count
from ._big_vision import big_vision
from ._fairseq import kohya, transformers
from ._praxis import praxis
from ._t5x import t5x

LogicalAxes = Mapping[str, Sequence[str]]


def t5x_pretrain(
    base_learning_rate: float = 1.0, warmup_steps: int = 10_000, *, param_logical_axes: LogicalAxes | None = None
) -> Recipe:
    """T5, mT5, ByT5 and umT5 pretraining in T5X.

    What to know of it: lr = base_learning_rate / sqrt(max(count, warmup_steps)), constant up to there, times the
    parameter scale. More than two axes need param_logical_axes.

    Args:
        base_learning_rate, warmup_steps: of that schedule.
        param_logical_axes: as in `t5x`, under its standard rules.

    Source: google-research/t5x, t5x/configs/runs/pretrain.gin and t5x/examples/t5/t5_1_1/base.gin.
    """
    schedule = _rsqrt_decay(base_learning_rate, warmup_steps)
    return t5x(schedule, logical_factor_rules="standard", param_logical_axes=param_logical_axes)


def t5x_finetune(learning_rate: float = 1e-3, *, param_logical_axes: LogicalAxes | None = None) -> Recipe:
    """T5 fine-tuning in T5X: a constant learning rate times the parameter scale.

    What to know of it: the file sets warmup_steps, too, but its schedule is constant and does not use it.

    Args:
        learning_rate: constant.
        param_logical_axes: as in `t5x`, under its standard rules.

    Source: google-research/t5x, t5x/configs/runs/finetune.gin and t5x/examples/t5/t5_1_1/base.gin.
    """
    return t5x(learning_rate, logical_factor_rules="standard", param_logical_axes=param_logical_axes)


def t5x_finetune_from_checkpoint(
    learning_rate: float = 5e-5,
    step_offset: int = 1_000_000,
    *,
    param_logical_axes: LogicalAxes | None = None,
) -> Recipe:
    """umT5 fine-tuning in T5X from a checkpoint whose step count goes on.

    What to know of it: step_offset is the count at which fine-tuning begins, so that beta2 starts again from 0. It is
    for a state whose count is that of the checkpoint; in a fresh optimizer beta2 would be 0 for a million steps: use
    `t5x_finetune` there.

    Args:
        learning_rate: constant.
        step_offset: finished steps of the checkpoint.
        param_logical_axes: as in `t5x`, under its standard rules.

    Source: google-research/t5x, t5x/examples/scalable_t5/umt5/tydiqa_base.gin.
    """
    return t5x(
        learning_rate,
        step_offset=step_offset,
        logical_factor_rules="standard",
        param_logical_axes=param_logical_axes,
    )


def t5x_moe(
    base_learning_rate: float = 1.0, warmup_steps: int = 10_000, *, param_logical_axes: LogicalAxes | None = None
) -> Recipe:
    """Mixture-of-experts pretraining in T5X: a bank of experts is a stack of separate parameters.

    What to know of it: as `t5x_pretrain`, with the logical axes expert (BATCH), expert_mlp (COLUMN) and unmodeled
    (NONE) added. Banks of experts have three axes, so param_logical_axes are needed.

    Args:
        base_learning_rate, warmup_steps, param_logical_axes: as in `t5x_pretrain`.

    Source: google-research/t5x, t5x/contrib/moe/adafactor_utils.py and t5x/contrib/moe/configs/runs/pretrain.gin.
    """
    schedule = _rsqrt_decay(base_learning_rate, warmup_steps)
    return t5x(schedule, logical_factor_rules="moe", param_logical_axes=param_logical_axes)


def big_vision_vit_g(total_steps: int = 1_000_000, *, by_kernel_name: bool = False) -> Recipe:
    """ViT-g on JFT-3B in big_vision.

    What to know of it: warm-up over 10,000 steps, then 1 / sqrt(count), then a linear cooldown over the last 50,000.
    The file clips the gradient to a global norm of 1 before it: optax.clip_by_global_norm(1.0) or clip_grad_norm_.

    Args:
        total_steps: of the run.
        by_kernel_name: decay as the file does, by flax's names: "head/kernel" 100 times as much, other "kernel"s, and
            nothing else. It needs parameter names of that form; False decays every parameter alike.

    Source: google-research/big_vision, big_vision/configs/proj/scaling_laws/train_vit_g.py.
    """
    total_steps = check_step("total_steps", total_steps, above=50_000)
    after_warmup = product(100.0, inverse_sqrt(10_000))  # sqrt(10,000 / count), 1 up to there
    schedule = linear_cooldown(linear_warmup(after_warmup, 10_000), 50_000, total_steps)
    mults = ((".*head/kernel", 100.0), (".*/kernel", 1.0)) if check_flag("by_kernel_name", by_kernel_name) else None
    return big_vision(lr=8e-4, wd=0.03 * 8e-4, wd_mults=mults, schedule=schedule)


def big_vision_cappa(total_steps: int = 366_500, warmup_steps: int = 10_000, *, by_kernel_name: bool = False) -> Recipe:
    """CapPa in big_vision.

    What to know of it: warm-up, then a cosine to 0. The file clips the gradient to a global norm of 1 before it:
    optax.clip_by_global_norm(1.0) or clip_grad_norm_.

    Args:
        total_steps, warmup_steps: of the schedule.
        by_kernel_name: decay parameters whose name ends in "/kernel" only, as `make` does; False decays all.

    Source: google-research/big_vision, big_vision/configs/proj/cappa/pretrain.py.
    """
    warmup_steps = check_step("warmup_steps", warmup_steps, at_least=1)
    total_steps = check_step("total_steps", total_steps, above=warmup_steps)
    schedule = linear_warmup(cosine_decay(1.0, warmup_steps, total_steps), warmup_steps)
    mults = ((".*/kernel$", 1.0),) if check_flag("by_kernel_name", by_kernel_name) else None
    return big_vision(beta2_cap=0.999, lr=1e-3, wd=1e-4, wd_mults=mults, schedule=schedule)


def hf_t5(lr: ScalarOrSchedule = 1e-3) -> Recipe:
    """T5 fine-tuning with transformers, as its documentation recommends it.

    What to know of it: scale_parameter=False, so lr is the step itself; T5X multiplies the same 1e-3 by RMS(p)
    (`t5x_finetune`), and RMS(p) of T5's weights is far from 1.

    Args:
        lr: a number or a function of t.

    Source: transformers 5.23.0, src/transformers/optimization.py (docstring) and docs/source/en/model_doc/t5.md.
    """
    return transformers(lr=lr, scale_parameter=False, relative_step=False, warmup_init=False)


def hf_trainer(lr: ScalarOrSchedule = 5e-5) -> Recipe:
    """The transformers Trainer with optim="adafactor".

    What to know of it: the Trainer forces scale_parameter=False and relative_step=False, and its own learning_rate,
    5e-5 unless given, is the step; its learning-rate scheduler writes group["lr"]. weight_decay is the Trainer's and 0
    by default.

    Args:
        lr: the Trainer's learning_rate.

    Source: transformers 5.23.0, src/transformers/trainer_optimizer.py.
    """
    return transformers(lr=lr, scale_parameter=False, relative_step=False)


def onetrainer(lr: ScalarOrSchedule = 1e-6) -> Recipe:
    """OneTrainer's presets for full fine-tuning of image models (Flux.2, Qwen-Image, Chroma, ...).

    What to know of it: transformers' class, patched; lr is the step itself. The presets write bfloat16 parameters back
    with stochastic rounding and step in the backward pass; a recipe says neither.

    Args:
        lr: a number or a function of t; 1e-6 is the Flux.2 preset's.

    Source: Nerogar/OneTrainer, training_presets and modules/util/optimizer_util.py.
    """
    return kohya(lr=lr, clip_threshold=1.0, decay_rate=-0.8, scale_parameter=False, relative_step=False)


def kohya_finetune(lr: float = 4e-7, warmup_steps: int = 100) -> Recipe:
    """Full fine-tuning of SDXL with kohya's sd-scripts and its fused backward pass.

    What to know of it: lr is the step itself, with a constant learning rate after a linear warm-up. The first update
    of transformers' constant_with_warmup has a learning rate of 0. max_grad_norm is 0, no clipping of the gradient.

    Args:
        lr: the learning rate after the warm-up.
        warmup_steps: from 0 to lr.

    Source: kohya-ss/sd-scripts, docs/train_SDXL-en.md.
    """
    warmup_steps = check_step("warmup_steps", warmup_steps, at_least=1)
    lr = check_lr("lr", lr)
    warm = zero_based(linear_warmup(lr, warmup_steps))
    return kohya(lr=warm, scale_parameter=False, relative_step=False, warmup_init=False)


def algoperf(
    learning_rate: ScalarOrSchedule | None = None, weight_decay: float | None = None, quantized_dtype: Any = "float32"
) -> Recipe:
    """The Adafactor baseline of MLCommons AlgoPerf, a copy of praxis' with defaults of its own.

    What to know of it: section 7.1's decay of 0.99, momentum 0.9 of the finished step, the last two axes, no parameter
    scale. The original stores its momentum in int8; here it is quantized_dtype.

    Args:
        learning_rate: a number, or a function of the step that counts from 0: warm-up and cosine there. None: the
            optimizer must be given one.
        weight_decay: times the learning rate; None is off.
        quantized_dtype: storage dtype of the momentum.

    Source: mlcommons/algorithmic-efficiency, reference_algorithms/paper_baselines/adafactor/jax/sharded_adafactor.py.
    """
    of_count("learning_rate", learning_rate)  # refuses it under the name that it has here
    return praxis(
        learning_rate,
        weight_decay=weight_decay,
        decay_method="adam",
        decay_adam=0.99,
        beta1=0.9,
        quantized_dtype=quantized_dtype,
    )


def _rsqrt_decay(base_learning_rate: float, warmup_steps: int) -> ScalarOrSchedule:
    """T5X's factors "constant * rsqrt_decay", of the count."""
    base = check_range("base_learning_rate", base_learning_rate, CLIMBS, at_least=0)
    return product(base, inverse_sqrt(check_step("warmup_steps", warmup_steps, at_least=1)))
