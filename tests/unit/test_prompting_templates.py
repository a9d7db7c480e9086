"""Templates: what they may do with a request, what they may not, and what hostile ones can't spend."""

import random
import time

import pytest
import tiny_tokenizers as tiny

from spct.errors import ConfigError, InputError
from spct.prompting import JudgePrompt
from spct.prompting.marks import TemplatePart, TemplateUseError, UserPart, UserText, split_parts
from spct.prompting.sandbox import Template
from spct.prompting.shape import plain_shape
from spct.types import ScoreRequest

REQUEST = ScoreRequest("q", [" a ", "b"], reference="r", principles=["p1", "p2"])
SHOW_ALL = "{{ query }}{% for r in responses %}{{ r }}{% endfor %}{{ reference or '' }}{{ principles or '' }}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_folder(tmp_path_factory.mktemp("templates") / "model")


def rendered(folder, source, request=REQUEST, order=None, **kwargs):
    path = folder / "given.jinja"
    path.write_text(source, encoding="utf-8")
    return JudgePrompt(folder, template=path, **kwargs).text(request, order)


def with_rest(folder, source, request=REQUEST):
    """Render `source` and, behind a bar, everything that every template has to show."""
    return rendered(folder, source + "|" + SHOW_ALL, request).rsplit("|", 1)[0]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ query }}", "q"),
        ("{{ responses[1] }}{{ responses[0] }}", "b a "),
        ("{{ responses[0] | trim }}", "a"),
        ("{{ responses[0].strip() }}.", "a."),
        ("{{ responses[0].lstrip() }}.{{ responses[0].rstrip() }}.{{ responses[0].lstrip().rstrip() }}.", "a . a.a."),
        ("{{ responses | join('; ') }}", " a ; b"),
        ("{{ responses | map('trim') | join('; ') }}", "a; b"),
        ("{{ responses | length }}{{ num_responses }}", "22"),
        ("{{ '<' ~ query ~ '>' }}{{ '<' + query + '>' }}", "<q><q>"),
        ("{% set x %}[{{ query }}]{% endset %}{{ x }}", "[q]"),
        ("{% macro m(t) %}({{ t }}){% endmacro %}{{ m(query) }}", "(q)"),
        ("{{ '{}={}'.format('a', query) }}", "a=q"),
        ("{% if reference %}y{% else %}n{% endif %}{% if principles is none %}n{% endif %}", "y"),
        ("{{ query if query != '' else 'empty' }}", "q"),
        ("{{ query is string }}{{ principles is defined }}{{ nothing is defined }}", "TrueTrueFalse"),
        ("{% for t in turns %}{{ t.role }}:{{ t.content }}{% endfor %}", "user:q"),
        ("{% for r in responses %}{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}{% endfor %}", "1/2,2/2"),
        ("{% for r in responses %}{% if loop.index > 1 %}{% break %}{% endif %}{{ r }}{% endfor %}", " a "),
        ("{{ responses | list | length }}{{ responses | first }}{{ (responses | last) }}", "2 a b"),
        ("{{ {'a': [1, 'é']} | tojson }}", '{"a": [1, "é"]}'),
        ("{{ query | default('x') }}{{ reference | default('x', true) }}", "qr"),
        ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
        ("{{ 'Score' | upper }}{{ ' x ' | trim }}{{ 'a-b' | replace('-', '+') }}{{ 'a\nb' | indent(2) }}", "SCORExa+ba\n  b"),
    ],
)
def test_what_templates_may_do(folder, source, expected):
    assert with_rest(folder, source) == expected


