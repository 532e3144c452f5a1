"""What a benchmark must get right besides the clock: the work it times, and what it says."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from rayqd.bench import shapes
from rayqd.bench.peers import installed_peers
from rayqd.bench.step import ARMS, DEFAULT_ARMS
from rayqd.commands.bench import bench
from rayqd.config import Config
from rayqd.errors import ConfigError
from rayqd.losses import chunked_generalized_jsd

TINY = shapes.ModelShape(
    model_type="llama",
    vocab_size=128,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)


def config() -> Config:
    return Config.model_validate({"quant": {"group_size": 32}, "adapter": {"rank": 4}, "learner": {"lr": 1e-3}})


def rows_of(kind: str, config: Config, switches: dict[str, str]) -> list[dict[str, Any]]:
    rows: Any = bench(kind, config, switches, Console(quiet=True)).to_json()["rows"]
    return rows


def switches(tmp_path: Path, **more: str) -> dict[str, str]:
    return {"shape": "tiny", "tokens": "2x16", "repeats": "2", "json": str(tmp_path / "bench.json"), **more}


@pytest.mark.slow
def test_step_times_plain_lora_and_the_rounded_ones(tmp_path: Path) -> None:
    console = Console(record=True, width=140)
    result: Any = bench("step", config(), switches(tmp_path), console).to_json()
    assert [row["arm"] for row in result["rows"]] == [ARMS[arm] for arm in DEFAULT_ARMS]
    for row in result["rows"]:
        assert row["fastest_seconds"] <= row["seconds"] <= row["slowest_seconds"]
    for row in result["rows"][:3]:
        assert row["tokens/s"] == round(32 / row["seconds"])
    assert json.loads((tmp_path / "bench.json").read_text()) == result
    shown = console.export_text()
    assert ARMS["plain"] in shown
    assert "tiny, 2 x 16 tokens" in shown


@pytest.mark.slow
def test_step_times_the_arms_it_is_told(tmp_path: Path) -> None:
    rows = rows_of("step", config(), switches(tmp_path, arms="full,plain"))
    assert [row["arm"] for row in rows] == [ARMS["full"], ARMS["plain"]]
    assert rows[0]["to the first"] == 1.0


def test_loss_times_each_beta_against_the_products(tmp_path: Path) -> None:
    rows = rows_of("loss", config(), switches(tmp_path, **{"chunk-tokens": "20"}))
    arms = [row["arm"] for row in rows]
    assert arms[1:4] == ["its rows alone, beta 0", "its rows alone, beta 0.5", "its rows alone, beta 1"]
    assert arms[4:7] == ["loss, beta 0", "loss, beta 0.5", "loss, beta 1"]
    assert arms[7:10] == [f"TRL, chunked divergence, beta {b}" for b in ("0", "0.5", "1")]
    assert rows[0]["to products"] == 1.0


def test_each_payload_is_put_beside_the_exact_divergence(tmp_path: Path, tiny_config: Any) -> None:
    """At k = V nothing is left out; fewer ids lose more, and are fewer bytes."""
    config = tiny_config(data={"max_length": 64})
    given = {"tokens": "2x64", "repeats": "1", "json": str(tmp_path / "bench.json")}
    rows = {row["payload"]: row for row in rows_of("teacher", config, given)}
    exact = rows["hidden"]
    assert exact["bytes/token"] == 2 * 128  # bfloat16
    assert rows["logits"]["bytes/token"] == 2 * 128
    assert rows["sampled"]["bytes/token"] == 4
    assert rows["topk 8"]["bytes/token"] == 64
    for beta, loss in exact["loss"].items():
        assert rows["topk 1"]["loss"][beta] < rows["topk 8"]["loss"][beta] < rows["topk 64"]["loss"][beta] < loss
        assert rows["topk 1"]["cosine"][beta] < rows["topk 64"]["cosine"][beta] <= 1.0
        assert rows["logits"]["loss"][beta] == pytest.approx(loss, rel=2e-2)
    with pytest.raises(ConfigError, match="--shape"):
        bench("teacher", config, given | {"shape": "tiny"}, Console(quiet=True))


def test_the_peers_compute_the_same_divergence() -> None:
    torch.manual_seed(0)
    student, teacher, head = torch.randn(9, 16), torch.randn(9, 16), torch.randn(50, 16)
    for name, mean_divergence in installed_peers():
        for beta in (0.0, 0.3, 1.0):
            theirs, ours = student.clone().requires_grad_(), student.clone().requires_grad_()
            loss = mean_divergence(theirs, head, teacher, head, beta)
            exact = chunked_generalized_jsd(ours, head, teacher, head, beta=beta).mean()
            torch.testing.assert_close(loss, exact, msg=lambda text, name=name: f"{name}: {text}")
            loss.backward()
            exact.backward()
            torch.testing.assert_close(theirs.grad, ours.grad)


def test_the_shapes_are_those_of_the_models_they_are_named_after() -> None:
    """Against the counts on the models' cards, in which tied embeddings count once."""
    counts = {"smollm2-135m": 134_515_008, "qwen3-0.6b": 596_049_920, "qwen3-4b": 4_022_468_096}
    for shape, count in counts.items():
        with torch.device("meta"):
            model = _on_meta(shape)
        assert sum(p.numel() for p in model.parameters()) == count


def _on_meta(shape: str) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(shapes.SHAPES[shape].to_config())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shape": "qwen4"}, "--shape=qwen4: must be one of smollm2-135m"),
        ({"tokens": "1024"}, "--tokens=1024: must be SEQUENCESxLENGTH"),
        ({"tokens": "4x1"}, "--tokens=4x1: must be SEQUENCESxLENGTH"),
        ({"arms": "plain,fast"}, "--arms=plain,fast: fast is none of plain, stop"),
        ({"chunk-tokens": "512"}, "only rayqd bench loss has chunks"),
        ({"repeats": "0"}, "--repeats=0: must be a whole number from 1"),
    ],
)
def test_a_wrong_switch_is_one_line(tmp_path: Path, wrong: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bench("step", config(), switches(tmp_path, **wrong), Console(quiet=True))
