"""The model card of a saved policy."""

from __future__ import annotations

from collections.abc import Mapping

import yaml


def model_card(
    name: str, iteration: int, settings: Mapping[str, object], cites: tuple[str, ...], provenance: Mapping[str, str]
) -> str:
    """Markdown: how the model was made, with which components and versions, and how to load it.

    Args:
        name: the run's name.
        iteration: which iterate this is.
        settings: the resolved configuration.
        cites: papers and equations behind the method.
        provenance: component -> ``name@distribution==version``.
    """
    components = "\n".join(f"- `{component}`: {origin}" for component, origin in sorted(provenance.items()))
    papers = "\n".join(f"- {paper}" for paper in cites) or "- none given"
    return f"""---
library_name: transformers
tags: [sera, preference-optimization]
---
# {name}, iteration {iteration}

A language model aligned with Sera. Load it with `AutoModelForCausalLM.from_pretrained(folder)`; tokenizer and chat
template are beside it.

## Components
{components}

## Method
{papers}

## Configuration
```yaml
{yaml.safe_dump(dict(settings), sort_keys=True).strip()}
```
"""