@pytest.mark.parametrize(
    "source",
    [
        "{{ query | upper }}",
        "{{ query | length }}",
        "{{ query[0] }}",
        "{{ query[:10] }}",
        "{{ query | replace('a', 'b') }}",
        "{{ query | e }}",
        "{{ query | tojson }}",
        "{{ responses | tojson }}",
        "{{ query | int }}",
        "{{ query | float }}",
        "{{ query | truncate(5) }}",
        "{{ query | list }}",
        "{{ query | reverse }}",
        "{{ query | first }}",
        "{{ query | title }}",
        "{{ query | capitalize }}",
        "{{ query | indent }}",
        "{{ query.split(',') }}",
        "{{ query.startswith('a') }}",
        "{{ 'a' in query }}",
        "{{ query in ['a'] }}",
        "{{ query == 'a' }}",
        "{{ responses[0] == responses[1] }}",
        "{{ query < 'a' }}",
        "{{ query * 2 }}",
        "{{ responses | sort }}",
        "{{ responses | unique | list }}",
        "{{ responses | max }}",
        "{% for c in query %}{% endfor %}",
        "{{ responses | map('upper') | join }}",
        "{{ query.strip('q') }}",
        "{{ query is upper }}",
        "{{ principles.splitlines() }}",
        "{% set x %}[{{ query }}]{% endset %}{{ x | upper }}",
        "{% set x %}[{{ query }}]{% endset %}{{ x | length }}",
        "{{ ('<' ~ query) | length }}",
        "{{ ('<' + query) | lower }}",
        "{{ '{}'.format(query) | length }}",
        "{{ (responses | join)[:3] }}",
        "{% filter upper %}{{ query }}{% endfilter %}",
        "{% macro m(t) %}({{ t }}){% endmacro %}{{ m(query) | lower }}",
        "{{ query | map('upper') | list }}",
        "{% autoescape true %}{{ query }}{% endautoescape %}",
    ],
)
def test_what_a_placeholder_can_not_follow_is_refused(folder, source):
    """The judge would otherwise see a wrong text, or a decision made on the placeholder instead of the text."""
    with pytest.raises(TemplateUseError, match="text of the request") as caught:
        with_rest(folder, source)
    assert "given.jinja" in str(caught.value)


def test_emptiness_is_that_of_the_text(folder):
    source = "{{ 'e' if not query }}{{ 'E' if query == '' }}{{ 'b' if not query | trim }}{{ 'p' if principles }}|"
    for query, principles, expected in (("", None, "eEb"), (" \n", [], "b"), ("x", [""], ""), ("x", ["", "y"], "p"), ("x", "", "")):
        request = ScoreRequest(query, ["a"], principles=principles)
        assert rendered(folder, source + SHOW_ALL, request).split("|")[0] == expected


def test_a_shape_is_rendered_once_and_values_never_leak_between_requests(folder):
    prompt = JudgePrompt(folder)
    rendered_before = prompt._layout.cache_info().misses
    requests = [ScoreRequest(f"query {i}", [f"one {i}", f"two {i}"], reference=f"ref {i}") for i in range(20)]
    for request in requests:
        for order in ((0, 1), (1, 0)):
            text = prompt.decode(prompt.encode(request, order))
            assert text == prompt.text(request, order)
            assert all(part in text for part in (request.query, *request.responses, request.reference))
            assert text.index(request.responses[order[0]]) < text.index(request.responses[order[1]])
    assert prompt._layout.cache_info().misses == rendered_before + 1


def test_user_text_never_acts_on_a_template(folder):
    for text in ("{{ 7 * 7 }}", "{% raw %}", "{# #}", "{{ raise_exception('x') }}", "\ufdd0uS0n\ufdd1", "\ufdd0", "\\boxed{10}"):
        request = ScoreRequest(text, [text, "b"], reference=text, principles=text)
        prompt = JudgePrompt(folder)
        assert prompt.text(request).count(text) == 4 + (text == "\\boxed{10}") * 0
        assert prompt.decode(prompt.encode(request)) == prompt.text(request)


def test_conversations_are_flattened_and_given_as_turns(folder):
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    conversation = ScoreRequest([*turns, {"role": "user", "content": "more"}], ["a"])
    flat = "[System]\nbe brief\n\n[User]\nhi\n\n[Assistant]\nyo\n\n[User]\nmore"
    assert rendered(folder, "{{ query }}|{{ responses[0] }}", conversation) == flat + "|a"
    source = (
        "{% for t in turns %}{% if t.role == 'user' %}U{{ t.content }}{% else %}-{{ t.content }}{% endif %}{% endfor %}|{{ responses[0] }}"
    )
    assert rendered(folder, source, conversation) == "-be briefUhi-yoUmore|a"
    lone = ScoreRequest([{"role": "user", "content": "hi"}], ["a"])
    assert rendered(folder, "{{ query }}|{{ responses[0] }}", lone) == "hi|a"
    assert rendered(folder, "{{ query }}|{{ responses[0] }}", ScoreRequest([turns[0]], ["a"])) == "[System]\nbe brief|a"


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("{{ query }}", "responses"),
        ("{{ query }}{{ responses[0] }}", "responses"),
        ("{{ responses }}".replace("responses", "responses | join"), "query"),
    ],
)
def test_a_template_that_leaves_something_out_is_refused(folder, source, named):
    with pytest.raises(InputError, match=f"does not show .*{named}"):
        rendered(folder, source, ScoreRequest("q", ["a", "b"]))


