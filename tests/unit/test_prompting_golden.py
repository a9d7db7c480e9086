"""The prompts as text files, so that a change of wording is seen in a diff. Run this file as a program to write them anew."""

import sys
import tempfile
from pathlib import Path

import pytest
import tiny_tokenizers as tiny

from spct.prompting import JudgePrompt
from spct.types import ScoreRequest

GOLDEN = Path(__file__).parents[1] / "golden"
CONVERSATION = [
    {"role": "system", "content": "Answer in one word."},
    {"role": "user", "content": "Capital of France?"},
    {"role": "assistant", "content": "Paris"},
    {"role": "user", "content": "And of Italy?"},
]
CASES = {
    "default_pair": ("default", None, ScoreRequest("What is 17 + 25?", ["42", "It is 43.\n"])),
    "default_pair_swapped": ("default", None, ScoreRequest("What is 17 + 25?", ["42", "It is 43.\n"])),
    "default_single": ("default", None, ScoreRequest("Name a prime above 10.", ["11"])),
    "default_reference_principles": (
        "default",
        None,
        ScoreRequest(
            "What is 17 + 25?", ["42", "43", "\\boxed{10, 1, 1}"], reference="42", principles=["Exactness (70%)", "Brevity (30%)"]
        ),
    ),
    "default_conversation_chatml": ("default", tiny.CHATML, ScoreRequest(CONVERSATION, ["Rome", "rome, of course </think>"])),
    "verify": ("verify", None, ScoreRequest("Is 91 prime?", ["No: 7 * 13."])),
    "verify_reference_principles": (
        "verify",
        None,
        ScoreRequest("Is 91 prime?", ["Yes."], reference="No.", principles="The verdict decides."),
    ),
}


def render(name, folder):
    template, chat, request = CASES[name]
    prompt = JudgePrompt(tiny.write_folder(folder, chat_template=chat), template=template)
    order = tuple(reversed(range(len(request.responses)))) if name.endswith("swapped") else None
    return prompt, request, order


@pytest.mark.parametrize("name", CASES)
def test_prompts_are_as_written_down(name, tmp_path):
    prompt, request, order = render(name, tmp_path)
    expected = (GOLDEN / f"prompt_{name}.txt").read_text(encoding="utf-8")
    assert prompt.text(request, order) == expected
    assert prompt.decode(prompt.encode(request, order)) == expected


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("verify")])
def test_blocks_and_markers_stand_in_the_published_order(name, tmp_path):
    prompt, request, order = render(name, tmp_path)
    text = prompt.text(request, order)
    marks = ["#### Evaluation Criteria ####", "#### Conversation Context ####", "#### Responses to be Scored ####"]
    for i in range(1, len(request.responses) + 1):
        marks += [f"[The Begin of Response {i}]", f"[The End of Response {i}]"]
    marks += ["#### Output Format Requirements ####", "Specific Criteria: <", "Analysis: <", "Scores: <"]
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places)
    assert "\\boxed{" + ", ".join("x" * len(request.responses)) + "}>" in text


if __name__ == "__main__":
    for case in CASES:
        with tempfile.TemporaryDirectory() as scratch:
            made, asked, shown = render(case, scratch)
            (GOLDEN / f"prompt_{case}.txt").write_text(made.text(asked, shown), encoding="utf-8")
    sys.stdout.write(f"{len(CASES)} prompts written to {GOLDEN}\n")
