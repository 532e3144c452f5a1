import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from rayqd.config import Config
from rayqd.config.sections import DataConfig
from rayqd.data import ExampleSet, load_examples, load_heldout, load_run_data
from rayqd.data.left_out import Reason
from rayqd.errors import ConfigError, DataError

# A token a character: "<|im_start|>user\n" + prompt + "<|im_end|>\n<|im_start|>assistant\n" is 6 + P + 2 + 11 tokens,
# and the completion is C + 1 ("<|im_end|>").
PROMPT_EXTRA, COMPLETION_EXTRA = 19, 1


def _write(path: Path, lengths: list[tuple[int, int]]) -> str:
    """Write rows of prompts and completions with so many characters; no two of the first 650 are the same."""
    rows: list[dict[str, str]] = []
    for number, (prompt, completion) in enumerate(lengths):
        letter = chr(ord("a") + number % 26)
        rows.append({"prompt": letter * prompt, "completion": chr(ord("b") + number // 26) * completion})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _load(tokenizer: PreTrainedTokenizerFast, source: str, **changes: Any) -> ExampleSet:
    on_bad_row = changes.pop("on_bad_row", "error")
    data = DataConfig(source=source, max_length=64, min_room=10, on_bad_row=on_bad_row)
    return load_examples(tokenizer, data, **{"seed": 0, "num_needed": 100, "context_length": 1000} | changes)


def _rows(examples: ExampleSet) -> list[int]:
    return [example.row for example in examples.examples]


def _config(source: str, **sections: Any) -> Config:
    defaults: dict[str, Any] = {
        "data": {"source": source, "max_length": 64, "min_room": 10},
        "eval": {"num_rows": 4},
        "learner": {"steps": 3, "batch_size": 2},
    }
    return Config(**{key: value | sections.get(key, {}) for key, value in defaults.items()})


def test_lengths_are_those_counted_by_hand(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    (example,) = _load(tokenizer, _write(tmp_path / "a.jsonl", [(5, 7)])).examples
    assert (len(example.prompt_ids), len(example.completion_ids)) == (5 + PROMPT_EXTRA, 7 + COMPLETION_EXTRA)


def test_prompts_leave_min_room_and_completions_fit_max_length(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    lengths = [
        (35, 9),   # 0: 54 + 10 = 64: both at their limits, kept
        (36, 8),   # 1: prompt of 55 > 64 - 10, though 55 + 9 = 64 would fit
        (35, 10),  # 2: 54 + 11 = 65 > 64
        (1, 43),   # 3: 20 + 44 = 64, kept
        (1, 44),   # 4: 65 > 64
    ]  # fmt: skip
    kept = _load(tokenizer, _write(tmp_path / "a.jsonl", lengths))
    assert sorted(_rows(kept)) == [0, 3]
    assert [(part.reason, part.num_rows) for part in kept.left_out] == [(Reason.TOO_LONG, 3)]
    assert (kept.source, kept.num_rows) == (str(tmp_path / "a.jsonl"), 5)
    assert str(kept.left_out[0]) == "3 too long"
    words = {row.location.rpartition(":")[2]: row.words for row in kept.left_out[0].first}
    assert words == {
        "2": "the prompt has 55 tokens, which leaves less than data.min_room=10 of data.max_length=64",
        "3": "prompt and completion have 54 and 11 tokens, more than data.max_length=64",
        "5": "prompt and completion have 20 and 45 tokens, more than data.max_length=64",
    }


def test_the_order_is_shuffled_by_the_seed_alone(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    source = _write(tmp_path / "a.jsonl", [(1, 1)] * 30)
    orders = [_rows(_load(tokenizer, source, seed=seed)) for seed in (1, 1, 2)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert [sorted(order) for order in orders] == [list(range(30))] * 3
    assert list(range(30)) not in orders


def test_no_more_rows_are_looked_at_than_needed(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenized: list[int] = []
    from rayqd.data import row_tokenizer as module

    original = module.tokenize_examples

    def recording(encoder: Any, conversations: Any, rows: list[int], chat: Any) -> Any:
        tokenized.extend(rows)
        return original(encoder, conversations, rows, chat)

    monkeypatch.setattr(module, "tokenize_examples", recording)
    source = _write(tmp_path / "a.jsonl", [(1, 1)] * 30)
    few = _load(tokenizer, source, num_needed=5)
    assert tokenized == _rows(few)
    assert len(tokenized) == 5


def test_fewer_needed_are_the_first_of_more(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    source = _write(tmp_path / "a.jsonl", [(1, 1), (60, 1)] * 15)
    everything = _rows(_load(tokenizer, source))
    assert len(everything) == 15
    assert _rows(_load(tokenizer, source, num_needed=6)) == everything[:6]
    assert _rows(_load(tokenizer, source, num_needed=6, exclude=4)) == everything[4:10]


def test_a_prompt_beyond_the_models_context_is_too_long_and_ends_no_run(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    source = _write(tmp_path / "a.jsonl", [(1, 1), (80, 1), (1, 2)])
    kept = _load(tokenizer, source, context_length=98)  # 80 + 19 = 99 tokens, one above 98
    assert sorted(_rows(kept)) == [0, 2]
    assert [str(part) for part in kept.left_out] == ["1 too long"]


def test_a_row_the_template_refuses_is_a_broken_row(tmp_path: Path, make_tokenizer: Any, chatml: str) -> None:
    refuse = "{% if 'bb' in messages[0]['content'] %}{{ raise_exception('no bb') }}{% endif %}"
    tokenizer = make_tokenizer(refuse + chatml)
    source = _write(tmp_path / "a.jsonl", [(1, 1), (2, 1)])
    with pytest.raises(DataError, match=r"a\.jsonl:2: .*no bb; fix it"):
        _load(tokenizer, source)
    (left_out,) = _load(tokenizer, source, on_bad_row="skip").left_out
    assert str(left_out).startswith(f"1 broken (first: {source}:2: the chat template refuses it: no bb")


def test_nothing_kept_says_how_many_rows_went_where(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    source = _write(tmp_path / "a.jsonl", [(60, 1), (61, 1), (1, 60)])
    with open(source, "a") as file:
        file.write("{}\n")
    with pytest.raises(DataError) as caught:
        _load(tokenizer, source, on_bad_row="skip")
    message = str(caught.value)
    # 60 + 19 + 2 = 81, 61 + 19 + 2 = 82 and 1 + 19 + 61 = 81 tokens.
    assert "(tokens of a row: 65 to 128: 3 rows)" in message
    assert "of its 4 rows 1 are broken, 3 do not fit data.max_length=64 with data.min_room=10" in message
    assert f"(first: {source}:4: neither messages" in message
    assert "\n" not in message


def test_max_length_above_the_models_context_is_a_config_error(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = _config(_write(tmp_path / "a.jsonl", [(1, 1)] * 9))
    with pytest.raises(ConfigError, match=r"data\.max_length=64 is above the 63 tokens that the model takes"):
        load_run_data(tokenizer, config, 63)
    load_run_data(tokenizer, config, 64)


def test_heldout_rows_are_the_first_kept_and_never_trained_on(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    # Of 40 rows 20 fit: 4 are held out, 3 steps of 2 need 6.
    source = _write(tmp_path / "a.jsonl", [(1, 1), (60, 1)] * 20)
    config = _config(source)
    training, heldout = load_run_data(tokenizer, config, 1000)
    everything = _rows(_load(tokenizer, source, seed=config.seed))
    assert _rows(heldout) == everything[:4]
    assert _rows(training) == everything[4:10]
    assert _rows(load_heldout(tokenizer, config, 1000)) == _rows(heldout)


def test_training_takes_what_there_is_when_that_is_less_than_the_steps_need(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    training, heldout = load_run_data(tokenizer, _config(_write(tmp_path / "a.jsonl", [(1, 1)] * 7)), 1000)
    assert (len(heldout.examples), len(training.examples)) == (4, 3)
    assert not set(_rows(heldout)) & set(_rows(training))


def test_all_rows_held_out_is_an_error_that_names_eval_num_rows(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = _config(_write(tmp_path / "a.jsonl", [(1, 1)] * 4))
    with pytest.raises(DataError, match=r"nothing to train on: .* the 4 others are held out \(eval\.num_rows=4\)"):
        load_run_data(tokenizer, config, 1000)


def test_heldout_rows_of_their_own_source_come_in_its_order(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    source = _write(tmp_path / "a.jsonl", [(1, 1)] * 6)
    heldout_source = _write(tmp_path / "b.jsonl", [(2, 1), (60, 1), (3, 1), (4, 1), (5, 1), (6, 1)])
    training, heldout = load_run_data(tokenizer, _config(source, eval={"source": heldout_source}), 1000)
    assert (_rows(heldout), heldout.source, [*map(str, heldout.left_out)]) == (
        [0, 2, 3, 4],
        heldout_source,
        ["1 too long"],
    )
    assert sorted(_rows(training)) == [0, 1, 2, 3, 4, 5]  # none is held out of the training data


def test_evaluating_on_the_training_source_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = _write(tmp_path / "a.jsonl", [(1, 1)] * 9)
    with pytest.raises(ConfigError, match=r"eval\.source=.* is what data\.source trains on"):
        load_run_data(tokenizer, _config(source, eval={"source": "./a.jsonl"}), 1000)
    with pytest.raises(ConfigError, match=r"eval\.source=.* is what data\.source trains on"):
        load_run_data(tokenizer, _config("quickstart", eval={"source": "quickstart", "split": "train"}), 1000)


def _write_texts(path: Path, *texts: tuple[str, str]) -> str:
    path.write_text("".join(json.dumps({"prompt": prompt, "completion": answer}) + "\n" for prompt, answer in texts))
    return str(path)


def test_rows_that_are_also_held_out_are_left_out_of_training_and_counted(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    heldout = _write_texts(tmp_path / "b.jsonl", ("Why?", "So."), ("Who?", "I."))
    source = _write_texts(
        tmp_path / "a.jsonl",
        ("Why?", "So."),      # exactly
        ("  why?\n", "SO."),  # but for white space and case
        ("Why?", "No."),      # another answer
        ("Wh y?", "So."),     # another word
    )  # fmt: skip
    training, _ = load_run_data(tokenizer, _config(source, eval={"source": heldout}), 1000)
    assert sorted(_rows(training)) == [2, 3]
    assert [str(part) for part in training.left_out] == ["2 also held out"]
    assert {row.location for row in training.left_out[0].first} == {f"{source}:1", f"{source}:2"}


def test_copies_of_rows_that_are_held_out_of_the_data_itself_are_not_trained_on(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    source = _write_texts(tmp_path / "a.jsonl", *[(chr(ord("a") + i % 6), "x") for i in range(18)])
    training, heldout = load_run_data(tokenizer, _config(source), 1000)
    seen = {example.prompt_ids.tobytes() for example in heldout.examples}
    assert len(heldout.examples) == 4
    assert not seen & {example.prompt_ids.tobytes() for example in training.examples}


def test_duplicates_are_counted_and_kept(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    source = _write_texts(tmp_path / "a.jsonl", ("a", "x"), ("A ", "x"), ("b", "x"), ("a", "x"))
    kept = _load(tokenizer, source)
    assert (len(kept.examples), kept.num_duplicates) == (4, 2)


def test_a_byte_copy_of_the_training_file_is_said_and_its_held_out_rows_are_not_trained_on(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    source = _write(tmp_path / "a.jsonl", [(1, 1)] * 9)
    copy = _write(tmp_path / "b.jsonl", [(1, 1)] * 9)
    training, heldout = load_run_data(tokenizer, _config(source, eval={"source": copy}), 1000)
    assert _rows(heldout) == [0, 1, 2, 3]
    assert sorted(_rows(training)) == [4, 5, 6, 7, 8]
    assert training.remarks == (
        f"eval.source={copy} is a byte copy of data.source={source}: "
        "the rows that it holds out are left out of training",
    )
    with pytest.raises(DataError, match=r"leaves no examples: .*, 9 are also held out; give data that eval"):
        load_run_data(tokenizer, _config(source, eval={"source": copy, "num_rows": 9}), 1000)


def test_who_waits_for_tokens_is_told_how_far_they_are(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    source = _write(tmp_path / "a.jsonl", [(1, 1)] * 200)
    told: list[tuple[int, int]] = []
    learner = {"steps": 75, "batch_size": 2}
    load_run_data(tokenizer, _config(source, learner=learner), 1000, lambda done, total: told.append((done, total)))
    assert told == [(64, 154), (128, 154)]  # of 4 rows held out and 150 for the steps


def test_fewer_rows_than_a_batch_are_said(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    source = _write(tmp_path / "a.jsonl", [(1, 1)] * 5)
    training, _ = load_run_data(tokenizer, _config(source), 1000)
    assert training.remarks == (
        "there is a single row to train on, less than one step takes (learner.batch_size=2): a step has the same row "
        "several times",
    )


def test_importing_the_package_imports_none_of_the_heavy_libraries() -> None:
    code = "import rayqd.data, sys; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