@pytest.mark.parametrize("field", ["reference", "principles"])
def test_a_template_without_a_place_for_an_optional_field_refuses_it(folder, field):
    source = "{{ query }}{{ responses | join }}"
    assert rendered(folder, source, ScoreRequest("q", ["a"], **{field: ""})) == "qa"
    with pytest.raises(InputError, match=f"does not show {field}"):
        rendered(folder, source, ScoreRequest("q", ["a"], **{field: "x"}))


@pytest.mark.parametrize("value", ["[1, 10]", "[0, 1]", "(1, 5)", "[0, 1000000]"])
def test_score_range(folder, value):
    path = folder / "range.jinja"
    path.write_text("{% set score_range = " + value + " %}" + SHOW_ALL)
    prompt = JudgePrompt(folder, template=path)
    assert prompt.score_range(2) == prompt.score_range(REQUEST) == tuple(int(v) for v in value.strip("[]()").split(","))


@pytest.mark.parametrize(
    "value", ["[10, 1]", "[1, 1]", "[1]", "[1, 2, 3]", "'1, 10'", "[1.0, 10]", "[-1, 1]", "none", "[true, 10]", "{}", "[1, 10000001]"]
)
def test_a_bad_score_range_is_refused(folder, value):
    path = folder / "range.jinja"
    path.write_text("{% set score_range = " + value + " %}" + SHOW_ALL)
    with pytest.raises(ConfigError, match="score_range: expected"):
        JudgePrompt(folder, template=path).encode(REQUEST)


def test_score_range_may_depend_on_the_shape_and_defaults_to_one_to_ten(folder):
    path = folder / "range.jinja"
    path.write_text("{% if num_responses == 1 %}{% set score_range = [0, 1] %}{% endif %}" + SHOW_ALL)
    prompt = JudgePrompt(folder, template=path)
    assert (prompt.score_range(1), prompt.score_range(3)) == ((0, 1), (1, 10))


def test_verify_judges_one_response(folder):
    prompt = JudgePrompt(folder, template="verify")
    assert prompt.score_range(1) == (0, 1)
    with pytest.raises(InputError, match="'verify' judges a single response, got 2"):
        prompt.encode(REQUEST)


def test_orders_share_everything_before_the_first_response(folder):
    prompt = JudgePrompt(folder)
    request = ScoreRequest("q", ["aaa", "bbb", "ccc"], reference="r")
    one, two = (prompt.encode(request, order) for order in ((0, 1, 2), (2, 0, 1)))
    shared = next(i for i, (x, y) in enumerate(zip(one, two, strict=True)) if x != y)
    assert prompt.decode(one[:shared]).endswith("[The Begin of Response 1]\n")
    assert len(one) == len(two)


@pytest.mark.parametrize("order", [(0,), (0, 0), (1, 2), (0, 1, 2), ()])
def test_an_order_has_to_be_a_permutation(folder, order):
    with pytest.raises(InputError, match=r"permutation of 0 \.\. 1"):
        JudgePrompt(folder).encode(REQUEST, order)


def test_what_a_request_lacks_is_never_printed_as_none(folder):
    source = SHOW_ALL.replace("{{ reference or '' }}", "{{ reference }}")
    assert rendered(folder, source).endswith("rp1\np2")
    with pytest.raises(InputError, match="does not have, such as a reference"):
        rendered(folder, source, ScoreRequest("q", ["a"]))


def test_a_broken_template_fails_when_it_is_loaded_even_one_for_single_responses(folder):
    path = folder / "broken.jinja"
    for only in ("", "{% if num_responses != 1 %}{{ raise_exception('one only') }}{% endif %}"):
        path.write_text(only + "{{ nothing }}" + SHOW_ALL)
        with pytest.raises(ConfigError, match="'nothing' is undefined"):
            JudgePrompt(folder, template=path)
    path.write_text("{{ raise_exception('never') }}")
    with pytest.raises(InputError, match="never"):
        JudgePrompt(folder, template=path).encode(REQUEST)


