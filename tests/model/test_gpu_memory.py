"""What each role is said to need, held against torch's own counts, and a card divided by it."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from rayqd.config import Config
from rayqd.errors import PlacementError
from rayqd.model.gpu_memory import engine_bytes, learner_bytes, measure_size, plan_engine, teacher_bytes
from rayqd.model.load import load_model
from rayqd.model.student import Student

GIB = 2**30
QWEN3_4B = Qwen3Config(
    hidden_size=2560,
    intermediate_size=9728,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=151936,
    tie_word_embeddings=True,
)


@pytest.fixture(scope="module")
def qwen() -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(QWEN3_4B)


def config(**sections: Any) -> Config:
    return Config.model_validate(sections)


def test_the_size_is_what_torch_counts(tiny_model: Any, tiny_config: Any) -> None:
    settings = tiny_config()
    model = load_model(tiny_model, "bfloat16")
    size = measure_size(model, settings)
    assert size.num_parameters == sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
    student = Student(model, settings)
    assert size.num_quantized == sum(layer.codes.numel() for _, layer in student.quantized_layers())
    trained = sum(p.numel() for p in student.parameters().values())
    assert trained == size.product_width * settings.adapter.rank


@pytest.mark.parametrize(("checkpointing", "measured_gib"), [(True, 11.15), (False, 43.0)])
def test_a_learner_needs_a_little_less_than_is_planned_for_it(
    checkpointing: bool, measured_gib: float, qwen: Any
) -> None:
    """The peaks that docs/performance.md has of Qwen3-4B's step, 8 x 1024 tokens at once, of torch alone."""
    settings = config(
        learner={"microbatch_tokens": 8192, "gradient_checkpointing": checkpointing}, adapter={"rank": 32}
    )
    planned = learner_bytes(measure_size(qwen, settings), settings) / GIB
    assert measured_gib < planned < 1.25 * measured_gib


def test_a_teacher_needs_its_weights_and_an_engine_a_quarter_of_most(qwen: Any) -> None:
    settings = config(quant={"group_size": 128})
    size = measure_size(qwen, settings)
    weights = sum(p.numel() for p in qwen.parameters()) * 2
    assert weights < teacher_bytes(size, settings) < weights + 4 * GIB
    packed = engine_bytes(size, settings, 16, is_dense=False)
    dense = engine_bytes(size, settings, 16, is_dense=True)
    assert dense - packed == pytest.approx(size.num_quantized * (2 - (4 + 16 / 128) / 8))  # 4 bits, a scale for 128


def test_full_qat_takes_16_bytes_for_each_weight_that_it_trains(qwen: Any) -> None:
    lora, full = (config(adapter={"kind": kind}) for kind in ("lora", "none"))
    size = measure_size(qwen, full)
    adapters = size.product_width * lora.adapter.rank * 16
    assert learner_bytes(size, full) - learner_bytes(size, lora) == size.num_quantized * (16 - 2) - adapters


def test_of_what_full_qat_trains_each_of_several_workers_has_its_share(qwen: Any) -> None:
    one, four, many = (config(adapter={"kind": "none"}, learner={"num_workers": count}) for count in (1, 4, 64))
    size = measure_size(qwen, one)
    layer = size.num_quantized / QWEN3_4B.num_hidden_layers  # whole, in float32 and with its gradient
    saved = learner_bytes(size, one) - learner_bytes(size, four)
    assert saved == pytest.approx(size.num_quantized * 16 * 3 / 4 - layer * 8, abs=2)
    assert learner_bytes(size, many) > sum(p.numel() for p in qwen.parameters()) * 2  # which is how it is loaded


def test_fewer_tokens_than_a_microbatch_holds_are_all_that_is_planned_for(qwen: Any) -> None:
    few = {"data": {"max_length": 64}, "eval": {"num_rows": 2}, "rollout": {"max_new_tokens": 64}}
    small, large = (config(**few, learner={"batch_size": 2, "microbatch_tokens": tokens}) for tokens in (4096, 16384))
    size = measure_size(qwen, small)
    assert learner_bytes(size, small) == learner_bytes(size, large)
    assert learner_bytes(size, small) < learner_bytes(size, config(learner={"microbatch_tokens": 4096}))


def test_keys_and_values_get_what_they_want_and_on_a_fuller_card_what_is_left() -> None:
    others = {"learner": 10 * GIB, "teacher": 5 * GIB}
    roomy = plan_engine(80 * GIB, others, 4 * GIB, wanted_kv=2 * GIB, least_kv=GIB, advice="")
    assert roomy.kv_bytes == 2 * GIB
    assert roomy.utilization == pytest.approx((4 + 2) / 80, abs=1e-3)
    tight = plan_engine(25 * GIB, others, 4 * GIB, wanted_kv=60 * GIB, least_kv=GIB, advice="")
    assert tight.kv_bytes == int(0.96 * 25 * GIB) - 19 * GIB


def test_a_card_that_is_too_small_is_refused_with_what_each_role_needs() -> None:
    with pytest.raises(PlacementError) as refusal:
        plan_engine(16 * GIB, {"learner": 10 * GIB}, 6 * GIB, 2 * GIB, GIB, "lower learner.microbatch_tokens")
    assert str(refusal.value) == (
        "a GPU of 16.0 GiB is too small: learner needs 10.0 GiB, rollout needs 7.0 GiB, together 17.0 GiB; "
        "lower learner.microbatch_tokens"
    )
