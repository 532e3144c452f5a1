"""Tasks of a user's own, as lm-eval reads them, of rows with a question, choices and an answer."""

import json
from pathlib import Path

CHOICE = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {file}}}
output_type: multiple_choice
test_split: train
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
GENERATE = """\
task: own_words
dataset_path: json
dataset_kwargs: {{data_files: {file}}}
output_type: generate_until
test_split: train
fewshot_split: train
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: ["!"], max_gen_toks: 8}}
filter_list:
  - name: letters
    filter: [{{function: regex, regex_pattern: "([a-z])"}}, {{function: take_first}}]
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
ROLLING = """\
task: own_text
dataset_path: json
dataset_kwargs: {{data_files: {file}}}
output_type: loglikelihood_rolling
test_split: train
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list:
  - {{metric: word_perplexity}}
"""
GROUP = """\
group: own_group
task: [first, second]
aggregate_metric_list:
  - {metric: acc, weight_by_size: true}
"""


def write_choices(directory: Path, name: str, number: int) -> None:
    """Write a task of so many questions with three choices, and its rows."""
    rows = [
        {"question": f"{name} {i}, say {chr(97 + i)}: ", "choices": [chr(97 + i), "no", "q"], "answer": i % 3}
        for i in range(number)
    ]
    file = directory / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / f"{name}.yaml").write_text(CHOICE.format(name=name, file=file))