def test_which_template_is_taken(folder, tmp_path):
    own = tiny.write_folder(tmp_path / "own")
    assert JudgePrompt(own).digest == JudgePrompt(own, template="default").digest
    (own / "judge_template.jinja").write_text("own " + SHOW_ALL)
    assert JudgePrompt(own).text(REQUEST).startswith("own ")
    assert JudgePrompt(own, template="default").text(REQUEST).startswith("You are")
    digests = {JudgePrompt(own, template=name).digest for name in (None, "default", "verify")}
    assert len(digests) == 3
    for name in ("nosuch", tmp_path, tmp_path / "nosuch.jinja"):
        with pytest.raises(ConfigError, match="template: expected one of default, verify or a readable"):
            JudgePrompt(own, template=name)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a\nb\n{% for %}", "line 3"),
        ("a\n{{ query | nosuch }}", "line 2: No filter named 'nosuch'"),
        ("a\n\n\n{{ nothing }}", "line 4: UndefinedError: 'nothing' is undefined"),
        ("{% for r in responses %}\n{{ 1 / 0 }}{% endfor %}", "line 2: ZeroDivisionError"),
        ("{{ responses[2] }}", "line 1: UndefinedError"),
        ("\n{{ query.nosuch }}", "line 2: an index or slice"),
        ("\ufdd0", "noncharacter"),
        ("{% include 'x' %}", "no loader"),
    ],
)
def test_template_errors_name_the_file_and_the_line(folder, source, message):
    with pytest.raises(ConfigError, match=message) as caught:
        rendered(folder, source)
    assert "given.jinja" in str(caught.value)


GROW = "{% set ns = namespace(s='x') %}{% for i in range(64) %}{% set ns.s = GROWN %}{% endfor %}"
HOSTILE = [
    GROW.replace("GROWN", "ns.s + ns.s"),
    GROW.replace("GROWN", "ns.s ~ ns.s"),
    GROW.replace("GROWN", "ns.s|replace('x', 'xxxxxx')"),
    GROW.replace("GROWN", "ns.s.replace('x', 'xxxxxx')"),
    GROW.replace("GROWN", "[ns.s, ns.s]|join"),
    GROW.replace("'x'", "[1]").replace("GROWN", "ns.s + ns.s"),
    GROW.replace("'x'", "3").replace("GROWN", "ns.s * ns.s"),
    GROW.replace("{% set ns.s = GROWN %}", "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}"),
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{% for i in range(100000) %}{{ 'xxxxxxxxxxxxxxxxxxxxxxxx' }}{% endfor %}",
    "{% set s = 'x' * 10000 %}{% for a in s %}{% for b in s %}{% for c in s %}{% endfor %}{% endfor %}{% endfor %}",
    "{% for i in range(1000) %}{% set x = range(100000)|list|sort %}{% endfor %}",
    "{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "{{ 'x' * 10**9 }}",
    "{{ [1] * 10**9 }}",
    "{{ 10 ** 10 ** 10 }}",
    "{{ 'x'|center(10**9) }}",
    "{{ 'x'.ljust(10**9) }}",
    "{{ 'x'.zfill(10**9) }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '{:>999999999}'.format('x') }}",
    "{{ '{:>{}}'.format('x', 999999999) }}",
    "{{ 'x'|indent(10**9) }}",
    "{{ ('x' * 10000).join('y' * 10000) }}",
    "{{ [1]|tojson(indent=999999999) }}",
    "{{ (5).to_bytes(10**9, 'big') }}",
    "{{ [1]|batch(10**9, 'x')|list }}",
    "{{ 'x'.translate({120: 'yy'}) }}",
    "{{ lipsum() }}",
    "{{ [1, 2]|random }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ query.__class__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ namespace.__init__ }}",
    "{{ '{0.__class__}'.format(query) }}",
    "{% import 'os' as os %}",
    "{% extends 'x' %}",
    "{{ [].append(1) }}",
    "{{ {}.update(a=1) }}",
    "{{ query.encode() }}",
    "{{ 'x'.encode() }}",
    "{{ query % 2 }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ 1" + " + 1" * 20000 + " }}",
    "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
    "{{ " + "9" * 5000 + " }}",
    "x" * 1024 * 1024 + "x",
]


