"""HF Trainer, Accelerate and Lightning take the optimizer as it is: as a loop by hand, and exactly so when resumed."""

import importlib
import itertools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from adafactor_spec import recipes
from adafactor_torch import Adafactor

from .torch_runs import frozen, parameter_bits, snapshot

pytestmark = pytest.mark.xdist_group("integrations")  # the tools take seconds to import: in one worker only

WORDS, LENGTH, BATCH, STEPS = 32, 8, 4, 8
HALF = STEPS // 2  # an epoch, since Lightning resumes between two of them
LR = 0.05
RECIPE = recipes.transformers(lr=LR, scale_parameter=False, relative_step=False, beta1=0.9)


@pytest.fixture(autouse=True)
def nothing_remains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No tool looks at the network; what one writes where it stands, sets in the environment or keeps is undone."""
    monkeypatch.chdir(tmp_path)
    environment = dict(os.environ)
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", HF_HOME=str(tmp_path), WANDB_MODE="disabled")
    yield
    state = imported("accelerate.state")
    state.AcceleratorState._reset_state(reset_partial_state=True)
    state.GradientState._reset_state()
    os.environ.clear()
    os.environ.update(environment)


def imported(tool: str) -> Any:
    """Not at the top, where every worker would import it to see which tests there are."""
    return importlib.import_module(tool)


def sentences() -> list[dict[str, torch.Tensor]]:
    """Each word follows from the one before, so that there is something to learn."""
    first = torch.randint(WORDS, (HALF * BATCH, 1), generator=torch.Generator().manual_seed(0))
    words = (first + torch.arange(LENGTH)) % WORDS
    # Nothing predicts the first word. Left in, it would count where Trainer divides by the number of labels.
    labels = words.masked_fill(torch.arange(LENGTH) == 0, -100)
    return [{"input_ids": row, "labels": label} for row, label in zip(words, labels, strict=True)]


def loader() -> torch.utils.data.DataLoader:
    rows: Any = sentences()
    return torch.utils.data.DataLoader(rows, batch_size=BATCH)


def gpt2() -> Any:
    """A model of some 4,000 numbers, with random weights and no dropout."""
    transformers = imported("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": WORDS, "n_positions": LENGTH, "n_embd": 16, "n_layer": 1, "n_head": 2}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **dropout, bos_token_id=0, eos_token_id=0))


def falling(optimizer: torch.optim.Optimizer) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: 1 - step / (2 * STEPS))


def by_hand() -> tuple[list[float], Any]:
    """(losses, bits of the weights) of the loop that the tools are to repeat."""
    model = gpt2()
    optimizer = Adafactor(model.parameters(), recipe=RECIPE)
    scheduler, losses = falling(optimizer), []
    for batch in itertools.chain(loader(), loader()):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert all(map(math.isfinite, losses)) and losses[-1] < 0.9 * losses[0], "it learns"
    return losses, parameter_bits(optimizer)


# ----------------------------------------------------------------------------------------------------- HF Trainer


def trainer(folder: Path) -> Any:
    transformers, model = imported("transformers"), gpt2()
    optimizer = Adafactor(model.parameters(), recipe=RECIPE)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH,
        max_steps=STEPS,
        max_grad_norm=0.0,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_steps=HALF,
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to=[],
        disable_tqdm=True,
    )
    return transformers.Trainer(
        model=model, args=arguments, train_dataset=sentences(), optimizers=(optimizer, falling(optimizer))
    )


def test_trainer_repeats_the_loop_by_hand(tmp_path: Path) -> None:
    run, (losses, weights) = trainer(tmp_path), by_hand()
    run.train()
    logs = [log for log in run.state.log_history if "loss" in log]
    assert ([log["loss"] for log in logs], frozen(list(run.model.parameters()))) == (losses, weights)
    assert logs[-1]["learning_rate"] == LR * (1 - (STEPS - 1) / (2 * STEPS)), "the scheduler's"


def test_trainer_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole, resumed = trainer(tmp_path), trainer(tmp_path)
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{HALF}"))
    assert resumed.state.global_step == STEPS
    assert snapshot(resumed.optimizer.optimizer) == snapshot(whole.optimizer.optimizer)


# ----------------------------------------------------------------------------------------------------- Accelerate


def accelerated() -> Any:
    """(Accelerator, and as it has prepared them: model, optimizer, batches, scheduler)"""
    accelerator, model = imported("accelerate").Accelerator(cpu=True), gpt2()
    optimizer = Adafactor(model.parameters(), recipe=RECIPE)
    return accelerator, *accelerator.prepare(model, optimizer, loader(), falling(optimizer))


def advance(run: Any, first: int, last: int) -> list[float]:
    """The losses of steps `first` to `last`, and their gradients clipped by norm to what none of them exceeds."""
    accelerator, model, optimizer, batches, scheduler = run
    losses = []
    for t, batch in enumerate(itertools.chain(batches, batches), 1):
        if first <= t <= last:
            loss = model(**batch).loss
            accelerator.backward(loss)
            assert accelerator.clip_grad_norm_(model.parameters(), 100.0) < 100.0
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses


def test_accelerate_repeats_the_loop_by_hand() -> None:
    run = accelerated()
    assert (advance(run, 1, STEPS), parameter_bits(run[2])) == by_hand()


def test_accelerate_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole, resumed = accelerated(), accelerated()
    advance(whole, 1, HALF)
    whole[0].save_state(str(tmp_path / "state"))
    advance(whole, HALF + 1, STEPS)
    resumed[0].load_state(str(tmp_path / "state"))
    advance(resumed, HALF + 1, STEPS)
    assert snapshot(resumed[2].optimizer) == snapshot(whole[2].optimizer)


# ------------------------------------------------------------------------------------------------------ Lightning


# What torch 2.13 says of Lightning 2.6.
TREESPEC = pytest.mark.filterwarnings(
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated, "
    r"use `isinstance\(treespec, TreeSpec\) and treespec\.is_leaf\(\)` instead\.$:FutureWarning"
)


def fit(epochs: int, checkpoint: Path | None = None) -> tuple[list[float], Any]:
    """(losses, Trainer) after so many epochs in all."""
    lightning, losses = imported("pytorch_lightning"), []
    base: Any = lightning.LightningModule

    class Module(base):
        def __init__(self) -> None:
            super().__init__()
            self.model = gpt2()

        def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
            loss = self.model(**batch).loss
            losses.append(loss.item())
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = Adafactor(self.parameters(), recipe=RECIPE)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": falling(optimizer), "interval": "step"}}

    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    run = lightning.Trainer(max_epochs=epochs, accelerator="cpu", **quiet)
    run.fit(Module(), loader(), ckpt_path=checkpoint)
    return losses, run


@TREESPEC
def test_lightning_repeats_the_loop_by_hand() -> None:
    losses, run = fit(2)
    assert (losses, parameter_bits(run.optimizers[0])) == by_hand()


@TREESPEC
def test_lightning_resumes_bit_for_bit(tmp_path: Path) -> None:
    (losses, whole), (_, half) = fit(2), fit(1)
    half.save_checkpoint(tmp_path / "half.ckpt")
    later, resumed = fit(2, tmp_path / "half.ckpt")
    assert later == losses[HALF:]
    assert snapshot(resumed.optimizers[0]) == snapshot(whole.optimizers[0])
