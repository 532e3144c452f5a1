"""vLLM after a publish computes with the learner's weights, to the bit. One engine serves the whole file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayqd.learner.engine_check import engine_error, engine_error_bound
from rayqd.learner.rollout_weights import collect_rollout_weights
from rayqd.model.student import Student
from rayqd.rollout.engine import SamplingRequest
from rayqd.types import EngineProbe, IntArray
from tests.rollout.served_model import served_model

pytestmark = [pytest.mark.slow, pytest.mark.vllm]

FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


@pytest.fixture(scope="module")
def published(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An engine that started from version 0 and was then given a trained-looking student's codes, and that student."""
    from rayqd.config import Config
    from rayqd.export.initial_checkpoint import make_initial_checkpoint
    from rayqd.rollout.kernels import explain_missing_cpu_kernel
    from rayqd.rollout.vllm import VLLMEngine

    if reason := explain_missing_cpu_kernel():
        pytest.skip(f"{reason}; test_dense_rollouts.py has what such a machine computes with")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYQD_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("VLLM_CACHE_ROOT", str(tmp_path_factory.mktemp("vllm")))
        patch.setattr("vllm.model_executor.models.registry._run_in_subprocess", start_no_process)
        config = Config.model_validate({"quant": {"group_size": 64, "init": "awq"}, "adapter": {"rank": 4}})
        engine = VLLMEngine(
            make_initial_checkpoint(tiny_model, config),
            context_length=128,
            max_concurrent=8,
            gpu_memory_utilization=0.5,
            dtype="bfloat16",
            max_top_ids=6,
        )
        student = Student.load(tiny_model, config)
        before = engine.generate([request()])
        generator = torch.Generator().manual_seed(1)
        for parameter in student.parameters().values():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
        for tensor in student.dense_tensors().values():
            if tensor.dim() == 1:  # as AWQ moves the norms
                tensor.mul_(1 + torch.rand(tensor.shape, generator=generator))
        engine.load_weights(collect_rollout_weights(student, config))
        yield engine, student, before


def start_no_process(*_: object) -> None:
    """Stand where vLLM would start another process to look at the class of the model, which takes 15 s of a start."""
    raise AssertionError("vLLM looks at the model's class in another process")


def request(**changes: Any) -> SamplingRequest:
    prompt: IntArray = np.arange(3, 19, dtype=np.int32)
    fields = {"prompt_ids": prompt, "seed": 7, "temperature": 1.0, "min_new_tokens": 4, "max_new_tokens": 24}
    return SamplingRequest(**(fields | changes))


def test_every_norm_is_the_learners(published: Any) -> None:
    engine, student, _ = published
    norms = {name: tensor for name, tensor in student.dense_tensors().items() if tensor.dim() == 1}
    own = dict(served_model(engine).named_parameters())
    assert len(norms) == 5  # two a layer, and the last
    for name, tensor in norms.items():
        assert torch.equal(own[name], tensor), name


def test_every_weight_in_the_kernel_is_the_learners(published: Any) -> None:
    engine, student, _ = published
    expected = {name: student.grid.dequantize(q) for name, q in student.quantized_layers()}
    checked = 0
    for name, module in served_model(engine).named_modules():
        parent, _, leaf = name.rpartition(".")
        parts = [f"{parent}.{part}" for part in FUSED.get(leaf, [leaf])]
        if parts[0] in expected:
            # Each row of the identity picks one column of the weights, whatever the kernel's packing: no sum rounds it.
            columns = module.quant_method.apply(module, torch.eye(module.input_size, dtype=torch.bfloat16))
            assert torch.equal(columns.mT, torch.cat([expected[part] for part in parts])), name
            checked += len(parts)
    assert checked == len(expected) == 14


def test_log_probabilities_equal_the_learners_to_16_bit_rounding(published: Any) -> None:
    engine, student, _ = published
    tokens = np.random.default_rng(0).integers(3, 128, 60, dtype=np.int32)
    ids = torch.from_numpy(tokens.astype("int64"))[None]
    picked = ids[0, 1:, None]

    def learner_logprobs() -> torch.Tensor:
        with torch.no_grad():
            return (
                student.model(ids, lengths=[ids.shape[1]])
                .logits[0, :-1]
                .float()
                .log_softmax(-1)
                .gather(-1, picked)[:, 0]
            )

    served = torch.tensor(engine.prompt_logprobs(tokens))
    in_16_bit = learner_logprobs()
    exact = {name: student.grid.dequantize(q).float() for name, q in student.quantized_layers()}
    student.model.float()
    for name, layer in student.layers.items():
        layer.forward = torch.nn.Linear(*reversed(exact[name].shape), bias=False).requires_grad_(False).forward  # type: ignore[method-assign]
        layer.forward.__self__.weight.data = exact[name]  # type: ignore[attr-defined]
    in_32_bit = learner_logprobs()
    rounding = (in_16_bit - in_32_bit).abs().max()
    assert (served - in_32_bit).abs().max() <= 2 * rounding
    assert rounding < 0.2


