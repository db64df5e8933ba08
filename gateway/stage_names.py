"""The names of the stages behind the gateway, in the order in which a request passes them."""

STAGES = ("tokenizer", "backbone", "codec", "watermark")
