"""What the terminal shows of a run's data."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from rayqd.console.data import epochs_line, first_row_lines, print_data, visible
from rayqd.runs.data_file import LeftOutRows, LengthBin, Lengths, Piece, RunData, SeenRow, SourceRows

ROW = SeenRow(
    row=3,
    num_tokens=9,
    num_trained=4,
    pieces=(
        Piece(text="<|user|>", is_trained=False, is_special=True),
        Piece(text="two\nlines\x1b[31m", is_trained=False, is_special=False),
        Piece(text="an [bold]answer", is_trained=True, is_special=False),
        Piece(text="<|end|>", is_trained=True, is_special=True),
    ),
    end="<|end|>",
)
LEFT_OUT = LeftOutRows(reason="too long", num_rows=5, first=("a.jsonl:1: 99 tokens", "a.jsonl:4: 98 tokens"))
SOURCE = SourceRows(name="a.jsonl", num_rows=30, num_used=20, num_not_needed=5, num_duplicates=1, left_out=(LEFT_OUT,))
LENGTHS = Lengths(
    bins=(LengthBin(first=1, last=8, num_rows=15), LengthBin(first=9, last=16, num_rows=5)),
    mean=7.0, median=6.0, high=12, longest=16, trained_share=0.4,
)  # fmt: skip
DATA = RunData(
    training=SOURCE, heldout=SOURCE, lengths=LENGTHS, steps_per_epoch=6.25, first=(ROW,), ends=("<|end|>", "<|eos|>")
)  # fmt: skip


def printed(*, colours: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=colours, color_system="standard" if colours else None)
    print_data(console, DATA, max_length=64, num_steps=10, batch_size=4)
    return file.getvalue()


def test_the_first_row_is_a_line_a_part_with_every_character_visible() -> None:
    assert list(first_row_lines(DATA, 100)) == [
        "first row: 3 of a.jsonl, 9 tokens, 4 of them trained on",
        r"  prompt    <|user|>two⏎lines\x1b[31m",
        "  answer    an [bold]answer<|end|>",
        "  ends with <|end|>",
    ]


def test_long_parts_keep_both_ends_and_fit() -> None:
    text = f"begin{'x' * 5000}end"
    row = SeenRow(row=0, num_tokens=2, num_trained=0, pieces=(Piece(text=text, is_trained=False, is_special=False),),
                  end="", writer="the student")  # fmt: skip
    data = RunData(
        training=SOURCE, heldout=SOURCE, lengths=LENGTHS, steps_per_epoch=1, first=(row,), ends=("<e>", "<f>")
    )
    _, prompt, end = first_row_lines(data, 60)
    assert prompt.startswith("  prompt    beginx")
    assert prompt.endswith("xend")
    assert "4," in prompt  # how many characters are missing
    assert len(prompt) <= 2 * 60
    assert end == "  the student stops at <e> or <f>"


def test_a_conversation_of_many_turns_shows_its_beginning_and_its_end() -> None:
    pieces = tuple(Piece(text=f"turn{i};", is_trained=i % 2 == 1, is_special=False) for i in range(40))
    row = SeenRow(row=0, num_tokens=40, num_trained=20, pieces=pieces, end="")
    data = RunData(training=SOURCE, heldout=SOURCE, lengths=LENGTHS, steps_per_epoch=1, first=(row,))
    lines = list(first_row_lines(data, 80))
    assert [line.split()[-1] for line in lines[1:4]] == ["turn0;", "turn1;", "turn2;"]
    assert "34 more parts" in lines[4]
    assert [line.split()[-1] for line in lines[5:8]] == ["turn37;", "turn38;", "turn39;"]


def test_without_colours_what_is_trained_on_stands_in_brackets() -> None:
    out = printed(colours=False)
    assert "<|user|>two\nlines\\x1b[31m⟦an [bold]answer<|end|>⟧\n" in out
    assert "\x1b" not in out


def test_with_colours_it_is_green_and_stands_in_none() -> None:
    out = printed(colours=True)
    assert "\x1b[32man [bold]answer" in out
    assert "⟦" not in out
    assert "\x1b[31m" not in out  # the row's own


def test_reasons_have_their_rows_and_bars_are_as_long_as_they_should_be() -> None:
    out = printed(colours=False)
    assert "  5 too long\n    a.jsonl:1: 99 tokens\n    a.jsonl:4: 98 tokens\n    and 3 more\n" in out
    bars = {line.count("█"): line for line in out.splitlines() if "█" in line}
    assert sorted(bars) == [13, 40]  # 5 / 15 of 40 characters are 13 and a third
    assert "40% of the data's own tokens" in out


def test_epochs_are_an_estimate_where_rows_were_not_looked_at() -> None:
    assert epochs_line(DATA, 10, 4) == (
        "epochs    10 steps of 4 sequences are about 1.60 epochs; an epoch is about 6.2 steps"
    )


@pytest.mark.parametrize(
    ("text", "shown"), [("a\tb", r"a\tb"), ("\u202e", r"\u202e"), ("é€😀", "é€😀"), ("\ud800", r"\ud800")]
)
def test_what_a_terminal_would_obey_is_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown


MIXED = replace(
    DATA,
    first=(replace(ROW, source="chat"),),
    sources=(
        replace(SOURCE, label="chat", share=0.75, num_drawn=30, num_epochs=1.2),
        replace(SOURCE, name="b.jsonl", label="code", left_out=(), share=0.25, num_drawn=10, num_epochs=0.4),
    ),
)


def test_several_sources_have_a_row_each_with_share_and_epochs() -> None:
    file = io.StringIO()
    print_data(Console(file=file, width=120), MIXED, max_length=64, num_steps=10, batch_size=4)
    rows = {cells[0]: cells[1:] for line in file.getvalue().splitlines() if len(cells := line.strip("│ ").split()) > 3}
    assert (rows["chat"][-3], rows["chat"][-1]) == ("75.0%", "1.20")
    assert (rows["code"][-3], rows["code"][-1]) == ("25.0%", "0.40")
    out = file.getvalue()
    assert "epochs    10 steps of 4 sequences are about 1.20 of chat and 0.40 of code\n" in out
    assert out.count("5 too long") == 2  # of the source, and of what is held out
    assert "row 3 of chat: 9 tokens" in out


def test_a_run_of_several_sources_begins_with_their_shares() -> None:
    lines = list(first_row_lines(MIXED, 100))
    assert lines[:2] == [
        "chat: 75.0% of the sequences; code: 25.0% of the sequences",
        "first row: 3 of chat, 9 tokens, 4 of them trained on",
    ]
    assert "sequences" not in next(first_row_lines(replace(MIXED, use="the answer"), 100))  # of `quantize`