def test_the_new_weights_change_what_is_written(published: Any) -> None:
    engine, _, before = published
    assert not np.array_equal(engine.generate([request()])[0].token_ids, before[0].token_ids)


def test_a_seed_decides_the_completion_whatever_else_is_in_the_batch(published: Any) -> None:
    engine, _, _ = published
    alone = engine.generate([request(seed=5)])[0].token_ids
    together = [c.token_ids for c in engine.generate([request(seed=4), request(seed=5), request(seed=6)])]
    assert np.array_equal(alone, together[1])
    assert not np.array_equal(together[0], together[2])


def test_the_ids_that_it_found_likeliest_are_the_learners(published: Any) -> None:
    """At every token, whatever the temperature; ids whose logits bfloat16 hardly tells apart may change places."""
    engine, student, _ = published
    asked = request(temperature=0.5, min_new_tokens=12)
    (written,) = engine.generate_ranked([asked], 6)
    completion, ranked = written.token_ids, written.top_ids
    assert np.array_equal(completion, engine.generate([asked])[0].token_ids)
    assert ranked.shape == (len(completion), 6)
    whole = torch.from_numpy(np.concatenate([asked.prompt_ids, completion]).astype(np.int64))
    with torch.no_grad():
        logits = student.model(whole[None], lengths=[len(whole)]).logits[0, len(asked.prompt_ids) - 1 : -1].float()
    own = logits.gather(1, torch.from_numpy(ranked.astype(np.int64)))
    assert all(len(set(row)) == 6 for row in ranked.tolist())
    missed = logits.topk(6).values - own
    assert missed.abs().max() < 0.5
    assert missed.abs().mean() < 0.05
    assert logits.amax() - logits.amin() > 5


def test_lengths_are_kept(published: Any) -> None:
    engine, _, _ = published
    written = [engine.generate([request(seed=s, min_new_tokens=9, max_new_tokens=11)])[0] for s in range(8)]
    assert {len(completion.token_ids) for completion in written} <= {9, 10, 11}
    # 16 prompt tokens leave 112 of the context of 128
    (longest,) = engine.generate([request(min_new_tokens=500, max_new_tokens=500)])
    assert len(longest.token_ids) == 112
    assert longest.is_cut


def test_a_completion_is_cut_where_its_limit_came_before_an_end(published: Any) -> None:
    """Whatever is sampled here ends it: the first token is an end, and not the limit, although it is as long."""
    engine, _, _ = published
    ends = tuple(range(engine._llm.llm_engine.vllm_config.model_config.get_vocab_size()))
    (ended,) = engine.generate([request(min_new_tokens=0, max_new_tokens=1, stop_token_ids=ends)])
    (cut,) = engine.generate([request(min_new_tokens=1, max_new_tokens=1)])
    assert (len(ended.token_ids), ended.is_cut) == (1, False)
    assert (len(cut.token_ids), cut.is_cut) == (1, True)


def test_what_it_predicts_is_the_learners_prediction_up_to_roundings(published: Any) -> None:
    engine, student, _ = published
    prompt: IntArray = np.arange(3, 35, dtype=np.int32)
    prediction = engine.predict(prompt, 8, 16)
    assert prediction.top_ids.shape == prediction.logprobs.shape == (8, 16)
    greedy = request(prompt_ids=prompt, temperature=0.0, min_new_tokens=8, max_new_tokens=8)
    assert np.array_equal(prediction.token_ids, engine.generate([greedy])[0].token_ids)
    probe = EngineProbe(
        policy_version=0,
        prompt_ids=prompt,
        completion_ids=prediction.token_ids,
        top_ids=prediction.top_ids,
        logprobs=prediction.logprobs,
    )
    assert engine_error(student, probe) < engine_error_bound("bfloat16", 2)
