import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from engineroom.errors import CheckpointError, InputError
from engineroom.repository.record import BuildRecord
from engineroom.serving.chat import render, render_chat

WITH_BOS = """{{ bos_token }}{% for message in messages %}
    {% if message['role'] not in ['system', 'user', 'assistant'] %}
        {{ raise_exception('unknown role ' + message['role']) }}
    {% endif %}
{{ '[' + message['role'] + '] ' + message['content'] | trim + '\\n' -}}
{% endfor %}
{% if add_generation_prompt %}
{{ '[assistant]' -}}
{% endif %}"""

HELLO = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  Hello  "}]


def with_template(record: BuildRecord, template: str | None) -> BuildRecord:
    model = record.model.model_copy(update={"chat_template": template, "special_tokens": {"bos_token": "<s>"}})
    return record.model_copy(update={"model": model})


def test_messages_become_the_models_own_format(record: BuildRecord) -> None:
    text = render_chat(with_template(record, WITH_BOS), HELLO)

    assert text == "<s>[system] Be brief.\n[user] Hello\n[assistant]"


def test_the_prompt_for_the_answer_can_be_left_out(record: BuildRecord) -> None:
    text = render_chat(with_template(record, WITH_BOS), HELLO, add_generation_prompt=False)

    assert text.endswith("[user] Hello\n")


def test_a_rendered_template_has_exactly_one_bos_when_no_special_tokens_are_added(record: BuildRecord) -> None:
    words = ["<s>", "[UNK]", "[", "]", "system", "user", "assistant", "Be", "brief", ".", "Hello"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])

    text = render_chat(with_template(record, WITH_BOS), HELLO)

    assert tokenizer.encode(text, add_special_tokens=False).ids == [0, 2, 4, 3, 7, 8, 9, 2, 5, 3, 10, 2, 6, 3]
    assert tokenizer.encode(text, add_special_tokens=True).ids.count(0) == 2


def test_a_model_without_a_template_says_how_to_ask_it(record: BuildRecord) -> None:
    with pytest.raises(InputError) as refusal:
        render_chat(with_template(record, None), HELLO)

    assert "without --chat" in refusal.value.fix


def test_the_templates_own_refusal_is_the_error() -> None:
    with pytest.raises(InputError, match="unknown role tool"):
        render(WITH_BOS, [{"role": "tool", "content": "x"}], {"bos_token": "<s>"})


def test_templates_find_what_hugging_face_gives_them() -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'skip' %}{% continue %}{% endif %}"
        "{{ loop.index }}/{{ loop.length }}{{ ' last' if loop.last }}{{ '<&é' | tojson }}"
        "{% generation %}{{ m.content }}{% endgeneration %};{% endfor %}"
        "{% if tools is not none %}tools{% endif %}{{ strftime_now('%Y') | length }}"
    )
    messages = [{"role": "a", "content": "x"}, {"role": "skip", "content": "y"}, {"role": "b", "content": "z"}]

    assert render(template, messages, {}) == '1/3"<&é"x;3/3 last"<&é"z;4'


def test_a_broken_template_is_the_checkpoints_fault() -> None:
    with pytest.raises(CheckpointError, match="line 2"):
        render("\n{% for %}", HELLO, {})


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__.__base__ }}{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ messages.append(1) }}",
        "{{ 'x' * 1000000000 }}",
        "{{ [0] * 1000000000 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(9999) %}{{ 'x' * 9999 }}{% endfor %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ 'x' }}" * 60_000,
    ],
)
def test_a_template_that_reaches_out_or_does_not_end_is_refused_soon(template: str) -> None:
    began = time.monotonic()

    with pytest.raises((CheckpointError, InputError)):
        render(template, HELLO, {})

    assert time.monotonic() - began < 5


@given(st.text(max_size=200))
def test_the_contents_of_messages_are_never_a_template(content: str) -> None:
    text = render("{% for m in messages %}{{ m.content }}{% endfor %}", [{"role": "user", "content": content}], {})

    assert text == content


@given(st.text(alphabet="{%}- abfor1inmessages.|'", max_size=60))
def test_any_template_renders_or_is_refused_in_our_words(source: str) -> None:
    try:
        assert isinstance(render(source, HELLO, {}), str)
    except (CheckpointError, InputError) as refusal:
        assert refusal.where == "chat template"
