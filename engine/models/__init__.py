"""Decoder families over one shared set of layers.

| in | what happens | out | where |
|---|---|---|---|
| config.json (v4 or v5) | read, check, refuse by name | `ModelConfig` | `config.py`, `fields.py` |
| architecture name | say what differs | `Family` | `families.py` |
| rope settings | frequencies | `kernels.rope.Rope` | `rope_types.py` |
| safetensors files | map, check names and shapes, fuse | tensors | `weights.py` |
| weights of a layer | norms, projections, MLP | `DecoderLayer` | `layers.py` |
| a model folder, a format | pack, keep the file, map it | `kernels.cpu_weights.WeightSet` | `packed_weights.py` |
| tokens, positions, slots, plan | the loop over layers | logits | `decoder.py`, `packed_decoder.py` |
"""
