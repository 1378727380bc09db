"""``longvid calibrate``: statistics of a calibration set, a quantizer fitted to them, and the gate it must pass."""
