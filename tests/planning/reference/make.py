"""Make ``parameters.json``: sizes of published models as transformers builds them. Run once, by hand.

It needs torch and transformers, which engineroom does not. Models are built on torch's device "meta": no weights.

    python -m venv ref && ref/bin/pip install torch==2.13.0 transformers==5.23.0
    ref/bin/python tests/planning/reference/make.py

``configs.json`` holds, for each model, the keys of its published ``config.json`` that shape it.
"""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def main() -> None:
    configs = json.loads((HERE / "configs.json").read_text())
    result = {name: count(config) for name, config in configs.items()}
    (HERE / "parameters.json").write_text(json.dumps(result, indent=1) + "\n")


def count(config: dict[str, Any]) -> dict[str, int]:
    """All parameters, each once; and the values that one cached token has over all layers (dense attention)."""
    import torch
    import transformers

    values = {key: value for key, value in config.items() if key not in ("quantization_config", "auto_map")}
    made = transformers.AutoConfig.for_model(**values)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16)
    model.tie_weights()
    # The router's correction is a buffer in transformers, and a tensor of the checkpoint.
    extra = sum(buffer.numel() for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias"))
    return {"parameters": sum(value.numel() for value in model.parameters()) + extra}


if __name__ == "__main__":
    main()
