"""Algorithms that prepare a model for int8 before conversion, so that it keeps its accuracy.

methods          quantization methods by name, and the model families each supports
recipe           method, seed, smoothing strengths and calibration rows, as data
foldable_model   the linear layers of a model, by one set of names for all families
folding          apply a recipe: rotation (QuaRot), then smoothing (SmoothQuant); exact in float32
gptq             round weights to int8 with error compensation (GPTQ)
search           find the recipe with the smallest divergence from the float32 model

All changes are made to the weights, once: the converted model is as fast as any other in int8.
"""
