"""How good the embedded model is: judges, measures, comparison rows, gates. Plain torch, no Warp.

`judges.py` are networks trained on ground truth only; `measures.py` compares surfaces and names colors;
`truth.py` makes what is compared against; `generate.py` runs the model in batches; `baselines.py` does what
a model has to beat; `text.py` and `strange.py` judge prompts and pictures of other things; `report.py` says
what came out. `tests/benchmarks/embedded_quality.py` puts them together.
"""
