"""An export answers in the chat template that it was trained with."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from rayqd.export.write import export
from rayqd.model.load import load_model
from rayqd.model.student import Student

TEMPLATE = "{% for m in messages %}{{ m.role + ': ' + m.content + '<|im_end|>' }}{% endfor %}"


def test_an_export_comes_with_data_chat_template_and_else_with_its_sources(
    tiny_config: Any, tiny_model: Path, tmp_path: Path
) -> None:
    own = AutoTokenizer.from_pretrained(tiny_model).chat_template
    for template, expected in ((TEMPLATE, TEMPLATE), (None, own)):
        config = tiny_config(data={"chat_template": template})
        student = Student(load_model(tiny_model, "bfloat16"), config, trainable=False)
        export(student, tiny_model, config, tmp_path / "export")
        assert AutoTokenizer.from_pretrained(tmp_path / "export").chat_template == expected
