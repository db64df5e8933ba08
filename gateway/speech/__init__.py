"""How a text becomes speech in time: the units it is spoken in, and when its speech must end.

Pure rules: no gRPC, no model.
"""
