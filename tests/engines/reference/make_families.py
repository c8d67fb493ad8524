"""Make ``families.json``: logits and greedy ids of transformers for the tiny models. Run once, by hand.

It needs torch and transformers, which engineroom does not:

    python -m venv ref && ref/bin/pip install torch==2.13.0 transformers==5.23.0
    ref/bin/python tests/engines/reference/make_families.py
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import tiny_models  # noqa: E402

#: 24 tokens: three times the sliding window of the models that have one.
PROMPT = [(7 * n * n + 11 * n + 5) % (tiny_models.VOCABULARY - 3) + 3 for n in range(24)]
#: Positions whose logits are kept.
POSITIONS = [0, 7, 12, 23]
TOKENS = 12


def main() -> None:
    result: dict[str, Any] = {"prompt": PROMPT, "positions": POSITIONS, "models": {}}
    for name in tiny_models.CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            result["models"][name] = run(tiny_models.write(name, Path(folder)))
    (HERE / "families.json").write_text(json.dumps(result) + "\n")


def run(folder: Path) -> dict[str, Any]:
    """Logits at the positions, and greedy ids after the whole prompt (the end token does not stop them)."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        logits = model(ids).logits[0]
        greedy = []
        for _ in range(TOKENS):
            best = int(model(ids).logits[0, -1].argmax())
            greedy.append(best)
            ids = torch.cat([ids, torch.tensor([[best]])], dim=1)
    kept = [[round(float(value), 5) for value in logits[position]] for position in POSITIONS]
    return {"logits": kept, "greedy": greedy}


if __name__ == "__main__":
    main()
