"""Tiny random judges that write what no one can read, and rows to train them on."""

import json

from command_line import write_rows
from tiny_checkpoints import TINY, write_tiny
from tiny_model import TEMPLATE, write_tiny_model

from spct.baselines.config import BaselineConfig

ASKS = "Specific Criteria, Analysis, Scores \\boxed{}"


def write_judge(folder, name="llama-tied-mha"):
    """A checkpoint of `tiny_checkpoints` as a judge; so many tokens end a sample that samples differ in length."""
    (tiny,) = (t for t in TINY if t.name == name)
    write_tiny(folder, tiny)
    (folder / "judge_template.jinja").write_text("{{ query }}{% for r in responses %}|{{ r }}{% endfor %}")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(100, 120))}))
    return folder


def write_labelled(path, count=7):
    """Rows with two responses and the better one's place."""
    return write_rows(path, [{"query": f"q{i}", "responses": ["a" * (1 + i % 3), "b"], "best": i % 2} for i in range(count)])


def write_base(folder):
    """A judge that takes the project's demonstrations, with room for whole items in bytes: what baselines start from."""
    write_tiny_model(folder, context=8192)
    (folder / "judge_template.jinja").write_text(f"{TEMPLATE}\n{ASKS}\n")
    return folder


def small(output, form, base, **settings):
    """A short run of `train baseline`."""
    defaults = {"steps": 2, "prompts": 2, "workers": 1, "critiqued": 2, "max_tokens": 4, "group": 1, "device": "cpu"}
    return BaselineConfig(output, form, str(base), **{**defaults, **settings})
