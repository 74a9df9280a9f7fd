"""Who has a part in a case of the torch benchmark."""

from benchmarks.measure import entries
from benchmarks.measure.workloads import WORKLOADS
from benchmarks.torch.optimizers import ENTRIES


def test_a_step_is_compiled_for_some_tensors_and_not_for_thousands() -> None:
    tensors = {name: len(shapes(False)) for name, shapes in WORKLOADS.items()}
    said = {name: ENTRIES["ours-compiled-step"].why_not(False, count) for name, count in tensors.items()}
    assert said == {
        "transformer": None,
        "convnet": None,
        "small": "takes torch minutes to compile for 2,000 tensors",
        "fifty": None,
        "tiny": None,
    }
    assert all(ENTRIES[name].why_not(False, 2000) is None for name in ENTRIES if name != "ours-compiled-step")
    assert ENTRIES["torch-adafactor"].why_not(True, 1) == "has no momentum"


def test_whoever_has_no_part_is_left_out_with_the_reason() -> None:
    assert entries.left_out(ENTRIES, momentum=False, tensors=500) == {}
    assert entries.taking_part(ENTRIES, momentum=False, tensors=500) == ENTRIES
    out = entries.left_out(ENTRIES, momentum=True, tensors=501)
    assert out == {
        "torch Adafactor": "has no momentum",
        "ours, compiled step": "takes torch minutes to compile for 501 tensors",
    }
    part = entries.taking_part(ENTRIES, momentum=True, tensors=501)
    assert ENTRIES.keys() - part.keys() == {"torch-adafactor", "ours-compiled-step"}
