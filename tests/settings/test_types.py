import pytest

from extproc.settings.types import tokenizer_spec


@pytest.mark.parametrize("spec", ["tiktoken:o200k_base", "tiktoken:my-own.v2", "hf:/models/a b/tokenizer.json"])
def test_a_spec_names_an_encoding_or_a_file(spec):
    assert tokenizer_spec(spec) == spec


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "tiktoken",
        "tiktoken:",
        "tiktoken:../x",
        "hf:",
        "hf:meta-llama/Llama",
        "hf:/",
        "gpt-4o",
        "HF:/x",
        "hf:/a\nb",
    ],
)
def test_a_spec_of_another_form_is_refused_with_both_forms(spec):
    with pytest.raises(ValueError, match=r"tiktoken:o200k_base, or hf:/<path>/tokenizer\.json"):
        tokenizer_spec(spec)