@pytest.mark.parametrize("source", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("strict", [True, False], ids=["judge", "chat"])
def test_hostile_templates_end_soon_with_an_error(source, strict):
    started = time.thread_time()
    try:
        text, _ = Template(source, "template t", strict=strict).render(plain_shape(2).variables())
    except ConfigError as error:
        assert str(error).startswith("template t")
    else:
        # A chat template is lenient: what it may not reach is undefined, and prints as nothing.
        assert not strict
        assert text == ""
    assert time.thread_time() - started < 10


CHATS = {
    "trim": "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] | trim }}{% endfor %}",
    "thinking": (
        "{%- set ns = namespace(last=messages|length - 1) %}{%- for message in messages[::-1] %}"
        "{%- if message.role == 'user' and message.content is string "
        "and not (message.content.startswith('<r>') and message.content.endswith('</r>')) %}"
        "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
        "{%- for message in messages %}{%- if '</think>' in message.content %}"
        "{%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}"
        "{%- else %}{%- set content = message.content %}{%- endif %}"
        "{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}"
        "{%- if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}{%- endfor %}{% generation %}{% endgeneration %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- if enable_thinking is defined and enable_thinking is false %}"
        "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
    ),
    "date": "{% if not date is defined %}{% set date = strftime_now('%d %b %Y') %}{% endif %}{{ date }} {{ messages[0].content }}",
    "system": (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "{{ messages[0]['content'] }}{% if tools %}T{% endif %}{{ nothing }}"
    ),
}


@pytest.mark.parametrize("name", CHATS)
def test_chat_templates_of_every_style_wrap_the_prompt(name, tmp_path):
    prompt = JudgePrompt(tiny.write_folder(tmp_path, chat_template=CHATS[name]))
    text = prompt.text(REQUEST)
    assert prompt.decode(prompt.encode(REQUEST)) == text
    bare = JudgePrompt(tiny.write_folder(tmp_path / "bare")).text(REQUEST)
    assert bare in text
    assert (text == bare) == (name == "system")


def test_chat_template_variables_reach_the_template(tmp_path):
    folder = tiny.write_folder(tmp_path, chat_template=CHATS["thinking"])
    thinking, direct = JudgePrompt(folder), JudgePrompt(folder, chat_template_kwargs={"enable_thinking": False})
    assert direct.text(REQUEST) == thinking.text(REQUEST) + "<think>\n\n</think>\n\n"
    assert thinking.digest != direct.digest
    assert not direct.opens_think(2)
    with pytest.raises(ConfigError, match="chat_template_kwargs: expected none"):
        JudgePrompt(tiny.write_folder(tmp_path / "bare"), chat_template_kwargs={"enable_thinking": False})


def test_a_prompt_that_ends_in_a_thinking_block_says_so(tmp_path):
    opened = JudgePrompt(tiny.write_folder(tmp_path, chat_template="{{ messages[0].content }}<think>\n"))
    assert opened.opens_think(REQUEST)
    request = ScoreRequest("<think>", ["<think>"])
    assert not JudgePrompt(tiny.write_folder(tmp_path / "bare")).opens_think(request)


@pytest.mark.parametrize(
    "source",
    [
        "nothing",
        "{{ messages[0].content }}{{ messages[0].content }}",
        "{{ messages[0].content[:40] }}",
        "{{ messages[0].content | upper }}",
        "{{ messages | tojson }}",
        "{{ messages[0].content | truncate(900) }}",
    ],
)
def test_a_chat_template_may_not_drop_repeat_or_change_user_text(source, tmp_path):
    with pytest.raises(TemplateUseError, match="chat template of"):
        JudgePrompt(tiny.write_folder(tmp_path, chat_template=source))


def test_split_parts_is_the_inverse_of_placing_markers():
    rng = random.Random(3)
    for _ in range(300):
        parts, text, last = [], "", None
        for _ in range(rng.randint(0, 8)):
            if rng.random() < 0.5:
                parts.append(UserPart(rng.randint(0, 99)))
                text += str.__str__(UserText.value(parts[-1].index, 2))
            elif not isinstance(last, TemplatePart):
                parts.append(TemplatePart(rng.choice(["a", "uS1n", " \n", "}"])))
                text += parts[-1].text
            last = parts[-1] if parts else None
        assert list(split_parts(text)) == parts
