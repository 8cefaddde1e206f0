"""Models made ready for int8 before they are converted, so that little of their accuracy is lost.

methods     how, by name, and for which families
recipe      all that decides the result, as data
folding     a recipe applied: rotation, then smoothing; exact in float32
rounding    which way each weight is rounded
search      the recipe that changes a model least

Everything happens to the weights, once: the converted model runs as fast as any other in int8.
"""
