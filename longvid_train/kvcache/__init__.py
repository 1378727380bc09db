"""KV-cache compression: quantizer maths, packed cache layers, attention on the codes, and the quantizer checkpoint."""
